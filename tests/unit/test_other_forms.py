"""What SeaweedFS, Backblaze B2, Cloudflare R2 and Tigris send means what it means; the rest of it rings nobody."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from functions.events.envelopes import MAX_RECORDS, Ignored, Malformed, ObjectCreated, parse, parse_body
from functions.events.plan import Step, plan_body
from functions.events.routes import Detection, Routes, Skip
from functions.stored.ring import Ring, Verdict, verdict
from infra.host.sweep.judge import ListedObject
from infra.host.sweep.ledger import SWEEP, Ledger
from infra.host.web.site import MAX_BODY_BYTES

EVENTS = Path(__file__).parents[1] / "events"
SEAWEEDFS = EVENTS / "seaweedfs"
PUT, MULTIPART = "ObjectCreated:Put", "ObjectCreated:CompleteMultipartUpload"
AGAIN = "4a6dbe1188a94245089108f179fcca3d"
EMPTY = "d41d8cd98f00b204e9800998ecf8427e"
FIRST = "cac0c3f51680222f14025641074e35fa"
CONFIG = "configs/a1-b2-c3-d4-e5-f6.json"
CONFIG_ETAG = "bb6cb5c68df4652941caf652a366f2d8"
ODDER, ODDER_ETAG = "assets/odd dir/a+b c%41 ü€😀&=?#'~.bin", "a2b6f2a6066ed8700d83335fc50a2b8e"
PARTS_ETAG = "85efe72acd8774a90b233e8194090fbb-2"
SMALL_ETAG, SIGNED_ETAG = "cf5c22984a653ba90ba2806350cafb63", "03885a82b9f4be3c4d5e8e4e2c412759"

# What one act has SeaweedFS send: what each document asks for, in the order of arrival. A tuple is an upload: key,
# event name, etag, size, version, when it was written, sequencer. A word is why nothing is done.
ACTS: dict[str, list[str | tuple[str, str, str, int, str, str, str]]] = {
    "put": [
        "not_content",
        ("assets/put.bin", PUT, FIRST, 1000, "", "08:24:14", "1796027057439562643"),
    ],
    "put-again": [("assets/put.bin", PUT, AGAIN, 1001, "", "08:24:18", "1796027058201569230")],
    "put-same": [("assets/put.bin", PUT, AGAIN, 1001, "", "08:24:18", "1796027058924979646")],
    "put-empty": [("assets/empty.bin", PUT, EMPTY, 0, "", "08:24:19", "1796027059638899417")],
    "put-odd-key": [(ODDER, PUT, ODDER_ETAG, 3, "", "08:24:20", "1796027060392242838"), "not_content"],
    "put-config": [(CONFIG, PUT, CONFIG_ETAG, 7, "", "08:24:21", "1796027061138472729"), "not_content"],
    "multipart": [
        *["not_content"] * 6,
        ("assets/multi.bin", MULTIPART, PARTS_ETAG, 5_243_880, "", "08:24:22", "1796027062118166425"),
        "not_content",
    ],
    "copy": [("assets/copy.bin", PUT, AGAIN, 1001, "", "08:24:22", "1796027062969175980")],
    "tagging": ["not_content"],
    "folder-marker": ["not_content"],
    "delete": ["removed"],
    "bulk-delete": ["removed", "removed"],
    "put-small-4k": [("assets/put4k.bin", PUT, SMALL_ETAG, 4096, "", "08:24:27", "1796027067249832184")],
    "put-5mb": [
        ("assets/put5m.bin", PUT, "b26dc6e14e9500a4b6bc655c366ebf9a", 5_242_880, "", "08:24:28", "1796027068255877877")
    ],
    "presigned-put": [("assets/presigned.bin", PUT, SIGNED_ETAG, 9, "", "08:24:29", "1796027069008025998")],
    "versioned-put": [
        *["not_content"] * 3,
        ("assets/put.bin", PUT, FIRST, 1000, "67133ae546f7ed79e8b02e829ca2a511", "08:24:29", "1796027069978762624"),
        "not_content",
    ],
    "versioned-put-again": [
        *["not_content"] * 2,
        ("assets/put.bin", PUT, AGAIN, 1001, "67133ae51315d3381763c87513c2d3c2", "08:24:30", "1796027070848742266"),
    ],
    "versioned-put-same": [
        ("assets/put.bin", PUT, AGAIN, 1001, "67133ae4ce990dee51e4088904e412d3", "08:24:31", "1796027071998153346"),
        *["not_content"] * 2,
    ],
    "versioned-put-empty": [
        *["not_content"] * 2,
        ("assets/empty.bin", PUT, EMPTY, 0, "67133ae4a1395053614139f1156fab96", "08:24:32", "1796027072759157978"),
    ],
    "versioned-put-odd-key": [
        "not_content",
        (ODDER, PUT, ODDER_ETAG, 3, "67133ae473241b61ce68d1eae4e8aac9", "08:24:33", "1796027073532217254"),
        *["not_content"] * 2,
    ],
    "versioned-put-config": [
        *["not_content"] * 3,
        (CONFIG, PUT, CONFIG_ETAG, 7, "67133ae4459ae04ee8a1825b1b1c32a3", "08:24:34", "1796027074296169207"),
    ],
    "versioned-multipart": [
        *["not_content"] * 7,
        (
            *("assets/multi.bin", MULTIPART, PARTS_ETAG, 5_243_880),
            *("67133ae40b577a6d257a0d961f9c350c", "08:24:35", "1796027075273685268"),
        ),
        *["not_content"] * 2,
    ],
    "versioned-copy": [
        *["not_content"] * 2,
        ("assets/copy.bin", PUT, AGAIN, 1001, "67133ae3dec9733cdf8d0c24e25ce0fc", "08:24:36", "1796027076021089057"),
    ],
    "versioned-tagging": ["not_content"],
    "versioned-folder-marker": ["not_content"],
    "versioned-delete": ["removed", *["not_content"] * 2],
    "versioned-bulk-delete": ["not_content", "removed", "not_content", "removed", *["not_content"] * 2],
    "versioned-put-small-4k": [
        (
            *("assets/put4k.bin", PUT, SMALL_ETAG, 4096),
            *("67133ae2da565ebffd637a0cb2ace774", "08:24:40", "1796027080391117944"),
        ),
        *["not_content"] * 2,
    ],
    "versioned-put-5mb": [
        *["not_content"] * 2,
        (
            *("assets/put5m.bin", PUT, "1548dc9fb115ac2bfc4105d363e74173", 5_242_880),
            *("67133ae2a35cd4b99307ac408017ec51", "08:24:41", "1796027081313325433"),
        ),
    ],
    "versioned-presigned-put": [
        "not_content",
        (
            *("assets/presigned.bin", PUT, SIGNED_ETAG, 9),
            *("67133ae2745d228853d9aef12fd9b12e", "08:24:42", "1796027082102539400"),
        ),
        "not_content",
    ],
}  # fmt: skip


def sent(act: str) -> list[dict[str, Any]]:
    """What SeaweedFS sent for this act."""
    documents: list[dict[str, Any]] = json.loads((SEAWEEDFS / f"{act}.json").read_bytes())
    return documents


def upload_of(act: str) -> dict[str, Any]:
    """The document of this act that tells of an upload."""
    (document,) = [one for one in sent(act) if isinstance(only(one), ObjectCreated)]
    return document


def only(document: object) -> object:
    """What a document with one record says."""
    (record,) = parse(document)
    return record


def created(document: object) -> ObjectCreated:
    """The upload that a document tells of."""
    record = only(document)
    assert isinstance(record, ObjectCreated)
    return record


def changed(document: dict[str, Any], *path: str, to: object) -> dict[str, Any]:
    """A copy in which what is at `path` is something else; None: it is gone."""
    document = copy.deepcopy(document)
    place = document
    for name in path[:-1]:
        place = place[name]
    if to is None:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = to
    return document


# SeaweedFS.


def test_every_act_of_seaweedfs_is_in_the_table() -> None:
    """No captured document is left untested."""
    assert {path.stem for path in SEAWEEDFS.glob("*.json")} == ACTS.keys()


@pytest.mark.parametrize("act", ACTS)
def test_an_act_on_seaweedfs_rings_for_what_was_uploaded_alone(act: str) -> None:
    """Key, name, etag, size, version, time and sequencer of an upload; a reason for each other document."""
    found: list[object] = []
    for document in sent(act):
        record = only(document)
        if isinstance(record, Ignored):
            found.append(record.reason)
            continue
        assert isinstance(record, ObjectCreated)
        assert record.bucket == ("ver" if act.startswith("versioned-") else "devices")
        time = record.event_time.removeprefix("2026-11-30T").removesuffix("Z")
        what = record.object_key, record.event_name, record.etag, record.size
        found.append((*what, record.version_id, time, record.sequencer))
    assert found == ACTS[act]


def test_each_upload_to_seaweedfs_is_an_event_of_its_own_and_each_repeat_is_none() -> None:
    """Also of the same bytes within a second, where etag and time agree."""
    uploads = [created(one) for act in ACTS for one in sent(act) if isinstance(only(one), ObjectCreated)]
    assert created(upload_of("put-again")).event_time == created(upload_of("put-same")).event_time
    assert len({one.identity for one in uploads}) == len(uploads) == 22
    assert created(upload_of("put")).identity == created(json.loads(json.dumps(upload_of("put")))).identity


def test_what_a_sweep_lists_is_what_seaweedfs_has_told_of() -> None:
    """A LIST shows when the object was written: seconds before the event came, when a first volume had to grow."""
    event = created(upload_of("put"))
    assert (event.event_time, event.sequencer[:10]) == ("2026-11-30T08:24:14Z", "1796027057")
    ring = Ring(event.object_key, event.etag, 1_796_027_054_000, is_exact=False)
    assert verdict(event.etag, 1_796_027_054_000, (ring,))[0] is Verdict.KNOWN


def test_a_file_that_is_renamed_to_a_key_is_new_there() -> None:
    """A mount writes to a temporary name first; its name before does not matter, nor its unchanged content."""
    document = changed(upload_of("put-again"), "message", "old_entry", to=upload_of("put")["message"]["new_entry"])
    document["event_type"] = "rename"
    document["key"] = "/buckets/devices/assets/.put.bin.part"
    document["message"]["old_entry"] = {**document["message"]["new_entry"], "name": ".put.bin.part"}
    assert created(document).object_key == "assets/put.bin"
    document["message"]["new_parent_path"] = "/etc"
    assert only(document) == Ignored("not_content", "rename")


def test_what_came_past_s3_has_an_etag_too() -> None:
    """A mount, or the filer's own HTTP, leaves no S3 etag: a LIST then shows the MD5."""
    bare = changed(upload_of("put-config"), "message", "new_entry", "extended", to=None)
    assert created(bare).etag == CONFIG_ETAG
    assert created(changed(bare, "message", "new_entry", "attributes", "md5", to=None)).etag == ""


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("attributes", "mtime"), 1_796_027_059),
        (("attributes", "mtime_ns"), 1),
        (("extended", "x-seaweedfs-write-id"), "YQ=="),
        (("chunks",), []),
        (("content",), "YQ=="),
    ],
)
def test_an_entry_with_another_content_is_an_upload(path: tuple[str, ...], value: object) -> None:
    """Whatever of it is another: only where all is as it was has nobody uploaded anything."""
    (tagging,) = sent("tagging")
    assert only(tagging) == Ignored("not_content", "update", "devices", "assets/put.bin")
    assert created(changed(tagging, "message", "new_entry", *path, to=value)).object_key == "assets/put.bin"


