"""The inline publisher after a freeze that outlasts its keep alive, as Lambda freezes a function between calls.

`python -m infra.bench.thaw <port>` is the process that is frozen.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack

from functions.publisher import InlinePublisher, Status
from functions.routes import Notification
from functions.settings import Broker
from functions.telemetry import EmfTelemetry
from infra.bench.child import Child, obey
from infra.bench.figures import Bench, Figure, milliseconds, percentile
from infra.bench.rig import TOPIC
from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber

PROCESSES = 15
KEEPALIVE_SECONDS = 5
FROZEN_SECONDS = 13.0
DEADLINE_SECONDS = 5.0
ANSWER_SECONDS = 15.0
LATE_SECONDS = 1.0
P50_TARGET_SECONDS = 0.005


def measure(bench: Bench) -> list[Figure]:
    """All are frozen side by side, and thawed one by one, so that none has to wait for a processor."""
    with (
        Mosquitto(bench.directory / "mosquitto") as broker,
        Subscriber(broker.url, [TOPIC]) as subscriber,
        ExitStack() as processes,
    ):
        bench.say(f"starting {PROCESSES} processes")
        sleepers = {n: processes.enter_context(Child("infra.bench.thaw", str(broker.port))) for n in range(PROCESSES)}
        for number, sleeper in sleepers.items():
            sleeper.ask(f"before-{number}.bin", ANSWER_SECONDS)
        for sleeper in sleepers.values():
            sleeper.send_signal(signal.SIGSTOP)
        bench.say(f"{PROCESSES} processes are frozen for {FROZEN_SECONDS:g} s at keep alive {KEEPALIVE_SECONDS} s")
        time.sleep(FROZEN_SECONDS)
        answers: dict[str, tuple[str, float]] = {}
        for number, sleeper in sleepers.items():
            sleeper.send_signal(signal.SIGCONT)
            filename = f"after-{number}.bin"
            answers[filename] = sleeper.ask(filename, ANSWER_SECONDS)
        time.sleep(LATE_SECONDS)
        copies = Counter(json.loads(message.payload)["filename"] for message in subscriber.messages)
    delivered = sum(status == Status.DELIVERED and filename in copies for filename, (status, _) in answers.items())
    seconds = [took for _, took in answers.values()]
    return [
        Figure("inline publish after 13 s of SIGSTOP at keep alive 5 s: delivered", delivered, "=", PROCESSES),
        Figure("repeated", sum(count > 1 for count in copies.values()), "=", 0),
        Figure(
            "duration of that publish, p50",
            percentile(seconds, 50) * 1e3,
            "≤",
            P50_TARGET_SECONDS * 1e3,
            "ms",
            f"longest {milliseconds(max(seconds))}",
        ),
    ]


def _publish(publisher: InlinePublisher, filename: str) -> tuple[str, float]:
    """Child: publish once; the outcome's status, and the seconds that `publish` took."""
    payload = json.dumps({"filename": filename}).encode()
    notification = Notification(TOPIC, filename, payload, identity=os.urandom(16))
    begun_at = time.perf_counter()
    (outcome,) = publisher.publish([notification], time.monotonic() + DEADLINE_SECONDS)
    return outcome.status, time.perf_counter() - begun_at


def main(port: int) -> None:
    """Child: publish each filename that it is told."""
    broker = Broker(host="127.0.0.1", port=port, keepalive_seconds=KEEPALIVE_SECONDS)
    publisher = InlinePublisher(broker, EmfTelemetry())
    obey(lambda filename: _publish(publisher, str(filename)))
    publisher.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
