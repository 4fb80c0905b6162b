"""The real parts of one scenario: broker, store, host, the line between host and broker, and a device that listens."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from typer.testing import CliRunner

from infra.cli import app
from infra.connect.documents import SURE_TARGET
from infra.connect.minio import Doors
from infra.local.mosquitto import Mosquitto
from infra.local.process import PartError, free_port
from infra.local.stack import OURS, HostProcess
from infra.local.stores import Minio, MotoServer, Store
from infra.subscriber import Subscriber
from tests.chaos.metrics import host_metric
from tests.chaos.uploads import Uploads
from tests.chaos.verdict import Heard, Upload
from tests.fakes.proxy import TcpProxy

Source = Literal["minio", "sqs"]

SWEEPING = {"SWEEP_SECONDS": "2"}
"""The host's variables in a scenario with the sweep."""

BUCKET = "chaos"
TOPICS = "iotsupport/updates/#"
ASSETS = "iotsupport/updates/assets"
TOKEN = "the-token-of-the-chaos-rig-0123"
SESSION_SECONDS = 3600
CONNECT_SECONDS = 60.0
FIRST_SECONDS = 30.0
EVENTUALLY_SECONDS = 30.0
LOOK_SECONDS = 0.02
LIST_ATTEMPTS = 5
SWEPT_ONCE = "sweep_seconds_count"
STOP_SECONDS = 3.0
LOG_TAIL_CHARACTERS = 2000

# Mosquitto keeps at most 1,000 messages for a subscriber that is slow or away, and then drops silently what it has
# confirmed: its own loss, not ours. Not 0, which means no limit: Mosquitto 2.0.11 then closes the connection of
# whoever publishes what the ACL forbids.
KEEP_ALL = ("max_queued_messages 1000000",)


@dataclass(frozen=True, slots=True)
class Profile:
    """How long and how patient. `outage_seconds` is the usual length of a fault.

    `deadline_seconds` is the host's own for the broker (MQTT_CONNECT_TIMEOUT_SECONDS, MQTT_PUBLISH_TIMEOUT_SECONDS):
    shorter where outages are, or the host would sit them out unawares. `pause_seconds` are between two occurrences of
    a fault, `hear_seconds` how long what is missing is waited for, `repeat_seconds` how long for repeats.
    """

    name: Literal["short", "long"]
    outage_seconds: float
    deadline_seconds: float
    pause_seconds: tuple[float, float]
    hear_seconds: float
    repeat_seconds: float = 7.0  # two of MinIO's rounds: what is going to ring twice has done so


