"""An emulated AWS with the stack in it: moto holds bucket, queues and secrets; the built functions run in containers.

What it proves nothing about: IAM (moto lets everybody do everything: tests/unit/test_template.py reads the policies),
signatures (moto opens any URL), TLS, the HTTP API and SnapStart (moto makes neither), and how Lambda scales.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from infra.local.mosquitto import Mosquitto
from infra.local.stores import MotoServer
from infra.sam.image import ARCHITECTURE
from infra.subscriber import Received, Subscriber, SubscriberTimeoutError
from tests.aws.deployment import Deployment, deploy
from tests.aws.function import Function
from tests.aws.mapping import EventSourceMapping, Turn

STACK = "bell"
BROKER_SECRET, DOWNLOAD_SECRET = "bell/broker", "bell/download"
BELL, EAR = "bell", "ear"  # users at the broker
EAR_PASSWORD = "the ear's own"

# The template's queue hides a message for a minute and tries it a hundred times; a test has no hour.
VISIBILITY_SECONDS = 1
MAX_RECEIVE_COUNT = 2
LONG_POLL_SECONDS = 20  # what comes ends it; nobody waits so long for nothing
HEAR_SECONDS = 30.0
SETTLE_SECONDS = 0.3
RECONNECT_SECONDS = 30.0
POLL_SECONDS = 0.02
LOG_TAIL_CHARACTERS = 3000


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the two secrets hold."""

    password: str
    device_token_keys: str
    admin_token: str


