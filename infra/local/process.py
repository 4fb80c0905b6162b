"""Runs one outside program as a child that is ready when we say so and never outlives us."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

READY_POLL_SECONDS = 0.01
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 2.0
REAP_TIMEOUT_SECONDS = 5.0
LAST_LOG_LINES = 15

# Below what Linux (32768…) and macOS (49152…) hand out for outgoing connections. A part's port must survive
# its restart, and a client that keeps dialling a dead port of that range can end up connected to itself.
PORTS = range(12_000, 32_000)

# The guard leads the process group that the part joins, and waits for its standard input to end, which the
# kernel sees to however we die. Unlike PR_SET_PDEATHSIG this does not fire when only the starting *thread*
# ends, also kills grandchildren and frozen ones, and works on macOS.
_GUARD = ("/bin/sh", "-c", "trap '' HUP INT TERM; read -r _; kill -KILL 0")

_given_ports: set[int] = set()


class PartError(RuntimeError):
    """A local part could not be started, or is not there; the message says what to do."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on and that this process has not handed out before."""
    for port in random.sample(PORTS, 200):
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_ports.add(port)
        return port
    raise PartError(f"no free TCP port on 127.0.0.1 from {PORTS.start} to {PORTS.stop}: stop what listens there")


class Process:
    """A program in a process group of its own, its output in `<directory>/<name>.log`.

    `environment` comes on top of ours, minus what starts with one of `without`. `ready` is asked until it
    says True or `start_timeout_seconds` have passed. Not thread-safe. A child made by a bare `os.fork()`
    holds the part's lifeline too, so that the part then lives until that child ends as well.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        without: tuple[str, ...] = (),
        working_directory: Path | None = None,
        ready: Callable[[], bool] | None = None,
        start_timeout_seconds: float = START_TIMEOUT_SECONDS,
        advice: str = "",
    ) -> None:
        self.name = name
        self.command = list(command)
        self.directory = directory
        self.environment: dict[str, str] = dict(environment or {})
        self.advice = advice
        self.start_timeout_seconds = start_timeout_seconds
        self.log_file = directory / f"{name}.log"
        self._without = without
        self._working_directory = working_directory
        self._ready = ready
        self._child: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def prepare(self) -> None:
        """Writes what the program needs; called before every start."""

    def variables(self) -> Mapping[str, str]:
        """The environment variables of the next start, on top of the inherited ones."""
        return self.environment

    def is_ready(self) -> bool:
        """Whether the program can be used now; asked only while it runs."""
        return self._ready is None or self._ready()

    @property
    def running(self) -> bool:
        """Whether the program was started and has not ended (a frozen one runs)."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id; PartError when it is not running."""
        if self._child is None:
            raise PartError(f"{self.name} is not running: start() it first")
        return self._child.pid

    def log_text(self) -> str:
        """Everything that the program has said, over all its starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def new_log_text(self) -> str:
        """What the program has said since its latest start."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def start(self) -> Self:
        """Starts the program and returns when it is ready; PartError with its last words otherwise."""
        if self.running:
            return self
        self._end()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.prepare()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(self._without)}
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        try:
            with self.log_file.open("ab") as log:
                self._guard = subprocess.Popen(
                    _GUARD, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, process_group=0
                )
                self._child = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**inherited, **self.variables()},
                    cwd=self._working_directory,
                    process_group=self._guard.pid,
                )
            self._wait_until_ready(self._child)
        except OSError as error:
            self._end()
            raise PartError(f"{self.name} could not be started: {error}. {self.advice}".rstrip()) from error
        except BaseException:
            self._end()
            raise
        return self

    def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Asks the program to end (SIGTERM), then kills what is left of its group. Idempotent."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            self._child.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout_seconds)
        self._end()

    def kill(self) -> None:
        """Ends the program and its children without a chance to tidy up (SIGKILL). Idempotent."""
        self._end()

    def restart(self) -> None:
        """Stops and starts again; port and data stay."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Halts the program, not its children (SIGSTOP): connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen program go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.start_timeout_seconds
        while not self.is_ready():
            status = child.poll()
            if status is not None:
                raise self._failure(f"{self.name} ended at once (exit status {status})")
            if time.monotonic() >= deadline:
                raise self._failure(f"{self.name} was not ready within {self.start_timeout_seconds:g} s")
            time.sleep(READY_POLL_SECONDS)
        # A stranger on the same port may have answered for a child that is already dead.
        if (status := child.poll()) is not None:
            raise self._failure(f"{self.name} ended at once (exit status {status})")

    def _failure(self, what: str) -> PartError:
        said = "\n".join(f"  {line}" for line in self.new_log_text().splitlines()[-LAST_LOG_LINES:])
        return PartError("\n".join(part for part in (f"{what}; its last words:", said, self.advice) if part))

    def _end(self) -> None:
        guard, child = self._guard, self._child
        self._guard = self._child = None
        if guard is None:
            return
        # The guard is not reaped yet, so that the group's number cannot belong to anybody else.
        os.killpg(guard.pid, signal.SIGKILL)
        for ended in (child, guard):
            if ended is not None:
                ended.wait(REAP_TIMEOUT_SECONDS)
        if guard.stdin is not None:
            guard.stdin.close()
