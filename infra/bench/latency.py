"""From the beginning of an upload until a subscriber has the message, beside MinIO's own MQTT targets.

The same MinIO, broker, subscriber and uploads by a plain S3 client (boto3), whose own share is in both sides. On the
same uploads all targets of an event are told at once; on uploads of their own, two buckets in turn, neither pays for
the other.
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
from infra.bench.rig import BUCKET, PREFIXES, TOPIC, Rig, asset_keys
from infra.connect.documents import EVENTS, Document, merge, wanted_rules

P50_TARGET, P99_TARGET, QUEUE_TARGET = 1.15, 1.3, 0.01
WARM_UPLOADS = 40
PAUSE_SECONDS = 0.02
QUEUE_PAUSE_SECONDS = (0.1, 0.7)  # by chance: in step with MinIO's 3 s they would all wait equally long
HEAR_SECONDS = 10.0
BODY = b'{"interval_seconds": 30}\n'

OWN, OWN_QUEUED = "own", "ownqueued"


def measure(bench: Bench) -> list[Figure]:
    """Both doors and the MQTT target without a queue on the same uploads; then each on uploads of its own."""
    count = bench.count(1000, 300)
    with _rig(bench.directory, OWN) as (rig, ear):
        apart = _apart(bench, rig, ear, count)
        together = _together(bench, rig, ear, count)
    return [
        Figure(
            f"both doors, upload began → heard, p{percent}, against MinIO's own MQTT target on the same uploads",
            percentile(together[BUCKET], percent) / percentile(together[OWN], percent),
            "≤",
            target,
            TIMES,
            f"{milliseconds(percentile(together[BUCKET], percent))} / "
            f"{milliseconds(percentile(together[OWN], percent))}, {count} uploads; on uploads of their own "
            f"{percentile(apart[BUCKET], percent) / percentile(apart[OWN], percent):.2f} {TIMES}",
        )
        for percent, target in ((50, P50_TARGET), (99, P99_TARGET))
    ]


def _apart(bench: Bench, rig: Rig, ear: Ear, count: int) -> dict[str, list[float]]:
    """One upload at a time, the buckets in turn: how long each took."""
    took: dict[str, list[float]] = {BUCKET: [], OWN: []}
    for number, key in enumerate(asset_keys("apart", WARM_UPLOADS + count)):
        if number % 100 == 0:
            bench.say(f"upload {number} of {WARM_UPLOADS + count}, each to both buckets")
        for bucket in sorted(took, reverse=bool(number % 2)):
            began_at = _upload(rig, bucket, key)
            took[bucket].append(_heard(ear, bucket, key) - began_at)
            time.sleep(PAUSE_SECONDS)
    return {bucket: seconds[WARM_UPLOADS:] for bucket, seconds in took.items()}


def _together(bench: Bench, rig: Rig, ear: Ear, count: int) -> dict[str, list[float]]:
    """One upload at a time, which rings through both doors and the MQTT target: how long each took to be heard."""
    rules = merge(_rules(OWN), wanted_rules(rig.doors.targets, PREFIXES))
    rig.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=rules)
    took: dict[str, list[float]] = {BUCKET: [], OWN: []}
    for number, key in enumerate(asset_keys("together", WARM_UPLOADS + count)):
        if number % 100 == 0:
            bench.say(f"upload {number} of {WARM_UPLOADS + count}, heard twice")
        began_at = _upload(rig, BUCKET, key)
        for _ in took:
            message = ear.next(HEAR_SECONDS)
            if message is None or _upload_of(message.payload) != (BUCKET, key):
                raise NotMeasuredError(f"uploading {key} was not heard from both within {HEAR_SECONDS:g} s")
            took[OWN if message.topic == OWN else BUCKET].append(message.received_at - began_at)
        time.sleep(PAUSE_SECONDS)
    return {side: seconds[WARM_UPLOADS:] for side, seconds in took.items()}


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
