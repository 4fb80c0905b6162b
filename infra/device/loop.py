"""The device: hears, waits its turn, fetches; after each (re)connection catches up by the manifest.

One file at a time, as a microcontroller would. All state that matters is on disk, so there is nothing to save when
the process ends.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from infra.device.fetch import fetch
from infra.device.jobs import STALE, Job, Jobs
from infra.device.names import FOLDERS, Kind, Name, UnsafeNameError, is_own, kind_of, parse_payload, safe
from infra.device.outbox import FLUSH_SECONDS, GAP_SECONDS, Outbox, deliver
from infra.device.server import DownloadServer
from infra.device.store import DeviceStore, Version
from infra.device.trouble import FetchError, Reason
from infra.http_client import Web
from infra.incoming import Received

FIRST_CATCH_UP_SECONDS = 5.0  # the broker's time to confirm the subscription; without it we catch up all the same
REMEMBERED_IDS = 1024
QUIET_SECONDS = 24 * 3600.0  # then a device that has heard nothing asks what is current, and renews its token in time
MAX_WAITING = 10_000  # files; beyond that one catch-up replaces them

_HOLDS: set[Reason] = {"rate_limited", "unauthorized"}
"""It is the device that is not wanted now, not this one file."""

_UNIFORM = random.SystemRandom().uniform


class Report(Protocol):
    """Takes each event as it happens, from any thread."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """`event` is one of those in docs/devices.md; the fields are plain JSON values."""


class Device:
    """One device: its own config and every asset, kept up to date in one folder.

    `hear` and `listening` belong to a subscriber's thread, `run` to the caller's, `stop` to anybody. `topics` says
    which topic means which kind, None: any. `outbox` takes what is to be told the fleet. `clock` (monotonic seconds)
    and `uniform` (a random number between two) are for tests and for benchmarks of many devices in one process.
    """

    def __init__(
        self,
        mac: str,
        topics: Mapping[str, Kind | None],
        *,
        web: Web,
        server: DownloadServer,
        store: DeviceStore,
        report: Report,
        outbox: Outbox | None = None,
        spread_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = _UNIFORM,
    ) -> None:
        """`mac` is in lower case, its pairs joined by dashes. Nothing is asked or written yet."""
        self._mac = mac
        self._topics = topics
        self._web = web
        self._server = server
        self._store = store
        self._report = report
        self._outbox = outbox
        self._spread_seconds = spread_seconds
        self._clock = clock
        self._uniform = uniform
        self._changed = threading.Condition()
        self._jobs = Jobs()
        self._held_until = 0.0
        self._running: Job | None = None
        self._seen_ids: OrderedDict[str, None] = OrderedDict()
        self._stopping = False
        if outbox is not None:
            outbox.on_http = self.listening  # what waits for the broker goes out with the next job

    def hear(self, message: Received) -> None:
        """Take a notification: due after a random part of the spread, unless there is no need for it."""
        if message.topic not in self._topics:
            return
        kind = self._topics[message.topic]
        said = dict(message.user_properties)
        try:
            filename = parse_payload(message.payload)
            kind = kind or kind_of(filename)
            name = safe(kind, filename)
        except UnsafeNameError as unsafe:
            self._report("skipped", reason="unsafe_name", kind=kind, detail=str(unsafe))
            return
        etag = said.get("etag", "").strip('"') or None
        about: dict[str, object] = {"kind": kind, "filename": name.filename, "etag": etag, "id": said.get("id")}
        if not is_own(name, self._mac):
            self._report("skipped", reason="not_ours", **about)
        elif self._is_repeat(said.get("id")):
            self._report("skipped", reason="repeat", **about)
        elif etag is not None and (held := self._store.held(name)) is not None and held.etag == etag:
            self._report("skipped", reason="unchanged", **about)
        elif self._is_coming(name, etag):
            self._report("skipped", reason="in_progress", **about)
        else:
            age_ms = _age_ms(said.get("time"), message.received_wall)
            wait_seconds = self._uniform(0, self._spread_seconds)
            self._report("heard", **about, event_age_ms=age_ms, wait_ms=_ms(wait_seconds))
            self._want(name, etag, wait_seconds)

    def listening(self) -> None:
        """The broker has confirmed the subscription, once more: what was announced before is in the manifest."""
        with self._changed:
            self._want_manifest(self._uniform(0, self._spread_seconds))

    def stop(self) -> None:
        """End `run` after the present chunk; the rest is resumed by the next run."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def run(self, *, once: bool = False) -> bool:
        """Work until `stop`; with `once`, until all of the manifest is here or given up. True if nothing failed."""
        with self._changed:
            self._want_manifest((0 if once else FIRST_CATCH_UP_SECONDS) + self._uniform(0, self._spread_seconds))
        well = True
        while (job := self._next(once=once)) is not None:
            well &= self._do(job, once=once)
            self._deliver(0.0 if once else GAP_SECONDS)
        if once:
            self._deliver(FLUSH_SECONDS)
        return well

    def _holds(self, name: Name, version: Version, version_id: str | None, *, is_new: bool = False) -> None:
        if self._outbox is not None:
            self._outbox.held(name, version.etag, version_id, is_new=is_new)

    def _deliver(self, patience_seconds: float) -> None:
        if self._outbox is not None and self._outbox.by_http and not self._stopping:
            deliver(self._outbox, self._server, patience_seconds=patience_seconds)

    def _is_repeat(self, event_id: str | None) -> bool:
        with self._changed:
            if event_id is None:
                return False
            if event_id in self._seen_ids:
                return True
            self._seen_ids[event_id] = None
            if len(self._seen_ids) > REMEMBERED_IDS:
                self._seen_ids.popitem(last=False)
            return False

    def _is_coming(self, name: Name, etag: str | None) -> bool:
        """Whether this very version is being downloaded."""
        with self._changed:
            job = self._running
            if job is None or job.name != name or job.ticket is None or etag is None:
                return False
            return job.ticket.version.etag == etag

    def _want(self, name: Name, etag: str | None, wait_seconds: float) -> None:
        now = self._clock()
        with self._changed:
            job = self._jobs.get(name)
            if job is None and len(self._jobs) >= MAX_WAITING:
                self._want_manifest(wait_seconds)
            elif job is not None and job is self._running:
                # One download for one file: what runs is told.
                job.etag, job.again = etag, True
            else:
                # What waits asks for the newest anyway; after a new upload it is tried at once, even if it failed
                # before.
                self._renew(job, Job(name, now + wait_seconds, now, etag))
            self._changed.notify_all()

    def _renew(self, old: Job | None, new: Job) -> None:
        """Replace `old` by `new`, which waits no longer than `old` would have."""
        if old is not None:
            new.due_at, new.since = min(old.due_at, new.due_at), old.since
        self._jobs.put(new)

    def _want_manifest(self, wait_seconds: float) -> None:
        now = self._clock()
        job = self._jobs.get(None)
        if job is not None and job is self._running:
            job.again = True
        else:
            self._renew(job, Job(None, now + wait_seconds, now))
        self._changed.notify_all()

    def _next(self, *, once: bool) -> Job | None:
        """Wait for the next job that is due; None to end."""
        with self._changed:
            while not self._stopping:
                job = self._jobs.first()
                if job is None and once:
                    return None
                wait_seconds = None if job is None else max(job.due_at, self._held_until) - self._clock()
                if job is not None and wait_seconds is not None and wait_seconds <= 0:
                    self._running = job
                    return job
                self._changed.wait(wait_seconds)
        return None

    def _do(self, job: Job, *, once: bool) -> bool:
        """One attempt at a job, and what follows from how it ended. False when it is given up."""
        try:
            self._attempt(job)
        except FetchError as trouble:
            return self._after(job, trouble, once=once)
        with self._changed:
            self._running = None
            self._jobs.remove(job)
            if job.again:
                self._jobs.put(job.anew(self._clock()))
            elif job.name is None and not once:
                self._want_manifest(QUIET_SECONDS + self._uniform(0, self._spread_seconds))
        return True

    def _after(self, job: Job, trouble: FetchError, *, once: bool) -> bool:
        """What follows from an attempt that failed. False when the job is given up."""
        with self._changed:
            self._running = None
            if not job.again and (trouble.reason == "gone" or self._stopping):
                self._jobs.remove(job)
                return True
            now = self._clock()
            retry_seconds = job.failed(trouble, self._uniform, once=once)
            held = retry_seconds is not None and trouble.reason in _HOLDS
            if retry_seconds is not None and held:
                self._held_until = now + retry_seconds
            if job.again:
                self._jobs.put(job.anew(now))
                return True
            if retry_seconds is None:
                self._jobs.remove(job)
            elif not held:  # what was held is the first to be asked for again
                job.due_at = now + retry_seconds
                self._jobs.put(job)
        if self._outbox is not None and job.name is not None and (retry_seconds is None or job.has_failed(trouble)):
            etag = job.etag if job.tried is None else job.tried.etag
            self._outbox.note(job.name, "failed", etag=etag, reason=f"{trouble.reason}: {trouble}")
        self._report(
            "failed",
            **_about(job.name),
            reason=trouble.reason,
            code=trouble.code,
            detail=str(trouble),
            retry_in_ms=None if retry_seconds is None else _ms(retry_seconds),
        )
        return retry_seconds is not None

    def _attempt(self, job: Job) -> None:
        if job.name is None:
            self._catch_up()
            return
        try:
            self._update(job, job.name)
        except FetchError as trouble:
            if trouble.reason == "gone":
                self._store.drop(job.name)
                self._report("gone", **_about(job.name))
            raise

    def _catch_up(self) -> None:
        """Want every file of the manifest that is not here. A file that it does not list stays where it is."""
        manifest = self._server.manifest()
        self._renew_token()
        unchanged = wanted = 0
        for entry in manifest.objects:
            if entry.kind not in FOLDERS:  # of a newer server
                continue
            try:
                name = safe(entry.kind, entry.filename)
            except UnsafeNameError as unsafe:
                self._report("skipped", reason="unsafe_name", kind=entry.kind, detail=str(unsafe))
                continue
            if not is_own(name, self._mac):
                continue
            if self._store.held(name) == entry.version:
                unchanged += 1
                self._holds(name, entry.version, entry.version_id)
                continue
            wanted += 1
            with self._changed:
                now = self._clock()
                job = self._jobs.get(name)
                # A version that failed waits until its time has come.
                if job is None or job.tried not in {None, entry.version}:
                    self._renew(job, Job(name, now, now, entry.version.etag))
        self._report("caught_up", listed=len(manifest.objects), unchanged=unchanged, wanted=wanted)
        if manifest.senseless:
            raise FetchError("protocol", f"{manifest.senseless:,} lines of the manifest make no sense")

    def _renew_token(self) -> None:
        """Where it is time. What goes wrong with it is only told: the next catch-up tries again."""
        try:
            until = self._server.renew_token()
        except FetchError as trouble:
            self._report("token_kept", reason=trouble.reason, detail=str(trouble))
            return
        if until is not None:
            self._report("token_renewed", expires_at=until)

    def _update(self, job: Job, name: Name) -> None:
        """Bring one file up to date, with the URL of an earlier attempt if there is one."""
        job.moved = False
        had_ticket = job.ticket is not None
        try:
            self._fetch(job, name)
        except FetchError as trouble:
            if trouble.reason not in STALE or not had_ticket:
                raise
            job.ticket = None
            self._report("renewing", **_about(name), reason=trouble.reason, code=trouble.code)
            self._fetch(job, name)

    def _fetch(self, job: Job, name: Name) -> None:
        began_at = self._clock()
        fresh = job.ticket is None
        if job.ticket is None:
            job.ticket, job.furthest = self._server.locate(name), 0
        ticket, version = job.ticket, job.ticket.version
        job.tried = version
        asked_at = self._clock()
        about = {**_about(name), "etag": version.etag, "size": version.size}
        if self._store.held(name) == version:
            self._report("skipped", reason="unchanged", **about)
            self._holds(name, version, ticket.version_id)
            return
        job.expect(ticket)
        self._report("downloading", **about)

        def progress(length: int, resumed_bytes: int) -> None:
            if self._stopping:
                raise FetchError("stopped", "asked to stop")
            if job.again and job.etag not in {None, version.etag}:
                raise FetchError("obsolete", "a newer version was announced")
            if length > max(resumed_bytes, job.furthest):
                job.furthest, job.moved = length, True
            self._report("progress", **about, length=length)
            if self._outbox is not None:
                self._outbox.coming(name, ticket, length)
                self._deliver(0.0)

        try:
            fetched = fetch(self._web, self._store, name, ticket, progress, fresh=fresh)
        except FetchError as trouble:
            if trouble.reason == "corrupt":
                job.came_corrupt(ticket, trouble.digest)
            raise
        self._holds(name, version, ticket.version_id, is_new=True)
        self._report(
            "verified",
            **about,
            by=fetched.by,
            resumed_bytes=fetched.resumed_bytes,
            waited_ms=_ms(began_at - job.since),
            asked_ms=_ms(asked_at - began_at),
            downloaded_ms=_ms(fetched.download_seconds),
            verified_ms=_ms(fetched.verify_seconds),
            placed_ms=_ms(fetched.place_seconds),
            total_ms=_ms(self._clock() - job.since),
        )


def _about(name: Name | None) -> dict[str, object]:
    """Which file an event is about; the manifest is none."""
    return {"kind": "manifest"} if name is None else {"kind": name.kind, "filename": name.filename}


def _age_ms(time_text: str | None, received_wall: float) -> float | None:
    """How long after the store's time stamp the message came, by two clocks."""
    try:
        return _ms(received_wall - datetime.fromisoformat(time_text or "").timestamp())
    except ValueError:
        return None


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
