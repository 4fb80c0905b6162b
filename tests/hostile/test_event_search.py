"""Events of every dialect and wrapper, bent: whatever arrives is read, and only what was uploaded is announced."""

from __future__ import annotations

import base64
import copy
import json
import posixpath
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from hypothesis import given, note
from hypothesis import strategies as st

from functions.events.envelopes import MAX_WRAPPERS, Ignored, Malformed, ObjectCreated, parse, parse_body, sqs_messages
from functions.events.plan import Settled, Step, plan, plan_body, settle, sqs_answer
from functions.events.routes import Detection, Routes, Skip, Unread, Upload
from functions.events_log import log
from functions.mqtt.message import Message
from functions.mqtt.outcome import Outcome, Status
from functions.mqtt.packets import publish_packet
from tests.hostile.searching import (
    LEAVES,
    Draw,
    changed,
    damaged,
    mutants,
    one_of,
    paths,
    replaced,
    strict_log,
    tries,
    written,
)

EVENTS = Path(__file__).parents[1] / "events"
SEAWEEDFS = [one for file in sorted(EVENTS.glob("seaweedfs/*.json")) for one in json.loads(file.read_bytes())]
DOCUMENTS = [json.loads(file.read_bytes()) for file in sorted(EVENTS.glob("*.json"))] + SEAWEEDFS
ROUTES = Routes(events_prefix="events/", bucket=None)
DEVICE_FOLDER = "/srv/device"


RECORDS = [one for one in DOCUMENTS if isinstance(one.get("Records"), list) and "s3" in one["Records"][0]]
REMOVALS = [one for one in DOCUMENTS if all(isinstance(r, Ignored) and r.reason == "removed" for r in parse(one))]
UPLOADS = [one for one in RECORDS if [type(record) for record in parse(one)] == [ObjectCreated]]
VITAL = frozenset({"Records", 0, "s3", "bucket", "object", "key", "name", "eventName", "eventSource"})
"""The names on the way to what says which file it is."""


# Forms that are not S3's: an upload, and the names on the way to what says which file it is.
OTHERS = [one for one in DOCUMENTS if {"events", "action", "event_type"} & one.keys()]
OTHER_UPLOADS = [one for one in OTHERS if [type(record) for record in parse(one)] == [ObjectCreated]]
OTHER_VITAL = frozenset(
    {
        *("events", 0, "eventType", "eventName", "bucketName", "objectName"),
        *("account", "action", "bucket", "object", "key"),
        *("event_type", "message", "new_entry", "old_entry", "new_parent_path", "name", "extended"),
        "Seaweed-X-Amz-Version-Id",
    }
)


def judge(steps: tuple[Step, ...]) -> None:
    """Each step is one of the known kinds, and what is announced is what the record says was uploaded."""
    for step in steps:
        assert isinstance(step.record, ObjectCreated | Ignored | Malformed)
        if isinstance(step.record, Malformed):
            assert len(step.record.detail) <= 200
            assert step.record.detail.isprintable()
        if isinstance(step.action, Skip):
            continue
        assert isinstance(step.record, ObjectCreated)
        key = step.record.object_key
        assert len(step.action.identity) == 16
        if isinstance(step.action, Detection):
            assert key == f"events/{step.action.camera_id}/{step.action.event_id}.json"
            assert not {"+", "#", "/"} & {*step.action.camera_id, *step.action.event_id}
            continue
        filename = step.action.filename
        folder = step.action.message.topic.removeprefix("iotsupport/updates/")
        assert folder in {"configs", "assets"}
        assert f"{folder}/{filename}" == key
        assert json.loads(step.action.message.payload) == {"filename": filename}
        inside = posixpath.normpath(posixpath.join(DEVICE_FOLDER, filename))
        assert inside == f"{DEVICE_FOLDER}/{filename}", "it names one file below the folder, in one way"
        assert not any(unicodedata.category(c) in {"Cc", "Cs"} for c in filename)
        judge_packet(step.action.message)


def judge_packet(message: Message) -> None:
    """Read what goes on the wire by the standard (MQTT 5 §3.3): it says what the message says."""
    packet = publish_packet(message, 7, 1, properties=True)
    length, at = _varint(packet, 1)
    assert len(packet) == at + length
    topic, at = _string(packet, at)
    assert topic == message.topic
    assert packet[at : at + 2] == b"\x00\x07"
    length, at = _varint(packet, at + 2)
    end, pairs = at + length, []
    while at < end:
        kind, at = packet[at], at + 1
        if kind == 1:
            at += 1
        elif kind == 3:
            _, at = _string(packet, at)
        else:
            assert kind == 0x26
            name, at = _string(packet, at)
            value, at = _string(packet, at)
            pairs.append((name, value))
    assert tuple(pairs) == message.user_properties
    assert packet[end:] == message.payload


