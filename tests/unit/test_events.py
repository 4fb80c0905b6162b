"""Every sender's JSON becomes what it means, and nothing hostile becomes an exception."""

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.events.dialects import IgnoredReason
from functions.events.envelopes import (
    Ignored,
    Malformed,
    ObjectCreated,
    Record,
    SqsMessage,
    parse,
    parse_body,
    sqs_messages,
)

FIXTURES = Path(__file__).parent.parent / "events"

CONFIG = "configs/aa-bb-cc-dd-ee-ff.json"
ODD = "assets/a b+c%2F100% ü.bin"
ODDER = "assets/odd dir/a+b c%41 ü€😀&=?#'~.bin"
PUT, COPY = "ObjectCreated:Put", "ObjectCreated:Copy"
POST, MULTIPART = "ObjectCreated:Post", "ObjectCreated:CompleteMultipartUpload"
CONFIG_ETAG = "4d223466f5825ae8a7e082efc9f7aef2"
EMPTY_ETAG = "d41d8cd98f00b204e9800998ecf8427e"
FIVE_ETAG = "827ccb0eea8a706c4c34a16891f84e7b"
PART_ETAG = "cb8d7289925309a05b2db09b7709c264-1"
COPY_ETAG = "336311a016184326ddbdd61edd4eeb52"
V1_ETAG = "6654c734ccab8f440ff0825eb443dc7f"
AGAIN_ETAG = "4a6dbe1188a94245089108f179fcca3d"
B2_VERSION = "4_zaea8c5bc362ae55070130333_f1095b1d4a0a2d4b2_d20261130_m082349_c004_v0402001_t0044_u01796027029123"
AWS = "amzn-s3-demo-bucket"
AWS_VERSION = "096fKKXTRTtl3on89fVO.nfljtsv6qko"
AWS_PUT = (AWS, CONFIG, PUT, EMPTY_ETAG, 1024, AWS_VERSION)

