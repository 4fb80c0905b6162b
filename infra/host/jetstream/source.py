"""Feeds the bell from a JetStream stream, which several hosts may share: each event goes to one of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from functions.telemetry import logger
from infra.host.jetstream.agreement import RENEW_SECONDS, Agreement
from infra.host.jetstream.announced import AnnouncedEvents
from infra.host.jetstream.hand import Hand
from infra.host.jetstream.pull import Pull
from infra.host.trouble import Trouble
from infra.jetstream.connection import (
    CALL_SECONDS,
    Complaints,
    JetStreamClient,
    JetStreamError,
    connect,
    explain,
    quietly_close,
)
from infra.jetstream.layout import (
    Names,
    consumer_config,
    found_consumer,
    found_stream,
    is_work_queue,
    make_beside,
    remarks,
    unfit,
)

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from nats.js.api import ConsumerConfig, ConsumerInfo
    from nats.js.kv import KeyValue

    from functions.settings import Settings
    from infra.host.bell import Bell
    from infra.host.metrics import JetStreamTelemetry
    from infra.host.mqtt.publisher import HostPublisher

LOOK_SECONDS = 0.25  # between two looks whether the broker is there
OFF_SECONDS = 1.0  # between two looks whether there is a broker to publish to
STOP_SECONDS = 1.0
DEFAULT_ACK_WAIT_SECONDS = 30.0  # the server's own


class JetStreamSource:
    """Belongs to one event loop. While JetStream is out of reach, nothing else is disturbed."""

    def __init__(self, settings: Settings, bell: Bell, publisher: HostPublisher, telemetry: JetStreamTelemetry) -> None:
        """Nothing is connected before `start`."""
        self._settings = settings
        self._names = Names.of(settings)
        self._bell = bell
        self._publisher = publisher
        self._telemetry = telemetry
        self._stirred = asyncio.Event()
        self._known = AnnouncedEvents()
        self._agreement = Agreement(settings)
        self._hand = Hand(
            bell,
            publisher,
            telemetry,
            self._known,
            dead_subject=self._names.dead_subject,
            stir=self._stirred.set,
        )
        self._trouble = Trouble(
            "no events can be taken from JetStream; trying again", "events are taken from JetStream again"
        )
        self._bucket_trouble = Trouble(
            "hosts cannot compare their settings in JetStream", "hosts can compare them again"
        )
        self._said: set[str] = set()
        self._complaints = Complaints()
        self._client: JetStreamClient | None = None
        self._pull: Pull | None = None
        self._bucket: KeyValue | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Begin. Returns at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="jetstream")

    async def stop(self) -> None:
        """End; events in hand are finished first, within `STOP_SECONDS`. Idempotent."""
        if self._task is None:
            return
        self._stopping = True
        with contextlib.suppress(Exception):  # also TimeoutError: what is not finished comes again
            async with asyncio.timeout(STOP_SECONDS):
                if self._pull is not None:
                    await self._pull.withdraw()
                await self._hand.emptied()
                if self._bucket is not None:
                    await self._agreement.leave(self._bucket)
                if self._client is not None:
                    await self._client.flush()
        self._hand.drop()
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None

    async def _run(self) -> None:
        while True:
            if not self._bell.configured:  # publishing is switched off: the stream keeps what comes meanwhile
                await asyncio.sleep(OFF_SECONDS)
                continue
            try:
                await self._session()
            except Exception as error:  # noqa: BLE001 - whatever is wrong with JetStream, its events wait
                reason = explain(_first(error), self._complaints.last)
                await asyncio.sleep(self._trouble.met(reason, kind=reason))

    async def _session(self) -> None:
        """Take events until something is wrong, and raise what that is."""
        name = f"bucketbell on {socket.gethostname()}"
        self._client, self._complaints = await connect(self._settings, name, on_closed=self._closed)
        try:
            js = self._client.jetstream(timeout=CALL_SECONDS)
            consumer = await self._prepare(js)
            self._hand.use(js, consumer)
            await self._known.use(self._client, self._names)
            await self._agree()
            self._pull = Pull(self._client, self._names, self._hand.take, self._stirred.set)
            self._trouble.ended()
            self._telemetry.up(up=True)
            logger.info("events are taken from JetStream", extra={"stream": self._names.stream})
            ack_wait_seconds = consumer.ack_wait or DEFAULT_ACK_WAIT_SECONDS
            async with asyncio.TaskGroup() as group:
                group.create_task(self._fetch(self._client, self._pull))
                group.create_task(self._tend(js))
                group.create_task(self._hand.keep(ack_wait_seconds / 3))
        finally:
            self._telemetry.up(up=False)
            self._pull = self._bucket = None
            client, self._client = self._client, None
            await quietly_close(client)

    async def _closed(self) -> None:
        self._stirred.set()

    async def _prepare(self, js: JetStreamContext) -> ConsumerConfig:
        """See that all is there, and make what may be made. Raises `JetStreamError`, and what `explain` takes."""
        names = self._names
        stream = await found_stream(js, names.stream)
        if stream is None:
            raise JetStreamError(f"there is no stream {names.stream}: `bucketbell connect --nats-url …` makes it")
        publish_seconds = self._settings.mqtt_publish_timeout_seconds
        consumer = await found_consumer(js, names)
        if consumer is None:
            if not is_work_queue(stream.config):
                raise JetStreamError(
                    f"there is no consumer {names.consumer}, and a new one would bring events again that were "
                    "announced (the stream is no work queue): make it with the start that you want"
                )
            consumer = await js.add_consumer(names.stream, consumer_config(names, publish_seconds))
            words = "the consumer was not there and has been made; no event is lost or repeated by that"
            logger.warning(words, extra={"consumer": names.consumer})
        if problem := unfit(consumer.config):
            raise JetStreamError(f"the consumer {names.consumer} cannot be used: {problem}. Delete it")
        for remark in remarks(stream.config, consumer.config, publish_seconds):
            self._say_once(remark)
        try:
            await make_beside(js, names)
        except Exception as error:  # noqa: BLE001 - the events come without what lies beside, too
            reason = explain(error, self._complaints.last)
            self._say_once(f"JetStream lacks what `bucketbell connect --nats-url …` makes beside the stream: {reason}")
        with contextlib.suppress(Exception):  # that it is missing was said just now
            self._bucket = await js.key_value(names.bucket)
        self._show(consumer)
        return consumer.config

    def _say_once(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            logger.warning(words, extra={"stream": self._names.stream})

    async def _fetch(self, client: JetStreamClient, pull: Pull) -> None:
        """Ask for events while they could be published, and there is room in hand."""
        while True:
            self._stirred.clear()
            if client.is_closed:
                raise JetStreamError(f"the connection was lost{_because(client.last_error)}")
            pull.check()
            if self._stopping or not self._bell.configured or not self._publisher.ready:
                await pull.withdraw()
            elif pull.may_ask and self._hand.room:
                await pull.ask(self._hand.room)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._stirred.wait()

    async def _tend(self, js: JetStreamContext) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            consumer = await found_consumer(js, self._names)
            if consumer is None:
                raise JetStreamError("the consumer was deleted")
            self._show(consumer)
            await self._agree()
            if complaint := self._complaints.take():  # such as a missing right to acknowledge, which nobody answers
                self._say_once(f"NATS complains: {complaint}")

    def _show(self, consumer: ConsumerInfo) -> None:
        unsettled = consumer.num_ack_pending or 0
        self._telemetry.consumer(consumer.num_pending or 0, unsettled)
        self._hand.unsettled = unsettled

    async def _agree(self) -> None:
        if self._bucket is None:
            return
        try:
            await self._agreement.renew(self._bucket, self._publisher.status.broker)
        except JetStreamError:
            raise
        except Exception as error:  # noqa: BLE001 - what cannot be compared is not known to differ
            self._bucket_trouble.met(explain(error, self._complaints.last))
        else:
            self._bucket_trouble.ended()


def _first(error: Exception) -> Exception:
    """What began it, where several tasks failed together."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _because(error: Exception | None) -> str:
    return "" if error is None else f": {explain(error)}"
