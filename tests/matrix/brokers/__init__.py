"""The brokers' half of `make matrix`: one contract suite over each, with the real host and real subscribers."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from infra.bench.fanout import open_files
from tests.matrix.brokers.audience import pubacks
from tests.matrix.brokers.brand import Brand, Limits, running
from tests.matrix.brokers.contract import (
    PROTOCOLS,
    UNHEARD,
    delivery,
    host_of,
    latency,
    limits,
    unheard,
)
from tests.matrix.brokers.erlang import EJABBERD, RABBITMQ
from tests.matrix.brokers.forbidden import forbidden
from tests.matrix.brokers.java import ARTEMIS, HIVEMQ
from tests.matrix.brokers.outage import restart
from tests.matrix.brokers.plain import MOCHI, MOSQUITTO
from tests.matrix.brokers.presence import last_will
from tests.matrix.result import Check, Subject

BRANDS: dict[str, Brand] = {
    "mosquitto": MOSQUITTO,
    "rabbitmq": RABBITMQ,
    "ejabberd": EJABBERD,
    "mochi": MOCHI,
    "hivemq": HIVEMQ,
    "artemis": ARTEMIS,
}
NAMES = tuple(BRANDS)

AUDIENCES, FEW = (1, 1_000, 5_000), (1, 100)
SPARE_FILES = 300
LIMITS = Limits(packet_bytes=1024, receive_maximum=2)

Say = Callable[[str], None]


def missing(name: str) -> str | None:
    """What to type to bring this broker, or None if it is here."""
    return BRANDS[name].missing()


def run(names: Iterable[str], say: Say) -> Iterator[Subject]:
    """Try each broker; in CI with few subscribers."""
    audiences = FEW if os.environ.get("CI") else AUDIENCES
    with open_files(audiences[-1] + SPARE_FILES):
        for name in names:
            with tempfile.TemporaryDirectory(prefix=f"bucketbell-{name}-") as directory:
                yield _try(name, Path(directory), audiences, say)


def _try(name: str, directory: Path, audiences: tuple[int, ...], say: Say) -> Subject:
    """One broker. What ends in an exception is a check that failed, and the others are still made."""
    brand = BRANDS[name]
    checks: list[Check] = []
    figures: dict[str, float] = {}
    version = "unknown"

    def attempt(what: str, part: Iterable[Check]) -> None:
        say(f"{name}: {what} …")
        with _noted(what, checks):
            checks.extend(part)

    begun_at = time.monotonic()
    with _noted("start", checks), running(brand, directory / "broker") as broker:
        figures["start, s"] = round(time.monotonic() - begun_at, 1)
        version = broker.version
        for protocol in PROTOCOLS:
            attempt(f"MQTT {protocol}", delivery(broker, directory / "delivery", protocol))
        attempt("forbidden topics", forbidden(broker, directory / "forbidden", figures))
        attempt("last will", last_will(broker, directory / "will"))
        with host_of(directory / "host", broker) as host:
            attempt("nobody listens", unheard(broker, host))
            attempt("latency", latency(broker, host, figures))
            says_unheard = Check(UNHEARD, "ok") in checks
            attempt("restart", restart(broker, host, figures, says_unheard=says_unheard))
        attempt("subscribers", pubacks(broker, audiences, figures))  # last: some are busy with their end for long
    told = Limits(**{field: value for field, value in asdict(LIMITS).items() if field in brand.can_limit})
    with _noted("start with limits", checks), running(brand, directory / "limited", told) as broker:
        attempt("limits", limits(broker, directory / "limits", told))
    return Subject("broker", name, version, time.strftime("%Y-%m-%d"), tuple(checks), figures, brand.how)


@contextmanager
def _noted(what: str, checks: list[Check]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it was, the other checks can still be made
        checks.append(Check(what, "failed", f"{type(error).__name__}: {str(error)[-300:]}"))