# bucket, key, event name, etag, size in bytes, version id
CREATED: dict[str, tuple[str, str, str, str, int | None, str]] = {
    "minio-put": ("devices", CONFIG, PUT, CONFIG_ETAG, 16, ""),
    "minio-put-again": ("devices", CONFIG, PUT, CONFIG_ETAG, 16, ""),
    "minio-put-empty": ("devices", "assets/empty.bin", PUT, EMPTY_ETAG, 0, ""),
    "minio-put-odd-key": ("devices", ODD, PUT, FIVE_ETAG, 5, ""),
    "minio-multipart": ("devices", "assets/firmware.bin", MULTIPART, PART_ETAG, 10, ""),
    "minio-copy": ("devices", "assets/copy.bin", COPY, COPY_ETAG, 10, ""),
    "minio-post": ("devices", "assets/posted.bin", POST, "5d41402abc4b2a76b9719d911017c592", 5, ""),
    "minio-folder-marker": ("devices", "assets/folder/", PUT, EMPTY_ETAG, 0, "null"),
    "minio-versioned-folder-marker": ("versioned", "assets/folder/", PUT, EMPTY_ETAG, 0, "null"),
    "minio-versioned-put": (
        "versioned", "assets/app.bin", PUT, V1_ETAG, 2, "246b0ead-d624-4bd6-b32b-8fdf436fd95d",
    ),
    "minio-doors-fast": (
        "doors", "assets/app.bin", PUT, V1_ETAG, 2, "0d8568d4-67d1-4d2e-b072-8cf241867c7b",
    ),
    "minio-doors-sure": (
        "doors", "assets/app.bin", PUT, V1_ETAG, 2, "0d8568d4-67d1-4d2e-b072-8cf241867c7b",
    ),
    "minio-doors-fast-again": (
        "doors", "assets/app.bin", PUT, V1_ETAG, 2, "721a3eca-9dad-4394-b5ec-4f35f0d19628",
    ),
    "versity-put": ("devices", CONFIG, PUT, CONFIG_ETAG, 16, ""),
    "versity-put-basic-auth": ("devices", "assets/a.bin", PUT, "900150983cd24fb0d6963f7d28e17f72", 3, ""),
    "versity-put-after-restart": ("devices", CONFIG, PUT, CONFIG_ETAG, 16, ""),
    "versity-put-odd-key": ("devices", ODD, PUT, FIVE_ETAG, 5, ""),
    "versity-put-empty": ("devices", "assets/empty.bin", PUT, EMPTY_ETAG, 0, ""),
    "versity-folder-marker": ("devices", "assets/folder/", PUT, EMPTY_ETAG, 0, ""),
    "versity-multipart": ("devices", "assets/firmware.bin", MULTIPART, PART_ETAG, None, ""),
    "versity-copy": ("devices", "assets/copy.bin", COPY, COPY_ETAG, None, ""),
    "moto-put": ("devices", CONFIG, PUT, CONFIG_ETAG, 16, ""),
    "moto-put-odd-key": ("devices", ODD, PUT, FIVE_ETAG, 5, ""),
    "moto-put-empty": ("devices", "assets/empty.bin", PUT, EMPTY_ETAG, 0, ""),
    "moto-multipart": ("devices", "assets/firmware.bin", MULTIPART, PART_ETAG, 10, ""),
    "moto-copy": ("devices", "assets/copy.bin", COPY, COPY_ETAG, 10, ""),
    "aws-put": AWS_PUT,
    "aws-put-odd-key": (AWS, ODD, PUT, EMPTY_ETAG, 1024, ""),
    "aws-multipart": (
        AWS, "assets/firmware.bin", MULTIPART, "cb8d7289925309a05b2db09b7709c264-2", 10_485_760, "",
    ),
    "rustfs-put-odd-key": ("devices", ODD, PUT, FIVE_ETAG, 5, ""),
    "rustfs-put-empty": ("devices", "assets/empty.bin", PUT, EMPTY_ETAG, 0, ""),
    "ceph16-copy": ("sync", "assets/copy.bin", COPY, AGAIN_ETAG, 1_001, ""),
    "ceph16-folder-marker": ("sync", "assets/folder/", PUT, EMPTY_ETAG, 0, ""),
    "ceph16-multipart": ("sync", "assets/multi.bin", MULTIPART, "85efe72acd8774a90b233e8194090fbb-2", 5_243_880, ""),
    "ceph16-persistent-put": ("pers", "assets/p.bin", PUT, "f0b1b06c4c48a35d5a79a666e5377235", 100, ""),
    "ceph16-presigned-put": ("sync", "assets/presigned.bin", PUT, "03885a82b9f4be3c4d5e8e4e2c412759", 9, ""),
    "ceph16-put-5mb": ("sync", "assets/put5m.bin", PUT, "10249d6e689a7f75575f907aa0f48c4c", 5_242_880, ""),
    "ceph16-put-again": ("sync", "assets/put.bin", PUT, AGAIN_ETAG, 1_001, ""),
    "ceph16-put-config": ("sync", "configs/a1-b2-c3-d4-e5-f6.json", PUT, "bb6cb5c68df4652941caf652a366f2d8", 7, ""),
    "ceph16-put-empty": ("sync", "assets/empty.bin", PUT, EMPTY_ETAG, 0, ""),
    "ceph16-put-odd-key": ("sync", ODDER, PUT, "a2b6f2a6066ed8700d83335fc50a2b8e", 3, ""),
    "ceph16-put-same": ("sync", "assets/put.bin", PUT, AGAIN_ETAG, 1_001, ""),
    "ceph16-put-small-4k": ("sync", "assets/put4k.bin", PUT, "cf5c22984a653ba90ba2806350cafb63", 4_096, ""),
    "ceph16-put": ("sync", "assets/put.bin", PUT, "cac0c3f51680222f14025641074e35fa", 1_000, ""),
    "ceph16-versioned-copy": ("ver", "assets/copy.bin", COPY, AGAIN_ETAG, 1_001, ""),
    "ceph16-versioned-folder-marker": ("ver", "assets/folder/", PUT, EMPTY_ETAG, 0, "oSQvPtoRq7A5lgSf13.ZAWBpaBiCTiG"),
    "ceph16-versioned-multipart": (
        "ver", "assets/multi.bin", MULTIPART, "85efe72acd8774a90b233e8194090fbb-2", 5_243_880, "",
    ),
    "ceph16-versioned-presigned-put": (
        "ver", "assets/presigned.bin", PUT, "03885a82b9f4be3c4d5e8e4e2c412759", 9, "qvUIx1j2VFxeFvXlfAYYZXoY0UxgOQA",
    ),
    "ceph16-versioned-put-5mb": (
        "ver", "assets/put5m.bin", PUT,
        "452b469c75778883c4ecc7a7b14a117b", 5_242_880, "puLTIBD1AyRXWxGdnxse4PxA.LWtXeT",
    ),
    "ceph16-versioned-put-again": ("ver", "assets/put.bin", PUT, AGAIN_ETAG, 1_001, "v09lxVSEtC2kA80pA7LbfZUufVFyodN"),
    "ceph16-versioned-put-config": (
        "ver", "configs/a1-b2-c3-d4-e5-f6.json", PUT,
        "bb6cb5c68df4652941caf652a366f2d8", 7, "qLp0t9-WXdNjHQwToFdFJEVM5mky2ZY",
    ),
    "ceph16-versioned-put-empty": ("ver", "assets/empty.bin", PUT, EMPTY_ETAG, 0, "6LmuScAP3YOz0nNPIqXxAPca89JdTnv"),
    "ceph16-versioned-put-odd-key": (
        "ver", ODDER, PUT, "a2b6f2a6066ed8700d83335fc50a2b8e", 3, "nyg8RYFx39z7I3wMe-bZ9FchCiJDMv6",
    ),
    "ceph16-versioned-put-same": ("ver", "assets/put.bin", PUT, AGAIN_ETAG, 1_001, "hoRAhaE7Dc6eeec7y4NU0NoQYgC-EVi"),
    "ceph16-versioned-put-small-4k": (
        "ver", "assets/put4k.bin", PUT, "cf5c22984a653ba90ba2806350cafb63", 4_096, "bifYlo0qq6wq3lMxI56t.-.ESpy60W0",
    ),
    "ceph16-versioned-put": (
        "ver", "assets/put.bin", PUT, "cac0c3f51680222f14025641074e35fa", 1_000, "pFsfnLDDDxXbTvFghbHPYOa3M0omBoq",
    ),
    "ceph16-topic": ("two4", "assets/a", PUT, "9dd4e461268c8034f5c8564e155c67a6", 1, ""),
    "ceph16-persistent-topic": ("two4", "assets/a", PUT, "9dd4e461268c8034f5c8564e155c67a6", 1, ""),
    "eventbridge-created": (
        AWS + "1", ODD, PUT, "b1946ac92492d2347c6235b4d2611184", 5, "IYV3p45BT0ac8hjHg1houSdS1a.Mro8e",
    ),
    "eventbridge-multipart": (
        AWS + "1", "assets/firmware.bin", MULTIPART, "cb8d7289925309a05b2db09b7709c264-2", 10_485_760, "",
    ),
    "b2-upload": ("devices", ODD, PUT, "", 5, B2_VERSION),
    "r2-put": ("devices", ODD, PUT, FIVE_ETAG, 5, ""),
    "r2-multipart": (
        "devices", "assets/firmware.bin", MULTIPART, "cb8d7289925309a05b2db09b7709c264-2", 10_485_760, "",
    ),
    "r2-copy": ("devices", "assets/copy.bin", COPY, COPY_ETAG, 10, ""),
    "tigris-put": ("devices", ODD, PUT, FIVE_ETAG, 5, ""),
    "sns-http-notification": AWS_PUT,
    "sns-lambda": AWS_PUT,
    "sqs-batch-sns": AWS_PUT,
    "cloudevents-structured": AWS_PUT,
    "cloudevents-structured-base64": AWS_PUT,
    "cloudevents-binary-body": AWS_PUT,
}  # fmt: skip

