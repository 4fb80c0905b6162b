"""A subscriber in a process of its own: beside an uploading thread it would wait for the interpreter's lock."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Self

from infra.bench.figures import NotMeasuredError
from infra.subscriber import Subscriber

START_SECONDS = 10.0
STOP_SECONDS = 2.0
LOOK_SECONDS = 0.5

# A fresh interpreter: a forked one would inherit the lifelines of the parts (infra.local.process).
_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Heard:
    """A message, and when it arrived (`time.monotonic`, which all processes of a machine share)."""

    topic: str
    payload: bytes
    received_at: float


class Ear:
    """Hears `topics` at QoS 1; `next` takes the messages in the order of their arrival."""

    def __init__(self, url: str, topics: Sequence[str]) -> None:
        """Nothing is started yet."""
        self._ours, theirs = _CONTEXT.Pipe()
        self._theirs = theirs
        self._process = _CONTEXT.Process(target=_listen, args=(theirs, url, tuple(topics)), daemon=True)

    def next(self, timeout_seconds: float) -> Heard | None:
        """The next message, or None when there is none in time."""
        try:
            if not self._ours.poll(timeout_seconds):
                return None
            heard = self._ours.recv()
        except (EOFError, OSError):
            raise NotMeasuredError("the subscriber's process has ended") from None
        return heard if isinstance(heard, Heard) else None

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()
        if not self._ours.poll(START_SECONDS):
            raise NotMeasuredError(f"the subscriber was not ready within {START_SECONDS:g} s")
        self._ours.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()


def _listen(pipe: Connection, url: str, topics: tuple[str, ...]) -> None:
    """Child: tell every message until the other end of the pipe has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is ours
    with Subscriber(url, topics, qos=1) as subscriber:
        pipe.send("ready")
        try:
            while not pipe.poll():
                try:
                    message = subscriber.next(LOOK_SECONDS)
                except TimeoutError:
                    continue
                pipe.send(Heard(message.topic, message.payload, message.received_at))
        except OSError:
            pass  # the parent has ended
