"""A bucket, a broker and doors in memory, with clocks of their own, for the sweep."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

from functions.events.dialects import ObjectCreated, s3_record
from functions.events.plan import Step, plan
from functions.events.routes import Routes
from functions.mqtt.message import Message
from functions.mqtt.outcome import Outcome, Status
from functions.s3.clients import StorageError
from functions.stored.ring import KEPT, Ring
from functions.stored.rings import PrefixProgress
from infra.host.bell import Bell
from infra.host.metrics import PrometheusTelemetry, SweepTelemetry
from infra.host.mqtt.aside import PendingPublish
from infra.host.mqtt.link import LinkStatus
from infra.host.mqtt.publisher import HostPublisher
from infra.host.sweep.judge import ListedObject
from infra.host.sweep.ledger import Ledger
from infra.host.sweep.listing import Lister, ListPage
from infra.host.sweep.record import Rung
from infra.host.sweep.state import State
from infra.host.sweep.sweeper import Sweeper
from infra.host.sweep.terms import Terms
from tests.hosts import until

BUCKET = "devices"
DELIVERED = Outcome(Status.DELIVERED)
EPOCH_MS = 1_795_000_000_000
DAY_MS = 24 * 3600 * 1000

A, B, CONFIG = "assets/a", "assets/b", "configs/aa-bb-cc-dd-ee-ff.json"
FORBIDDEN = Outcome(Status.REFUSED, "the broker answered 0x87", 0x87)
REFUSED = Outcome(Status.REFUSED, "the broker answered 0x99", 0x99)
UNCONFIRMED = Outcome(Status.UNCONFIRMED, "connection lost")


class Bucket:
    """Lists in pages of `page_objects`. `now` is its clock in ms; `rounds_to` how it dates objects."""

    def __init__(self, page_objects: int = 3, rounds_to: int = 1) -> None:
        self.now = EPOCH_MS
        self.objects: dict[str, ListedObject] = {}
        self.page_objects = page_objects
        self.rounds_to = rounds_to
        self.calls = 0
        self.rules = False
        self.fails_at = 0
        """This call of `page` fails, counted from now; 0: none."""
        self.order: Any = str.encode

    def put(self, key: str, etag: str, modified: int | None = None) -> ListedObject:
        """Upload."""
        at = self.now if modified is None else modified
        self.objects[key] = ListedObject(key, etag, at // self.rounds_to * self.rounds_to, 1)
        return self.objects[key]

    def page(self, prefix: str, token: str = "", *, limit: int = 1000) -> ListPage:
        """As `Lister.page`."""
        self.calls += 1
        self.fails_at -= 1
        if self.fails_at == 0:
            raise StorageError("InternalError", "500", status=500)
        keys = sorted((key for key in self.objects if key.startswith(prefix)), key=self.order)
        begin = int(token or 0)
        end = begin + min(limit, self.page_objects)
        page = [self.objects[key] for key in keys[begin:end]]
        return ListPage(page, self.now // 1000 * 1000, str(end) if end < len(keys) else "")

    def has_rules(self) -> bool:
        """As `Lister.has_rules`."""
        return self.rules


class Publisher:
    """Delivers at once, unless the link is down or `answer` says otherwise."""

    configured = True

    def __init__(self) -> None:
        self.away = False
        self.messages: list[Message] = []
        self.answer = DELIVERED
        self.held: list[PendingPublish] = []
        self.holds = False

    @property
    def status(self) -> LinkStatus:
        """As `HostPublisher.status`."""
        return LinkStatus("mqtt://broker" if self.configured else None, connected=not self.away, since=0.0)

    def withdraw_late(self) -> None:
        """As `HostPublisher.withdraw_late`."""

    def submit(self, message: Message) -> PendingPublish:
        """As `HostPublisher.submit`."""
        pending = PendingPublish(message, 0.0, 0.0)
        if self.holds:
            self.held.append(pending)
            return pending
        outcome = Outcome(Status.UNCONFIRMED, "away") if self.away else self.answer
        if outcome.success:
            self.messages.append(message)
        pending.done.set_result(outcome)
        return pending


class MemoryRings:
    """As `State`."""

    def __init__(self, now: Any = None) -> None:  # noqa: ANN401 - a clock
        self.by_key: dict[str, list[tuple[float, Ring]]] = {}
        self.prefixes: dict[str, PrefixProgress] = {}
        self.on_look: Callable[[], object] = lambda: None
        """Called in the thread, before and after a look at what was announced."""
        self.leads = True
        self.is_lost = False
        self.writes = 0
        self.now = now or (lambda: time.time() * 1000)

    def record(self, rings: Sequence[Ring]) -> None:
        """As `State.record`."""
        for ring in rings:
            self.writes += 1
            mine = self.by_key.setdefault(ring.object_key, [])
            mine.insert(0, (self.now(), ring))
            self.by_key[ring.object_key] = [
                (at, one) for index, (at, one) in enumerate(mine) if index < KEPT or self.now() - at < DAY_MS
            ]

    def of_keys(self, keys: Sequence[str]) -> Mapping[str, Sequence[Ring]]:
        """As `State.of_keys`."""
        self.on_look()
        found = {key: [ring for _, ring in self.by_key[key]][:KEPT] for key in keys if key in self.by_key}
        self.on_look()
        return found

    def forget_gone(self, prefix: str, after: str, upto: str | None, keys: Collection[str]) -> int:
        """As `State.forget_gone`."""
        gone = [
            key
            for key, rings in self.by_key.items()
            if key.startswith(prefix)
            and after.encode() < key.encode()
            and (upto is None or key.encode() <= upto.encode())
            and key not in keys
            and self.now() - rings[0][0] >= DAY_MS
        ]
        for key in gone:
            self.writes += 1
            del self.by_key[key]
        return len(gone)

    def progress(self, prefix: str) -> PrefixProgress | None:
        """As `State.progress`."""
        return self.prefixes.get(prefix)

    def save(self) -> None:
        """As `State.save`."""

    def begin(self, prefix: str, t0: int) -> PrefixProgress:
        """As `State.begin`."""
        self.prefixes[prefix] = PrefixProgress(t0, is_complete=False, is_lost=self.is_lost)
        return self.prefixes[prefix]

    def complete(self, prefix: str) -> None:
        """As `State.complete`."""
        self.writes += 1
        self.prefixes[prefix] = self.prefixes[prefix]._replace(is_complete=True)

    def lead(self) -> bool:
        """As `State.lead`."""
        return self.leads


class MemoryRung:
    """As `Rung`."""

    def __init__(self, store: MemoryRings) -> None:
        self.store = store
        self.fails = False
        self.waiting: list[Ring] = []

    def rang(self, ring: Ring) -> None:
        """As `Rung.rang`."""
        self.waiting.append(ring)

    async def flush(self) -> bool:
        """As `Rung.flush`."""
        if self.fails:
            return False
        waiting, self.waiting = self.waiting, []
        self.store.record(waiting)
        return True


class SweptHost:
    """One life of a host: bell, ledger and sweeper on a bucket, a publisher and a store of rings that outlive it."""

    def __init__(
        self,
        bucket: Bucket,
        rings: MemoryRings,
        publisher: Publisher | None = None,
        **terms: Any,  # noqa: ANN401 - Terms' own
    ) -> None:
        self.bucket = bucket
        self.publisher = publisher or Publisher()
        self.seconds = 1000.0
        self.telemetry = PrometheusTelemetry()
        self.rung = MemoryRung(rings)
        self.ledger = Ledger(self.rung.rang)
        self.routes = Routes("configs/", "assets/", "iotsupport", BUCKET, terms.get("events_prefix"))
        broker = cast("HostPublisher", self.publisher)
        self.bell = Bell(broker, self.routes, self.telemetry, patience_seconds=5.0, ledger=self.ledger)
        known = {"bucket": BUCKET, "prefixes": ("configs/", "assets/"), "rings_per_second": 10_000}
        self.sweeper = Sweeper(
            Terms(**{**known, **terms}),
            lister=cast("Lister", bucket),
            state=cast("State", rings),
            rung=cast("Rung", self.rung),
            ledger=self.ledger,
            bell=self.bell,
            publisher=broker,
            telemetry=SweepTelemetry(self.telemetry.registry),
            now=lambda: self.seconds,
        )

    def pass_time(self, seconds: float) -> None:
        """Let time pass, at the store and here."""
        self.seconds += seconds
        self.bucket.now += int(seconds * 1000)

    async def event(self, event: dict[str, Any], source: str = "sure") -> list[str]:
        """Have a door bring it; returns what became of it."""
        return [one.label for one in await self.bell.ring(self.steps(event), source)]

    def steps(self, event: dict[str, Any]) -> tuple[Step, ...]:
        """What it asks for."""
        return plan({"Records": [event]}, self.routes)

    async def sweep(self) -> list[tuple[str, str]]:
        """Sweep once; returns key and ETag of what was announced."""
        before = len(self.publisher.messages)
        await self.sweeper.sweep()
        await self.rung.flush()
        return [told(message) for message in self.publisher.messages[before:]]

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.telemetry.registry.get_sample_value(name, labels) or 0.0


def time_of(message: Message) -> str:
    """When it was uploaded, as a message says."""
    return dict(message.user_properties)["time"]


def told(message: Message) -> tuple[str, str]:
    """Key and ETag of what a message tells."""
    properties = dict(message.user_properties)
    return properties["subject"], properties.get("etag", "")


def minio_event(listed: ListedObject, event_time: int | None = None) -> dict[str, Any]:
    """The event of an upload, as MinIO tells it."""
    at = listed.modified + 3 if event_time is None else event_time
    return _event("minio:s3", "s3:ObjectCreated:Put", listed, at, f"{listed.modified * 1_000_000 + 456_789:X}")


def ceph_event(listed: ListedObject, event_time: int, version: str = "") -> dict[str, Any]:
    """The event of an upload by a sender that does not tell when the object was modified."""
    return _event("ceph:s3", "ObjectCreated:Put", listed, event_time, version)


def _event(source: str, name: str, listed: ListedObject, at: int, sequencer: str) -> dict[str, Any]:
    fields = {"key": listed.object_key, "size": listed.size, "eTag": listed.etag, "sequencer": sequencer}
    moment = listed._replace(modified=at).created(BUCKET).event_time
    event = {"eventSource": source, "eventName": name, "eventTime": moment}
    event["s3"] = {"bucket": {"name": BUCKET}, "object": fields}  # type: ignore[assignment]  # JSON
    assert isinstance(s3_record(event, name), ObjectCreated)
    return event


def new_host(**terms: Any) -> SweptHost:  # noqa: ANN401 - Terms' own
    """A host that never swept; bucket and rings have one clock."""
    bucket = Bucket()
    return SweptHost(bucket, MemoryRings(lambda: bucket.now), **terms)


async def swept_once(**terms: Any) -> SweptHost:  # noqa: ANN401 - Terms' own
    """A host whose first sweep is over."""
    host = new_host(**terms)
    host.bucket.put("assets/old", "old")
    host.pass_time(60)
    assert await host.sweep() == []
    return host


def again(host: SweptHost, **terms: Any) -> SweptHost:  # noqa: ANN401 - Terms' own
    """The host after a restart."""
    rings = host.rung.store
    rings.record(host.rung.waiting)
    return SweptHost(host.bucket, rings, host.publisher, **terms)


async def until_swept(host: SweptHost, rounds: int) -> None:
    """Wait for so many rounds."""
    await until(lambda: host.metric("sweep_seconds_count") >= rounds)


def lines(said: io.StringIO, level: str) -> list[dict[str, Any]]:
    """Lines of the log."""
    return [line for line in map(json.loads, said.getvalue().splitlines()) if line["level"] == level]