# reason, event name, bucket, key
IGNORED: dict[str, tuple[IgnoredReason, str, str, str]] = {
    "minio-delete": ("removed", "ObjectRemoved:Delete", "devices", "assets/empty.bin"),
    "minio-delete-version": ("removed", "ObjectRemoved:Delete", "versioned", "assets/app.bin"),
    "minio-delete-marker": ("removed", "ObjectRemoved:DeleteMarkerCreated", "versioned", "assets/app.bin"),
    "minio-bulk-delete": ("removed", "ObjectRemoved:Delete", "devices", "assets/copy.bin"),
    "minio-bulk-delete-second": ("removed", "ObjectRemoved:Delete", "devices", "assets/firmware.bin"),
    "minio-put-tagging": ("not_content", "ObjectCreated:PutTagging", "devices", "assets/copy.bin"),
    "minio-delete-tagging": ("not_content", "ObjectCreated:DeleteTagging", "devices", "assets/copy.bin"),
    "versity-delete": ("removed", "ObjectRemoved:Delete", "devices", "assets/empty.bin"),
    "versity-bulk-delete": ("removed", "ObjectRemoved:DeleteObjects", "devices", "assets/firmware.bin"),
    "versity-bulk-delete-second": ("removed", "ObjectRemoved:DeleteObjects", "devices", "assets/copy.bin"),
    "versity-put-tagging": ("not_content", "ObjectTagging:Put", "devices", "assets/copy.bin"),
    "versity-test-event": ("test_event", "TestEvent", "Test-Bucket", ""),
    "moto-delete": ("removed", "ObjectRemoved:Delete", "devices", "assets/empty.bin"),
    # Told again as CompleteMultipartUpload, a moment later: one upload is to ring once.
    "moto-multipart-put": ("not_content", PUT, "devices", "assets/firmware.bin"),
    "moto-test-event": ("test_event", "TestEvent", "devices", ""),
    "aws-delete": ("removed", "ObjectRemoved:Delete", AWS, "assets/firmware.bin"),
    "aws-delete-marker": ("removed", "ObjectRemoved:DeleteMarkerCreated", AWS, "assets/firmware.bin"),
    "aws-lifecycle-expiration": ("removed", "LifecycleExpiration:Delete", AWS, "assets/firmware.bin"),
    "aws-tagging": ("not_content", "ObjectTagging:Put", AWS, "assets/firmware.bin"),
    "aws-test-event": ("test_event", "TestEvent", AWS, ""),
    "rustfs-delete": ("removed", "ObjectRemoved:Delete", "devices", "assets/empty.bin"),
    "ceph16-delete": ("removed", "ObjectRemoved:Delete", "sync", "assets/copy.bin"),
    "ceph16-versioned-delete": ("removed", "ObjectRemoved:DeleteMarkerCreated", "ver", "assets/copy.bin"),
    "b2-hide": ("removed", "b2:HideMarkerCreated:Hide", "devices", "assets/empty.bin"),
    "b2-delete": ("removed", "b2:ObjectDeleted:Delete", "devices", "assets/empty.bin"),
    "b2-test-event": ("test_event", "b2:TestEvent", "devices", ""),
    "r2-delete": ("removed", "DeleteObject", "devices", "assets/empty.bin"),
    "r2-lifecycle": ("removed", "LifecycleDeletion", "devices", "assets/empty.bin"),
    "tigris-delete": ("removed", "OBJECT_DELETED", "devices", "assets/empty.bin"),
    "ceph-lifecycle-expiration": (
        "removed", "ObjectLifecycle:Expiration:Current", "mybucket1", "assets/myimage1.jpg",
    ),
    "eventbridge-deleted": ("removed", "ObjectRemoved:Delete", AWS + "1", "assets/firmware.bin"),
    "eventbridge-tags": ("not_content", "ObjectTagging:Put", AWS + "1", "assets/firmware.bin"),
    "sns-http-subscription": ("subscription", "SubscriptionConfirmation", "", ""),
}  # fmt: skip