class Cloud(contextlib.ExitStack):
    """The whole way from an upload to a subscriber; as a context manager it starts everything and leaves nothing."""

    def __init__(self, directory: Path, *, image: str, package: Path, credentials: Credentials) -> None:
        super().__init__()
        self.package = package.read_bytes()
        self._directory = directory
        self._image = image
        self._credentials = credentials
        self.moto = MotoServer(directory / "moto")
        self.broker = Mosquitto(directory / "broker", users={BELL: credentials.password, EAR: EAR_PASSWORD})
        self.ear = Subscriber(self.broker.url, ["#"], username=EAR, password=EAR_PASSWORD)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:  # of what was started, when something later does not
            undo.push(self)
            self.enter_context(self.moto)
            self.enter_context(self.broker)
            self.enter_context(self.ear)
            self.s3, self.sqs = self.moto.client(), self.moto.client("sqs")
            self.secrets, self.functions = self.moto.client("secretsmanager"), self.moto.client("lambda")
            self._deploy()
            undo.pop_all()
        return self

    def _deploy(self) -> None:
        given = self._credentials
        self._put_secret(BROKER_SECRET, {"MQTT_USERNAME": BELL, "MQTT_PASSWORD": given.password})
        tokens = {"DEVICE_TOKEN_KEYS": given.device_token_keys, "ADMIN_TOKENS": given.admin_token}
        self._put_secret(DOWNLOAD_SECRET, tokens)
        self.stack: Deployment = deploy(
            self.moto,
            STACK,
            self.package,
            {
                "Architecture": ARCHITECTURE,
                "MqttUrl": self.broker.url,
                "BrokerSecret": BROKER_SECRET,
                "DownloadSecret": DOWNLOAD_SECRET,
                "MaxReceiveCount": str(MAX_RECEIVE_COUNT),
            },
        )
        self.bucket = self.stack.outputs["BucketName"]
        self.queue_url = self.stack.outputs["QueueUrl"]
        self.dead_letter_queue_url = self.stack.outputs["DeadLetterQueueUrl"]
        attributes = {"VisibilityTimeout": str(VISIBILITY_SECONDS)}
        self.sqs.set_queue_attributes(QueueUrl=self.queue_url, Attributes=attributes)

        code = self._directory / "code"
        with zipfile.ZipFile(io.BytesIO(self.package)) as archive:
            archive.extractall(code)
        self.notify = self.enter_context(self._function("NotifyFunction", code))
        self.download = self.enter_context(self._function("DownloadFunction", code))
        self.mapping = EventSourceMapping(
            self.sqs,
            queue_url=self.queue_url,
            configuration=self.functions.get_event_source_mapping(UUID=self.stack.resources["NotifyUploads"]),
            invoke=self.notify.invoke,
        )
        self.first, self.first_heard = self.turn(), self.ear.silence(SETTLE_SECONDS)
        self.notify_started_at = time.monotonic()

    def _function(self, name: str, code: Path) -> Function:
        environment = {  # what Lambda makes of the role; and moto is not where AWS is
            "AWS_REGION": self.moto.region,
            "AWS_ACCESS_KEY_ID": self.moto.access_key,
            "AWS_SECRET_ACCESS_KEY": self.moto.secret_key,
            "AWS_ENDPOINT_URL": self.moto.endpoint_url,
        }
        return Function(
            self._directory,
            image=self._image,
            code=code,
            configuration=self.configuration(name),
            environment=environment,
        )

    def _put_secret(self, name: str, content: Mapping[str, str]) -> None:
        self.secrets.create_secret(Name=name, SecretString=json.dumps(content))

    def configuration(self, name: str) -> dict[str, Any]:
        """What the emulated Lambda says of a function, by its logical name."""
        answer = self.functions.get_function_configuration(FunctionName=self.stack.resources[name])
        assert base64.b64decode(answer["CodeSha256"]) == hashlib.sha256(self.package).digest()
        return dict(answer)

    def tidy_up(self) -> None:
        """Leave empty queues and a broker that runs."""
        if not self.broker.running:
            self.bring_broker_back()
        while self.queued():  # not purge_queue, which may be used once a minute
            self._take(self.queue_url, wait_seconds=VISIBILITY_SECONDS)
        self.dead_letters()
        self.ear.drain()

    # The uploader's side.

    def put(self, key: str, body: bytes = b"content") -> dict[str, Any]:
        """Upload one object; S3's answer."""
        return dict(self.s3.put_object(Bucket=self.bucket, Key=key, Body=body))

    # AWS's side.

    def turn(self, wait_seconds: int = LONG_POLL_SECONDS) -> Turn:
        """Have the event source mapping work on one batch."""
        return self.mapping.turn(wait_seconds)

    def work_off(self, count: int) -> Turn:
        """Have the next batch worked on: so many messages, all of them done, and nothing is left."""
        turn = self.turn()
        assert len(turn.records) == count, turn
        assert turn.invoked is not None
        assert turn.invoked.error is None, self.last_words()
        assert json.loads(turn.invoked.payload) == {"batchItemFailures": []}, self.last_words()
        assert self.queued() == 0
        return turn

    def queued(self) -> int:
        """How many messages are in the queue, in flight or not."""
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        answer = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=list(names))
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
        self._wait_until_listening(listening=False)

    def bring_broker_back(self) -> None:
        """Start it; returns once the subscriber listens again: nobody keeps messages for it."""
        self.broker.start()
        self._wait_until_listening(listening=True)

    def _wait_until_listening(self, *, listening: bool) -> None:
        deadline = time.monotonic() + RECONNECT_SECONDS
        while self.ear.connected is not listening:
            assert time.monotonic() < deadline, self.ear.last_error
            time.sleep(POLL_SECONDS)

    # The devices' side.

    def hear(self, count: int = 1) -> list[Received]:
        """Take exactly the next `count` messages."""
        try:
            messages = self.ear.wait_for(count, HEAR_SECONDS)
        except SubscriberTimeoutError as error:
            raise AssertionError(f"{error}: {self.ear.drain()}\n{self.last_words()}") from None
        assert self.ear.silence(SETTLE_SECONDS) == []
        return messages

    def last_words(self) -> str:
        """The ends of the logs, for whoever has to find out what went wrong."""
        parts = (self.broker, self.moto, self.notify, self.download)
        return "\n".join(f"--- {part.name}\n{part.log_text()[-LOG_TAIL_CHARACTERS:]}" for part in parts)
