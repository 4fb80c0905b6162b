"""Pure: how far each file got: which devices should have it, and which of them have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, get_args

from functions.fleet.channels import choose
from functions.fleet.reports import FAILED, HAS_IT, FileState

Standing = Literal["has_it", "on_the_way", "failed", "waiting", "offline"]
"""Of a device that should have a file. `offline`: it waits, and the broker says that the device is not there."""
STANDINGS: tuple[Standing, ...] = get_args(Standing)


UNKNOWN = "unknown"
"""Of a device that should have no file that is in the bucket."""

KnownBy = Literal["config", "assignment", "token", "report"]
"""How a device became known."""

HeardBy = Literal["this_process", "another", "nobody"]
"""Who hears devices' reports by MQTT; `another` of those that share the database."""


@dataclass(slots=True)
class Hearing:
    """Whether reports are heard, as far as this process knows. On Lambda it never does."""

    by: HeardBy = "another"
    detail: str = ""
    """Why nobody does."""


class KnownDevice(NamedTuple):
    """A device. Texts are "" where nothing is known; `is_online` is None where the broker has said nothing of it."""

    mac: str
    source: KnownBy
    known_since: datetime
    is_online: bool | None
    online_at: datetime | None
    reported_at: datetime | None
    version: str
    agent: str
    follows: str
    assigned: str


class LastReport(NamedTuple):
    """What a device said last of a file. `at` is when it was, `arrived_at` when it was heard."""

    mac: str
    filename: str
    etag: str
    version_id: str
    state: FileState
    progress: int | None
    reason: str
    at: datetime
    arrived_at: datetime


class Reporting(NamedTuple):
    """So many devices that follow the same, and said the same of one asset."""

    follows: str
    assigned: str
    is_online: bool | None
    filename: str
    etag: str
    state: FileState
    devices: int


class Following(NamedTuple):
    """So many devices that follow the same."""

    follows: str
    assigned: str
    is_online: bool | None
    devices: int


Tally = Mapping[Standing, int]


def standing(state: FileState | None, *, is_current: bool, is_online: bool | None) -> Standing:
    """How far a device is with a file. `is_current`: what it said is about the file as it is now."""
    if state is not None and is_current:
        return "has_it" if state in HAS_IT else "failed" if state in FAILED else "on_the_way"
    return "offline" if is_online is False else "waiting"


def tally(
    reporting: Iterable[Reporting], following: Iterable[Following], etags: Mapping[str, str], current: Mapping[str, str]
) -> dict[str, Counter[Standing]]:
    """Count the devices that should have each asset, by standing. `etags` are those of the assets as they are now.

    A device that follows nothing should have what it reported about.
    """
    found: dict[str, Counter[Standing]] = {filename: Counter() for filename in etags}
    silent: Counter[tuple[str, bool | None]] = Counter()
    for group in following:
        if (choice := choose(group.assigned, group.follows, current)) is not None:
            silent[choice.filename, group.is_online] += group.devices
    for said in reporting:
        choice = choose(said.assigned, said.follows, current)
        if said.filename not in etags or (choice is not None and choice.filename != said.filename):
            continue
        is_current = said.etag == etags[said.filename]
        found[said.filename][standing(said.state, is_current=is_current, is_online=said.is_online)] += said.devices
        if choice is not None:
            silent[said.filename, said.is_online] -= said.devices
    for (filename, is_online), devices in silent.items():
        if filename in found and devices > 0:
            found[filename][standing(None, is_current=False, is_online=is_online)] += devices
    return found


def census(
    reporting: Iterable[Reporting],
    following: Collection[Following],
    etags: Mapping[str, str],
    current: Mapping[str, str],
) -> dict[str, int]:
    """Count all devices, each by its standing with the one file that it should have. Parameters as in `tally`."""
    on_target = (one for one in reporting if choose(one.assigned, one.follows, current) is not None)
    found = sum(tally(on_target, following, etags, current).values(), Counter[Standing]())
    devices = sum(group.devices for group in following)
    # The two lists may be of two moments.
    return {**{one: found[one] for one in STANDINGS}, UNKNOWN: max(0, devices - found.total())}