SEVERAL = {"sqs-batch", "b2-several", "tigris-several"}


def fixture(name: str) -> bytes:
    """Return a captured document as bytes."""
    return (FIXTURES / f"{name}.json").read_bytes()


def created(name: str) -> ObjectCreated:
    """Return the one upload that a fixture tells of."""
    (record,) = parse_body(fixture(name))
    assert isinstance(record, ObjectCreated)
    return record


def record_of(key: object = "k", name: object = "ObjectCreated:Put", **fields: object) -> dict[str, Any]:
    """Build one AWS record."""
    s3 = {"bucket": {"name": "devices"}, "object": {"key": key, **fields}}
    return {"eventSource": "aws:s3", "eventName": name, "eventTime": "2026-11-20T12:00:00.000Z", "s3": s3}


def only(document: object) -> Record:
    """Parse a document that yields exactly one value."""
    (record,) = parse(document)
    return record


def test_a_megabyte_of_records_is_not_read_through() -> None:
    """One hostile document must not hold up everybody else: it is malformed, as a whole."""
    (record,) = parse({"Records": [{}] * 1_001})
    assert record == Malformed("too_many", "1001 records")


def test_every_fixture_is_in_a_table() -> None:
    """No captured document is left untested."""
    assert {path.stem for path in FIXTURES.glob("*.json")} == CREATED.keys() | IGNORED.keys() | SEVERAL


@pytest.mark.parametrize("name", CREATED)
def test_an_upload_is_read_exactly(name: str) -> None:
    """Bucket, decoded key, name, unquoted etag, size and version come out of every dialect and wrapper."""
    event = created(name)
    found = (event.bucket, event.object_key, event.event_name, event.etag, event.size, event.version_id)
    assert found == CREATED[name]
    assert event.event_time.startswith(("2026-11-20T", "2026-11-30T"))


@pytest.mark.parametrize("name", IGNORED)
def test_what_is_no_upload_is_ignored(name: str) -> None:
    """Removals, tags, tests and confirmations are understood and left alone."""
    assert parse_body(fixture(name)) == [Ignored(*IGNORED[name])]


def test_the_sequencer_is_kept() -> None:
    """A sender's sequencer arrives as sent, and is empty where there is none."""
    assert created("minio-put-empty").sequencer == "18E9DDA586C3D975"
    assert created("versity-put").sequencer == "1"
    assert created("moto-put").sequencer == ""


@pytest.mark.parametrize("prefix", ["", "s3:"])
@pytest.mark.parametrize(
    "name",
    [
        "ObjectRemoved:Delete",
        "ObjectRemoved:DeleteMarkerCreated",
        "ObjectRemoved:DeleteAllVersions",
        "ObjectRemoved:NoOP",
        "ObjectRemoved:DeleteObjects",
        "ObjectRemoved",
        "LifecycleExpiration:Delete",
        "LifecycleExpiration:DeleteMarkerCreated",
        "LifecycleDelMarkerExpiration:Delete",
        "ObjectLifecycle:Expiration:NonCurrent",
        "ObjectLifecycle:Expiration:DeleteMarker",
    ],
)
def test_a_removal_never_rings(prefix: str, name: str) -> None:
    """Every name that means a removal is one, from every sender, even with its record broken."""
    for source in ("aws:s3", "minio:s3", "rustfs:s3", "ceph:s3", "x", None):
        whole = {**record_of("a%2Fb", prefix + name), "eventSource": source}
        assert only({"Records": [whole]}) in (
            Ignored("removed", name, "devices", "a/b"),
            Ignored("removed", name, "devices", "a%2Fb"),
        )
        assert only({"Records": [{"eventSource": source, "eventName": prefix + name}]}) == Ignored("removed", name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ObjectCreated:PutTagging", "not_content"),
        ("ObjectCreated:PutRetention", "not_content"),
        ("ObjectCreated:PutLegalHold", "not_content"),
        ("ObjectAccessed:Get", "not_content"),
        ("ObjectAcl:Put", "not_content"),
        ("ObjectRestore:Completed", "not_content"),
        ("Replication:OperationCompletedReplication", "not_content"),
        ("LifecycleTransition", "not_content"),
        ("BucketRemoved:*", "not_content"),
        ("ObjectCreated", "unknown_event"),
        ("ObjectCreated:*", "unknown_event"),
        ("ObjectCreated:Putt", "unknown_event"),
        ("objectcreated:put", "unknown_event"),
        ("s3:ObjectCreated:Put", "unknown_event"),
        ("", "unknown_event"),
    ],
)
def test_only_listed_names_ring(name: str, reason: IgnoredReason) -> None:
    """A name outside the allow-list is ignored, whatever it resembles."""
    assert only(record_of("k", "s3:" + name)) == Ignored(reason, name, "devices", "k")


def test_a_tagging_event_without_a_key_is_ignored() -> None:
    """The name decides before the key does: MinIO proxies tagging calls with an empty key."""
    assert only(record_of("", "s3:ObjectCreated:PutTagging")) == Ignored(
        "not_content", "ObjectCreated:PutTagging", "devices"
    )


