"""Examines the installation for whoever asks the host: `bucketbell doctor`, in a process of its own.

It uses libraries that a host does not need, and a second's work; neither is to be in the way of an upload.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from functions.admin.doctor import ExaminationAnswer
from functions.telemetry import logger

if TYPE_CHECKING:
    from functions.settings import Settings

SECONDS = 45.0
"""The doctor allows itself 25, and has to start."""

HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here
"""Where a host that listens on all addresses is reached."""

_NONE = ExaminationAnswer(running=False, began_at=None, ended_at=None, ok=None, first=None, checks=(), trouble="")


class Examiner:
    """One examination at a time, of the host that listens at `url`. Its methods are for handlers' threads."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is examined before `listen` has said where the host can be reached."""
        self._public_base_url = settings.public_base_url
        self.url = ""
        self._lock = threading.Lock()
        self._latest = _NONE
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def listen(self, host: str, port: int, *, tls: bool) -> None:
        """The host listens there."""
        place = HERE.get(host, host)
        self.url = f"http://{f'[{place}]' if ':' in place else place}:{port}"
        if tls:  # its certificate is for a name
            self.url = self._public_base_url or self.url.replace("http", "https", 1)

    def begin(self) -> ExaminationAnswer:
        """See `Examining.begin`."""
        with self._lock:
            if self._latest.running:
                return self._latest
            begun = self._latest = _NONE.model_copy(update={"running": True, "began_at": datetime.now(UTC)})
        threading.Thread(target=self._run, args=(begun,), name="examiner", daemon=True).start()
        return begun

    def latest(self) -> ExaminationAnswer:
        """See `Examining.latest`."""
        return self._latest

    def stop(self) -> None:
        """End the one that is running, and begin none any more."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _run(self, begun: ExaminationAnswer) -> None:
        try:
            found = ExaminationAnswer.model_validate(dict(begun) | json.loads(self._said()))
        except subprocess.TimeoutExpired:
            found = begun.model_copy(update={"trouble": f"It did not end within {SECONDS:g} s."})
        except (OSError, ValueError) as error:
            logger.warning("no examination", extra={"kind": type(error).__name__})
            trouble = "It could not be run. `bucketbell doctor`, where the host runs, says more."
            found = begun.model_copy(update={"trouble": trouble})
        self._latest = found.model_copy(update={"running": False, "ended_at": datetime.now(UTC)})

    def _said(self) -> str:
        """The doctor's document."""
        program = "from infra.cli import app; app()"  # -P: ours, whatever else is called so where it was started
        command = [sys.executable, "-P", "-c", program, "doctor", "--json", "--host-url", self.url]
        with self._lock:
            if self._stopped:
                raise OSError("the host ends")
            process = self._process = subprocess.Popen(  # noqa: S603 - our own program, without a shell
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        with process:
            try:
                return process.communicate(timeout=SECONDS)[0]
            finally:
                process.kill()
                self._process = None
