"""Pure: the answer to why a file was announced or was not, in one word and in one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from functions.admin.known import ANNOUNCED, FAILED, HeardEvent, Known, iso, lasting, told, who_goes_on

if TYPE_CHECKING:
    from functions.admin.schemas import ObjectAnswer, RouteAnswer


class Conclusion(NamedTuple):
    """`word` is for programs; `well`: it was announced."""

    word: str
    words: str
    well: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """All that is asked about."""

    key: str
    route: RouteAnswer
    found: ObjectAnswer
    known: Known
    mine: tuple[HeardEvent, ...] = ()
    """The events of the file as it is now, oldest first; of any where that is not known."""


def not_announced(key: str, route: RouteAnswer) -> Conclusion:
    """Whatever becomes of the file, its key rings no bell."""
    return Conclusion("not_announced", f"{key} is not announced: {route.detail}. {route.remedy}".strip())


def judge(case: Case) -> Conclusion:
    """Go by the last event of the file as it is now; without one, by what the sweep or the bucket says."""
    known = case.known
    if not case.route.announced:
        return not_announced(case.key, case.route)
    if known.broker is None:
        return Conclusion("no_broker", "Nothing is announced: no broker is configured. Set MQTT_URL.")
    if known.on_way:
        return _waits(case, "It is on its way to the broker, which has not confirmed it yet.")
    last = next((one for one in reversed(case.mine) if one.outcome != "repeated"), None)
    if last is None:
        return _unheard(case)
    if last.outcome in ANNOUNCED or last.identity in known.rung:
        return _announced(case, last)
    return _failed(case, last)


def _announced(case: Case, last: HeardEvent) -> Conclusion:
    at, topic = iso(last.at), case.route.topic
    if last.outcome == "no_subscribers":
        words = "The broker says that nobody listens there: is the device connected, and subscribed to this topic?"
        return Conclusion("nobody_listens", f"It was announced at {at} on {topic}. {words}")
    if last.outcome == "sent":
        return Conclusion("sent", f"It was sent at {at} on {topic}. With QoS 0 nobody confirms that.", well=True)
    if last.outcome != "delivered":
        return Conclusion("announced", f"It was announced on {topic}: the broker confirmed it after {at}.", well=True)
    if (later := next((one for one in reversed(case.known.events) if _replaces(one, last)), None)) is not None:
        words = f"It was announced at {at}, and another content of it at {iso(later.at)}: the older one has come back"
        return Conclusion("rolled_back", f"{words}, which is not announced again. {_ring(case)}")
    words = f"It was announced at {at} on {topic}, and the broker confirmed it."
    if case.found.state == "absent":
        words += " The file is not in the bucket any more."
    return Conclusion("announced", words, well=True)


def _replaces(one: HeardEvent, other: HeardEvent) -> bool:
    """Whether `one` was announced of another content, uploaded after that of `other`; events may overtake others."""
    if one.outcome not in ANNOUNCED or not one.etag or not other.etag or one.etag == other.etag:
        return False
    is_later = one.event_time > other.event_time if one.event_time and other.event_time else one.at > other.at
    return is_later and one.at > other.at


def _failed(case: Case, last: HeardEvent) -> Conclusion:
    known = case.known
    if last.outcome == "gave_up":
        since = "" if known.held is None else f", for {lasting(known.held.seconds)} already"
        words = f"It was given up at {iso(last.at)}{since}: {last.reason}."
        return Conclusion("given_up", f"{words} It is announced as soon as that ends. {_remedy(last)}".strip())
    if last.outcome == "refused":
        return Conclusion("refused", f"The broker refuses it: {last.reason}. {_remedy(last)}".strip())
    if last.outcome in FAILED:
        words = (
            f"It was not confirmed at {iso(last.at)}: {last.reason or 'no answer in time'}{who_goes_on(last.source)}."
        )
        return _waits(case, words)
    if last.outcome == "removed":
        return Conclusion("removed", f"The file was removed at {iso(last.at)}, which is never announced.")
    if last.outcome == "dropped":
        words = "It was dropped at the fast door, and nothing has brought it since."
        return Conclusion("dropped", f"{words} {_ring(case)}")
    return Conclusion("not_announced", f"It was not announced: {told(last)}.")


def _waits(case: Case, words: str) -> Conclusion:
    known = case.known
    if not known.connected:
        return Conclusion("waiting", f"It waits for the broker {known.broker}: {known.trouble or 'not connected yet'}.")
    return Conclusion("waiting", words)


def _remedy(last: HeardEvent) -> str:
    forbidden = 0x87
    if last.reason_code == forbidden or (last.outcome in ("refused", "gave_up") and last.reason_code is None):
        return "Allow the host's user to publish on this topic, in the broker's rules."
    return ""


def _ring(case: Case) -> str:
    return f"`bucketbell ring {case.key}` announces it."


def _unheard(case: Case) -> Conclusion:
    """No event of this content is remembered here."""
    found, known = case.found, case.known
    if found.state == "absent":
        return Conclusion(
            "no_file", f"There is no such file in the bucket, and no event of it since {iso(known.since)}."
        )
    if known.sweep not in ("off", "not_checked"):
        return _by_the_sweep(case)
    if found.state == "not_checked":
        words = f"No event of it has come since {iso(known.since)}. Whether the file is there is not checked"
        return Conclusion("unheard", f"{words}: {found.detail}.")
    if found.last_modified is not None and found.last_modified.timestamp() < known.since:
        words = f"It was uploaded before {iso(known.since)}, and since then no event of it has come."
        return Conclusion("unknown", f"{words} Whether it was announced before is not known. {_ring(case)}")
    others = " Events of an older content have come." if known.events else ""
    return Conclusion(
        "unheard",
        f"The store has not told of it.{others} Run `bucketbell connect` to see whether the bucket's rules are right, "
        f"look at the store's log, or let the host look itself (SWEEP_SECONDS). {_ring(case)}",
    )


def _by_the_sweep(case: Case) -> Conclusion:
    """What its record says of a file of which no event is remembered."""
    known = case.known
    if known.sweep == "announced":
        return Conclusion("announced", f"It was announced before this host remembers: {known.sweep_detail}.", well=True)
    if known.sweep in ("counted", "rolled_back"):
        return Conclusion(known.sweep, f"It was not announced: {known.sweep_detail}. {_ring(case)}")
    if not known.connected:
        return _waits(case, "")
    if known.sweep_trouble:
        return Conclusion("waiting", f"No event of it has come, and the bucket cannot be swept: {known.sweep_trouble}.")
    return Conclusion("waiting", f"No event of it has come: {known.sweep_detail}.")
