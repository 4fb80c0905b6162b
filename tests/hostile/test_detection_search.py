"""Detection documents, bent: each becomes a message that says what it says, or is refused without being repeated."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.cameras.detections import BadDetectionError, CameraTopics, event_message, parse
from functions.cameras.discovery import discovery
from functions.cameras.message import Camera
from functions.events.routes import Detection
from functions.mqtt.packets import publish_packet
from tests.hostile.searching import ODD_TEXTS, assert_discreet, damaged, mutants, tries

CANARY = "c4n4ry-Zq7/x+9=w"
DETECTION = Detection(
    "events/cam/e1.json", "v1", "cam", "e1", bytes(16), (("id", "00"), ("time", "2026-11-20T12:00:00Z"))
)
FIELDS = ("event_id", "camera_id", "camera_name", "description", "objects_detected", "confidence", "source_type")
DOCUMENTS: list[Any] = [
    {
        "event_id": "e1",
        "camera_id": "cam",
        "camera_name": "Front door",
        "description": f"somebody {CANARY}",
        "objects_detected": ["person", "cat"],
        "confidence": 0.87,
        "source_type": "motion",
        "smart_detection_type": None,
        "timestamp": timestamp,
        **more,
    }
    for timestamp, more in (
        ("2026-11-20T12:00:00.250Z", {}),
        (1_795_176_000, {"zone": {"name": "yard", "points": [[0, 1], [2, 3]]}}),
        ("2026-11-20 12:00+0100", {"thumbnail_url": "http://evil.example/", "_": [1e308, -0.0]}),
    )
]
LINKS = st.none() | st.sampled_from(["https://s3.example.com/x?X-Amz-Signature=0f", ""])
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # huge values are the point


def announced(document: bytes, link: str | None) -> dict[str, Any] | None:
    """The message's payload as a strict reader has it, or None where the document is refused as it should be."""
    try:
        message = event_message(DETECTION, parse(document, DETECTION), CameraTopics("home", 1), link)
    except BadDetectionError as error:
        assert_discreet(CANARY, error)
        return None
    assert message.topic == "home/camera/cam/event"
    assert publish_packet(message, 1, 1, properties=True)
    return dict(json.loads(message.payload.decode(), parse_constant=pytest.fail))


@tries(300)
@given(mutants(DOCUMENTS), LINKS)
def test_a_bent_document_is_announced_as_it_is_or_refused(document: Any, link: str | None) -> None:  # noqa: ANN401 - JSON
    """What is published has every field of the document with its value, and the link is ours alone."""
    said = announced(json.dumps(document).encode(), link)
    if said is None:
        return
    assert said["thumbnail_url"] == link
    assert said["timestamp"].endswith("Z")
    for name in set(document) - {"thumbnail_url", "timestamp"}:
        assert said[name] == document[name] or _is_nan(document[name])
    assert set(said) == set(document) | {"thumbnail_url"}
    assert all(name in said for name in FIELDS)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


@tries(200)
@given(
    st.one_of(
        damaged(mutants(DOCUMENTS, most=2).map(lambda document: json.dumps(document).encode())),
        mutants(DOCUMENTS, most=2).map(
            lambda document: json.dumps(document, ensure_ascii=False).encode("utf-16", "replace")
        ),
        st.integers(1, 200_000).map(lambda depth: b'{"extra":' + b"[" * depth),
        st.integers(100, 900).map(
            lambda depth: json.dumps(DOCUMENTS[0]).encode()[:-1] + b', "x":' + b"[" * depth + b"]" * depth + b"}"
        ),
        st.sampled_from([b"9" * 5000, b'{"confidence":' + b"9" * 4299 + b"}", b"\xef\xbb\xbf{}", b"", b"\xff"]),
    )
)
def test_damaged_text_is_announced_or_refused(document: bytes) -> None:
    """Cut, in another encoding, nested too deeply, of endless numbers."""
    announced(document, None)


@tries(150)
@given(ODD_TEXTS.filter(lambda text: "/" not in text), ODD_TEXTS, st.booleans())
def test_home_assistant_gets_strict_json_of_any_camera(camera_id: str, name: str, retained: bool) -> None:  # noqa: FBT001 - drawn
    """Whatever a camera is called."""
    document = json.dumps(DOCUMENTS[0] | {"camera_name": name}).encode()
    if announced(document, None) is None or any("\ud800" <= c <= "\udfff" for c in camera_id):
        return
    message = discovery(Camera(camera_id, name), topic_prefix="home", discovery_prefix="ha", qos=1, retained=retained)
    assert json.loads(message.payload)["device"]["name"]
    assert not {"+", "#", " ", "\0"} & set(message.topic)
