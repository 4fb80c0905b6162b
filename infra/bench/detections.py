"""From the beginning of an upload until a subscriber has the message: a camera's event beside a device's config."""

from __future__ import annotations

import json
import time

from infra.bench.ear import Ear
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared_percentiles
from infra.bench.rig import BUCKET, PREFIXES, Rig, download_variables, mac_address
from infra.connect.documents import merge, wanted_rules

TARGET = 2.0
WARM_UPLOADS = 40
PAUSE_SECONDS = 0.02
HEAR_SECONDS = 10.0
EVENTS_PREFIX = "events/"
CONFIGS, CAMERA = "iotsupport/updates/configs", "iotsupport/camera/front/event"
CONFIG = b'{"interval_seconds": 30}\n'
PICTURE = bytes(20_000)


def measure(bench: Bench) -> list[Figure]:
    """One upload at a time, a config and an event in turn; each event's thumbnail is there before it."""
    count = bench.count(500, 150)
    took: dict[str, list[float]] = {CONFIGS: [], CAMERA: []}
    rig = Rig(bench.directory)
    rig.host.environment |= download_variables(rig.minio)
    rig.host.environment |= {"EVENTS_PREFIX": EVENTS_PREFIX, "PUBLIC_BASE_URL": rig.host.url}
    with rig, Ear(rig.broker.url, (CONFIGS, CAMERA)) as ear:
        rules = merge({}, wanted_rules(rig.doors.targets, {**PREFIXES, "events": EVENTS_PREFIX}))
        rig.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=rules)
        for number in range(WARM_UPLOADS + count):
            if number % 50 == 0:
                bench.say(f"upload {number} of {WARM_UPLOADS + count} of each kind")
            stem = f"{EVENTS_PREFIX}front/{number:05d}"
            rig.s3.put_object(Bucket=BUCKET, Key=f"{stem}.jpg", Body=PICTURE)
            uploads = [
                (CONFIGS, f"configs/{mac_address(number)}.json", CONFIG),
                (CAMERA, f"{stem}.json", _document(number)),
            ]
            for topic, key, body in uploads if number % 2 else reversed(uploads):
                began_at = time.monotonic()
                rig.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
                took[topic].append(_heard(ear, topic, number) - began_at)
                time.sleep(PAUSE_SECONDS)
    configs, events = (took[topic][WARM_UPLOADS:] for topic in (CONFIGS, CAMERA))
    return [
        compared_percentiles(
            "a camera's event, upload began → heard",
            "a device's config",
            events,
            configs,
            percent,
            sense="≤",
            target=target,
            detail=f"{count} uploads each",
        )
        for percent, target in ((50, TARGET), (99, None))
    ]


def _document(number: int) -> bytes:
    document = {
        "event_id": f"{number:05d}",
        "camera_id": "front",
        "camera_name": "Front door",
        "description": "A person in a red jacket puts a parcel down at the door and leaves.",
        "objects_detected": ["person", "package"],
        "confidence": 0.93,
        "source_type": "protect",
        "smart_detection_type": "person",
        "timestamp": "2026-11-20T22:20:28.500Z",
    }
    return json.dumps(document).encode()


def _heard(ear: Ear, topic: str, number: int) -> float:
    """When the message of this upload arrived. Raises `NotMeasuredError` when another or none did."""
    heard = ear.next(HEAR_SECONDS)
    if heard is None:
        raise NotMeasuredError(f"nothing was heard on {topic} within {HEAR_SECONDS:g} s")
    document = json.loads(heard.payload)
    found = document.get("event_id") or document.get("filename")
    if heard.topic != topic or found not in {f"{number:05d}", f"{mac_address(number)}.json"}:
        raise NotMeasuredError(f"{heard.payload!r} was heard on {heard.topic} after upload {number} to {topic}")
    if topic == CAMERA and not document["thumbnail_url"]:
        raise NotMeasuredError("an event came without its thumbnail")
    return heard.received_at