def test_a_file_that_only_looks_like_a_version_is_a_file() -> None:
    """Without the store's own word for it, `.versions/` is a part of a key like any other."""
    document = upload_of("versioned-put")
    named = created(changed(document, "message", "new_entry", "extended", "Seaweed-X-Amz-Version-Id", to=None))
    assert (named.object_key, named.version_id) == ("assets/put.bin.versions/" + document["key"].rpartition("/")[2], "")


def test_a_version_that_is_removed_or_hidden_is_silent() -> None:
    """The older content that comes back is not new; the marker that hides it is no content."""
    document = upload_of("versioned-put-again")
    gone = changed(document, "message", "old_entry", to=document["message"]["new_entry"])
    gone = changed(changed(gone, "message", "new_entry", to=None), "message", "new_parent_path", to=None)
    assert only({**gone, "event_type": "delete"}) == Ignored("removed", "delete", "ver", document["key"][13:])


@pytest.mark.parametrize(
    "key",
    [
        "/buckets/.system/log/2026-11-30/08-24.segment",
        "/buckets/devices",
        "/buckets/devices/.uploads/x/0001.part",
        "/buckets/devices/.uploads",
        "/buckets/",
        "/buckets",
        "/etc/iam/identity.json",
        "buckets/devices/assets/put.bin",
        "",
        7,
        None,
    ],
)
def test_what_lies_beside_the_objects_is_noise(key: object) -> None:
    """The store's own files, parts of uploads, buckets, and what is below no bucket."""
    document = changed(upload_of("put"), "message", "new_parent_path", to=None)
    record = only({**document, "key": key})
    assert isinstance(record, Ignored)
    assert record.reason == "not_content"


