"""A publisher after a freeze that outlasts its keep alive, as Lambda freezes a function between calls.

The inline one beside the usual one, whose network thread is frozen too. Whatever was not confirmed is published once
more, as its source would do.

`python -m infra.bench.thaw inline|threaded <port>` is a process that is frozen.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import Message
from functions.mqtt.outcome import Status
from functions.mqtt.publisher import InlinePublisher
from functions.telemetry import EmfTelemetry
from infra.bench.child import Child, obey
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared, milliseconds, percentile
from infra.bench.rig import TOPIC
from infra.bench.threaded import ThreadedPublisher
from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber

PROCESSES = 10  # of each kind
KEEPALIVE_SECONDS = 5
FROZEN_SECONDS = 13.0
DEADLINE_SECONDS = 5.0
ANSWER_SECONDS = 15.0
LATE_SECONDS = 2.0
P50_TARGET_SECONDS = 0.005
INLINE, THREADED = KINDS = ("inline", "threaded")
WHAT = f"first publish after {FROZEN_SECONDS:g} s of SIGSTOP at keep alive {KEEPALIVE_SECONDS} s"


@dataclass(frozen=True, slots=True)
class _Publish:
    """One publish: when it was asked for (`time.monotonic`), whether it was confirmed, and the seconds of the call."""

    at: float
    confirmed: bool
    took_seconds: float


def measure(bench: Bench) -> list[Figure]:
    """All are frozen side by side, and thawed one by one, in turn, so that none has to wait for a processor."""
    with (
        Mosquitto(bench.directory / "mosquitto") as broker,
        Subscriber(broker.url, [TOPIC]) as subscriber,
        ExitStack() as processes,
    ):
        names = [f"{kind}-{number}" for number in range(PROCESSES) for kind in KINDS]
        bench.say(f"starting {len(names)} processes")
        sleepers = {
            name: processes.enter_context(Child("infra.bench.thaw", name.partition("-")[0], str(broker.port)))
            for name in names
        }
        for name, sleeper in sleepers.items():
            _ask(sleeper, f"{name}-before.bin")
        for sleeper in sleepers.values():
            sleeper.send_signal(signal.SIGSTOP)
        bench.say(f"{len(names)} processes are frozen for {FROZEN_SECONDS:g} s at keep alive {KEEPALIVE_SECONDS} s")
        time.sleep(FROZEN_SECONDS)
        asked: dict[str, _Publish] = {}
        for name, sleeper in sleepers.items():
            sleeper.send_signal(signal.SIGCONT)
            asked[name] = _ask(sleeper, f"{name}.bin")
        time.sleep(LATE_SECONDS)
        for name, sleeper in sleepers.items():
            if not asked[name].confirmed:
                _ask(sleeper, f"{name}.bin")
        time.sleep(LATE_SECONDS)
        heard = _heard(subscriber.messages)
    return _figures(asked, heard)


def _ask(sleeper: Child, filename: str) -> _Publish:
    asked_at = time.monotonic()
    confirmed, took_seconds = sleeper.ask(filename, ANSWER_SECONDS)
    return _Publish(asked_at, bool(confirmed), float(took_seconds))


def _heard(messages: list[Received]) -> Mapping[str, list[float]]:
    """When each name's copies came, in order."""
    heard: dict[str, list[float]] = {}
    for message in messages:
        heard.setdefault(str(json.loads(message.payload)["filename"]).removesuffix(".bin"), []).append(
            message.received_at
        )
    return heard


def _figures(asked: Mapping[str, _Publish], heard: Mapping[str, list[float]]) -> list[Figure]:
    seconds: dict[str, list[float]] = {}
    counts: dict[str, Counter[str]] = {}
    for kind in KINDS:
        mine = [name for name in asked if name.startswith(kind)]
        if lost := [name for name in mine if name not in heard]:
            raise NotMeasuredError(f"never heard, although published twice: {', '.join(lost)}")
        seconds[kind] = [heard[name][0] - asked[name].at for name in mine]
        counts[kind] = Counter(
            confirmed=sum(asked[name].confirmed for name in mine), repeated=sum(len(heard[name]) > 1 for name in mine)
        )
    took = [asked[name].took_seconds for name in asked if name.startswith(INLINE)]
    ours, theirs = counts[INLINE], counts[THREADED]
    peer = "paho's threaded client"
    return [
        Figure(
            f"{WHAT}: confirmed",
            ours["confirmed"],
            "=",
            PROCESSES,
            detail=f"of {PROCESSES}",
            peer=peer,
            sides=(str(ours["confirmed"]), str(theirs["confirmed"])),
        ),
        Figure(
            "heard more than once, what was not confirmed being published again",
            ours["repeated"],
            "=",
            0,
            peer=peer,
            sides=(str(ours["repeated"]), str(theirs["repeated"])),
        ),
        Figure(
            "duration of that publish, p50",
            percentile(took, 50) * 1e3,
            "≤",
            P50_TARGET_SECONDS * 1e3,
            "ms",
            f"longest {milliseconds(max(took))}",
        ),
        compared(
            "thawed → heard",
            peer,
            seconds[INLINE],
            seconds[THREADED],
            milliseconds,
            sense="≤",
            detail=f"longest {milliseconds(max(seconds[INLINE]))} / {milliseconds(max(seconds[THREADED]))}",
        ),
    ]


def _inline(port: int) -> Callable[[str], bool]:
    """Child: the inline publisher."""
    publisher = InlinePublisher(
        BrokerConfig(host="127.0.0.1", port=port, keepalive_seconds=KEEPALIVE_SECONDS), EmfTelemetry()
    )

    def publish(filename: str) -> bool:
        payload = json.dumps({"filename": filename}).encode()
        message = Message(TOPIC, payload)
        (outcome,) = publisher.publish([message], time.monotonic() + DEADLINE_SECONDS)
        return outcome.status is Status.DELIVERED

    return publish


def main(kind: str, port: int) -> None:
    """Child: publish each filename that it is told, and answer whether that was confirmed, and its seconds."""
    publish = _inline(port) if kind == INLINE else ThreadedPublisher(port, KEEPALIVE_SECONDS).publish

    def do(filename: str) -> tuple[bool, float]:
        begun_at = time.perf_counter()
        confirmed = publish(filename)
        return confirmed, time.perf_counter() - begun_at

    obey(do)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
