"""An emulated AWS with the stack in it, and the way through it from an upload to a subscriber.

Two stand in for AWS. On moto (`moto_cloud`) the built functions run in containers, in an image of the runtime; moto
proves nothing about IAM, signatures, TLS and the HTTP API. On MiniStack (`ministack_cloud`) those are in force, and the
functions are processes of this machine. Neither says how Lambda scales, or what SnapStart does.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process
from infra.local.stores import Store
from infra.sam.build import Artefact
from infra.sam.image import ARCHITECTURE
from infra.subscriber import Subscriber, SubscriberTimeoutError
from tests.aws.deployment import Deployment
from tests.gateway import Answered

STACK = "bell"
BROKER_SECRET, DOWNLOAD_SECRET = "bell/broker", "bell/download"
BELL, EAR = "bell", "ear"  # users at the broker
EAR_PASSWORD = "the ear's own"

# The template's queue tries a message a hundred times, once a minute; a test has no hour.
MAX_RECEIVE_COUNT = 2
RETRY_SECONDS = 2
TEMPLATE_SECONDS = 60
HEAR_SECONDS = 30.0
SETTLE_SECONDS = 0.3
RECONNECT_SECONDS = 30.0
EMPTY_SECONDS = 60.0
LOG_SECONDS = 30.0
FETCH_SECONDS = 30.0
POLL_SECONDS = 0.02
LOG_TAIL_CHARACTERS = 3000


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the two secrets hold."""

    password: str
    device_token_keys: str
    admin_token: str


