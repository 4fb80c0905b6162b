"""Pure: what the publishing process knows of a key, and each event in words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple, get_args

from functions.events.dialects import IgnoredReason
from functions.events.routes import SkipReason

Sweep = Literal["off", "announced", "counted", "rolled_back", "unannounced", "not_checked"]
"""What the sweep's record says of the file as it is now."""

BY_HAND = "ring"
SOURCES = {
    "sure": "POST /events",
    "fast": "POST /events/fast",
    "sqs": "the queue",
    "r2": "Cloudflare's queue",
    "nats": "JetStream",
    "sweep": "the sweep",
    "again": "another try of what was given up",
    BY_HAND: "`bucketbell ring`",
}
ANNOUNCED = ("delivered", "no_subscribers", "sent")
FAILED = ("refused", "unconfirmed", "store_failed")
_NOT_OF_THE_BROKER = frozenset({*get_args(SkipReason), *get_args(IgnoredReason)})
_WORDS = {
    "delivered": "announced, and the broker confirmed it",
    "no_subscribers": "announced, and the broker says that nobody listens",
    "sent": "announced with QoS 0, which nobody confirms",
    "refused": "refused by the broker",
    "unconfirmed": "not confirmed",
    "store_failed": "the store did not hand out the camera's document",
    "bad_detection": "not announced: the document is not a camera's event",
    "gone": "not announced: the camera's document is there no more",
    "repeated": "a repeat of what was known already; not announced again",
    "gave_up": "given up for now; it is announced when the cause ends",
    "dropped": "dropped: too many events were waiting. The other door, or the sweep, brings it",
    "removed": "the file was removed, which is never announced",
    "not_content": "not announced: the content stayed the same (tags, retention, replication, …)",
}


@dataclass(frozen=True, slots=True)
class HeardEvent:
    """One event, or several in a row that are alike. `at` and `until` are wall-clock seconds."""

    at: float
    until: float
    source: str
    outcome: str
    reason: str
    reason_code: int | None
    identity: bytes
    etag: str
    event_time: str
    times: int = 1


class Held(NamedTuple):
    """Why an event fails now: for how long already, outages left out, and whether it is given up."""

    reason: str
    seconds: float
    is_given_up: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What the publishing process knows of a key."""

    since: float
    """Since when it remembers events, in wall-clock seconds."""
    now: float
    """When all this was so, by the same clock."""
    broker: str | None
    connected: bool
    trouble: str = ""
    """Why it is not connected."""
    events: tuple[HeardEvent, ...] = ()
    """Oldest first."""
    left_out: int = 0
    """How many older ones are not among them."""
    on_way: tuple[bytes, ...] = ()
    rung: frozenset[bytes] = frozenset()
    """Of these events, those that were announced: an acknowledgement may come late."""
    held: Held | None = None
    sweep: Sweep = "off"
    sweep_detail: str = ""
    sweep_trouble: str = ""
    """Why the bucket cannot be swept now."""
    sweep_at: float | None = None
    """When what it says was so."""


def told(one: HeardEvent) -> str:
    """An event, as a line of the story."""
    words = _WORDS.get(one.outcome) or f"not announced ({one.outcome.replace('_', ' ')})"
    if one.reason and one.outcome not in _NOT_OF_THE_BROKER:
        words += f": {one.reason}"
    if one.outcome in FAILED:
        words += who_goes_on(one.source)
    often = "" if one.times == 1 else f", {one.times} times until {iso(one.until)}"
    return f"by {SOURCES.get(one.source, one.source)}{often}: {words}"


def who_goes_on(source: str) -> str:
    """Who brings an event again that has failed."""
    if source in ("sure", "sqs", "r2"):
        return "; the store brings it again"
    if source == "nats":
        return "; JetStream brings it again"
    if source == "fast":
        return "; this door does not bring it again, but the other one does"
    return "; it is tried again" if source in ("sweep", "again") else ""


def moment(at: float) -> datetime:
    """Wall-clock seconds, as a time."""
    return datetime.fromtimestamp(at, UTC)


def iso(at: float) -> str:
    """The same for people, to the second."""
    return moment(at).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")


def lasting(seconds: float) -> str:
    """A span for people."""
    minute, hour = 60, 3600
    if seconds < 2 * minute:
        return f"{seconds:.0f} s"
    return f"{seconds / minute:.0f} minutes" if seconds < 2 * hour else f"{seconds / hour:.1f} hours"