def _varint(packet: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (packet[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if packet[at - 1] < 128:
            return value, at


def _string(packet: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + int.from_bytes(packet[at : at + 2], "big")
    text = packet[at + 2 : end].decode()
    assert "\0" not in text
    return text, end


OUTCOMES = st.builds(Outcome, st.sampled_from(Status), st.text(max_size=20), st.none() | st.integers(0, 255))
UNREAD = st.builds(Unread, st.sampled_from(["gone", "bad_detection", "store_failed"]), st.text(max_size=20))


def ends(draw: Draw, steps: tuple[Step, ...]) -> list[Settled]:
    """The steps with any outcome that a broker and a store may lead to."""
    outcomes: list[Outcome | Unread] = []
    for step in steps:
        if isinstance(step.action, Upload):
            outcomes.append(draw(OUTCOMES))
        elif isinstance(step.action, Detection):
            outcomes.append(draw(OUTCOMES | UNREAD))
    return settle(steps, outcomes)


@tries(300)
@given(mutants(DOCUMENTS), st.data())
def test_a_bent_document_is_read_judged_and_logged(document: Any, data: st.DataObject) -> None:  # noqa: ANN401 - JSON
    """As a Lambda's event: nothing raises, nothing false is announced, and every line of the log is JSON in UTF-8."""
    steps = plan(document, ROUTES)
    judge(steps)
    with strict_log():
        for one in ends(data.draw, steps):
            log(one)


@tries(300)
@given(damaged(mutants(DOCUMENTS, most=2).map(written)))
def test_damaged_text_is_read(body: bytes) -> None:
    """As a webhook's body, cut and overwritten anywhere."""
    steps = plan_body(body, ROUTES)
    assert steps
    judge(steps)


@tries(150)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=6) | st.sampled_from(["a", "b", "a"]),
            mutants(DOCUMENTS, most=3).map(lambda document: written(document).decode()) | st.text(max_size=9),
        ),
        min_size=1,
        max_size=5,
    ),
    st.data(),
)
def test_a_batch_keeps_exactly_what_was_not_dealt_with(messages: list[tuple[str, str]], data: st.DataObject) -> None:
    """A message is handed back if any of its records failed, and never for what went well or is nobody's business."""
    batch = {"Records": [{"messageId": name, "eventSource": "aws:sqs", "body": body} for name, body in messages]}
    if data.draw(st.booleans()):
        batch = changed(data.draw, batch, data.draw(st.sampled_from(paths(batch)[1:])), DOCUMENTS)
    found = sqs_messages(batch)
    steps = plan(batch, ROUTES)
    judge(steps)
    if found is None:
        return
    settled = ends(data.draw, steps)
    kept = {one["itemIdentifier"] for one in sqs_answer(settled)["batchItemFailures"]}
    failed = {one.step.message_id for one in settled if one.failed}
    assert kept == failed <= {message.message_id for message in found}
    assert {message.message_id for message in found} == {step.message_id for step in steps}


