"""A Lambda function without Lambda: a process that is stopped (SIGSTOP) from each answer until the next event.

`python -m tests.chaos.function <socket>` is the process: it imports the deployed handler, then handles an event for
each connection to that Unix socket.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from infra.bench.lambda_process import Context
from infra.local.stack import HostProcess
from infra.local.stores import Store
from tests.aws.mapping import EventSourceMapping, Invoked
from tests.chaos.world import Profile, World

FUNCTION_TIMEOUT_SECONDS = 9.0  # as in template.yaml
WAIT_SECONDS = 1
TROUBLE_SECONDS = 0.2
NAP_SECONDS = 0.05
JOIN_SECONDS = 15.0
CHUNK_BYTES = 64 * 1024


class Function(HostProcess):
    """Stands where a host stands: takes what is in the queue in Lambda's batches, one sandbox at a time.

    `invocations` were answered, `sandboxes` were started, and `thawed` counts the events for which a process was found
    stopped. `busy` is set whenever an event has been handed over. A sandbox that has died or does not answer in time
    is replaced at the next event.
    """

    def __init__(self, directory: Path, environment: dict[str, str], store: Store) -> None:
        """`environment` is the function's, and the queue's for its event source mapping."""
        super().__init__(directory, 0, environment)
        self.invocations = 0
        self.sandboxes = 0
        self.thawed = 0
        self.busy = threading.Event()
        self._socket = directory / "events.sock"
        self.command = [sys.executable, "-m", "tests.chaos.function", str(self._socket)]
        self._store = store
        self._over = threading.Event()
        self._mapping: threading.Thread | None = None

    def prepare(self) -> None:
        """A new sandbox knows nothing of the one before."""
        self._socket.unlink(missing_ok=True)
        self.sandboxes += 1

    def is_ready(self) -> bool:
        """Init is over once it waits for events."""
        return self._socket.exists()

    def start(self) -> Function:
        """Start the mapping; the first event starts a sandbox."""
        if self._mapping is None:
            self._mapping = threading.Thread(target=self._map, name="event-source-mapping", daemon=True)
            self._mapping.start()
        return self

    def stop(self, timeout_seconds: float = 2.0) -> None:
        """End both. Idempotent."""
        self._over.set()
        if self._mapping is not None:
            self._mapping.join(JOIN_SECONDS)
        super().stop(timeout_seconds)

    def kill_sandbox(self) -> None:
        """SIGKILL; whoever waits for its answer is told."""
        os.kill(self.pid, signal.SIGKILL)

    def _map(self) -> None:
        sqs = self._store.client("sqs")
        url = self.environment["SQS_QUEUE_URL"]
        mapping: EventSourceMapping | None = None
        while not self._over.is_set():
            try:
                if mapping is None:
                    asked = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
                    configuration = {
                        "EventSourceArn": asked["Attributes"]["QueueArn"],
                        "FunctionResponseTypes": ["ReportBatchItemFailures"],
                    }
                    mapping = EventSourceMapping(sqs, queue_url=url, configuration=configuration, invoke=self._invoke)
                mapping.turn(WAIT_SECONDS)
            except Exception:  # noqa: BLE001 - whatever ails the queue: Lambda goes on polling
                time.sleep(TROUBLE_SECONDS)
        sqs.close()

    def _invoke(self, event: bytes) -> Invoked:
        if self.running:
            time.sleep(NAP_SECONDS)
            self.thawed += self._is_stopped()
            self.thaw()
        else:
            super().start()
        try:
            answer = self._ask(event)
        except OSError as error:
            self.kill()
            return Invoked(b"", error=f"the sandbox has died: {error}")
        self.freeze()
        self.invocations += 1
        document = json.loads(answer)
        return Invoked(json.dumps(document["answer"]).encode(), document["error"])

    def _ask(self, event: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(FUNCTION_TIMEOUT_SECONDS)
            line.connect(str(self._socket))
            line.sendall(event)
            line.shutdown(socket.SHUT_WR)
            self.busy.set()
            return _read(line)

    def _is_stopped(self) -> bool:
        """Source: proc(5), the field after the command in /proc/<pid>/stat."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class FunctionWorld(World):
    """A world whose events go from SQS to a function instead of a host."""

    def __init__(
        self,
        directory: Path,
        profile: Profile,
        *,
        visibility_seconds: int,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """As `World`. `visibility_seconds` is the queue's. Raises `PartError`."""
        queue = {"VisibilityTimeout": str(visibility_seconds)}
        super().__init__(directory, profile, source="sqs", queue=queue, variables=variables)
        environment = {
            **self.host.environment,
            "AWS_LAMBDA_FUNCTION_NAME": "chaos",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.host = self.function = Function(directory / "function", environment, self.store)


def _read(line: socket.socket) -> bytes:
    whole = b""
    while chunk := line.recv(CHUNK_BYTES):
        whole += chunk
    if not whole:
        raise ConnectionError("no answer")
    return whole


def main(path: str) -> None:
    """Init, then one event after the other, until it is killed."""
    handler = importlib.import_module("functions.notify").handler
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()
        while True:
            line, _ = door.accept()
            with line, contextlib.suppress(ConnectionError):
                event = json.loads(_read(line))
                answer, error = None, None
                try:
                    answer = handler(event, Context())
                except Exception as raised:  # noqa: BLE001 - told to whoever invoked it, as Lambda does
                    error = repr(raised)
                line.sendall(json.dumps({"answer": answer, "error": error}).encode())


if __name__ == "__main__":
    main(sys.argv[1])
