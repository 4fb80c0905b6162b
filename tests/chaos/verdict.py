"""Pure: what was uploaded against what was heard: what is missing, repeated, late."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Upload:
    """A PUT that the store answered with 200, or that was given up at `answered_at`. Times are `time.monotonic`."""

    began_at: float
    answered_at: float


@dataclass(frozen=True, slots=True)
class Heard:
    """A message as the subscriber got it: which object it names, and the `id` among its properties ("" without)."""

    key: str
    event_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of all uploads of one scenario.

    `missing` and `renamed` are keys: uploaded and never heard; heard again under another id than the first time, or
    under none. `lost` were answered and never heard, and the store has them no longer: its own loss. `repeats` are
    messages beyond each upload's first. `out_of_order` counts uploads that were first heard after one whose PUT only
    began when theirs had been answered. `recovery_seconds` is the longest time from a healing to the next message (None
    where nothing healed, or nothing was heard after it), `longest_wait_seconds` from a PUT's answer to its message.
    """

    uploaded: int
    heard: int
    missing: tuple[str, ...]
    repeats: int
    renamed: tuple[str, ...]
    out_of_order: int
    recovery_seconds: float | None
    longest_wait_seconds: float
    lost: tuple[str, ...] = ()


def judge(
    uploads: Mapping[str, Upload],
    messages: Sequence[Heard],
    healed_at: Sequence[float] = (),
    gone: Collection[str] = (),
) -> Verdict:
    """Compare. `messages` are in the order of their arrival; those of other keys (probes) are not counted.

    `gone` are keys of uploads that the store has no longer.
    """
    ours = [message for message in messages if message.key in uploads]
    copies: defaultdict[str, list[Heard]] = defaultdict(list)
    for message in ours:
        copies[message.key].append(message)
    firsts = [heard[0] for heard in copies.values()]  # a dictionary keeps the order of first arrival
    waits = [first.at - uploads[first.key].answered_at for first in firsts]
    return Verdict(
        uploaded=len(uploads),
        heard=len(copies),
        missing=tuple(key for key in uploads if key not in copies and key not in gone),
        repeats=len(ours) - len(copies),
        renamed=tuple(key for key, heard in copies.items() if _renamed([one.event_id for one in heard])),
        out_of_order=_out_of_order([uploads[first.key] for first in firsts]),
        recovery_seconds=_recovery_seconds([message.at for message in ours], healed_at),
        longest_wait_seconds=max(waits, default=0.0),
        lost=tuple(key for key in uploads if key not in copies and key in gone),
    )


def _renamed(event_ids: Sequence[str]) -> bool:
    first, *others = event_ids
    return not first or any(event_id != first for event_id in others)


def _out_of_order(uploads: Sequence[Upload]) -> int:
    """How many were overtaken. Uploads that were under way side by side have no order that could be broken."""
    latest_began_at = float("-inf")
    overtaken = 0
    for upload in uploads:
        overtaken += upload.answered_at < latest_began_at
        latest_began_at = max(latest_began_at, upload.began_at)
    return overtaken


def _recovery_seconds(arrivals: Sequence[float], healed_at: Sequence[float]) -> float | None:
    waits = [next((at - healed for at in arrivals if at >= healed), None) for healed in healed_at]
    return max((wait for wait in waits if wait is not None), default=None)
