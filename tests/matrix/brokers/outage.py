"""The broker is killed in the middle of numbered uploads, and comes back over the same files."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from functions.mqtt.audience import EARLY_SECONDS
from infra.incoming import Received
from tests.chaos.uploads import Uploads
from tests.chaos.verdict import Heard, Verdict, judge
from tests.hosts import Host, eventually, upload
from tests.matrix.brokers.brand import ASSETS, Running, listening
from tests.matrix.brokers.contract import PER_SECOND, outcome
from tests.matrix.result import Check

RESTARTED, LATE = "killed, restarted among uploads", "subscribers back later than the host"
BEFORE_SECONDS = 1.0
AWAY_SECONDS = 1.0
LATE_SECONDS = 1.0  # after the host: within its patience
AFTER_SECONDS = 0.5
RETRY_SECONDS = 0.5  # a store's are longer; how soon one succeeds is what is asked here
HEAR_SECONDS = 15.0
LOOK_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Outage:
    """What was uploaded and heard; when the broker was killed, took connections again, and had its subscriber back."""

    uploads: Uploads
    verdict: Verdict
    killed_at: float
    opened_at: float
    listens_at: float


def restart(broker: Running, host: Host, figures: dict[str, float], *, says_unheard: bool) -> Iterator[Check]:
    """Every upload is heard, once by subscribers that try all the time, once by some that take longer than the host.

    What a broker confirms before its subscribers are back, it has to tell with 0x10; otherwise nobody can know.
    """
    outage = _suffer(broker, host, late=False)
    answered = [one.answered_at for one in outage.uploads.answered.values()]
    first = min((at for at in answered if at > outage.opened_at), default=float("inf"))
    figures["first success after a restart, s"] = round(first - outage.opened_at, 2)
    yield judged(RESTARTED, outage, says_unheard=says_unheard)
    yield judged(LATE, _suffer(broker, host, late=True), says_unheard=says_unheard)


def _suffer(broker: Running, host: Host, *, late: bool) -> Outage:
    def put(key: str) -> None:
        body = upload(key)
        while outcome(host, body)[0] != 200:
            time.sleep(RETRY_SECONDS)

    with ExitStack() as parts:
        ears = [parts.enter_context(broker.ear(ASSETS, qos=1))]
        with Uploads(put, PER_SECOND) as uploads:
            time.sleep(BEFORE_SECONDS)
            killed_at = time.monotonic()
            broker.process.kill()
            if late:
                ears[0].stop()
            else:
                eventually(lambda: not ears[0].connected)
            time.sleep(AWAY_SECONDS)
            opening = _Opening(broker.port)
            broker.process.start()
            if late:
                eventually(lambda: host.http.get("/readyz").status_code == 200)
                time.sleep(LATE_SECONDS)
                ears.append(parts.enter_context(broker.ear(ASSETS, qos=1)))
            eventually(lambda: ears[-1].connected)
            listens_at = time.monotonic()
            time.sleep(AFTER_SECONDS)

        def verdict() -> Verdict:
            return judge(uploads.answered, [heard for ear in ears for heard in _heard(ear.messages)])

        until = time.monotonic() + HEAR_SECONDS
        while verdict().missing and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        return Outage(uploads, verdict(), killed_at, opening.at, listens_at)


def judged(name: str, outage: Outage, *, says_unheard: bool) -> Check:
    """What is missing is lost where nobody could know, and a failure otherwise."""
    uploads, verdict = outage.uploads, outage.verdict
    if uploads.unanswered:
        return Check(name, "failed", f"{len(uploads.unanswered)} uploads were never settled")
    if not verdict.missing:
        return Check(name, "ok", f"{verdict.repeats} heard twice" if verdict.repeats else "")
    missing = [uploads.answered[key] for key in verdict.missing]
    # A message was published at some time between the two that are known of its upload.
    unwritten = sum(one.began_at <= outage.killed_at and one.answered_at < outage.opened_at for one in missing)
    early = sum(one.began_at <= outage.listens_at and one.answered_at >= outage.opened_at for one in missing)
    said = f"{len(missing)} of {verdict.uploaded} uploads"
    away_seconds = outage.listens_at - outage.opened_at
    if early + unwritten < len(missing) or (early and says_unheard and away_seconds < EARLY_SECONDS):
        return Check(name, "failed", f"missing: {said}")
    why = [f"{early} confirmed before the subscriber was back, {away_seconds:.1f} s after the broker"] * bool(early)
    why += [f"{unwritten} confirmed just before the kill"] * bool(unwritten)
    return Check(name, "lost", f"{said}: {', '.join(why)}")


def _heard(messages: list[Received]) -> list[Heard]:
    """By the keys of `Uploads`."""
    told = ((message, dict(message.user_properties)) for message in messages)
    return [Heard(properties["subject"], properties["id"], message.received_at) for message, properties in told]


class _Opening:
    """Notes when a port opens: a program may say that it is ready long after that."""

    def __init__(self, port: int) -> None:
        self._at = 0.0
        self._port = port
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not listening(self._port):
            time.sleep(LOOK_SECONDS)
        self._at = time.monotonic()

    @property
    def at(self) -> float:
        """When that was; waits for it."""
        self._thread.join()
        return self._at
