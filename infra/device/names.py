"""Pure: a name from the network → where its file belongs below the device's folder, or why it has none."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from functions.events.names import config_name, is_asset_path, is_config_name

Kind = Literal["config", "asset"]

FOLDERS: dict[Kind, str] = {"config": "configs", "asset": "assets"}
MAX_SEGMENT_BYTES = 255  # NAME_MAX of every common file system
MAX_PAYLOAD_BYTES = 8 * 1024  # 1,024 bytes of name, each escaped as \u00XX, and room to spare


class UnsafeNameError(ValueError):
    """The name has no place on this device; the message says why."""


@dataclass(frozen=True, slots=True)
class Name:
    """A file by the name that all devices know: `safe` has accepted it."""

    kind: Kind
    filename: str

    @property
    def path(self) -> str:
        """`configs/<mac>.json` or `assets/<path>`: on the server, and below the device's folder."""
        return f"{FOLDERS[self.kind]}/{self.filename}"

    @property
    def segments(self) -> tuple[str, ...]:
        """The folders to walk down, and last the file."""
        return tuple(self.path.split("/"))

    @property
    def digest(self) -> str:
        """What the device's own notes about this file are called: hex, so that no name can collide with them."""
        return hashlib.sha256(self.path.encode()).hexdigest()[:40]


def parse_payload(payload: bytes) -> str:
    """The filename of a notification, still to be judged by `safe`. UnsafeNameError when it is no notification."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise UnsafeNameError(f"a notification is at most {MAX_PAYLOAD_BYTES:,} bytes")
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        raise UnsafeNameError("the payload is not JSON") from None
    filename = document.get("filename") if isinstance(document, dict) else None
    if not isinstance(filename, str):
        raise UnsafeNameError('the payload is not {"filename": …}')
    return filename


def safe(kind: Kind, filename: str) -> Name:
    """Judge a name that anybody may have chosen. UnsafeNameError when its file could land outside of the folder.

    Beyond the server's own rules: no backslash, which is a separator elsewhere, and no segment that a file system
    cannot hold. Links inside the folder are the store's to refuse, since only walking down meets them.
    """
    try:
        filename.encode()
    except UnicodeEncodeError:  # JSON may hold half of a surrogate pair
        raise UnsafeNameError("the name is not Unicode text") from None
    if kind == "config" and not is_config_name(filename):
        raise UnsafeNameError("a config is called <mac>.json")
    if not is_asset_path(filename):
        raise UnsafeNameError("the name would leave the folder, or holds what no name may")
    if "\\" in filename:
        raise UnsafeNameError("the name holds a backslash")
    if any(len(segment.encode()) > MAX_SEGMENT_BYTES for segment in filename.split("/")):
        raise UnsafeNameError(
            f"a part of the name is longer than the {MAX_SEGMENT_BYTES} bytes that a file system takes"
        )
    return Name(kind, filename)


def kind_of(filename: str) -> Kind:
    """What is meant where the topic does not say: what is named like a config is one."""
    return "config" if is_config_name(filename) else "asset"


def is_own(name: Name, mac: str) -> bool:
    """Whether this is for the device of that MAC (in lower case): any asset, no other's config."""
    return name.kind == "asset" or name.filename.lower() == config_name(mac)
