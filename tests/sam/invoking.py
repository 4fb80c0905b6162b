"""Calls `sam local` on the built functions as a person does, and reads what it says."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-untyped] # it has no types

from infra.local.process import free_port
from infra.sam import tool
from infra.sam.engine import ADD_HOST
from infra.sam.image import ARCHITECTURE

INVOKE_SECONDS = 60.0
START_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
_REPORT = re.compile(r"\bDuration: ([\d.]+) ms\tBilled")
# What follows is the container's: the emulator's lines, and the function's own.
_CONTAINER = re.compile(r"^SAM_CONTAINER_ID: \w+$", re.MULTILINE)
# Empty lines come from the runtime, after each message of its own; so does a complaint when the container is stopped.
_EMULATOR = re.compile(
    r"^(START|END|REPORT) RequestId: |^\d\d \w{3} \d{4} [\d:,]+ \[\w+\] \(rapid\)|^\[ERROR\] \[\d+\] LAMBDA_RUNTIME|^$"
)

durations: list[tuple[str, float]] = []
"""The tests so far, and how long the emulator says that each of their calls took, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One `sam local invoke`. Its exit status says nothing: it is 0 also where the handler raised."""

    answer: Any
    """The function's answer, or the error that it raised; None where the runtime died."""
    lines: tuple[str, ...]
    """What the function logged."""

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The log as the JSON objects that it is made of."""
        return [json.loads(line) for line in self.lines]


@dataclass(frozen=True, slots=True)
class Sam:
    """`sam local` for `test`, on what was built in `build`, with its `template.yaml`."""

    build: Path
    test: str

    def invoke(
        self,
        function: str,
        event: object,
        variables: Mapping[str, str],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Invocation:
        """Invoke once in a container of its own, with `variables` on top of the template's; `environment` is SAM's."""
        with tempfile.TemporaryDirectory(prefix="bucketbell-sam-") as directory:
            event_file = Path(directory) / "event.json"
            event_file.write_text(json.dumps(event))
            flags = self._flags(function, variables, Path(directory))
            done = tool.sam(
                *("local", "invoke", function, "--event", str(event_file), *flags),
                deadline_seconds=INVOKE_SECONDS,
                directory=self.build.parents[1],
                environment=environment,
            )
        return self.read(done.stdout, done.stderr)

    def read(self, stdout: str, stderr: str) -> Invocation:
        """Understand what `sam local invoke` has said."""
        self._note(stderr)
        lines = tuple(line for line in _CONTAINER.split(stderr)[1].splitlines() if not _EMULATOR.search(line))
        return Invocation(json.loads(stdout.strip().splitlines()[-1]) if stdout.strip() else None, lines)

    @contextlib.contextmanager
    def serve(
        self,
        command: str,
        function: str,
        variables: Mapping[str, str],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[str]:
        """The address of `sam local start-lambda` or `start-api`, which keeps a function's container warm."""
        port = free_port()
        with (
            tempfile.TemporaryDirectory(prefix="bucketbell-sam-") as directory,
            tool.running(
                *("local", command, "--port", str(port), "--warm-containers", "LAZY"),
                *self._flags(function, variables, Path(directory)),
                directory=self.build.parents[1],
                environment=environment,
            ) as process,
        ):
            try:
                _wait_for(process, port)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()  # by a kill it would leave its container behind
                self._note(process.communicate(timeout=STOP_SECONDS)[1])

    def _note(self, stderr: str) -> None:
        """Show the log where a test fails, and keep the durations."""
        sys.stderr.write(stderr)
        durations.extend((self.test, float(found)) for found in _REPORT.findall(stderr))

    def _flags(self, function: str, variables: Mapping[str, str], directory: Path) -> list[str]:
        """The flags that give a function these variables, and what each call needs.

        SAM hands a function no variable that its template does not name (samcli/local/lambdafn/env_vars.py), and what
        points at servers of ours has no place there: so a copy of the built template names them.
        """
        template = yaml_parse((self.build / "template.yaml").read_text())
        named = template["Resources"][function]["Properties"]["Environment"]["Variables"]
        named.update({name: "" for name in variables if name not in named})
        template_file = self.build / f"template-{directory.name}.json"
        template_file.write_text(json.dumps(template, default=str))
        variables_file = directory / "variables.json"
        variables_file.write_text(json.dumps({function: variables}))
        return [
            *("--template", str(template_file), "--env-vars", str(variables_file)),
            *("--add-host", ADD_HOST, "--skip-pull-image", "--parameter-overrides", f"Architecture={ARCHITECTURE}"),
        ]


def _wait_for(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=POLL_SECONDS):
            return
        assert process.poll() is None, "sam local start-lambda has ended"
        assert time.monotonic() < deadline, f"no answer within {START_SECONDS:g} s"
        time.sleep(POLL_SECONDS)
