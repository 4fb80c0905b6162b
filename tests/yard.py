"""A bucket in which cameras' events are, what a broker hears of them, and what it keeps."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from paho.mqtt.publish import single

from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.local.stores import Minio
from infra.subscriber import Subscriber
from tests.databases import new_sqlite
from tests.hosts import Host, eventually, upload
from tests.stored import PASSWORD, USER, storing

BODY = b"jpeg bytes"
DISCOVERY = "homeassistant/device/bucketbell_front/config"


class Yard:
    """A bucket of this test alone with a camera that detects, and the settings of a host that watches it."""

    def __init__(self, store: Minio, directory: Path) -> None:
        self.bucket = f"yard-{uuid4().hex[:12]}"
        self._s3 = store.client()
        self._s3.create_bucket(Bucket=self.bucket)
        self._count = 0
        self.environment = storing(
            new_sqlite(directory),
            BUCKET=self.bucket,
            EVENTS_PREFIX="events/",
            AWS_ENDPOINT_URL_S3=store.endpoint_url,
            AWS_ACCESS_KEY_ID=store.access_key,
            AWS_SECRET_ACCESS_KEY=store.secret_key,
            AWS_REGION=store.region,
            DEVICE_TOKEN_KEYS=f"k:{base64.b64encode(bytes(32)).decode()}",
        )

    def detect(
        self, name: str = "Front door", camera_id: str = "front", *, timestamp: str = "2026-11-21T01:00:00Z"
    ) -> str:
        """Upload a picture and its document; returns the document's key."""
        self._count += 1
        stem = f"events/{camera_id}/e{self._count}"
        self._s3.put_object(Bucket=self.bucket, Key=f"{stem}.jpg", Body=BODY)
        document = {
            "event_id": f"e{self._count}",
            "camera_id": camera_id,
            "camera_name": name,
            "description": "A person at the door",
            "objects_detected": ["person"],
            "confidence": 0.93,
            "source_type": "protect",
            "smart_detection_type": "person",
            "timestamp": timestamp,
        }
        self._s3.put_object(Bucket=self.bucket, Key=f"{stem}.json", Body=json.dumps(document).encode())
        return f"{stem}.json"


@contextmanager
def hearing(broker: Mosquitto, *topics: str) -> Iterator[Subscriber]:
    """Hears these topics, as user where there are users."""
    username, password = (None, None) if broker.users is None else (USER, PASSWORD)
    with Subscriber(broker.url, topics or ("#",), username=username, password=password) as listener:
        yield listener


def told(yard: Yard, key: str) -> bytes:
    """What the store says of an upload."""
    body = json.loads(upload(key))
    body["Records"][0]["s3"]["bucket"]["name"] = yard.bucket
    return json.dumps(body).encode()


def ring(host: Host, yard: Yard, key: str) -> None:
    """Tell the host of an upload, as the store does."""
    answer = host.post(told(yard, key))
    assert answer.json()["outcomes"] in (["delivered"], ["no_subscribers"], ["sent"]), answer.text


def kept(broker: Mosquitto, *topics: str) -> dict[str, bytes]:
    """What the broker keeps on these topics, by topic: all that comes before a message that is sent now."""
    last = f"the-end/{uuid4().hex}"
    login: Any = None if broker.users is None else {"username": USER, "password": PASSWORD}
    with hearing(broker, *(topics or ("#",)), last) as listener:
        single(last, qos=2, hostname="127.0.0.1", port=broker.port, auth=login)
        eventually(lambda: last in [message.topic for message in listener.messages])
        return {message.topic: message.payload for message in listener.messages if message.retain}


def in_topic_order(messages: list[Received], *, last: str) -> list[Received]:
    """By topic: a message of QoS 2 takes a round trip more, and others overtake it."""
    return sorted(messages, key=lambda message: (message.topic == last, message.topic))


def document(message: Received) -> dict[str, Any]:
    """What it holds."""
    return dict(json.loads(message.payload))