def big(number_of_chunks: int) -> bytes:
    """What SeaweedFS sends when an object of so many chunks, uploaded in parts, replaces one of as many."""
    document = copy.deepcopy(upload_of("put-again"))
    for name in ("old_entry", "new_entry"):
        entry = document["message"][name]
        (chunk,) = entry["chunks"]
        size = 8 << 20
        places = [
            {"file_key": number, "volume_id": 1234567, "cookie": 4_294_967_295} for number in range(number_of_chunks)
        ]
        entry["chunks"] = [
            {**chunk, "size": size, "offset": size * at, "fid": place, "modified_ts_ns": 1_796_027_058_000_000_000 + at}
            for at, place in enumerate(places)
        ]
        entry["attributes"]["file_size"] = size * number_of_chunks
        parts = [
            {
                "part": at,
                "start": at,
                "end": at + 1,
                "etag": f'"{AGAIN}"',
                "startOffset": size * at,
                "endOffset": size * at,
            }
            for at in range(number_of_chunks)
        ]
        boundaries = base64.b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode()
        entry["extended"]["X-Seaweedfs-Multipart-Part-Boundaries"] = boundaries
    return json.dumps(document, separators=(",", ":")).encode()


def test_a_big_objects_document_fits_and_says_which() -> None:
    """10 GB are 1,250 chunks of 8 MB, in the old entry and the new: a megabyte. There is room for four times that."""
    body = big(1250)
    assert 900_000 < len(body) < 1_100_000
    assert len(big(5000)) < MAX_BODY_BYTES
    (step,) = plan_body(body, Routes())
    assert not isinstance(step.action, Skip | Detection)
    assert step.action.filename == "put.bin"
    assert step.record == created(json.loads(body))


