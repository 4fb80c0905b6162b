"""A whole bucketbell for tests: a real broker, store, bucket and host, and a device that listens."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner, Result

from infra.cli import app
from infra.connect.minio import Doors
from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stack import OURS, HostProcess
from infra.local.stores import Minio, MotoServer, Store, VersityGateway
from infra.subscriber import Subscriber, SubscriberTimeoutError
from tests.fakes.proxy import TcpProxy
from tests.timing import PATIENCE_SECONDS

Kind = Literal["minio", "moto", "versitygw"]

BUCKET = "devices"
CONFIGS = "iotsupport/updates/configs"
ASSETS = "iotsupport/updates/assets"
TOKEN = "the-token-of-the-whole-way-0123"

ASK_SECONDS = 10.0
SETTLE_SECONDS = 0.1  # what MinIO sent side by side with the last event heard has arrived after this
READ_SECONDS = 1.0  # in which the subscriber reads what the broker has confirmed, on a busy machine too
POLL_SECONDS = 0.02
STOP_SECONDS = 10.0  # then it is killed: how long the host takes is tested elsewhere
LOG_TAIL_CHARACTERS = 2500

_numbers = itertools.count(1)


def fresh(name: str = "asset.bin") -> str:
    """A file name that no other upload of this run has."""
    return f"{next(_numbers):04}-{name}"


def fresh_config() -> str:
    """The file name of a device's config that no other upload of this run has."""
    number = f"{next(_numbers):012x}"
    return "-".join(number[at : at + 2] for at in range(0, 12, 2)) + ".json"


def eventually(truth: Callable[[], object], within_seconds: float = PATIENCE_SECONDS) -> bool:
    """Whether `truth` becomes true in time."""
    deadline = time.monotonic() + within_seconds
    while not truth():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def filename_of(message: Received) -> str:
    """The one thing that a payload says."""
    document = json.loads(message.payload)
    assert list(document) == ["filename"]
    return str(document["filename"])


def id_of(message: Received) -> str:
    """The event's identity, by which a device drops repeats."""
    return dict(message.user_properties)["id"]


