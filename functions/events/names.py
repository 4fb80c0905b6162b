"""Pure: what a device, a file, a camera and an event may be called."""

from __future__ import annotations

MAC_CHARACTERS = len("a1-b2-c3-d4-e5-f6")
MAX_FILENAME_BYTES = 1024  # S3: "The name for a key is a sequence of Unicode characters … at most 1,024 bytes"
MAX_EVENT_ID_BYTES = 128  # of a camera's id, and of an event's
CONFIG_SUFFIX = ".json"
DOCUMENT_SUFFIX, PICTURE_SUFFIX = ".json", ".jpg"
CANARY_KEY = ".bucketbell/canary"
"""What `bucketbell doctor` uploads, to see at which doors the host hears of it. Nobody else is told."""

_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_DOTS = frozenset({".", ".."})
_NOT_IN_AN_ID = frozenset("/\\+#")  # backslash: MinIO takes it for a slash; plus and hash: MQTT 5 §4.7.1
# What MQTT 5 §1.5.4 forbids or advises against in a string, and Mosquitto answers by closing the connection: C0 and C1
# controls, and the non-characters U+FDD0..U+FDEF and U+nFFFE, U+nFFFF. And U+FEFF: it is legal, but a device built on
# paho closes its connection over it.
_NOT_IN_A_STRING = frozenset(
    map(
        chr,
        (
            *range(0x20),
            *range(0x7F, 0xA0),
            *range(0xFDD0, 0xFDF0),
            0xFEFF,
            *(plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF)),
        ),
    )
)


def is_mac(text: str) -> bool:
    """Whether this is a MAC address as files and tokens spell it: six hex pairs joined by dashes, any case."""
    return len(text) == MAC_CHARACTERS and text[2::3] == "-----" and _HEX_DIGITS.issuperset(text[::3] + text[1::3])


def normalise_mac(text: str) -> str:
    """Return a MAC address as `is_mac` wants it, from `aa:bb:…`, `aa-bb-…` or `aabb…`; letters keep their case.

    Raises ValueError.
    """
    text = text.strip()
    digits = text.replace(":", "").replace("-", "")
    mac = "-".join(digits[at : at + 2] for at in range(0, len(digits), 2))
    if not is_mac(mac) or text not in {mac, mac.replace("-", ":"), digits}:
        raise ValueError("a MAC address is six hex pairs, e.g. a1-b2-c3-d4-e5-f6")
    return mac


def config_name(mac: str) -> str:
    """Return the name of a device's config below CONFIGS_PREFIX."""
    return mac + CONFIG_SUFFIX


def is_config_name(filename: str) -> bool:
    """Whether this is `<mac>.json`."""
    return filename.endswith(CONFIG_SUFFIX) and is_mac(filename.removesuffix(CONFIG_SUFFIX))


def is_event_id(text: str) -> bool:
    """Whether a camera or an event may be called this: one segment of a key, and one level of a topic.

    Up to 128 bytes without `/`, `+`, `#`, controls, or dots alone.
    """
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return (
        0 < size_bytes <= MAX_EVENT_ID_BYTES
        and text not in _DOTS
        and _NOT_IN_AN_ID.isdisjoint(text)
        and _NOT_IN_A_STRING.isdisjoint(text)
    )


def is_picture_path(path: str) -> bool:
    """Whether this is `<camera>/<event>.jpg`: where a thumbnail is, below EVENTS_PREFIX."""
    camera_id, _, event_id = path.removesuffix(PICTURE_SUFFIX).partition("/")
    return path.endswith(PICTURE_SUFFIX) and is_event_id(camera_id) and is_event_id(event_id)


def is_asset_path(path: str) -> bool:
    """Whether a device may join this path to a folder: relative, without empty, `.` or `..` segment or controls."""
    try:
        size_bytes = len(path.encode())
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return (
        size_bytes <= MAX_FILENAME_BYTES
        and _NOT_IN_A_STRING.isdisjoint(path)
        and "" not in path.split("/")
        # Between backslashes too: they separate folders on some devices, and MinIO refuses such names.
        and _DOTS.isdisjoint(path.replace("\\", "/").split("/"))
    )