# Hosted stores.


def hosted(name: str) -> dict[str, Any]:
    """A document of a hosted store."""
    document: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_bytes())
    return document


def test_several_events_of_one_document_are_judged_one_by_one() -> None:
    """What Backblaze B2 and Tigris put together is told apart, in order."""
    found = [getattr(one, "object_key", "") or getattr(one, "reason", "") for one in parse(hosted("b2-several"))]
    assert found == ["configs/aa-bb-cc-dd-ee-ff.json", "assets/empty.bin", "assets/old.bin", "assets/firmware.bin"]
    kinds = [ObjectCreated, Ignored, Ignored, ObjectCreated]
    assert [type(one) for one in parse(hosted("b2-several"))] == kinds
    assert [type(one) for one in parse(hosted("tigris-several"))] == [ObjectCreated, Ignored]


@pytest.mark.parametrize(
    ("event_type", "expected"),
    [
        ("b2:ObjectCreated:Upload", PUT),
        ("b2:ObjectCreated:MultipartUpload", MULTIPART),
        ("b2:ObjectCreated:Copy", "ObjectCreated:Copy"),
        ("b2:ObjectCreated:Replica", PUT),
        ("b2:ObjectCreated:MultipartReplica", MULTIPART),
        ("b2:ObjectCreated:*", "unknown_event"),
        ("b2:ObjectCreated", "unknown_event"),
        ("b2:ObjectDeleted:Delete", "removed"),
        ("b2:ObjectDeleted:Anything", "removed"),
        ("b2:HideMarkerCreated:LifecycleRule", "removed"),
        ("b2:MultipartUploadCreated:LiveRead", "not_content"),
        ("b2:TestEvent", "test_event"),
        ("ObjectCreated:Put", "unknown_event"),
        ("", "unknown_event"),
    ],
)
def test_what_b2_names_is_what_it_means(event_type: str, expected: str) -> None:
    """An upload rings; a hide marker, a deletion and a test do not, whatever else they say."""
    document = hosted("b2-upload")
    document["events"][0]["eventType"] = event_type
    record = only(document)
    assert expected == (record.event_name if isinstance(record, ObjectCreated) else getattr(record, "reason", ""))