@pytest.mark.parametrize(
    ("detail_type", "reason", "outcome"),
    [
        ("Object Created", "POST Object", "ObjectCreated:Post"),
        ("Object Created", "CopyObject", "ObjectCreated:Copy"),
        ("Object Created", "SomethingNew", "unknown_event"),
        ("Object Created", None, "unknown_event"),
        ("Object Created", ["PutObject"], "unknown_event"),
        ("Object Restore Completed", "PutObject", "not_content"),
        ("EC2 Instance State-change Notification", "PutObject", "unknown_event"),
    ],
)
def test_eventbridge_reasons(detail_type: str, reason: object, outcome: str) -> None:
    """EventBridge rings only for an object created by one of the four calls."""
    document = json.loads(fixture("eventbridge-created"))
    document["detail-type"], document["detail"]["reason"] = detail_type, reason
    record = only(document)
    assert outcome == (record.event_name if isinstance(record, ObjectCreated) else getattr(record, "reason", ""))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"nonsense", "not_json"),
        (b'{"Records": [', "not_json"),
        (b'{"Records": ' + b"9" * 5000 + b"}", "not_json"),
        (b"[" * 100_000, "too_deep"),
        (b'{"Records":' * 100_000, "too_deep"),
        (b"\xff\xfe{}", "not_utf8"),
        (json.dumps(record_of()).encode("utf-16"), "not_utf8"),
        (b'{"Records": [{"eventName": "\xed\xa0\x80"}]}', "not_utf8"),
        (b"[]", "not_an_event"),
        (b"[{}]", "not_an_event"),
        (b"{}", "not_an_event"),
        (b"null", "not_an_event"),
        (b"true", "not_an_event"),
        (b"1e999", "not_an_event"),
        (b'"text"', "not_an_event"),
        (b'{"Records": {}}', "not_an_event"),
        (b'{"Records": null}', "not_an_event"),
        (b'{"Records": [null]}', "not_an_event"),
        (b'{"Records": [{}]}', "not_an_event"),
        (b'{"Records": [{"eventName": 7}]}', "not_an_event"),
        (b'{"Type": "Notification"}', "not_an_event"),
        (b'{"Type": "Notification", "Message": "Hello"}', "not_json"),
        (b'{"specversion": "1.0"}', "not_an_event"),
        (b'{"specversion": "1.0", "data": []}', "not_an_event"),
        (b'{"specversion": "1.0", "data_base64": "%%%"}', "not_base64"),
        (b'{"specversion": "1.0", "data_base64": "\\u00fc"}', "not_base64"),
        (b'{"specversion": "1.0", "data_base64": "/w=="}', "not_utf8"),
    ],
)
def test_what_nobody_can_use_is_malformed(body: bytes, reason: str) -> None:
    """A body that is no event says why, in a bounded printable excerpt."""
    (record,) = parse_body(body)
    assert isinstance(record, Malformed)
    assert record.reason == reason
    assert len(record.detail) <= 200
    assert record.detail.isprintable()


@pytest.mark.parametrize("body", ["", " \r\n\t", b"", b" \n"])
def test_a_blank_webhook_is_a_ping(body: bytes | str) -> None:
    """An empty body is nothing to do."""
    assert parse_body(body) == [Ignored("empty")]


def test_no_records_is_nothing_to_do() -> None:
    """An empty list of records is understood."""
    assert parse({"Records": []}) == [Ignored("empty")]


@pytest.mark.parametrize("part", ["s3", "bucket", "object"])
@pytest.mark.parametrize("junk", [None, [], "text", 7, {}])
def test_a_record_with_a_part_missing_is_malformed(part: str, junk: object) -> None:
    """An upload whose bucket or key is nowhere cannot ring."""
    record = record_of()
    (record if part == "s3" else record["s3"])[part] = junk
    outcome = only({"Records": [record]})
    assert isinstance(outcome, Malformed)
    assert outcome.reason == ("missing_key" if part == "object" else "missing_bucket")


@pytest.mark.parametrize("name", ["", None, 7, ["b"], "b" * 256, "b\n", "\ud800"])
def test_a_bucket_without_a_usable_name_is_malformed(name: object) -> None:
    """A bucket's name is a short printable text."""
    record = record_of()
    record["s3"]["bucket"]["name"] = name
    assert getattr(only(record), "reason", "") == "missing_bucket"


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "missing_key"),
        (None, "missing_key"),
        (7, "missing_key"),
        (["k"], "missing_key"),
        ("a\0b", "bad_key"),
        ("a%00b", "bad_key"),
        ("\ud800", "bad_key"),
        ("%ED%A0%80", "bad_key"),
        ("%FF", "bad_key"),
        ("%C3", "bad_key"),
        ("k" * 1025, "bad_key"),
        ("k" * 1100, "bad_key"),
        ("%C3%BC" * 513, "bad_key"),
    ],
)
def test_a_key_that_s3_would_not_store_is_malformed(key: object, reason: str) -> None:
    """Keys are at most 1024 bytes of UTF-8 without NUL."""
    record = only({"Records": [record_of(key)]})
    assert isinstance(record, Malformed)
    assert record.reason == reason
    assert record.detail.isprintable()


