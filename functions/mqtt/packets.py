"""Pure: a message as MQTT puts it on the wire. paho's own encoder costs more than the rest of a publish."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from functions.mqtt.message import CONTENT_TYPE

if TYPE_CHECKING:
    from functions.mqtt.message import Message

PUBLISH = 0x30
_USER_PROPERTY = b"\x26"


def publish_packet(message: Message, mid: int, qos: int, *, properties: bool) -> bytes:
    """One PUBLISH (MQTT 5 §3.3, MQTT 3.1.1 §3.3), not a duplicate; `properties` are MQTT 5's."""
    topic = _repeated(message.topic)
    identifier = mid.to_bytes(2, "big") if qos else b""
    packed = _properties(message) if properties else b""
    remaining = len(topic) + len(identifier) + len(packed) + len(message.payload)
    header = bytes((PUBLISH | qos << 1 | message.retain,)) + _variable_byte_integer(remaining)
    return b"".join((header, topic, identifier, packed, message.payload))


def _properties(message: Message) -> bytes:
    """UTF-8 payload, content type, user properties in their order (MQTT 5 §3.3.2.3)."""
    body = bytearray(_FIXED_PROPERTIES)
    for name, value in message.user_properties:
        encoded = value.encode()
        body += _USER_PROPERTY + _repeated(name)
        body += len(encoded).to_bytes(2, "big") + encoded
    return _variable_byte_integer(len(body)) + body


def _string(text: str) -> bytes:
    """MQTT 5 §1.5.4."""
    encoded = text.encode()
    return len(encoded).to_bytes(2, "big") + encoded


_repeated = lru_cache(maxsize=256)(_string)  # topics and names of properties: few, and in every message


def _variable_byte_integer(value: int) -> bytes:
    """MQTT 5 §1.5.5."""
    encoded = bytearray()
    while True:
        value, byte = divmod(value, 128)
        encoded.append(byte | 0x80 if value else byte)
        if not value:
            return bytes(encoded)


_FIXED_PROPERTIES = b"\x01\x01\x03" + _string(CONTENT_TYPE)