class LiveHost(HostProcess):
    """`bucketbell host`, waited for until it answers at all: its broker may be meant to be out of reach."""

    def is_ready(self) -> bool:
        """Whether `/healthz` answers."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/healthz", timeout=ASK_SECONDS):  # noqa: S310 - our own http URL
            return True
        return False


class World:
    """One bucket of one store, and everything that its uploads pass through. Nothing is shared between two worlds.

    `mqtt` are environment variables of the host beside those that it needs here, `ears` further arguments of the
    subscriber; a `broker` may be given with rules of its own. With `proxied` the host, and only the host, reaches the
    broker through `proxy`. `queue` are attributes of the SQS queue, where there is one. `ready=False` does not wait
    for the host's broker.
    """

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        *,
        broker: Mosquitto | None = None,
        mqtt: Mapping[str, str] | None = None,
        ears: Mapping[str, Any] | None = None,
        queue: Mapping[str, str] | None = None,
        sure_only: bool = False,
        proxied: bool = False,
        ready: bool = True,
    ) -> None:
        self.kind = kind
        self._queue = queue
        self.directory = directory
        self.broker = broker or Mosquitto(directory / "mosquitto")
        self.proxy = TcpProxy("127.0.0.1", self.broker.port) if proxied else None
        port = free_port()
        self.queue_directory = directory / "minio-events"
        self.doors = Doors(f"http://127.0.0.1:{port}", sure_only, str(self.queue_directory), TOKEN)
        self.store: Store
        if kind == "minio":
            self.store = Minio(directory / "minio", environment=self.doors.environment())
        elif kind == "moto":
            self.store = MotoServer(directory / "moto")
        else:
            self.store = VersityGateway(directory / "versitygw", event_webhook_url=f"{self.doors.host_url}/events")
        self.credentials = {
            "AWS_ENDPOINT_URL": self.store.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.store.access_key,
            "AWS_SECRET_ACCESS_KEY": self.store.secret_key,
            "AWS_REGION": self.store.region,
        }
        environment = {"MQTT_URL": (self.proxy or self.broker).url, "BUCKET": BUCKET, **self.credentials}
        # What `connect` and the host must agree on.
        self._shared = {name: value for name, value in (mqtt or {}).items() if name == "EVENTS_PREFIX"}
        self._shared["BUCKET"] = BUCKET
        if "DEVICE_TOKEN_KEYS" in (mqtt or {}):
            environment["PUBLIC_BASE_URL"] = self.doors.host_url
        # Versity GW sends no token: its host is on loopback, without one.
        environment |= {} if kind == "versitygw" else {"WEBHOOK_TOKENS": TOKEN}
        self.host = (HostProcess if ready else LiveHost)(directory / "host", port, {**environment, **(mqtt or {})})
        self.ear = Subscriber(self.broker.url, ["#"], **(ears or {}))
        self.s3 = self.store.client()

    # Life.

    def start(self) -> World:
        """Start all parts; returns when the host is ready and the subscriber listens."""
        self.broker.start()
        if self.kind == "versitygw":  # it posts a test event as it starts, and ends when nobody is there
            self.host.start()
            self.store.start()
            self.s3.create_bucket(Bucket=BUCKET)
        else:
            self.store.start()
            done = self.connect("--create", "--json")
            if (
                "not reachable" in done.output
            ):  # a store that has only just started may take longer than `connect` waits
                done = self.connect("--create", "--json")
            assert done.exit_code == 0, done.output
            self.host.environment |= json.loads(done.stdout).get("host_environment", {})
            if self.kind == "moto" and self._queue:
                self.set_queue(self._queue)
            self.host.start()
        self.ear.start()
        return self

    def stop(self) -> None:
        """End all parts. Idempotent."""
        self.ear.stop()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda part: part.stop(STOP_SECONDS), (self.host, self.store, self.broker)))
        if self.proxy:
            self.proxy.stop()
        self.s3.close()

    def connect(self, *options: str) -> Result:
        """Run `bucketbell connect` on this store: in this process, which saves its start, but as from a shell."""
        options = ("--endpoint-url", self.store.endpoint_url, "--bucket", BUCKET, *options)
        if self.doors.sure_only:
            options = ("--sure-only", *options)
        ours = {name: None for name in os.environ if name.startswith(OURS)}
        with contextlib.chdir(self.directory):  # not the developer's .env
            return CliRunner().invoke(
                app,
                ["connect", "--host-url", self.doors.host_url, *options],
                env={**ours, **self.credentials, **self._shared, "WEBHOOK_TOKENS": TOKEN},
            )

    def set_queue(self, attributes: Mapping[str, str]) -> None:
        """Change attributes of the SQS queue; a long poll that is under way keeps to the old ones."""
        with contextlib.closing(self.store.client("sqs")) as sqs:
            sqs.set_queue_attributes(QueueUrl=self.host.environment["SQS_QUEUE_URL"], Attributes=dict(attributes))

    def dead_letter_queue(self) -> dict[str, str]:
        """The attributes of the queue in which SQS keeps events for a person."""
        with contextlib.closing(self.store.client("sqs")) as sqs:
            url = f"{self.host.environment['SQS_QUEUE_URL']}-dlq"
            answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
            return dict(answer["Attributes"])

    def add_foreign_rule(self, *events: str) -> None:
        """Have the store send us what we never asked for: somebody else's rule with our target."""
        rules = self.s3.get_bucket_notification_configuration(Bucket=BUCKET)
        del rules["ResponseMetadata"]
        arns = dict.fromkeys(rule["QueueArn"] for rule in rules["QueueConfigurations"])
        rules["QueueConfigurations"] += [
            {"Id": f"foreign-{number}", "QueueArn": arn, "Events": list(events)} for number, arn in enumerate(arns)
        ]
        self.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=rules)

    def lose_broker(self) -> None:
        """Cut the host off from its broker, then kill that (the world is `proxied`).

        Killed first, it would take messages into its grave that it had confirmed and the subscriber had not read.
        """
        assert self.proxy
        self.proxy.refuse_new = True
        self.proxy.cut()
        time.sleep(READ_SECONDS)
        self.broker.kill()

    def bring_broker_back(self) -> None:
        """Start it, and let the host at it once the subscriber listens again: nobody keeps messages for that."""
        assert self.proxy
        self.broker.start()
        assert eventually(lambda: self.ear.connected)
        self.proxy.refuse_new = False

    # The uploader's side.

    def put(self, key: str, body: bytes = b"content", **more: Any) -> Any:  # noqa: ANN401 - boto3 answers with dictionaries
        """Upload one object; returns S3's answer."""
        return self.s3.put_object(Bucket=BUCKET, Key=key, Body=body, **more)

    def etag(self, key: str) -> str:
        """The object's etag without quotes; raises when the object is not there."""
        return str(self.s3.head_object(Bucket=BUCKET, Key=key)["ETag"]).strip('"')

    # The device's side.

    def hear(self, *filenames: str, topic: str = ASSETS, within_seconds: float = PATIENCE_SECONDS) -> list[Received]:
        """Take the next messages: exactly these filenames on this topic, in any order, returned in the one given."""
        try:
            messages = self.ear.wait_for(len(filenames), within_seconds)
        except SubscriberTimeoutError as error:
            raise AssertionError(f"{error}: {self.ear.drain()}\n{self.last_words()}") from None
        heard = {filename_of(message): message for message in messages}
        assert sorted(heard) == sorted(filenames), self.last_words()
        assert {message.topic for message in messages} == {topic}
        return [heard[name] for name in filenames]

    def hear_at_least(
        self, filenames: Iterable[str], within_seconds: float = 2 * PATIENCE_SECONDS
    ) -> dict[str, list[Received]]:
        """Take messages until each filename was heard, repeats included."""
        heard: defaultdict[str, list[Received]] = defaultdict(list)
        missing = set(filenames)
        deadline = time.monotonic() + within_seconds
        while missing:
            try:
                message = self.ear.next(max(0.0, deadline - time.monotonic()))
            except SubscriberTimeoutError:
                raise AssertionError(f"missing: {sorted(missing)}\n{self.last_words()}") from None
            heard[filename_of(message)].append(message)
            missing.discard(filename_of(message))
        return heard

    def assert_silent(self) -> None:
        """Nothing that was done before rang: the very next message is that of an upload made now, the only one."""
        sentinel = fresh("sentinel.bin")
        self.put(f"assets/{sentinel}")
        self.hear(sentinel)
        assert self.ear.silence(SETTLE_SECONDS) == []

    # Our own side.

    def get(self, path: str) -> tuple[int, bytes]:
        """Ask the host: status and body."""
        try:
            with urllib.request.urlopen(f"{self.host.url}{path}", timeout=ASK_SECONDS) as answer:  # noqa: S310 - our own http URL
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """What `/readyz` says: its status, and what it knows of the broker."""
        status, body = self.get("/readyz")
        mqtt: dict[str, Any] = json.loads(body)["mqtt"]
        return status == http.client.OK, mqtt

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample of `/metrics`."""
        families = text_string_to_metric_families(self.get("/metrics")[1].decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with at least these labels; 0 where there are none."""
        wanted = labels.items()
        return sum(value for (own, pairs), value in self.samples().items() if own == name and pairs >= wanted)

    def log(self, *levels: str) -> list[dict[str, Any]]:
        """What the host has logged since its start, of these levels (any, when none is named)."""
        lines = [line for line in self.host.new_log_text().split("\n") if line.startswith("{")]
        documents: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [document for document in documents if not levels or document["level"] in levels]

    def failures(self) -> dict[str, dict[str, Any]]:
        """What was logged of publishes that failed, the latest for each filename; its notification is flattened."""
        lines = [line for line in self.log("ERROR") if line["message"] == "publish failed"]
        return {line["notification"]["filename"]: {**line, **line["notification"]} for line in lines}

    def connects(self) -> list[str]:
        """The broker's log lines of our own CONNECTs since it was started."""
        lines = self.broker.new_log_text().splitlines()
        return [line for line in lines if "New client connected" in line and " as bucketbell-" in line]

    def queued(self) -> int:
        """How many events MinIO keeps on disk for the sure door."""
        return sum(path.is_file() for path in self.queue_directory.rglob("*"))

    def last_words(self) -> str:
        """The ends of the logs, for whoever has to find out what went wrong."""
        parts = (self.broker, self.store, self.host)
        return "\n".join(f"--- {part.name}\n{part.log_text()[-LOG_TAIL_CHARACTERS:]}" for part in parts)
