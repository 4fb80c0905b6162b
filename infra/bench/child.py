"""A process of ours that does what it is told, a line of JSON at a time, and ends when nobody tells it any more."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Self

from infra.bench.figures import NotMeasuredError

STOP_SECONDS = 2.0


class Child:
    """`python -m <module> …` with `obey` inside, which ends when we do, however that comes."""

    def __init__(self, module: str, *arguments: str) -> None:
        """Starts it."""
        self._module = module
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def ask(self, order: object, timeout_seconds: float) -> Any:  # noqa: ANN401 - whatever the child's answer is
        """The answer to `order`, both anything that JSON can say. Raises `NotMeasuredError` when none comes."""
        stdin, stdout = self._process.stdin, self._process.stdout
        line = b""
        if stdin is not None and stdout is not None:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(json.dumps(order).encode() + b"\n")
            if select.select([stdout], [], [], timeout_seconds)[0]:
                line = stdout.readline()
        if not line:
            raise NotMeasuredError(f"{self._module} did not answer within {timeout_seconds:g} s")
        return json.loads(line)

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT."""
        self._process.send_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.communicate(timeout=STOP_SECONDS)  # the end of its standard input is its own
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def obey(do: Callable[[Any], object]) -> None:
    """In the child: answer each order with what `do` makes of it, until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is ours
    for line in sys.stdin.buffer:
        print(json.dumps(do(json.loads(line))), flush=True)
