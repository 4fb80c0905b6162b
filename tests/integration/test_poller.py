"""The SQS poller: moto's S3 → SQS, through the host, to a real Mosquitto."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from functions.events.routes import Routes
from functions.mqtt.broker import BrokerConfig
from functions.settings import load
from infra.host import poller as poller_module
from infra.host.bell import Bell
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.publisher import HostPublisher
from infra.host.poller import Poller, SqsQueue
from infra.local.mosquitto import Mosquitto
from infra.local.stores import MotoServer
from infra.subscriber import Subscriber
from tests.hosts import MAC_KEY, STOP_SECONDS, TOPICS, Host, environment, eventually, on_uvloop, record, until, upload
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS


class Queue:
    """A fresh bucket whose uploads go to a fresh queue."""

    def __init__(self, moto: MotoServer, name: str) -> None:
        self.moto = moto
        self.bucket = name
        self.sqs, self.s3 = moto.client("sqs"), moto.client("s3")
        # 1 s: what was not deleted comes back while the test looks.
        self.url = self.sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "1"})["QueueUrl"]
        asked = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])
        rule = {"QueueArn": asked["Attributes"]["QueueArn"], "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}
        self.s3.create_bucket(Bucket=name)
        self.s3.put_bucket_notification_configuration(
            Bucket=name, NotificationConfiguration={"QueueConfigurations": [rule]}
        )

    def upload(self, key: str) -> None:
        """Puts an object."""
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=b"{}")

    def send(self, body: str) -> None:
        """Puts a message into the queue by hand."""
        self.sqs.send_message(QueueUrl=self.url, MessageBody=body)

    def depth(self) -> int:
        """How many messages are there, visible or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return sum(int(answer[name]) for name in names)

    def environment(self, mqtt_url: str) -> dict[str, str]:
        """A host that polls this queue."""
        return environment(
            mqtt_url,
            SQS_QUEUE_URL=self.url,
            AWS_ENDPOINT_URL=self.moto.endpoint_url,
            AWS_ACCESS_KEY_ID=self.moto.access_key,
            AWS_SECRET_ACCESS_KEY=self.moto.secret_key,
        )

    def forget(self) -> None:
        """Closes the clients' connections."""
        self.sqs.close()
        self.s3.close()


@pytest.fixture
def queue(moto: MotoServer, request: pytest.FixtureRequest) -> Iterator[Queue]:
    """A bucket and a queue of this test alone."""
    made = Queue(moto, f"devices-{abs(hash(request.node.name)) % 10**8}")
    yield made
    made.forget()


