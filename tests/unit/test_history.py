"""The host's memory of the last events: what it keeps, what it forgets, and how little it takes."""

from __future__ import annotations

import tracemalloc

from functions.events.plan import Settled, Step, plan, settle_one
from functions.events.routes import Routes
from functions.mqtt.outcome import Outcome, Status
from infra.host.history import MAX_EVENTS, MAX_SHOWN, History, of_key
from tests.hosts import record

DELIVERED = Outcome(Status.DELIVERED, reason_code=0)
REFUSED = Outcome(Status.REFUSED, "the broker answered 0x87", 0x87)


def step(key: str, **changes: object) -> Step:
    """What one upload asks for."""
    (one,) = plan({"Records": [record(key, **changes)]}, Routes())
    return one


def settled(key: str, outcome: Outcome = DELIVERED, **changes: object) -> Settled:
    """An upload that was dealt with."""
    return settle_one(step(key, **changes), outcome)


def test_it_tells_of_one_key_alone() -> None:
    """With door, outcome, reason and code, identity, etag and the store's time; never of a key that begins alike."""
    memory = History()
    one = settled("assets/x", eTag="ab")
    memory.add(one, "fast")
    memory.add(settled("assets/x.bin"), "sure")
    memory.add(settled("assets/ä", REFUSED), "sure")
    (found,), left_out = of_key(memory.events(), "assets/x")
    assert (found.source, found.outcome, found.etag, left_out) == ("fast", "delivered", "ab", 0)
    assert (found.identity, found.event_time) == (one.step.action.identity, "2026-11-20T21:20:28.873Z")  # type: ignore[union-attr]  # it is an upload
    (odd,), _ = of_key(memory.events(), "assets/ä")
    assert (odd.reason, odd.reason_code) == (REFUSED.reason, 0x87)
    assert memory.since <= found.at


def test_what_is_not_announced_is_kept_where_it_names_an_object() -> None:
    """A wrong name and a removal are; a body that is no event is not."""
    memory = History()
    removal = record("assets/x.bin") | {"eventName": "s3:ObjectRemoved:Delete"}
    for one in (record("configs/kitchen.json"), removal, 7):
        (asked,) = plan({"Records": [one]}, Routes())
        memory.add(settle_one(asked, None), "sure")
    assert len(memory) == 2
    assert [one.outcome for one in of_key(memory.events(), "configs/kitchen.json")[0]] == ["bad_config_name"]
    ((removed,), _) = of_key(memory.events(), "assets/x.bin")
    assert (removed.outcome, removed.identity) == ("removed", b"")


def test_tries_in_a_row_that_are_alike_are_told_as_one() -> None:
    """A store's queue brings an event every few seconds; another outcome, or another upload, begins a new line."""
    memory, one = History(), step("assets/x.bin")
    for outcome in (*[REFUSED] * 500, DELIVERED):
        memory.add(settle_one(one, outcome), "sure")
    memory.add(settled("assets/x.bin"), "sure")
    found, left_out = of_key(memory.events(), "assets/x.bin")
    assert [(one.outcome, one.times) for one in found] == [("refused", 500), ("delivered", 1), ("delivered", 1)]
    assert found[0].at <= found[0].until
    assert left_out == 0
    for _ in range(MAX_SHOWN):
        memory.add(settled("assets/x.bin"), "sure")
    found, left_out = of_key(memory.events(), "assets/x.bin")
    assert (len(found), left_out) == (MAX_SHOWN, 3)


def test_beyond_its_limits_it_forgets_the_oldest_and_says_since_when_it_knows() -> None:
    """In number, and in bytes."""
    for memory in (History(max_events=3), History(max_text_bytes=180)):
        began = memory.since
        for number in range(5):
            memory.add(settled(f"assets/{number}.bin"), "sure")
        assert 2 <= len(memory) <= 3
        assert of_key(memory.events(), "assets/0.bin") == ([], 0)
        assert of_key(memory.events(), "assets/4.bin")[0]
        assert memory.since > began
        assert memory.since <= memory.events()[0][0]


def test_ten_thousand_events_take_at_most_4_megabytes() -> None:
    """Measured; also of keys as long as S3 allows, in letters that take most, where it keeps fewer."""
    for key in ("assets/esp32/firmware-1.2.3.bin", "assets/" + "\N{BELL}" * 254, "assets/" + "x" * 1000 + "\N{BELL}"):
        uploads = [settled(f"{key[:-1]}{number % 10}", eTag=f"{number:032x}") for number in range(MAX_EVENTS + 1000)]
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            memory = History()
            for one in uploads:
                memory.add(one, "sure")
            taken_bytes = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        print(f"{len(memory)} events: {taken_bytes / 1e6:.1f} MB")  # noqa: T201 - the figure, with `pytest -s`
        assert taken_bytes <= 4_000_000
        assert len(memory) == MAX_EVENTS or len(key) > 200
