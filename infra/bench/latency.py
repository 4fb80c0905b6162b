"""From the beginning of an upload until a subscriber has the message, beside MinIO's own MQTT targets.

Two buckets of one MinIO, since its event workers wait for every target of an event: one rings through both doors
of the host, the other through MinIO's own MQTT target. Same broker, same subscriber, same uploads in turn, by a
plain S3 client (boto3): its own share is in both sides.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.bench.ear import Ear
from infra.bench.figures import TIMES, Bench, Figure, NotMeasuredError, milliseconds, percentile
from infra.bench.rig import BUCKET, TOPIC, Rig, asset_keys
from infra.connect.documents import EVENTS, Document

P50_TARGET, P99_TARGET, QUEUE_TARGET = 1.15, 1.3, 0.01
WARM_UPLOADS = 40
PAUSE_SECONDS = 0.02
QUEUE_PAUSE_SECONDS = (0.1, 0.7)  # by chance: in step with MinIO's 3 s they would all wait equally long
HEAR_SECONDS = 10.0
BODY = b'{"interval_seconds": 30}\n'

OWN, OWN_QUEUED = "own", "ownqueued"


def measure(bench: Bench) -> list[Figure]:
    """Both doors against the MQTT target without a queue, one upload at a time, the buckets in turn."""
    count = bench.count(1000, 300)
    with _rig(bench.directory, OWN) as (rig, ear):
        took: dict[str, list[float]] = {BUCKET: [], OWN: []}
        keys = asset_keys("latency", WARM_UPLOADS + count)
        for number, key in enumerate(keys):
            if number % 100 == 0:
                bench.say(f"upload {number} of {len(keys)}, each to both buckets")
            for bucket in sorted(took, reverse=bool(number % 2)):
                began_at = _upload(rig, bucket, key)
                took[bucket].append(_heard(ear, bucket, key) - began_at)
                time.sleep(PAUSE_SECONDS)
    ours, own = took[BUCKET][WARM_UPLOADS:], took[OWN][WARM_UPLOADS:]
    times = [(percentile(ours, percent), percentile(own, percent)) for percent in (50, 99)]
    return [
        Figure(
            f"both doors, upload began → heard, {name}, against MinIO's own MQTT target",
            mine / theirs,
            "≤",
            target,
            TIMES,
            f"{milliseconds(mine)} / {milliseconds(theirs)}, {count} uploads each",
        )
        for (mine, theirs), name, target in zip(times, ("p50", "p99"), (P50_TARGET, P99_TARGET), strict=True)
    ]


def measure_queue(bench: Bench) -> list[Figure]:
    """Both doors against the MQTT target with `queue_dir`, whose queue MinIO looks at every 3 s."""
    count = bench.count(60, 40)
    with _rig(bench.directory, OWN_QUEUED) as (rig, ear):
        first, *keys = asset_keys("latency", 1 + count)
        for bucket in (BUCKET, OWN_QUEUED):
            _upload(rig, bucket, first)
            _heard(ear, bucket, first)
        began: dict[tuple[str, str], float] = {}
        heard: dict[tuple[str, str], float] = {}
        for number, key in enumerate(keys):
            if number % 10 == 0:
                bench.say(f"upload {number} of {count}, each to both buckets")
            for bucket in (BUCKET, OWN_QUEUED):
                began[bucket, key] = _upload(rig, bucket, key)
            _collect(ear, heard, random.uniform(*QUEUE_PAUSE_SECONDS))
        until = time.monotonic() + HEAR_SECONDS
        while len(heard) < len(began) and time.monotonic() < until:
            _collect(ear, heard, 0.1)
        if len(heard) < len(began):
            raise NotMeasuredError(f"only {len(heard)} of {len(began)} uploads were heard within {HEAR_SECONDS:g} s")
        took = {bucket: [heard[at] - began[at] for at in began if at[0] == bucket] for bucket in (BUCKET, OWN_QUEUED)}
    ours, own = percentile(took[BUCKET], 50), percentile(took[OWN_QUEUED], 50)
    return [
        Figure(
            "both doors, upload began → heard, p50, against MinIO's MQTT target with queue_dir",
            ours / own,
            "≤",
            QUEUE_TARGET,
            TIMES,
            f"{milliseconds(ours)} / {milliseconds(own)}, {count} uploads each",
        )
    ]


def _upload(rig: Rig, bucket: str, key: str) -> float:
    """Put a small object; when that began (`time.monotonic`)."""
    began_at = time.monotonic()
    rig.s3.put_object(Bucket=bucket, Key=key, Body=BODY)
    return began_at


@contextmanager
def _rig(directory: Path, own: str) -> Iterator[tuple[Rig, Ear]]:
    """A started rig with a second bucket that MinIO's MQTT target named `own` serves, and an ear for both."""
    rig = Rig(directory)
    target = {
        "ENABLE": "on",
        "BROKER": f"tcp://127.0.0.1:{rig.broker.port}",
        "TOPIC": own,
        "QOS": "1",
        **({"QUEUE_DIR": str(directory / "mqtt-queue")} if own == OWN_QUEUED else {}),
    }
    rig.minio.environment |= {f"MINIO_NOTIFY_MQTT_{name}_{own.upper()}": value for name, value in target.items()}
    with rig:
        rig.make_bucket(own, _rules(own))
        with Ear(rig.broker.url, (TOPIC, own)) as ear:
            yield rig, ear


def _rules(own: str) -> Document:
    arn = f"arn:minio:sqs::{own.upper()}:mqtt"
    return {"QueueConfigurations": [{"Id": own, "QueueArn": arn, "Events": list(EVENTS)}]}


def _heard(ear: Ear, bucket: str, key: str) -> float:
    """When the message of this upload arrived. Raises `NotMeasuredError` when another or none did."""
    heard = ear.next(HEAR_SECONDS)
    if heard is None:
        raise NotMeasuredError(f"nothing was heard within {HEAR_SECONDS:g} s of uploading {bucket}/{key}")
    if _upload_of(heard.payload) != (bucket, key):
        raise NotMeasuredError(f"{heard.payload!r} was heard after uploading {bucket}/{key}")
    return heard.received_at


def _collect(ear: Ear, heard: dict[tuple[str, str], float], seconds: float) -> None:
    """Take what arrives within `seconds`."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if (message := ear.next(left)) is not None:
            heard.setdefault(_upload_of(message.payload), message.received_at)


def _upload_of(payload: bytes) -> tuple[str, str]:
    """Bucket and key of a message: ours names the file, MinIO's is the event."""
    document = json.loads(payload)
    if "filename" in document:
        return BUCKET, f"assets/{document['filename']}"
    bucket, _, key = str(document["Key"]).partition("/")
    return bucket, key