def test_an_upload_rings_and_its_message_is_deleted(queue: Queue, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Upload, copy, delete, and the test event: two messages to devices, an empty queue, each counted."""
    with (
        Subscriber(mosquitto.url, TOPICS) as listener,
        Host(tmp_path, queue.environment(mosquitto.url)) as host,
    ):
        queue.upload(MAC_KEY)
        queue.upload("assets/a b+c.bin")
        queue.s3.delete_object(Bucket=queue.bucket, Key=MAC_KEY)
        heard = {message.topic: json.loads(message.payload)["filename"] for message in listener.wait_for(2)}
        assert heard == {TOPICS[0]: "aa-bb-cc-dd-ee-ff.json", TOPICS[1]: "a b+c.bin"}
        eventually(lambda: queue.depth() == 0)
        assert host.metric("events_total", source="sqs", outcome="delivered") == 2
        assert host.metric("events_total", source="sqs", outcome="test_event") == 1
        assert host.metric("events_total", source="sqs", outcome="removed") == 1
        assert not host.lines("ERROR")
        assert listener.drain() == []


def test_only_what_succeeded_is_deleted(queue: Queue, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """A malformed message between good ones stays, for the dead-letter queue, and holds nobody up."""
    with (
        Subscriber(mosquitto.url, TOPICS) as listener,
        Host(tmp_path, queue.environment(mosquitto.url)) as host,
    ):
        for body in (upload("assets/1").decode(), "not an event", upload("assets/2").decode()):
            queue.send(body)
        listener.wait_for(2)
        eventually(lambda: queue.depth() == 1)
        eventually(lambda: host.metric("events_total", source="sqs", outcome="malformed") >= 2)  # it came back
        assert queue.depth() == 1
        assert len(host.lines("ERROR")) == 1


def test_a_broker_that_is_away_costs_nothing_but_time(queue: Queue, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The message stays in the queue through the outage, and rings once after it."""
    with Host(tmp_path, queue.environment(mosquitto.url)) as host:
        mosquitto.stop()
        queue.upload(MAC_KEY)
        eventually(lambda: host.metric("events_total", source="sqs", outcome="unconfirmed") >= 1)
        assert queue.depth() == 1
        mosquitto.start()
        with Subscriber(mosquitto.url, TOPICS) as listener:
            listener.next()
            eventually(lambda: queue.depth() == 0)
            assert listener.drain() == []


def test_a_queue_that_is_away_is_waited_for(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """One WARNING, doors and readiness unharmed; when the store is back, so is the poller."""
    with MotoServer(tmp_path / "moto") as moto:
        before = Queue(moto, "devices")
        with (
            Subscriber(mosquitto.url, TOPICS) as listener,
            Host(tmp_path, before.environment(mosquitto.url)) as host,
        ):
            before.forget()
            moto.stop()
            eventually(lambda: host.lines("WARNING"))
            assert host.http.get("/readyz").status_code == 200
            assert host.post(upload()).status_code == 200
            listener.next()
            moto.start()  # it has forgotten everything
            after = Queue(moto, "devices")
            assert after.url == before.url
            after.upload(MAC_KEY)
            listener.next(PATIENCE_SECONDS)
            assert len([line for line in host.lines("WARNING") if "queue" in line["message"]]) == 1
            eventually(lambda: "the queue is polled again" in host.log)
            after.forget()


def test_a_signal_during_a_long_poll_ends_the_host_in_time(queue: Queue, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Nobody waits for the 20 s of an empty poll."""
    with Host(tmp_path, queue.environment(mosquitto.url)) as host:
        eventually(lambda: queue.depth() == 0)  # the test event; the next poll finds nothing
        time.sleep(0.3)
        assert host.stop() < STOP_SECONDS
        assert "Traceback" not in host.log


class Sqs:
    """A queue client of one batch; `deleted` are the receipts, `release` lets the deletion go on."""

    def __init__(self, bodies: list[str]) -> None:
        self.batches = [
            [{"MessageId": f"m{n}", "ReceiptHandle": f"r{n}", "Body": body} for n, body in enumerate(bodies)]
        ]
        self.deleted: list[str] = []
        self.deleting = threading.Event()
        self.release = threading.Event()
        self.end = threading.Event()

    def receive_message(self, **asked: Any) -> dict[str, Any]:  # noqa: ANN401 - boto3's shape
        """As boto3's; blocks when there is nothing left, as a long poll does."""
        assert (asked["MaxNumberOfMessages"], asked["WaitTimeSeconds"]) == (10, 20)
        if not self.batches:
            self.end.wait(PATIENCE_SECONDS)
            return {}
        return {"Messages": self.batches.pop()}

    def delete_message_batch(self, **asked: Any) -> dict[str, Any]:  # noqa: ANN401 - boto3's shape
        """As boto3's."""
        self.deleting.set()
        self.release.wait(PATIENCE_SECONDS)
        self.deleted += [entry["ReceiptHandle"] for entry in asked["Entries"]]
        return {}


@asynccontextmanager
async def polling(sqs: Sqs, url: str) -> AsyncIterator[Poller]:
    """A poller of that client on a started publisher."""
    telemetry = PrometheusTelemetry()
    publisher = HostPublisher(BrokerConfig.of(load({"MQTT_URL": url}).settings), telemetry)
    await publisher.start()
    await until(lambda: publisher.ready)
    poller = Poller(SqsQueue(sqs, "queue"), Bell(publisher, Routes(), telemetry, patience_seconds=20.0))
    await poller.start()
    try:
        yield poller
    finally:
        sqs.end.set()
        await poller.stop()
        await publisher.stop()


@on_uvloop
async def test_stopping_finishes_the_batch_in_hand(mosquitto: Mosquitto) -> None:
    """What has rung is deleted before the end: otherwise it would ring again."""
    sqs = Sqs([upload().decode()])
    async with polling(sqs, mosquitto.url) as poller:
        await until(sqs.deleting.is_set)
        asyncio.get_running_loop().call_later(0.2, sqs.release.set)
        await poller.stop()
        assert sqs.deleted == ["r0"]


@on_uvloop
async def test_stopping_does_not_wait_for_a_queue_that_hangs(mosquitto: Mosquitto) -> None:
    """Neither for a deletion nor for a poll; and stopping twice is stopping once."""
    sqs = Sqs([upload().decode()])
    async with polling(sqs, mosquitto.url) as poller:
        await until(sqs.deleting.is_set)
        begun_at = time.monotonic()
        await poller.stop()
        assert time.monotonic() - begun_at < poller_module.STOP_SECONDS + SLACK_SECONDS
        sqs.release.set()
        await until(lambda: sqs.deleted)
        await poller.stop()


@on_uvloop
async def test_one_message_of_many_records_is_kept_as_a_whole(mosquitto: Mosquitto) -> None:
    """A record that cannot succeed keeps its message, not the others'."""
    mixed = json.dumps({"Records": [record("assets/1"), 17]})
    sqs = Sqs([mixed, upload("assets/2").decode(), "null"])
    sqs.release.set()
    async with polling(sqs, mosquitto.url):
        await until(lambda: sqs.deleted)
        assert sqs.deleted == ["r1"]
