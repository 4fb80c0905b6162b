"""The number of devices as metrics show it: counted beside the scrape, and not there while nobody knows it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from functions.stored.errors import StoreUnavailableError
from functions.web.messages import unavailable
from infra.host.fleet import census
from infra.host.fleet.census import Census
from infra.host.metrics import FleetTelemetry
from tests.hosts import eventually
from tests.timing import PATIENCE_SECONDS


class Fleet:
    """Counts when it is let, and what it is told to."""

    def __init__(self) -> None:
        self.found: Mapping[str, int] | Exception = {"failed": 2}
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = 0

    def count(self) -> Mapping[str, int]:
        """As `FleetAnswers.census`."""
        self.asked += 1
        assert self.may_answer.wait(PATIENCE_SECONDS)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def fleet() -> Fleet:
    """A fleet that answers at once."""
    return Fleet()


@pytest.fixture
def shown(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[CollectorRegistry]:
    """What is scraped of it."""
    monkeypatch.setattr(census, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(census, "FIRST_PAUSE_SECONDS", 0.01)
    registry, counting = CollectorRegistry(), Census(fleet.count)
    FleetTelemetry(registry).watch(lambda: counting.devices)
    counting.start()
    yield registry
    counting.stop()


def failed(registry: CollectorRegistry) -> float | None:
    """How many devices have failed, if that is shown."""
    return registry.get_sample_value("fleet_devices", {"state": "failed"})


@pytest.mark.parametrize(
    "trouble",
    [
        StoreUnavailableError("down"),
        unavailable("store_unavailable", "down", retry_after_seconds=1),
        ValueError("a fault"),
    ],
    ids=repr,
)
def test_while_nobody_can_count_nothing_is_shown(fleet: Fleet, shown: CollectorRegistry, trouble: Exception) -> None:
    """An old number would hide that; the next good one is shown again."""
    eventually(lambda: failed(shown) == 2)
    fleet.found = trouble
    eventually(lambda: failed(shown) is None)
    fleet.found = {"failed": 3}
    eventually(lambda: failed(shown) == 3)


def test_a_scrape_waits_for_no_count(fleet: Fleet, shown: CollectorRegistry) -> None:
    """It shows the last number while the next one takes its time."""
    eventually(lambda: failed(shown) == 2)
    fleet.may_answer.clear()
    asked = fleet.asked
    eventually(lambda: fleet.asked > asked)
    assert b'fleet_devices{state="failed"} 2.0' in generate_latest(shown)
    fleet.may_answer.set()
