"""Pure: which file a device should have. A channel is a folder of assets, and the newest file of a kind is current."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

# What lies beside a firmware and is none.
BESIDE = (".sig", ".asc", ".sha256", ".json", ".txt", ".md")

_SUFFIX = re.compile(r"(?:\.tar)?\.[a-z][a-z0-9]*$", re.IGNORECASE)

# A version at the end of a name: `-1.2.4`, `_v2`, `-2026-11-30`, `.1.2-rc1`, `-1.2.4+build7`; or the whole name.
_VERSION = re.compile(
    r"(?:^|[-_.])v?(?:\d{4}-\d\d-\d\d|\d+(?:[._]\d+)*)(?:[-_.]?(?:rc|alpha|beta|dev|pre|a|b)[-_.]?\d*)?(?:\+[0-9a-z.]+)?$",
    re.IGNORECASE,
)

ChoiceRule = Literal["assigned", "channel"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The file that a device should have, and which rule chose it."""

    filename: str
    rule: ChoiceRule


def channel(filename: str) -> str:
    """The folder of an asset, "" in the root, which is no channel."""
    return filename.rpartition("/")[0]


def stem(filename: str) -> str:
    """What all versions of one firmware share: `esp32/fw-1.2.4.bin` → `esp32/fw.bin`; "" where it has no channel.

    Devices that installed one of them follow the newest.
    """
    folder, _, name = filename.rpartition("/")
    if not folder or name.lower().endswith(BESIDE):
        return ""
    end = _end(name)
    return f"{folder}/{_VERSION.sub('', name[:end])}{name[end:]}"


def version(filename: str) -> str:
    """What tells a file from the others of its stem: `esp32/fw-v1.2.4.bin` → `1.2.4`; "" where its name does not."""
    name = filename.rpartition("/")[2]
    found = _VERSION.search(name[: _end(name)])
    return "" if found is None else found.group().lstrip("-_.vV")


def newest(files: Iterable[tuple[str, datetime]]) -> dict[str, str]:
    """The current file of each stem, of names and when each was modified. Of equal times the last name counts."""
    latest: dict[str, tuple[datetime, str]] = {}
    for filename, modified in files:
        kind = stem(filename)
        if kind:
            latest[kind] = max(latest.get(kind, (modified, filename)), (modified, filename))
    return {kind: filename for kind, (_, filename) in latest.items()}


def choose(assigned: str, follows: str, current: Mapping[str, str]) -> Choice | None:
    """What a device should have, if that can be told. `follows` is the stem of what it installed last."""
    if assigned:
        return Choice(assigned, "assigned")
    filename = current.get(follows)
    return None if filename is None else Choice(filename, "channel")


def _end(name: str) -> int:
    """Where the suffix begins."""
    suffix = _SUFFIX.search(name)
    return len(name) if suffix is None else suffix.start()
