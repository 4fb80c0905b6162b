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
from infra.bench.figures import TIMES, Bench, Figure, NotMeasuredError, compared_percentiles, percentile
from infra.bench.rig import BUCKET, PREFIXES, TOPIC, Rig, asset_keys
from infra.connect.documents import EVENTS, Document, merge, wanted_rules

P50_TARGET, P99_TARGET, QUEUE_TARGET = 1.15, 1.3, 0.01
WARM_UPLOADS = 40
PAUSE_SECONDS = 0.02
QUEUE_PAUSE_SECONDS = (0.1, 0.7)  # by chance: in step with MinIO's 3 s they would all wait equally long
HEAR_SECONDS = 10.0
BODY = b'{"interval_seconds": 30}\n'
WHAT = "upload began → heard"

# The buckets that MinIO's own MQTT targets serve, each named as its target.
OWN, OWN_QUEUED = "own", "ownqueued"
PEERS = {OWN: "MinIO's MQTT target", OWN_QUEUED: "MinIO's MQTT target with queue_dir"}


def measure(bench: Bench) -> list[Figure]:
    """Both doors and the MQTT target without a queue on the same uploads; then each on uploads of its own."""
    count = bench.count(1000, 300)
    with rig_with(bench.directory, OWN) as (rig, ear):
        apart = _apart(bench, rig, ear, count // 3)
        together = _together(bench, rig, ear, count)
    return [
        compared_percentiles(
            f"{WHAT}, the same uploads",
            PEERS[OWN],
            together[TOPIC],
            together[OWN],
            percent,
            sense="≤",
            target=target,
            detail=f"{count} uploads; on uploads of their own "
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
            began_at = upload(rig, bucket, key)
            took[bucket].append(_heard(ear, bucket, key) - began_at)
            time.sleep(PAUSE_SECONDS)
    return {bucket: seconds[WARM_UPLOADS:] for bucket, seconds in took.items()}


def _together(bench: Bench, rig: Rig, ear: Ear, count: int) -> dict[str, list[float]]:
    """As `heard_twice`, through both doors and by the MQTT target."""
    rules = merge(_rules(OWN), wanted_rules(rig.doors.targets, PREFIXES))
    rig.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=rules)
    return heard_twice(bench, rig, ear, (TOPIC, OWN), count)


def heard_twice(bench: Bench, rig: Rig, ear: Ear, topics: tuple[str, str], count: int) -> dict[str, list[float]]:
    """One upload at a time, which rings on both topics: how long each took to be heard."""
    took: dict[str, list[float]] = {topic: [] for topic in topics}
    for number, key in enumerate(asset_keys("together", WARM_UPLOADS + count)):
        if number % 100 == 0:
            bench.say(f"upload {number} of {WARM_UPLOADS + count}, heard twice")
        began_at = upload(rig, BUCKET, key)
        for _ in took:
            message = ear.next(HEAR_SECONDS)
            if message is None or upload_of(message.payload) != (BUCKET, key):
                raise NotMeasuredError(f"uploading {key} was not heard from both within {HEAR_SECONDS:g} s")
            took[message.topic].append(message.received_at - began_at)
        time.sleep(PAUSE_SECONDS)
    return {topic: seconds[WARM_UPLOADS:] for topic, seconds in took.items()}


def measure_queue(bench: Bench) -> list[Figure]:
    """Both doors against the MQTT target with `queue_dir`, whose queue MinIO looks at every 3 s."""
    count = bench.count(60, 40)
    with rig_with(bench.directory, OWN_QUEUED) as (rig, ear):
        first, *keys = asset_keys("latency", 1 + count)
        for bucket in (BUCKET, OWN_QUEUED):
            upload(rig, bucket, first)
            _heard(ear, bucket, first)
        began: dict[tuple[str, str], float] = {}
        heard: dict[tuple[str, str], float] = {}
        for number, key in enumerate(keys):
            if number % 10 == 0:
                bench.say(f"upload {number} of {count}, each to both buckets")
            for bucket in (BUCKET, OWN_QUEUED):
                began[bucket, key] = upload(rig, bucket, key)
            collect(ear, heard, random.uniform(*QUEUE_PAUSE_SECONDS))
        collect_all(ear, heard, len(began))
        took = {bucket: [heard[at] - began[at] for at in began if at[0] == bucket] for bucket in (BUCKET, OWN_QUEUED)}
    return [
        compared_percentiles(
            WHAT,
            PEERS[OWN_QUEUED],
            took[BUCKET],
            took[OWN_QUEUED],
            50,
            sense="≤",
            target=QUEUE_TARGET,
            detail=f"{count} uploads each",
        )
    ]


def upload(rig: Rig, bucket: str, key: str) -> float:
    """Put a small object; when that began (`time.monotonic`)."""
    began_at = time.monotonic()
    rig.s3.put_object(Bucket=bucket, Key=key, Body=BODY)
    return began_at


@contextmanager
def rig_with(directory: Path, *owns: str) -> Iterator[tuple[Rig, Ear]]:
    """A started rig with a bucket more for each of MinIO's own MQTT targets, and an ear for all of them."""
    rig = Rig(directory)
    for own in owns:
        target = {
            "ENABLE": "on",
            "BROKER": f"tcp://127.0.0.1:{rig.broker.port}",
            "TOPIC": own,
            "QOS": "1",
            **({"QUEUE_DIR": str(directory / "mqtt-queue")} if own == OWN_QUEUED else {}),
        }
        rig.minio.environment |= {f"MINIO_NOTIFY_MQTT_{name}_{own.upper()}": value for name, value in target.items()}
    with rig:
        for own in owns:
            rig.make_bucket(own, _rules(own))
        with Ear(rig.broker.url, (TOPIC, *owns)) as ear:
            yield rig, ear


def _rules(own: str) -> Document:
    arn = f"arn:minio:sqs::{own.upper()}:mqtt"
    return {"QueueConfigurations": [{"Id": own, "QueueArn": arn, "Events": list(EVENTS)}]}


def _heard(ear: Ear, bucket: str, key: str) -> float:
    """When the message of this upload arrived. Raises `NotMeasuredError` when another or none did."""
    heard = ear.next(HEAR_SECONDS)
    if heard is None:
        raise NotMeasuredError(f"nothing was heard within {HEAR_SECONDS:g} s of uploading {bucket}/{key}")
    if upload_of(heard.payload) != (bucket, key):
        raise NotMeasuredError(f"{heard.payload!r} was heard after uploading {bucket}/{key}")
    return heard.received_at


def collect(ear: Ear, heard: dict[tuple[str, str], float], seconds: float) -> None:
    """Take what arrives within `seconds`: when each upload was first heard of, by bucket and key."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if (message := ear.next(left)) is not None:
            heard.setdefault(upload_of(message.payload), message.received_at)


def collect_all(ear: Ear, heard: dict[tuple[str, str], float], count: int) -> None:
    """The same, until `count` uploads have been heard of. Raises `NotMeasuredError` when they are not in time."""
    until = time.monotonic() + HEAR_SECONDS
    while len(heard) < count and time.monotonic() < until:
        collect(ear, heard, 0.1)
    if len(heard) < count:
        raise NotMeasuredError(f"only {len(heard)} of {count} uploads were heard within {HEAR_SECONDS:g} s")


def upload_of(payload: bytes) -> tuple[str, str]:
    """Bucket and key of a message: ours names the file, MinIO's is the event."""
    document = json.loads(payload)
    if "filename" in document:
        return BUCKET, f"assets/{document['filename']}"
    bucket, _, key = str(document["Key"]).partition("/")
    return bucket, key