def test_b2_tells_the_time_in_milliseconds() -> None:
    """It becomes RFC 3339; nonsense costs the time, not the ring."""
    document = hosted("b2-upload")
    assert created(document).event_time == "2026-11-30T08:23:49.123Z"
    odd: tuple[object, ...] = (1 << 80, -(1 << 60), 1.5, "now", None, [], float("nan"))
    for junk in odd:
        document["events"][0]["eventTimestamp"] = junk
        assert created(document).event_time == ""
    document["events"][0]["eventTimestamp"] = 1_796_027_029_000
    assert created(document).event_time == "2026-11-30T08:23:49Z"


def test_two_rules_of_b2_that_tell_of_one_upload_tell_of_one_event() -> None:
    """Name of the rule and id of the event differ."""
    document = hosted("b2-upload")
    other = copy.deepcopy(document)
    other["events"][0] |= {"eventId": "another", "matchedRuleName": "fast"}
    assert created(other).identity == created(document).identity
    other["events"][0]["objectVersionId"] = "another"
    assert created(other).identity != created(document).identity


@pytest.mark.parametrize("action", ["AbortMultipartUpload", "putobject", "ObjectCreated:Put", ""])
def test_an_action_of_r2_that_nobody_knows_is_no_upload(action: str) -> None:
    """What rings is listed."""
    assert only({**hosted("r2-put"), "action": action}) == Ignored(
        "unknown_event", action, "devices", "assets/a b+c%2F100% ü.bin"
    )


@pytest.mark.parametrize("missing", ["account", "bucket", "object"])
def test_a_message_with_an_action_alone_is_not_r2s(missing: str) -> None:
    """Other programs' messages may be in the same queue: they are nothing that could be acknowledged."""
    document = hosted("r2-put")
    del document[missing]
    assert isinstance(only(document), Malformed)


