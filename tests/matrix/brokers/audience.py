"""How much longer a publish takes when thousands listen: some brokers acknowledge only when they have told them all."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack

from pydantic import SecretStr

from functions.events.plan import plan_body, to_publish
from functions.events.routes import Routes
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.outcome import Status
from functions.mqtt.publisher import InlinePublisher
from infra.bench.child import Child
from infra.bench.figures import NotMeasuredError
from infra.host.metrics import PrometheusTelemetry
from tests.hosts import upload
from tests.matrix.brokers.brand import ASSETS, BELL, PASSWORD, Running
from tests.matrix.brokers.contract import asset
from tests.matrix.result import Check

CONNECT_SECONDS = 300.0
ORDER_SECONDS = 150.0
PUBLISH_SECONDS = 60.0
PAUSE_SECONDS = 0.1
MESSAGES = 5
ENOUGH_SECONDS = 20.0  # fewer messages will do where each takes so long


def pubacks(broker: Running, audiences: tuple[int, ...], figures: dict[str, float]) -> Iterator[Check]:
    """Each message reaches them all; the median times until its PUBACK are figures. Raises `NotMeasuredError`."""
    took: defaultdict[int, list[float]] = defaultdict(list)
    config = BrokerConfig(
        host="127.0.0.1",
        port=broker.port,
        username=broker.user(BELL),
        password=SecretStr(PASSWORD),
        publish_timeout_seconds=PUBLISH_SECONDS,
    )
    most = max(audiences)
    name = f"each of {most:,} subscribers hears it"
    with ExitStack() as parts:
        crowd = parts.enter_context(Child("infra.bench.crowd", str(broker.port), ASSETS, broker.user(BELL), PASSWORD))
        if (connected := crowd.ask(["connect", most], CONNECT_SECONDS)) != most:
            raise NotMeasuredError(f"only {connected:,} of {most:,} subscribers could connect")
        publisher = InlinePublisher(config, PrometheusTelemetry())
        parts.callback(publisher.close)
        for audience in audiences:
            if (subscribed := crowd.ask(["subscribe", audience], ORDER_SECONDS)) != audience:
                yield Check(name, "lost", f"only {subscribed:,} of {audience:,} could subscribe in two minutes")
                return
            for number in range(MESSAGES + 1):
                time.sleep(PAUSE_SECONDS)
                messages = to_publish(plan_body(upload(asset()), Routes()))
                begun_at = time.monotonic()
                [outcome] = publisher.publish(messages, begun_at + PUBLISH_SECONDS)
                seconds = time.monotonic() - begun_at
                heard, _, _ = crowd.ask(["heard", PUBLISH_SECONDS], 2 * PUBLISH_SECONDS)
                if outcome.status is not Status.DELIVERED or heard != audience:
                    words = f"{outcome.status}, and {heard:,} of {audience:,} heard it within {PUBLISH_SECONDS:g} s"
                    yield Check(name, "lost", words)
                    return
                if number:  # the first after a change of audience pays for that
                    took[audience].append(seconds)
                    if sum(took[audience]) > ENOUGH_SECONDS:
                        break
            middle = statistics.median(took[audience])
            if audience == 1:
                one = figures["PUBACK, 1 subscriber, ms"] = round(middle * 1e3, 2)
            else:
                figures[f"PUBACK, {audience:,} subscribers, as a multiple"] = round(middle * 1e3 / one, 1)
    yield Check(name, "ok")