class Cloud(contextlib.ExitStack, ABC):
    """The whole way from an upload to a subscriber; as a context manager it starts everything and leaves nothing."""

    def __init__(self, directory: Path, emulator: Store, artefact: Artefact, credentials: Credentials) -> None:
        super().__init__()
        self.directory = directory
        self.emulator = emulator
        self.artefact = artefact
        self.credentials = credentials
        self.broker = Mosquitto(directory / "broker", users={BELL: credentials.password, EAR: EAR_PASSWORD})
        self.ear = Subscriber(self.broker.url, ["#"], username=EAR, password=EAR_PASSWORD)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:  # of what was started, when something later does not
            undo.push(self)
            self.enter_context(self.emulator)
            self.enter_context(self.broker)
            self.enter_context(self.ear)
            self.s3, self.sqs = self.emulator.client(), self.emulator.client("sqs")
            self.secrets, self.functions = self.emulator.client("secretsmanager"), self.emulator.client("lambda")
            self._deploy()
            undo.pop_all()
        return self

    def _deploy(self) -> None:
        given = self.credentials
        self.put_secret(BROKER_SECRET, {"MQTT_USERNAME": BELL, "MQTT_PASSWORD": given.password})
        tokens = {"DEVICE_TOKEN_KEYS": given.device_token_keys, "ADMIN_TOKENS": given.admin_token}
        self.put_secret(DOWNLOAD_SECRET, tokens)
        self.stack = self.deploy(STACK, self.parameters)
        self.bucket = self.stack.outputs["BucketName"]
        self.queue_url = self.stack.outputs["QueueUrl"]
        self.dead_letter_queue_url = self.stack.outputs["DeadLetterQueueUrl"]
        self.start_functions()
        self.settle()
        self.first_heard = self.ear.silence(SETTLE_SECONDS)
        self.notify_started_at = time.monotonic()

    @property
    def parameters(self) -> dict[str, str]:
        """What the stack is deployed with."""
        return {
            "Architecture": ARCHITECTURE,
            "MqttUrl": self.broker.url,
            "BrokerSecret": BROKER_SECRET,
            "DownloadSecret": DOWNLOAD_SECRET,
            "MaxReceiveCount": str(MAX_RECEIVE_COUNT),
            "LogLevel": "DEBUG",
        }

    # What each emulator does in its own way.

    @abstractmethod
    def deploy(self, name: str, parameters: Mapping[str, str]) -> Deployment:
        """Make a stack."""

    @abstractmethod
    def start_functions(self) -> None:
        """Start the functions where the emulator does not."""

    @abstractmethod
    def attempt(self) -> None:
        """Have what is in the queue worked on once, where the emulator is not at it by itself."""

    @abstractmethod
    def paused(self) -> AbstractContextManager[None]:
        """Within it nothing is taken from the queue, so that what is put there can make one batch."""

    @abstractmethod
    def batches(self) -> list[tuple[int, int]]:
        """Of each batch that NotifyFunction was invoked with: how many messages, and how many of them it failed."""

    @abstractmethod
    def log_text(self) -> str:
        """What NotifyFunction has logged."""

    @abstractmethod
    def ask(self, path: str, token: str, method: str = "GET", **headers: str) -> Answered:
        """What the HTTP API answers to a client."""

    @abstractmethod
    def parts(self) -> tuple[Process, ...]:
        """Whose logs tell what went wrong."""

    def put_secret(self, name: str, content: Mapping[str, str]) -> None:
        """Make a secret."""
        self.secrets.create_secret(Name=name, SecretString=json.dumps(content))

    def configuration(self, name: str) -> dict[str, Any]:
        """What the emulated Lambda says of a function, by its logical name."""
        answer = self.functions.get_function_configuration(FunctionName=self.stack.resources[name])
        package = self.artefact.zip_file.read_bytes()
        assert base64.b64decode(answer["CodeSha256"]) == hashlib.sha256(package).digest()
        return dict(answer)

    def tidy_up(self) -> None:
        """Leave empty queues and a broker that runs."""
        if not self.broker.running:
            self.bring_broker_back()
        while self.queued():  # not purge_queue, which may be used once a minute
            self._take(self.queue_url, wait_seconds=RETRY_SECONDS)
        self.dead_letters()
        self.ear.drain()

    # The uploader's side.

    def put(self, key: str, body: bytes = b"content") -> dict[str, Any]:
        """Upload one object; S3's answer."""
        return dict(self.s3.put_object(Bucket=self.bucket, Key=key, Body=body))

    # AWS's side.

    @contextlib.contextmanager
    def retrying(self) -> Iterator[None]:
        """Within it what failed is tried again soon."""
        self.retry_after(RETRY_SECONDS)
        try:
            yield
        finally:
            self.retry_after(TEMPLATE_SECONDS)

    def retry_after(self, seconds: int, stack: Deployment | None = None) -> None:
        """Have what fails from now on tried again after so long (in another stack)."""
        queue_url = (stack or self.stack).outputs["QueueUrl"]
        self.sqs.set_queue_attributes(QueueUrl=queue_url, Attributes={"VisibilityTimeout": str(seconds)})

    def settle(self) -> None:
        """Have all that is in the queue worked on, until each message is done or a dead letter."""
        self.wait(lambda: not self.queued() or self.attempt(), EMPTY_SECONDS)

    def queued(self, queue_url: str | None = None) -> int:
        """How many messages are in a queue (that of events), in flight or not."""
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        answer = self.sqs.get_queue_attributes(QueueUrl=queue_url or self.queue_url, AttributeNames=list(names))
        return sum(int(answer["Attributes"][name]) for name in names)

    def dead_letters(self) -> list[str]:
        """Take the bodies of what is in the dead-letter queue."""
        return self._take(self.dead_letter_queue_url, wait_seconds=0)

    def _take(self, queue_url: str, *, wait_seconds: int) -> list[str]:
        answer = self.sqs.receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=wait_seconds)
        messages = answer.get("Messages", [])
        for message in messages:
            self.sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
        return [message["Body"] for message in messages]

    def logged(self, message: str, about: str = "") -> list[str]:
        """The lines in which NotifyFunction says `message` about something."""
        return [line for line in self.log_text().splitlines() if f'"{message}"' in line and about in line]

    def wait_until_logged(self, message: str, about: str = "", *, times: int = 1) -> None:
        """Returns once NotifyFunction has said it so often."""
        self.wait(lambda: len(self.logged(message, about)) >= times, LOG_SECONDS)

    def wait(self, condition: Callable[[], object], seconds: float) -> None:
        """Returns once `condition` is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.last_words()
            time.sleep(POLL_SECONDS)

    def rotate(self, password: str) -> None:
        """Give the bell another password, in its secret and at the broker, which starts anew."""
        content = json.dumps({"MQTT_USERNAME": BELL, "MQTT_PASSWORD": password})
        self.secrets.put_secret_value(SecretId=BROKER_SECRET, SecretString=content)
        self.broker.set_users({BELL: password, EAR: EAR_PASSWORD})
        self.lose_broker()
        self.bring_broker_back()

    def lose_broker(self) -> None:
        """Kill the broker; returns once the subscriber has noticed."""
        self.broker.kill()
        self.wait(lambda: not self.ear.connected, RECONNECT_SECONDS)

    def bring_broker_back(self) -> None:
        """Start it; returns once the subscriber listens again: nobody keeps messages for it."""
        self.broker.start()
        self.wait(lambda: self.ear.connected, RECONNECT_SECONDS)

    # The devices' side.

    def hear(self, count: int = 1) -> list[Received]:
        """Take exactly the next `count` messages."""
        try:
            messages = self.ear.wait_for(count, HEAR_SECONDS)
        except SubscriberTimeoutError as error:
            raise AssertionError(f"{error}: {self.ear.drain()}\n{self.last_words()}") from None
        assert self.ear.silence(SETTLE_SECONDS) == []
        return messages

    def fetch(self, url: str, **headers: str) -> bytes:
        """What is behind a presigned URL."""
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the emulator's
        with urllib.request.urlopen(request, timeout=FETCH_SECONDS, context=self.emulator.tls) as response:  # noqa: S310 - as above
            return bytes(response.read())

    def last_words(self) -> str:
        """The ends of the logs, for whoever has to find out what went wrong."""
        parts = (self.broker, self.emulator, *self.parts())
        return "\n".join(f"--- {part.name}\n{part.log_text()[-LOG_TAIL_CHARACTERS:]}" for part in parts)