@pytest.mark.parametrize("name", ["r2-put", "tigris-put", "b2-upload"])
@pytest.mark.parametrize(
    ("field", "junk", "reason"),
    [
        ("bucket", None, "missing_bucket"),
        ("bucket", {"name": "devices"}, "missing_bucket"),
        ("key", "", "missing_key"),
        ("key", 7, "missing_key"),
        ("key", "a\0b", "bad_key"),
        ("key", "k" * 1025, "bad_key"),
        ("key", "\ud800", "bad_key"),
    ],
)
def test_an_upload_without_a_usable_name_is_malformed(name: str, field: str, junk: object, reason: str) -> None:
    """It is said which field it was."""
    document = hosted(name)
    (event,) = document.get("events", [document])
    if name == "b2-upload":
        event[{"bucket": "bucketName", "key": "objectName"}[field]] = junk
    else:
        (event if field == "bucket" else event["object"])[field] = junk
    record = only(document)
    assert isinstance(record, Malformed)
    assert record.reason == reason


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"events": []}, Ignored("empty")),
        ({"events": [7]}, Malformed("not_an_event", "number")),
        ({"events": [{}]}, Malformed("not_an_event", "object")),
        ({"events": {}}, Malformed("not_an_event", "object with events")),
        ({"events": [{}] * (MAX_RECORDS + 1)}, Malformed("too_many", f"{MAX_RECORDS + 1} records")),
        ({"event_type": "create", "message": "x"}, Malformed("not_an_event", "object with event_type, message")),
        ({"event_type": "create", "message": {}}, Ignored("not_content", "create")),
        ({"event_type": 7, "message": {}}, Malformed("not_an_event", "object with event_type, message")),
    ],
)
def test_what_is_nearly_such_a_document_says_what_it_is(document: object, expected: object) -> None:
    """Nothing is guessed."""
    assert parse(document) == [expected] == parse_body(json.dumps(document))


# The door and the sweep.


@pytest.mark.parametrize(
    ("document", "listed_etag", "listed_at"),
    [
        (upload_of("put"), FIRST, "2026-11-30T08:24:14+00:00"),
        (upload_of("versioned-put-again"), AGAIN, "2026-11-30T08:24:30+00:00"),
        (upload_of("multipart"), PARTS_ETAG, "2026-11-30T08:24:22+00:00"),
        (hosted("b2-upload"), "827ccb0eea8a706c4c34a16891f84e7b", "2026-11-30T08:23:49+00:00"),
        (hosted("r2-put"), "827ccb0eea8a706c4c34a16891f84e7b", "2026-11-30T08:23:49.379+00:00"),
        (hosted("tigris-put"), "827ccb0eea8a706c4c34a16891f84e7b", "2026-11-30T10:29:59+00:00"),
    ],
    ids=["seaweedfs", "versioned", "parts", "b2", "r2", "tigris"],
)
def test_the_door_and_the_sweep_know_each_others_uploads(document: Any, listed_etag: str, listed_at: str) -> None:  # noqa: ANN401 - JSON
    """Whichever comes first, and the other is silent; the same content a minute later is new to both."""
    event, listed = created(document), int(datetime.fromisoformat(listed_at).timestamp() * 1000)
    (heard,) = plan_body(json.dumps(document).encode(), Routes())
    rang: list[Ring] = []
    ledger = Ledger(rang.append)
    ledger.took_off(heard, "sure")
    ledger.landed(heard, is_settled=True)
    assert verdict(listed_etag, listed, rang)[0] is Verdict.KNOWN
    swept = ListedObject(event.object_key, listed_etag, listed, 5).created(event.bucket)
    step = Step(swept, Routes().route(swept))
    assert identity_after(step, heard) == swept.identity
    if "-" not in event.etag:  # an object of parts may be dated by its beginning
        assert verdict(listed_etag, listed + 60_000, rang)[0] is Verdict.NEW
        later = dataclasses.replace(event, event_time="2026-11-30T12:00:00Z")
        assert identity_after(step, Step(later, Routes().route(later))) == later.identity


def identity_after(swept: Step, heard: Step) -> bytes:
    """Under which identity an event goes on, once the sweep has announced that."""
    ledger = Ledger(lambda _: None)
    ledger.took_off(swept, SWEEP)
    ledger.landed(swept, is_settled=True)
    action = ledger.known(heard).action
    assert not isinstance(action, Skip)
    return action.identity