def wrapped(draw: Draw, document: Any) -> Any:  # noqa: ANN401 - JSON
    """The document in one more wrapper."""
    text = json.dumps(document, ensure_ascii=draw(st.booleans()))
    wrappers: list[Any] = [
        {"Records": [{"messageId": "m", "eventSource": "aws:sqs", "body": text}]},
        {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": text}}]},
        {"Type": "Notification", "Message": text},
        {"specversion": "1.0", "data": document},
        {"specversion": "1.0", "data": text},
        {"specversion": "1.0", "data_base64": base64.b64encode(text.encode()).decode()},
    ]
    return wrappers[draw(st.integers(0, len(wrappers) - 1))]


@tries(150)
@given(mutants(RECORDS), st.integers(1, MAX_WRAPPERS), st.data())
def test_a_wrapper_changes_nothing(document: Any, number: int, data: st.DataObject) -> None:  # noqa: ANN401 - JSON
    """What is inside says the same bare and wrapped, in any order of wrappers, as deep as they are opened."""
    if not isinstance(document, dict) or _opens_more(document) or not _is_json(document):
        return
    inside, outside = parse(document), copy.deepcopy(document)
    for _ in range(number):
        outside = wrapped(data.draw, outside)
    note(json.dumps(outside))
    assert parse(outside) == inside
    assert parse_body(json.dumps(outside)) == inside


def _opens_more(document: dict[str, Any]) -> bool:
    """Whether there are wrappers in it already, so that more may be too many."""
    records = document.get("Records")
    return not isinstance(records, list) or any(not isinstance(r, dict) or "eventName" not in r for r in records)


def _is_json(document: object) -> bool:
    """Whether JSON's way and back is the identity: half surrogate pairs and huge numbers have none."""
    try:
        return bool(json.loads(json.dumps(document, allow_nan=False, ensure_ascii=False).encode()) == document)
    except (ValueError, RecursionError):
        return False


@tries(150)
@given(st.data())
def test_a_removal_stays_silent_whatever_else_it_says(data: st.DataObject) -> None:
    """As long as its name says that something was removed, nobody is rung for."""
    document = one_of(data.draw, REMOVALS)
    for _ in range(data.draw(st.integers(1, 5))):
        inner = [path for path in paths(document) if _is_beside_the_word(path)]
        if inner:
            document = changed(data.draw, document, data.draw(st.sampled_from(inner)), DOCUMENTS)
    assert all(isinstance(step.action, Skip) for step in plan(document, ROUTES))


def _is_beside_the_word(path: tuple[str | int, ...]) -> bool:
    """Whether a change there leaves the word that says what has happened."""
    if path[:1] == ("events",):
        return len(path) > 2 and path[2] not in {"eventType", "eventName"}
    return bool({"s3", "detail"} & set(path)) or (len(path) > 1 and path[0] == "object") or path[1:2] == ("old_entry",)


NAMES_OF_FILES = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=40).filter(
    lambda name: (
        "" not in name.split("/") and not {".", ".."} & set(name.replace("\\", "/").split("/")) and "\ufffe" not in name
    )
)


@tries(300)
@given(st.data(), NAMES_OF_FILES)
def test_the_right_file_is_named_whatever_the_rest_of_its_record_says(data: st.DataObject, name: str) -> None:
    """Where bucket, key, name and sender of an event are whole, the file that is announced is the one uploaded."""
    document = one_of(data.draw, UPLOADS)
    (record,) = document["Records"]
    is_plain = record["eventSource"] == "ceph:s3" or (
        record["eventSource"] == "aws:s3" and record["eventName"].startswith("s3:")
    )
    plus, slash = data.draw(st.booleans()), data.draw(st.sampled_from(["/", ""]))
    escaped = (quote_plus if plus else quote)(f"assets/{name}", safe=slash)
    record["s3"]["object"]["key"] = f"assets/{name}" if is_plain else escaped
    for _ in range(data.draw(st.integers(0, 5))):
        others = [path for path in paths(document) if path and path[-1] not in VITAL]
        document = replaced(document, data.draw(st.sampled_from(others)), data.draw(LEAVES))
    (step,) = plan(document, ROUTES)[:1]
    if isinstance(step.record, Ignored):
        assert step.record.reason == "not_content", "moto's word for a part of an upload"
        assert record["eventSource"] == "aws:s3"
        return
    assert isinstance(step.action, Upload)
    assert step.action.filename == name
    judge((step,))


def named(document: dict[str, Any], key: str) -> None:
    """Have a document of another form tell of that key."""
    if "events" in document:
        (event,) = document["events"]
        if "objectName" in event:
            event["objectName"] = key
        else:
            event["object"]["key"] = key
    elif "action" in document:
        document["object"]["key"] = key
    else:
        message = document["message"]
        entry = message["new_entry"]
        version = entry["name"] if ".versions/" in document["key"] else ""
        path = f"/buckets/devices/{key}" + (f".versions/{version}" if version else "")
        message["new_parent_path"], _, entry["name"] = path.rpartition("/")
        document["key"] = path


@tries(300)
@given(st.data(), NAMES_OF_FILES)
def test_the_right_file_is_named_in_every_other_form(data: st.DataObject, name: str) -> None:
    """SeaweedFS, Backblaze B2, Cloudflare R2, Tigris: whatever the rest of the document says."""
    document = one_of(data.draw, OTHER_UPLOADS)
    named(document, f"assets/{name}")
    for _ in range(data.draw(st.integers(0, 5))):
        others = [path for path in paths(document) if path and path[-1] not in OTHER_VITAL]
        document = replaced(document, data.draw(st.sampled_from(others)), data.draw(LEAVES))
    (step,) = plan(document, ROUTES)
    if isinstance(step.record, Ignored):
        assert "old_entry" in document["message"], "the entry and the one before have become alike"
        return
    assert isinstance(step.action, Upload)
    assert step.action.filename == name
    judge((step,))
