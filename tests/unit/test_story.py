"""What became of an upload, in words: the cases that take long, or luck, to see with real parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from functions.admin.known import HeardEvent, Held, Known, told
from functions.admin.schemas import ObjectAnswer, WhyAnswer
from functions.admin.story import answered, shown_route
from functions.events.dialects import IgnoredReason, ObjectCreated
from functions.events.routes import Routes, SkipReason, UnreadLabel
from functions.mqtt.outcome import Status
from infra.host.bell import DOORS, QUEUES, SWEPT

KEY, ETAG, IDENTITY = "assets/x.bin", "ab", b"i" * 16
ROUTES = Routes(events_prefix="events/")
ROUTE = shown_route(ROUTES, ROUTES.route(ObjectCreated("b", KEY, "ObjectCreated:Put")))
PRESENT = ObjectAnswer(state="present", etag=ETAG, size=7)
WELL = Known(since=1_000.0, now=2_000.0, broker="mqtt://b", connected=True)
AWAY = replace(WELL, connected=False, trouble="nobody there")


def heard(outcome: str, source: str = "sure", at: float = 2_000.0, **changes: Any) -> HeardEvent:  # noqa: ANN401 - any field
    """An event of the file."""
    known = HeardEvent(at, at, source, outcome, "", None, IDENTITY, ETAG, "")
    return replace(known, **changes)


def asked(*events: HeardEvent, known: Known = WELL, found: ObjectAnswer = PRESENT, **changes: Any) -> WhyAnswer:  # noqa: ANN401 - any field
    """The answer to these events."""
    return answered(KEY, ROUTE, found, replace(known, events=events, **changes))


@pytest.mark.parametrize(
    ("events", "known", "verdict", "words"),
    [
        ((heard("sent"),), WELL, "sent", "nobody confirms"),
        ((heard("dropped", "fast"),), WELL, "dropped", "bucketbell ring assets/x.bin"),
        ((heard("dropped", "fast"), heard("delivered")), WELL, "announced", "confirmed"),
        ((heard("unconfirmed", "fast"),), WELL, "waiting", "does not bring it again"),
        ((heard("unconfirmed"),), WELL, "waiting", "the store brings it again"),
        ((heard("unconfirmed"),), AWAY, "waiting", "nobody there"),
        ((heard("unconfirmed"), heard("repeated")), replace(WELL, rung=frozenset({IDENTITY})), "announced", "after"),
        ((heard("delivered"), heard("removed", etag="")), WELL, "removed", "never announced"),
        ((heard("not_content", etag=""),), WELL, "not_announced", "content stayed the same"),
        ((heard("gave_up", reason="0x97"),), replace(WELL, held=Held("r", 7200.0, True)), "given_up", "2.0 hours"),  # noqa: FBT003 - a field
        ((), replace(WELL, broker=None), "no_broker", "MQTT_URL"),
        ((), replace(WELL, sweep="unannounced", sweep_detail="soon"), "waiting", "soon"),
        ((), replace(WELL, sweep="unannounced", sweep_trouble="403"), "waiting", "403"),
        ((), replace(AWAY, sweep="unannounced"), "waiting", "nobody there"),
        ((), replace(WELL, on_way=(IDENTITY,)), "waiting", "on its way"),
        ((), WELL, "unheard", "SWEEP_SECONDS"),
    ],
)
def test_the_last_event_of_the_file_decides(
    events: tuple[HeardEvent, ...], known: Known, verdict: str, words: str
) -> None:
    """One word for programs, and one line for a person; it is well only where it was announced."""
    found = asked(*events, known=known)
    assert (found.verdict, found.well) == (verdict, verdict in {"announced", "sent"})
    assert words in found.answer
    assert "\n" not in found.answer


def test_another_content_that_was_announced_later_is_a_rollback_unless_events_overtook_each_other() -> None:
    """By the store's time where both have one."""
    first = heard("delivered", at=2_000.0, event_time="2026-11-30T12:00:00Z")
    for later, verdict in (("2026-11-30T12:01:00Z", "rolled_back"), ("2026-11-30T11:59:00Z", "announced")):
        other = heard("delivered", at=2_100.0, etag="cd", event_time=later)
        assert asked(first, other).verdict == verdict
    again = heard("delivered", "ring", at=2_200.0, event_time="2026-11-30T12:00:00Z")
    assert asked(first, heard("delivered", at=2_100.0, etag="cd"), again).verdict == "announced"


def test_the_story_is_in_order_of_time_and_ends_with_what_holds_now() -> None:
    """Whatever the order in which it is known."""
    texts = [one.at for one in asked(heard("delivered"), heard("refused", at=1_500.0), known=AWAY).story]
    moments = [at for at in texts if at is not None]
    assert moments == sorted(moments)
    assert texts == moments + [None] * (len(texts) - len(moments))
    assert asked(left_out=3).story[0].text.startswith("3 older")


def test_every_outcome_of_every_door_has_words() -> None:
    """None is told by its label alone, but for skips that are told by the route; no door by its label."""
    for source in (*DOORS, *QUEUES, *SWEPT):
        assert f"by {source}:" not in told(heard("delivered", source))
    for outcome in (*Status, *get_args(UnreadLabel), "repeated", "gave_up", "dropped", "removed", "not_content"):
        assert f"({outcome.replace('_', ' ')})" not in told(heard(outcome))
    for outcome in {*get_args(SkipReason), *get_args(IgnoredReason)} - {"removed", "not_content"}:
        assert told(heard(outcome, reason=outcome)) == f"by POST /events: not announced ({outcome.replace('_', ' ')})"


@pytest.mark.parametrize("key", ["x", "configs/k.json", "assets/d/", "assets//x", "events/a+b/1.json", "configs/"])
def test_what_rings_no_bell_has_a_reason_and_a_remedy(key: str) -> None:
    """For each reason that a key alone can have."""
    route = shown_route(ROUTES, ROUTES.route(ObjectCreated("b", key, "ObjectCreated:Put")))
    assert not route.announced
    assert route.detail
    assert route.remedy.endswith(".")
    found = answered(key, route, PRESENT, WELL)
    assert (found.verdict, route.remedy in found.answer) == ("not_announced", True)