@pytest.mark.parametrize(
    ("key", "decoded"),
    [
        ("a%2Fb", "a/b"),
        ("a%252Fb", "a%2Fb"),
        ("a%25252Fb", "a%252Fb"),
        ("..%2F..%2Fetc", "../../etc"),
        ("assets/../x", "assets/../x"),
        ("+", " "),
        ("%2B", "+"),
        ("a%0Ab", "a\nb"),
        ("k" * 1024, "k" * 1024),
        ("%C3%BC" * 512, "ü" * 512),
    ],
)
def test_a_key_is_decoded_exactly_once(key: str, decoded: str) -> None:
    """What the key means is left to the routes; here it is only decoded."""
    record = only({"Records": [record_of(key)]})
    assert isinstance(record, ObjectCreated)
    assert record.object_key == decoded


@pytest.mark.parametrize(
    ("sent", "size"),
    [
        (0, 0),
        (7, 7),
        ("1024", 1024),
        (2**63 - 1, 2**63 - 1),
        (-1, None),
        (2**63, None),
        (True, None),
        (1.5, None),
        (float("inf"), None),
        (None, None),
        ("", None),
        ("-1", None),
        ("1_000", None),
        ("٣", None),
        ("9" * 5000, None),
        ([], None),
    ],
)
def test_an_odd_size_never_costs_a_ring(sent: object, size: int | None) -> None:
    """The upload happened; the size only decorates it."""
    record = only(record_of(size=sent))
    assert isinstance(record, ObjectCreated)
    assert record.size == size


def test_a_size_left_out_is_zero_only_where_zero_is_left_out() -> None:
    """MinIO omits the size of an empty object; from AWS a missing size is unknown."""
    sizes = {}
    for source in ("minio:s3", "rustfs:s3", "aws:s3", "ceph:s3", None):
        record = only({**record_of(), "eventSource": source})
        assert isinstance(record, ObjectCreated)
        sizes[source] = record.size
    assert sizes == {"minio:s3": 0, "rustfs:s3": 0, "aws:s3": None, "ceph:s3": None, None: None}


@pytest.mark.parametrize("junk", [None, 7, True, [], {}, "a\nb", "\ud800", "x" * 1025])
def test_odd_decorations_are_dropped(junk: object) -> None:
    """Etag, version, sequencer and time that are no short printable text become empty, and it rings."""
    record = record_of(eTag=junk, versionId=junk, sequencer=junk)
    record["eventTime"] = junk
    assert only(record) == ObjectCreated("devices", "k", PUT)


@pytest.mark.parametrize("source", [None, 7, [], {}, "x", "\ud800"])
def test_an_unknown_source_is_read_like_aws(source: object) -> None:
    """A sender nobody knows is taken to escape keys, as S3 does."""
    record = only({**record_of("a%2Fb"), "eventSource": source})
    assert isinstance(record, ObjectCreated)
    assert record.object_key == "a/b"


def test_one_bad_record_does_not_hide_its_neighbours() -> None:
    """Each record of a document is judged alone, in order."""
    outcome = parse({"Records": [record_of("a"), None, record_of("b", "ObjectRemoved:Delete"), record_of("c")]})
    assert [type(record) for record in outcome] == [ObjectCreated, Malformed, Ignored, ObjectCreated]


def wrap_sqs(text: str) -> str:
    """Put a text into an SQS batch."""
    return json.dumps({"Records": [{"messageId": "1", "body": text, "eventSource": "aws:sqs"}]})


def wrap_sns(text: str) -> str:
    """Put a text into an SNS notification."""
    return json.dumps({"Type": "Notification", "Message": text})


