"""Runs a deployed function in a container, as Lambda does: its package, its configuration, one call at a time."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from infra.local.process import STOP_TIMEOUT_SECONDS, PartError, Process, free_port
from infra.sam.engine import docker
from infra.sam.image import ARCHITECTURE
from infra.sam.tool import SAM
from tests.aws.mapping import Invoked

PROBE_SECONDS = 1.0
REMOVE_SECONDS = 20.0
START_SECONDS = 60.0  # of the first call, on a busy machine
EMULATOR_AT = "/usr/local/bin/aws-lambda-rie"
INVOCATIONS = "/2015-03-31/functions/function/invocations"


class Function(Process):
    """A function of the emulated AWS, on 127.0.0.1: the container uses this machine's network (Docker on Linux).

    AWS's runtime interface emulator, the one that the SAM CLI brings, stands between: it starts the function at the
    first call and keeps it warm. `configuration` is what `lambda.get_function_configuration` says, `code` the unpacked
    package, `environment` what Lambda itself would add. The root is read-only but for /tmp, and the user is not root.
    """

    def __init__(
        self,
        directory: Path,
        *,
        image: str,
        code: Path,
        configuration: Mapping[str, Any],
        environment: Mapping[str, str],
    ) -> None:
        self.port = free_port()
        self.timeout_seconds = int(configuration["Timeout"])
        self._container = f"bucketbell-aws-{secrets.token_hex(6)}"
        variables = {
            **configuration["Environment"]["Variables"],
            "AWS_LAMBDA_FUNCTION_NAME": configuration["FunctionName"],
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(configuration["MemorySize"]),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(self.timeout_seconds),
            **environment,
        }
        super().__init__(
            configuration["FunctionName"],
            [
                *("docker", "run", "--rm", "--name", self._container, "--pull", "never"),
                *("--network", "host", "--read-only", "--tmpfs", "/tmp", "--user", "993:990"),  # noqa: S108 - its own
                *("--volume", f"{code}:/var/task:ro", "--volume", f"{_emulator()}:{EMULATOR_AT}:ro"),
                *(word for name, value in variables.items() for word in ("--env", f"{name}={value}")),
                *("--entrypoint", EMULATOR_AT, image),
                *("--runtime-interface-emulator-address", f"127.0.0.1:{self.port}"),
                *("--runtime-api-address", f"127.0.0.1:{free_port()}", "--log-level", "error"),
                *("/var/runtime/bootstrap", configuration["Handler"]),
            ],
            directory,
        )

    def is_ready(self) -> bool:
        """Whether the emulator listens; it answers nothing but calls."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), PROBE_SECONDS):
            return True
        return False

    def invoke(self, event: bytes) -> Invoked:
        """Call the function and wait for its answer.

        The emulator answers 200 also when the handler raised, and a sentence when time ran out: the body decides.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_seconds + START_SECONDS)
        try:
            connection.request("POST", INVOCATIONS, event)
            payload = connection.getresponse().read()
        finally:
            connection.close()
        try:
            answer = json.loads(payload)
        except ValueError:
            return Invoked(payload, payload.decode(errors="replace"))
        raised = isinstance(answer, dict) and {"errorType", "errorMessage"} <= answer.keys()
        return Invoked(payload, f"{answer['errorType']}: {answer['errorMessage']}" if raised else None)

    def start(self) -> Self:
        """Start the container; returns when the emulator listens. PartError otherwise, and nothing is left."""
        try:
            return super().start()
        except BaseException:
            self._remove()
            raise

    def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Remove the container. Idempotent."""
        if self.running:
            self._remove()
        super().stop(timeout_seconds)

    def _remove(self) -> None:
        with suppress(PartError):  # it may be gone, or going, already
            docker("rm", "--force", self._container, deadline_seconds=REMOVE_SECONDS)


def _emulator() -> Path:
    """The emulator that SAM puts into its containers. PartError where the SAM CLI is not installed."""
    pattern = f"lib/python3*/site-packages/samcli/local/rapid/aws-lambda-rie-{ARCHITECTURE}"
    for found in SAM.parents[1].glob(pattern):
        return found
    raise PartError("the SAM CLI is not here: run `make build`, which installs it into .venv-sam")