class World:
    """Nothing is shared between two worlds. Enter it to start all parts; what a part is to be told goes in before.

    The host, and only the host, reaches the broker through `proxy`. The subscriber has a session that survives
    (persistent, QoS 1) at a broker that writes sessions to disk, unless another `broker` is given. `variables` are
    more of the host's environment, `ear` further arguments of the subscriber (`url` among them), `queue` attributes
    of the SQS queue. MinIO posts to `door_port` where that is not the host's own, and keeps its events in
    `queue_directory`. A part's `environment` and `command` may be changed before it starts.
    """

    def __init__(
        self,
        directory: Path,
        profile: Profile,
        *,
        source: Source = "minio",
        broker: Mosquitto | None = None,
        variables: Mapping[str, str] | None = None,
        ear: Mapping[str, Any] | None = None,
        queue: Mapping[str, str] | None = None,
        door_port: int | None = None,
        queue_directory: Path | None = None,
    ) -> None:
        """Raises `PartError` where a program is missing."""
        self.directory = directory
        self.broker = broker or Mosquitto(directory / "mosquitto", persistent=True, extra=KEEP_ALL)
        self.proxy = TcpProxy("127.0.0.1", self.broker.port)
        host_port = free_port()
        self.queue_directory = queue_directory or directory / "minio-events"
        doors = Doors(
            f"http://127.0.0.1:{door_port or host_port}",
            sure_only=False,
            queue_directory=str(self.queue_directory),
            token=TOKEN,
        )
        self._doors = doors
        self.store = self._make_store(directory, source)
        self.credentials = {
            "AWS_ENDPOINT_URL": self.store.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.store.access_key,
            "AWS_SECRET_ACCESS_KEY": self.store.secret_key,
            "AWS_REGION": self.store.region,
        }
        deadline = f"{profile.deadline_seconds:g}"
        self.host = HostProcess(
            directory / "host",
            host_port,
            {
                "MQTT_URL": f"{self.broker.url.partition(':')[0]}://127.0.0.1:{self.proxy.port}",
                "MQTT_CONNECT_TIMEOUT_SECONDS": deadline,
                "MQTT_PUBLISH_TIMEOUT_SECONDS": deadline,
                "BUCKET": BUCKET,
                "WEBHOOK_TOKENS": TOKEN,
                **self.credentials,
                **(variables or {}),
            },
        )
        session = {"qos": 1, "client_id": "ear", "session_expiry_seconds": SESSION_SECONDS}
        self.subscriber = Subscriber(**{"url": self.broker.url, "topics": [TOPICS], **session, **(ear or {})})
        self.uploads: Uploads
        self.healed_at: list[float] = []
        self.events_from = "MinIO" if source == "minio" else "SQS"
        self._queue = queue or {}
        # One attempt: boto3 would repeat a PUT under the same key, and that is another upload.
        self.s3: Any = self.store.client(attempts=1)

    # Life.

    def __enter__(self) -> Self:
        """Start all; returns when an upload was heard."""
        try:
            self._start_parts()
            self.subscriber.start()
            self._first_ring()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.subscriber.stop()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda part: part.stop(STOP_SECONDS), (self.host, self.store, self.broker)))
        self.proxy.stop()
        self.s3.close()

    def _make_store(self, directory: Path, source: Source) -> Store:
        if source == "sqs":
            return MotoServer(directory / "moto")
        return Minio(directory / "minio", environment=self._doors.environment())

    def _start_parts(self) -> None:
        self.broker.start()
        self.store.start()
        self._connect()
        self.host.start()

    def _connect(self) -> None:
        """Run `bucketbell connect` in this process, which saves its start, but as from a shell."""
        options = ["--endpoint-url", self.store.endpoint_url, "--bucket", BUCKET, "--host-url", self._doors.host_url]
        ours = {name: None for name in os.environ if name.startswith(OURS)}
        until = time.monotonic() + CONNECT_SECONDS
        while True:
            with contextlib.chdir(self.directory):  # not the developer's .env
                done = CliRunner().invoke(
                    app,
                    ["connect", "--create", "--json", *options],
                    env={**ours, **self.credentials, "BUCKET": BUCKET, "WEBHOOK_TOKENS": TOKEN},
                )
            if done.exit_code == 0:
                break
            if time.monotonic() > until:  # on a busy machine moto takes seconds to answer for the first time
                raise PartError(f"`bucketbell connect` failed: {done.output}")
        self.host.environment |= json.loads(done.stdout).get("host_environment", {})
        if self._queue:
            with contextlib.closing(self.store.client("sqs")) as sqs:
                url = self.host.environment["SQS_QUEUE_URL"]
                sqs.set_queue_attributes(QueueUrl=url, Attributes=dict(self._queue))

    def _first_ring(self) -> None:
        """Upload probes until one is heard: a store may take uploads a moment before it tells of them."""
        probes = iter(range(1, 1_000_000))

        def heard() -> bool:
            self.put(f"assets/probe-{next(probes)}")
            return bool(self.subscriber.silence(LOOK_SECONDS * 5))

        eventually(heard, "nothing rings even while all is well", FIRST_SECONDS)
        if self.is_sweeping:  # what is uploaded before a host has looked for the first time counts as announced
            eventually(
                lambda: any(host_metric(host, SWEPT_ONCE) for host in self.hosts()), "nobody sweeps", FIRST_SECONDS
            )

    def hosts(self) -> Iterator[HostProcess]:
        """All of them."""
        yield self.host

    # What is measured.

    def put(self, key: str) -> None:
        """Upload one small object. Raises when the store does not answer 200."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=key.encode())

    def object_key(self, key: str) -> str:
        """The object that `put` makes of this key."""
        return key

    def to_be_heard(self) -> tuple[dict[str, Upload], set[str]]:
        """The uploads, and which of them a LIST of the store does not show.

        With the sweep they are all that a LIST shows, whatever was answered; without it, all that was answered.
        """
        with contextlib.closing(self.store.client(attempts=LIST_ATTEMPTS)) as s3:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
            listed = {entry["Key"] for page in pages for entry in page.get("Contents", ())}
        answered, unanswered = self.uploads.answered, self.uploads.unanswered
        there = {key: upload for key, upload in unanswered.items() if self.object_key(key) in listed}
        uploads = answered | (there if self.is_sweeping else {})
        return uploads, {key for key in uploads if self.object_key(key) not in listed}

    @property
    def is_sweeping(self) -> bool:
        """Whether the host is told to."""
        return SWEEPING.items() <= self.host.environment.items()

    def suffer(self, seconds: float) -> None:
        """Let the fault last. Raises `PartError` when the host then still says that it is ready: nothing was broken."""
        time.sleep(seconds)
        if self.host.is_ready():
            raise PartError(f"the fault did not bite: after {seconds:g} s the host is still connected to its broker")

    def healed(self) -> None:
        """Note that the fault is over now: recovery counts from here."""
        self.healed_at.append(time.monotonic())

    def heard(self) -> list[Heard]:
        """What the subscriber got so far, in the order of arrival."""
        return [
            Heard(
                f"assets/{json.loads(message.payload)['filename']}",
                dict(message.user_properties).get("id", ""),
                message.received_at,
            )
            for message in self.subscriber.messages
        ]

    # What several faults do.

    def without_sure_door(self) -> None:
        """Switch the safety off: take the rule of the sure door, whose events are on disk, out of the bucket."""
        self.events_from = "MinIO, fast door only"
        rules = self.s3.get_bucket_notification_configuration(Bucket=BUCKET)
        kept = [rule for rule in rules["QueueConfigurations"] if SURE_TARGET not in rule["QueueArn"]]
        self.s3.put_bucket_notification_configuration(
            Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": kept}
        )

    def queued(self) -> int:
        """How many events MinIO keeps on disk for the sure door."""
        return sum(path.is_file() for path in self.queue_directory.rglob("*"))

    def last_words(self, key: str) -> str:
        """What the host said of the object `key`, and the ends of the logs: for whoever asks what happened."""
        filename = key.partition("/")[2]
        mentions = "\n".join(line for line in self.host.log_text().splitlines() if filename in line)
        parts = (self.broker, self.store, self.host)
        ends = "\n".join(f"--- {part.name}\n{part.log_text()[-LOG_TAIL_CHARACTERS:]}" for part in parts)
        return f"--- {key} in the host's log\n{mentions}\n{ends}"


def eventually(truth: Callable[[], object], otherwise: str, within_seconds: float = EVENTUALLY_SECONDS) -> None:
    """Return once `truth()` holds. Raises `PartError` that says `otherwise`, when it does not in time."""
    until = time.monotonic() + within_seconds
    while not truth():
        if time.monotonic() > until:
            raise PartError(f"{otherwise} (waited {within_seconds:g} s)")
        time.sleep(LOOK_SECONDS)