def wrap_sns_lambda(text: str) -> str:
    """Put a text into what SNS hands to Lambda."""
    return json.dumps({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": text}}]})


def wrap_cloudevent(text: str) -> str:
    """Put a JSON text into a CloudEvent as data."""
    return json.dumps({"specversion": "1.0", "data": json.loads(text)})


def wrap_cloudevent_base64(text: str) -> str:
    """Put a text into a CloudEvent as binary data."""
    return json.dumps({"specversion": "1.0", "data_base64": base64.b64encode(text.encode()).decode()})


WRAPPERS = [wrap_sqs, wrap_sns, wrap_sns_lambda, wrap_cloudevent, wrap_cloudevent_base64]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("name", ["minio-put-odd-key", "eventbridge-created", "aws-delete", "aws-test-event"])
def test_a_wrapper_changes_nothing(wrap: Callable[[str], str], name: str) -> None:
    """What is inside a wrapper means what it means outside."""
    text = fixture(name).decode()
    assert parse_body(wrap(text)) == parse_body(wrap_sqs(wrap_sns(wrap(text)))) == parse_body(text)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_end_somewhere(wrap: Callable[[str], str]) -> None:
    """Four wrappers are opened, a fifth is not."""
    text = json.dumps({"Records": [record_of()]})
    for _ in range(4):
        text = wrap(text)
    assert isinstance(parse_body(text)[0], ObjectCreated)
    assert parse_body(wrap(text)) == [Malformed("too_deep", "more than 4 wrappers")]


def test_a_document_nested_without_end_does_not_recurse() -> None:
    """A decoded document too deep to print is still judged."""
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"specversion": "1.0", "data": deep}
    assert parse(deep) == [Malformed("too_deep", "more than 4 wrappers")]
    assert getattr(parse({"Records": [deep]})[0], "reason", "") == "not_an_event"


def test_sqs_messages_keeps_ids_and_bodies() -> None:
    """A Lambda batch gives each message's id and its body as sent."""
    batch = json.loads(fixture("sqs-batch"))
    messages = sqs_messages(batch)
    assert messages is not None
    assert [message.message_id for message in messages] == [r["messageId"] for r in batch["Records"]]
    flat = [record for message in messages for record in parse_body(message.body)]
    assert flat == parse(batch)
    assert [type(record) for record in flat] == [ObjectCreated, Ignored, Ignored]


@pytest.mark.parametrize(
    "event",
    [None, [], "x", {}, {"Records": []}, {"Records": {}}, {"Records": [None]}, {"Records": [record_of()]}],
)
def test_what_is_no_sqs_batch_is_none(event: object) -> None:
    """Only an SQS batch has SQS messages."""
    assert sqs_messages(event) is None


@pytest.mark.parametrize("body", [None, "", "  ", 7, {}, b"{}"])
def test_an_sqs_message_without_a_body_is_kept_for_a_person(body: object) -> None:
    """It ends Malformed, not acknowledged as a blank webhook is."""
    batch = {"Records": [{"messageId": "1", "body": body, "eventSource": "aws:sqs"}]}
    (message,) = sqs_messages(batch) or []
    assert message.message_id == "1"
    assert isinstance(parse_body(message.body)[0], Malformed)
    assert isinstance(only(batch), Malformed)


def test_an_sqs_message_without_an_id_is_not_dropped() -> None:
    """Its id is empty, which makes Lambda retry the batch."""
    batch = {"Records": [{"body": "{}", "eventSource": "aws:sqs"}, 7]}
    assert sqs_messages(batch) == [SqsMessage("", "{}"), SqsMessage("", "null")]


def test_one_event_at_two_doors_has_one_identity() -> None:
    """MinIO's fast and sure targets tell of the same upload; the next upload is another."""
    fast, sure, again = map(created, ("minio-doors-fast", "minio-doors-sure", "minio-doors-fast-again"))
    assert fast.identity == sure.identity
    assert fast.identity != again.identity
    assert len(fast.identity) == 16


def test_uploading_the_same_bytes_again_is_another_event() -> None:
    """Without versions, the sequencer and the time tell a re-upload from a repeat."""
    assert created("minio-put").identity != created("minio-put-again").identity


def test_where_the_sequencer_is_a_time_the_identity_is_what_a_list_tells_too() -> None:
    """MinIO and RustFS number events by when the object was modified, which a LIST shows in milliseconds."""
    event = created("minio-versioned-put")
    assert event.modified == int(event.sequencer, 16) // 1_000_000
    listed = ObjectCreated("devices", event.object_key, PUT, "another time", event.etag, modified=event.modified)
    assert dataclasses.replace(listed, bucket=event.bucket).identity == event.identity
    assert dataclasses.replace(listed, bucket=event.bucket, modified=event.modified + 1).identity != event.identity
    assert created("rustfs-put-empty").modified
    for source in ("aws:s3", "ceph:s3", "somebody:s3"):
        other = only({"Records": [record_of(sequencer=event.sequencer) | {"eventSource": source}]})
        assert getattr(other, "modified", None) == 0


@pytest.mark.parametrize("sequencer", ["1", "0x8E9DDA56242EB12", "18e9dda56242eb12", "18E9DDA56242EB123", "", None, 7])
def test_a_sequencer_that_is_no_time_leaves_the_identity_as_it_is(sequencer: object) -> None:
    """Nothing is concluded from a number that MinIO does not send."""
    record = record_of(sequencer=sequencer) | {"eventSource": "minio:s3"}
    assert getattr(only({"Records": [record]}), "modified", None) == 0


def test_a_restarted_sequencer_is_told_apart_by_time() -> None:
    """Versity GW counts from 1 again after a restart."""
    before, after = created("versity-put"), created("versity-put-after-restart")
    assert before.sequencer == after.sequencer
    assert before.identity != after.identity


def test_one_upload_that_two_topics_of_ceph_tell_of_has_one_identity() -> None:
    """Each topic has a sequencer of its own; all else agrees."""
    names = ("ceph16-topic", "ceph16-persistent-topic")
    sequencers = {json.loads(fixture(name))["Records"][0]["s3"]["object"]["sequencer"] for name in names}
    first, second = map(created, names)
    assert len(sequencers) == 2
    assert first.identity == second.identity
    assert dataclasses.replace(first, event_time="2026-11-30T08:39:03.410207Z").identity != second.identity


@pytest.mark.parametrize("version", ["", "null"])
def test_a_version_that_is_none_does_not_hide_the_content(version: str) -> None:
    """Two uploads of other content in one second, without a sequencer, are two; and both words for it are one."""
    event = ObjectCreated("b", "k", PUT, "2026-11-30T08:39:03Z", "e", 1, version)
    assert event.identity != dataclasses.replace(event, etag="f").identity
    assert event.identity == dataclasses.replace(event, version_id="").identity


def test_a_quoted_etag_is_the_same_etag() -> None:
    """Some senders quote it, others do not."""
    plain, quoted = (only({"Records": [record_of(eTag=etag)]}) for etag in ("e", '"e"'))
    assert getattr(plain, "identity", 1) == getattr(quoted, "identity", 2)


def test_identity_counts_what_it_should() -> None:
    """Each part of the identity matters, the etag beside a version too; event name and size do not."""
    event = ObjectCreated("b", "k", PUT, "t", "e", 1, "v", "s")
    same: list[dict[str, Any]] = [{"event_name": COPY}, {"size": 2}]
    for change in same:
        assert dataclasses.replace(event, **change).identity == event.identity
    other: list[dict[str, Any]] = [
        {"bucket": "c"},
        {"object_key": "l"},
        {"event_time": "u"},
        {"etag": "f"},
        {"version_id": "w"},
        {"version_id": ""},
        {"sequencer": "r"},
    ]
    identities = {dataclasses.replace(event, **change).identity for change in other} | {event.identity}
    assert len(identities) == len(other) + 1


PARTS = st.tuples(*[st.text(alphabet="ab:12", max_size=4)] * 6)


@given(PARTS, PARTS)
def test_identity_is_unambiguous(one: tuple[str, ...], two: tuple[str, ...]) -> None:
    """Different parts never join into the same identity."""

    def identity(parts: tuple[str, ...]) -> bytes:
        bucket, key, version, sequencer, time, etag = parts
        return ObjectCreated(bucket, key, PUT, time, etag, None, version, sequencer).identity

    assert (identity(one) == identity(two)) == (one == two)


LEGAL_KEYS = st.text(
    st.one_of(st.sampled_from("%+ /&=?#2Fü"), st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    min_size=1,
    max_size=256,
)


def as_is(key: str) -> str:
    """Escape nothing."""
    return key


def aws_escape(key: str) -> str:
    """Escape as S3 does: a query, with `/` kept."""
    return quote_plus(key, safe="/")


@pytest.mark.parametrize(
    ("source", "name", "escape"),
    [
        ("aws:s3", PUT, aws_escape),
        ("aws:s3", PUT, quote_plus),
        ("aws:s3", PUT, quote),
        ("minio:s3", "s3:" + PUT, quote_plus),
        ("rustfs:s3", "s3:" + PUT, quote_plus),
        ("ceph:s3", PUT, as_is),
        ("ceph:s3", "s3:" + PUT, as_is),
        ("aws:s3", "s3:" + PUT, as_is),
    ],
)
@given(key=LEGAL_KEYS)
def test_any_legal_key_survives(source: str, name: str, escape: Callable[[str], str], key: str) -> None:
    """Whatever a dialect does to a key is undone exactly."""
    body = json.dumps({"Records": [{**record_of(escape(key), name), "eventSource": source}]})
    (record,) = parse_body(body)
    assert isinstance(record, ObjectCreated)
    assert record.object_key == key


@given(key=LEGAL_KEYS)
def test_any_legal_key_survives_eventbridge(key: str) -> None:
    """EventBridge names the key as it is."""
    document = json.loads(fixture("eventbridge-created"))
    document["detail"]["object"]["key"] = key
    assert getattr(only(document), "object_key", "") == key


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "aws:s3",
            "minio:s3",
            "aws:sqs",
            "aws:sns",
            "Notification",
            "s3:TestEvent",
            "Object Created",
            "create",
            "update",
            "PutObject",
            "OBJECT_CREATED_PUT",
            "b2:ObjectCreated:Upload",
            "/buckets/b/k",
            "/buckets/b",
            "dHJ1ZQ==",
            "\ud800",
        ]
    ),
    st.sampled_from(["s3:ObjectCreated:Put", "ObjectCreated:Copy", "ObjectRemoved:Delete", '{"Records":[{}]}']),
)
WORDS = st.sampled_from(
    [
        "Records", "eventName", "eventSource", "s3", "bucket", "name", "object", "key",
        "size", "eTag", "versionId", "sequencer", "eventTime", "body", "messageId",
        "Sns", "Message", "Type", "Event", "specversion", "data", "data_base64",
        "detail-type", "detail", "reason",
        "events", "eventType", "bucketName", "objectName", "objectSize", "objectVersionId", "eventTimestamp",
        "account", "action", "event_type", "message", "new_entry", "old_entry", "new_parent_path",
        "extended", "attributes", "chunks", "mtime", "mtime_ns", "md5", "file_size", "commit_ts_ns", "is_directory",
        "Seaweed-X-Amz-ETag", "Seaweed-X-Amz-Version-Id",
    ]
)  # fmt: skip
JSON_LIKE = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS | st.text(max_size=3), inner)),
    max_leaves=25,
)


@given(JSON_LIKE)
def test_nothing_json_like_raises(document: object) -> None:
    """Any document gives at least one value of the three kinds, with printable details."""
    records = parse(document)
    assert records
    for record in records:
        assert isinstance(record, ObjectCreated | Ignored | Malformed)
        if isinstance(record, ObjectCreated):
            assert len(record.identity) == 16
        if isinstance(record, Malformed):
            assert len(record.detail) <= 200
            assert record.detail.isprintable()
    sqs_messages(document)


@given(st.dictionaries(WORDS, JSON_LIKE), st.dictionaries(WORDS, JSON_LIKE), st.dictionaries(WORDS, JSON_LIKE))
def test_no_field_of_an_upload_raises(record: dict[str, Any], s3: dict[str, Any], fields: dict[str, Any]) -> None:
    """Junk in any place of a record that says it is an upload is survived."""
    document = {**record, "eventName": PUT, "s3": {"bucket": {"name": "b"}, **s3, "object": fields}}
    assert isinstance(only({"Records": [document]}), ObjectCreated | Malformed)


@given(st.one_of(st.binary(), st.text()))
def test_no_body_raises(body: bytes | str) -> None:
    """Any bytes and any text give at least one value."""
    assert parse_body(body)
