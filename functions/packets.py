"""Pure: what MQTT 5 puts on the wire for a notification, where paho's own encoder is too slow or keeps it to itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from functions.routes import CONTENT_TYPE

if TYPE_CHECKING:
    from functions.routes import Notification


def pack_properties(notification: Notification) -> bytes:
    """PUBLISH properties on the wire (MQTT 5 §3.3.2.3): UTF-8 payload, content type, user properties in order."""
    body = b"\x01\x01\x03" + _string(CONTENT_TYPE)
    body += b"".join(b"\x26" + _string(name) + _string(value) for name, value in notification.user_properties)
    return _variable_byte_integer(len(body)) + body


def publish_bytes(notification: Notification, qos: int) -> int:
    """Size of the whole PUBLISH packet: fixed header, topic, packet identifier, properties, payload (§3.3)."""
    remaining = 2 + len(notification.topic.encode()) + (2 if qos else 0) + len(notification.payload)
    remaining += len(pack_properties(notification))
    return 1 + len(_variable_byte_integer(remaining)) + remaining


def _string(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def _variable_byte_integer(value: int) -> bytes:
    """MQTT 5 §1.5.5."""
    encoded = bytearray()
    while True:
        value, byte = divmod(value, 128)
        encoded.append(byte | 0x80 if value else byte)
        if not value:
            return bytes(encoded)
