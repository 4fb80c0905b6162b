"""What the device has to tell the fleet of its files: the newest of each, until somebody has it.

On disk is what matters after a restart: whether a file is here, or why not. That is written without waiting for the
disk; what a power cut loses is told again, because only what was delivered counts as told.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from functions.backoff import backoff_seconds
from functions.mqtt.audience import NO_MATCHING_SUBSCRIBERS
from functions.mqtt.outcome import MIN_REFUSAL
from infra.device.names import FOLDERS, Name, UnsafeNameError, safe
from infra.device.trouble import FetchError
from infra.outgoing import Outgoing

if TYPE_CHECKING:
    from functions.fleet.reports import FileState
    from infra.device.server import DownloadServer, Ticket
    from infra.device.store import DeviceStore

GAP_SECONDS = 1.0
"""Between two reports of one file."""
SETTLE_SECONDS = 0.25  # what is over sooner is told by its end alone
MAX_KEPT = 10_000  # files
BUSY_SECONDS = 10.0
LONGEST_UNHEARD_SECONDS = 3600.0
FLUSH_SECONDS = 5.0
MAX_LOSSES = 3

_KINDS = {folder: kind for kind, folder in FOLDERS.items()}


class _Say(Protocol):
    def __call__(self, event: str, /, **fields: object) -> None: ...


@dataclass(slots=True)
class FileReport:
    """One report of one file, and when it may go out."""

    name: Name
    body: dict[str, Any]
    due_at: float

    @property
    def is_final(self) -> bool:
        """Whether nothing follows by itself."""
        return self.body["state"] in {"installed", "failed"}

    @property
    def payload(self) -> bytes:
        """As it is sent."""
        return json.dumps(self.body, ensure_ascii=False).encode()


class Outbox:
    """Thread-safe. `agent` is who reports; `by_http` says that the device's own thread delivers it."""

    def __init__(
        self, store: DeviceStore, agent: str, *, by_http: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with what was not delivered before."""
        self.by_http = by_http
        self.on_http: Callable[[], None] = lambda: None
        """Called when `by_http` becomes true."""
        self._store = store
        self._agent = agent
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[Name, FileReport] = {}
        self._sent_at: dict[Name, float] = {}
        self._told: dict[Name, str | None] = {}  # files in place of which it is known that this was told
        self._held_until = 0.0
        with suppress(FetchError):
            for path, body in store.kept_reports(MAX_KEPT):
                folder, _, filename = path.partition("/")
                with suppress(KeyError, UnsafeNameError):
                    name = safe(_KINDS[folder], filename)
                    self._waiting[name] = FileReport(name, body, 0.0)

    def note(
        self,
        name: Name,
        state: FileState,
        *,
        etag: str | None,
        version_id: str | None = None,
        progress: int | None = None,
        reason: str = "",
    ) -> None:
        """A file has come to this state; that replaces what is not sent yet of it."""
        now = self._clock()
        about = {"etag": etag, "version_id": version_id, "progress": progress, "reason": reason}
        body: dict[str, Any] = {"filename": name.filename, "state": state, "agent": self._agent}
        body |= {field: value for field, value in about.items() if value not in {None, ""}}
        body["at"] = datetime.now(UTC).isoformat(timespec="seconds")
        report = FileReport(name, body, now)
        with self._lock:
            before = self._waiting.pop(name, None)
            if not report.is_final:
                report.due_at = now + SETTLE_SECONDS if before is None or before.is_final else before.due_at
            report.due_at = max(report.due_at, self._sent_at.get(name, 0.0) + GAP_SECONDS)
            if len(self._waiting) < MAX_KEPT:
                self._waiting[name] = report
            if report.is_final:
                self._told[name] = etag if state == "installed" else None
                with suppress(FetchError):  # it is told all the same, unless the process ends before
                    self._store.keep_report(name, body)

    def coming(self, name: Name, ticket: Ticket, length: int) -> None:
        """So many bytes of a file are here."""
        size = ticket.version.size
        is_whole = length >= size
        self.note(
            name,
            "downloaded" if is_whole else "downloading",
            etag=ticket.version.etag,
            version_id=ticket.version_id,
            progress=None if is_whole else 100 * length // size,
        )

    def held(self, name: Name, etag: str | None, version_id: str | None, *, is_new: bool) -> None:
        """The file in place is this version: tell so, unless it `is_new` no more and that was delivered before."""
        if is_new:
            self.note(name, "installed", etag=etag, version_id=version_id)
            return
        with self._lock:
            waits = name in self._waiting
            if name in self._told and self._told[name] == etag:
                return
            self._told[name] = etag
            told = self._store.reported(name)
        is_told = told.get("state") == "installed" and told.get("etag") == etag
        if not waits and not is_told:
            self.note(name, "installed", etag=etag, version_id=version_id)

    def next(self) -> FileReport | None:
        """Take one that is due. Its fate is to be told by `delivered` or `lost`."""
        now = self._clock()
        with self._lock:
            if self.is_held:
                return None
            due = next((one for one in self._waiting.values() if one.due_at <= now), None)
            if due is None:
                return None
            del self._waiting[due.name]
            if len(self._sent_at) > MAX_KEPT:
                self._sent_at = {name: at for name, at in self._sent_at.items() if now - at < GAP_SECONDS}
            self._sent_at[due.name] = now
            return due

    def due_in(self) -> float | None:
        """For how many seconds nothing is due; None where nothing waits."""
        with self._lock:
            soonest = min((one.due_at for one in self._waiting.values()), default=None)
            return None if soonest is None else max(0.0, soonest - self._clock(), self._held_until - self._clock())

    def delivered(self, report: FileReport) -> None:
        """Somebody has it now."""
        if report.is_final:
            with self._lock, suppress(FetchError):
                self._store.report_delivered(report.name, report.body)

    def lost(self, report: FileReport) -> None:
        """It did not arrive: it waits again, unless there is a newer one."""
        with self._lock:
            self._waiting.setdefault(report.name, report)

    @property
    def is_held(self) -> bool:
        """Whether `hold` lasts."""
        return self._clock() < self._held_until

    def hold(self, seconds: float) -> None:
        """Leave everybody alone for so long; 0 ends that."""
        self._held_until = self._clock() + seconds if seconds else 0.0


class MqttReports:
    """Delivers by the broker; by HTTP from then on where the broker does not let us."""

    def __init__(self, outbox: Outbox, topic: str, say: _Say) -> None:
        """`topic` is the device's own."""
        self._outbox = outbox
        self._topic = topic
        self._say = say
        self._on_way: dict[Outgoing, FileReport] = {}
        self._losses = self._unheard = 0  # in a row

    def next(self) -> Outgoing | None:
        """See `Sender`."""
        if self._outbox.by_http or (report := self._outbox.next()) is None:
            return None
        message = Outgoing(self._topic, report.payload)
        self._on_way[message] = report
        return message

    def answered(self, message: Outgoing, reason_code: int) -> None:
        """See `Sender`."""
        if (report := self._on_way.pop(message, None)) is None:
            return
        if reason_code < MIN_REFUSAL and reason_code != NO_MATCHING_SUBSCRIBERS:
            self._losses = self._unheard = 0
            self._outbox.delivered(report)
            return
        self._outbox.lost(report)
        if reason_code != NO_MATCHING_SUBSCRIBERS:
            self._leave(f"the broker refuses reports on {self._topic} (0x{reason_code:02x})")
        elif not self._outbox.is_held:
            self._unheard += 1
            self._outbox.hold(
                backoff_seconds(self._unheard, first_seconds=BUSY_SECONDS, longest_seconds=LONGEST_UNHEARD_SECONDS)
            )

    def lost(self, messages: list[Outgoing]) -> None:
        """See `Sender`. A broker may close the connection over a topic that it forbids."""
        for message in messages:
            if (report := self._on_way.pop(message, None)) is not None:
                self._outbox.lost(report)
        self._losses += 1
        if self._losses == MAX_LOSSES:
            self._leave(f"the broker closes the connection over reports on {self._topic}")

    def connected(self) -> None:
        """Somebody may listen now."""
        self._outbox.hold(0)

    def _leave(self, detail: str) -> None:
        if not self._outbox.by_http:
            self._outbox.by_http = True
            self._say("unreported", detail=detail)
            self._outbox.on_http()


def deliver(outbox: Outbox, server: DownloadServer, *, patience_seconds: float = 0.0) -> None:
    """Deliver by HTTP what is due, or will be within the patience. A host that knows no reports is left alone."""
    until = time.monotonic() + patience_seconds
    while True:
        if (report := outbox.next()) is None:
            wait_seconds = outbox.due_in()
            if wait_seconds is None or time.monotonic() + wait_seconds > until:
                return
            time.sleep(wait_seconds)
            continue
        try:
            server.report(report.payload)
        except FetchError as trouble:
            outbox.lost(report)
            unheard = trouble.reason == "gone"
            outbox.hold(LONGEST_UNHEARD_SECONDS if unheard else trouble.after_seconds or BUSY_SECONDS)
            return
        outbox.delivered(report)
