"""URLs are signed as boto3 signs them, only faster; a real store takes them for what they are and nothing else."""

from __future__ import annotations

import http.client
import http.server
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.s3 import clients as storage
from functions.s3 import signing
from functions.s3.clients import UNREACHABLE, StorageError
from functions.s3.objects import (
    S3_DEADLINE_SECONDS,
    Objects,
    content_disposition,
)
from functions.s3.signing import SESSION_PROMISE_SECONDS
from functions.settings import Settings, load
from infra.local.process import free_port
from infra.local.stores import Minio, MotoServer, VersityGateway
from tests.fakes.proxy import TcpProxy
from tests.timing import SLACK_SECONDS

BUCKET = "devices"
TTL_SECONDS = 900
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
SECRET = "s3cr3t/+" * 5
HOSTILE_KEYS = [
    "assets/fw.bin",
    "assets/with space and  two.bin",
    "assets/plus+plus.bin",
    "assets/100%.bin",
    "assets/%2Fencoded%20already.bin",
    "assets/a&b=c?d#e.bin",
    "assets/quote\"quote'quote.bin",
    "assets/back\\slash.bin",
    "assets/semi;colon,comma.bin",
    "assets/~tilde!*()$@:.bin",
    "assets/gr\u00fc\u00dfe/\u4e16\u754c/\U0001f514.bin",
    "assets/e\u0301 is not \u00e9.bin",
    "assets/" + "long/" * 150 + "x" * 243,  # 1,000 bytes; no segment longer than a file system takes
    "assets/" + ("\u4e16" * 65 + "/") * 5 + "\u4e16" * 4 + ".",  # 1,000 bytes
]


def configured(**variables: str) -> Settings:
    """Settings with made-up credentials."""
    mine = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET}
    return load(mine | variables).settings


def of_store(store: Minio | MotoServer | VersityGateway, endpoint_url: str | None = None) -> Settings:
    """Settings for a real store."""
    return configured(
        AWS_ENDPOINT_URL_S3=endpoint_url or store.endpoint_url,
        AWS_ACCESS_KEY_ID=store.access_key,
        AWS_SECRET_ACCESS_KEY=store.secret_key,
    )


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock that botocore signs by."""
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: NOW)


# --- the same bytes as boto3's


@dataclass(frozen=True, slots=True)
class Case:
    """One way to be configured."""

    variables: dict[str, str]
    endpoint_url: str | None = None
    bucket: str = BUCKET


CASES = {
    "custom endpoint": Case({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000"}),
    "public endpoint": Case({"AWS_ENDPOINT_URL_S3": "http://minio:9000"}, "https://s3.example.com"),
    "default port": Case({}, "https://s3.example.com:443"),
    "below a path": Case({}, "https://example.com/store"),
    "IPv6": Case({}, "http://[::1]:9000"),
    "AWS, virtual host": Case({"AWS_REGION": "eu-west-1"}),
    "AWS, us-east-1": Case({"AWS_REGION": "us-east-1"}),
    "AWS, China": Case({"AWS_REGION": "cn-north-1"}),
    "AWS, dotted bucket": Case({"AWS_REGION": "eu-central-1"}, bucket="devices.example.com"),
    "session token": Case({"AWS_REGION": "eu-west-1", "AWS_SESSION_TOKEN": "IQoJb3/+=" * 90}),
}


def objects_of(case: Case) -> Objects:
    """Ours, configured the same."""
    return Objects(
        configured(**case.variables), case.bucket, url_ttl_seconds=TTL_SECONDS, public_endpoint_url=case.endpoint_url
    )


hostile_keys = st.one_of(
    st.sampled_from(HOSTILE_KEYS),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=200).map("assets/{}".format),
    st.text(st.sampled_from(" %+&=?#/.~\"'\\;:@[]é\n\t"), min_size=1, max_size=40),
)


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("name", CASES)
def test_a_url_is_byte_for_byte_boto3s(name: str) -> None:
    """Whatever the endpoint, the region, the credentials, the key, the version."""
    case = CASES[name]
    ours = objects_of(case)
    s3 = storage.client("s3", configured(**case.variables), endpoint_url=case.endpoint_url)

    @settings(max_examples=40, deadline=None)
    @given(key=hostile_keys, version_id=st.sampled_from(["", "null", "3/L4+kq=%&"]) | st.text("abc+/=%& ", max_size=20))
    def compare(key: str, version_id: str) -> None:
        params = {"Bucket": case.bucket, "Key": key, "ResponseContentDisposition": content_disposition(key)}
        if version_id:
            params["VersionId"] = version_id
        theirs = s3.generate_presigned_url("get_object", Params=params, ExpiresIn=TTL_SECONDS)
        assert ours.presign(key, version_id=version_id, filename=key).url == theirs

    compare()


def test_signing_on_a_warm_process_takes_much_less_than_boto3s() -> None:
    """At least 2.5 times as many URLs in the same processor time."""
    case = CASES["public endpoint"]
    ours = objects_of(case)
    s3 = storage.client("s3", configured(**case.variables), endpoint_url=case.endpoint_url)
    keys = (f"assets/firmware 1.2.{n}.bin" for n in itertools.count())

    def sign() -> None:
        key = next(keys)
        ours.presign(key, filename=key)

    def boto3s() -> None:
        key = next(keys)
        params = {"Bucket": BUCKET, "Key": key, "ResponseContentDisposition": content_disposition(key)}
        s3.generate_presigned_url("get_object", Params=params, ExpiresIn=TTL_SECONDS)

    def processor_seconds(sign: Callable[[], object]) -> float:
        begun = time.thread_time()
        for _ in range(20):
            sign()
        return time.thread_time() - begun

    # The best of many short rounds, in turns: a busy machine makes all of them dearer, but hardly all of one side.
    rounds = [(processor_seconds(boto3s), processor_seconds(sign)) for _ in range(30)]
    assert min(theirs for theirs, _ in rounds) / min(mine for _, mine in rounds) >= 2.5


def test_a_signature_is_of_its_second_its_credentials_and_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another key, other parameters, another second or another secret: another signature, and no older one again."""
    now = NOW
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now)
    settings = configured(AWS_ENDPOINT_URL_S3="http://127.0.0.1:9000")
    session = storage.open_session(settings)
    signer = signing.Signer(settings, BUCKET, expires_seconds=60, session=session)
    credentials = session.get_credentials()
    seen = set()
    for second in range(2):
        now = NOW + timedelta(seconds=second)
        for key, parameters in (("a", {}), ("a", {"versionId": "1"}), ("b", {})):
            first, *others = (signer.sign(key, parameters) for _ in range(3))
            assert others == [first, first]
            assert first[1] == now + timedelta(seconds=60)
            seen.add(first)
    assert len(seen) == 6
    assert credentials is not None
    credentials.secret_key = "another"
    assert signer.sign("a", {}) not in seen
    credentials.secret_key = SECRET
    assert signer.sign("a", {}) in seen


# --- how long it lives


@pytest.mark.usefixtures("frozen")
def test_the_end_is_when_the_store_will_refuse() -> None:
    """The moment of signing and the lifetime, to the second."""
    presigned = objects_of(CASES["public endpoint"]).presign("assets/a", filename="a")
    assert presigned.expires_at == NOW + timedelta(seconds=TTL_SECONDS)
    assert "&X-Amz-Expires=900&" in presigned.url


@pytest.mark.parametrize(("session_minutes", "promised_minutes"), [(20, 20), (60 * 24 * 30, 60 * 24)])
def test_the_end_is_no_later_than_the_sessions(
    monkeypatch: pytest.MonkeyPatch, session_minutes: int, promised_minutes: int
) -> None:
    """Temporary credentials that boto3 knows the end of take their URLs with them."""
    now = datetime.now(UTC)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "ASIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": "token",
        "AWS_CREDENTIAL_EXPIRATION": (now + timedelta(minutes=session_minutes)).isoformat(),
    }.items():
        monkeypatch.setenv(name, value)
    ours = Objects(load({}).settings, BUCKET, url_ttl_seconds=24 * 3600)
    end = ours.presign("assets/a", filename="a").expires_at
    assert abs(end - now - timedelta(minutes=promised_minutes)) < timedelta(seconds=5)


@pytest.mark.usefixtures("frozen")
def test_a_session_that_hides_its_end_is_promised_for_its_least() -> None:
    """Lambda's credentials do not say when they end: a week's URL is promised for a quarter of an hour."""
    ours = Objects(configured(AWS_SESSION_TOKEN="token"), BUCKET, url_ttl_seconds=7 * 24 * 3600)
    presigned = ours.presign("assets/a", filename="a")
    assert presigned.expires_at == NOW + timedelta(seconds=SESSION_PROMISE_SECONDS)
    assert "&X-Amz-Expires=604800&" in presigned.url


def test_without_credentials_nothing_is_signed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A StorageError that says so, and no URL."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError) as caught:
        Objects(load({}).settings, BUCKET, url_ttl_seconds=60).presign("assets/a", filename="a")
    assert caught.value.code == storage.NO_CREDENTIALS


def test_no_log_level_shows_a_signature(caplog: pytest.LogCaptureFixture) -> None:
    """Not botocore's own logger either, with everything at DEBUG."""
    caplog.set_level(logging.DEBUG)
    url = objects_of(CASES["public endpoint"]).presign("assets/a", filename="a").url
    assert url.rpartition("=")[2] not in caplog.text


# --- the name that a browser saves under


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("fw-1.2.bin", 'attachment; filename="fw-1.2.bin"'),
        ("site/a b.bin", 'attachment; filename="a b.bin"'),
        ("100%.bin", "attachment; filename=\"100_.bin\"; filename*=UTF-8''100%25.bin"),
        ('a"b\\c.bin', "attachment; filename=\"a_b_c.bin\"; filename*=UTF-8''a%22b%5Cc.bin"),
        ("gr\u00fc\u00df.bin", "attachment; filename=\"gr__.bin\"; filename*=UTF-8''gr%C3%BC%C3%9F.bin"),
        ("a\r\nX-Evil: 1", "attachment; filename=\"a__X-Evil_ 1\"; filename*=UTF-8''a%0D%0AX-Evil%3A%201"),
        ("a\ud800", "attachment; filename=\"a_\"; filename*=UTF-8''a%3F"),
        ("\u4e16" * 85, 'attachment; filename="' + "_" * 85 + "\"; filename*=UTF-8''" + "%E4%B8%96" * 85),
        ("\u4e16" * 86, "attachment"),
    ],
)
def test_a_browser_saves_under_the_right_name(filename: str, header: str) -> None:
    """RFC 6266 with RFC 8187's form where the name is more than ASCII; a name no disk takes is left to the browser."""
    assert content_disposition(filename) == header


# --- a real store


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store answered."""

    status: int
    body: bytes
    headers: dict[str, str]


def fetch(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    """Send exactly this URL."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=10)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", headers=headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.read(), {name.lower(): value for name, value in response.getheaders()})
    finally:
        connection.close()


@pytest.fixture(scope="module")
def bucket(minio: Minio) -> Minio:
    """MinIO with a bucket, and versions in it, and every hostile key."""
    s3 = minio.client()
    s3.create_bucket(Bucket=BUCKET)
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for key in HOSTILE_KEYS:
        s3.put_object(Bucket=BUCKET, Key=key, Body=content(key))
    return minio


def content(key: str) -> bytes:
    """Bytes that are this key's alone."""
    return b"\x00\xff" + key.encode()


@pytest.fixture(scope="module")
def objects(bucket: Minio) -> Objects:
    """The bucket as devices see it."""
    return Objects(of_store(bucket), BUCKET, url_ttl_seconds=TTL_SECONDS)


def test_the_longest_keys_are_as_long_as_promised() -> None:
    """1,000 bytes each, in ASCII and not."""
    assert [len(key.encode()) for key in HOSTILE_KEYS[-2:]] == [1000, 1000]


@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=lambda key: key[7:30])
def test_a_hostile_key_arrives_byte_for_byte(objects: Objects, key: str) -> None:
    """Headed, presigned, downloaded, and saved under its last part."""
    info = objects.head(key)
    assert info is not None
    assert (info.object_key, info.size) == (key, len(content(key)))
    answer = fetch(objects.presign(key, filename=key.removeprefix("assets/")).url)
    assert (answer.status, answer.body) == (200, content(key))
    assert answer.headers["etag"] == f'"{info.etag}"'
    assert answer.headers["content-disposition"] == content_disposition(key)


def test_all_of_them_are_listed_in_the_stores_order(objects: Objects) -> None:
    """Every key exactly, in the order of its bytes, whatever the size of the page."""
    for limit in (1000, 3):
        keys: list[str] = []
        start_after, pages = "", 0
        while pages == 0 or start_after:
            page = objects.list_page("assets/", start_after=start_after, limit=limit)
            keys += [one.object_key for one in page.objects]
            start_after, pages = page.next_start_after, pages + 1
        assert keys == sorted(HOSTILE_KEYS, key=str.encode)
        assert pages == -(-len(HOSTILE_KEYS) // limit)


def test_an_expired_url_is_refused(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed an hour ago for a quarter of one."""
    past = datetime.now(UTC) - timedelta(hours=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: past)
    presigned = objects.presign(HOSTILE_KEYS[0], filename="a")
    assert presigned.expires_at < datetime.now(UTC)
    answer = fetch(presigned.url)
    assert (answer.status, b"expired" in answer.body) == (403, True)


def test_a_changed_url_is_refused(objects: Objects) -> None:
    """Another key, another method, another host, a longer life, another name, a cut signature: each is a 403."""
    url = objects.presign(HOSTILE_KEYS[0], filename="fw.bin").url
    port = str(urlsplit(url).port)
    assert fetch(url).status == 200
    for tampered, method, headers in (
        (url.replace("fw.bin?", "plus%2Bplus.bin?"), "GET", {}),
        (url, "HEAD", {}),
        (url, "PUT", {}),
        (url, "DELETE", {}),
        (url, "GET", {"Host": f"localhost:{port}"}),
        (url, "GET", {"Host": "evil.example"}),
        (url.replace("X-Amz-Expires=900", "X-Amz-Expires=901"), "GET", {}),
        (url.replace("filename%3D%22fw.bin", "filename%3D%22xx.bin"), "GET", {}),
        (url[:-1] + ("0" if url[-1] != "0" else "1"), "GET", {}),
        (url + "&versionId=null", "GET", {}),
    ):
        assert fetch(tampered, method, headers).status == 403, (method, headers)


def test_a_url_is_good_on_the_endpoint_it_was_signed_for(bucket: Minio) -> None:
    """The public one, not the one that we ourselves use."""
    with TcpProxy("127.0.0.1", bucket.port) as proxy:
        public = f"http://127.0.0.1:{proxy.port}"
        ours = Objects(of_store(bucket), BUCKET, url_ttl_seconds=60, public_endpoint_url=public)
        url = ours.presign(HOSTILE_KEYS[0], filename="fw.bin").url
        assert url.startswith(f"{public}/{BUCKET}/assets/fw.bin?")
        before = proxy.connections
        assert ours.head(HOSTILE_KEYS[0]) is not None
        assert proxy.connections == before
        assert fetch(url).body == content(HOSTILE_KEYS[0])
        assert fetch(url.replace(public, bucket.endpoint_url)).status == 403


def test_a_url_resumes_with_range_and_if_match(objects: Objects) -> None:
    """Both headers go unsigned; another version's bytes are refused."""
    key = HOSTILE_KEYS[0]
    info = objects.head(key)
    assert info is not None
    url = objects.presign(key, filename="fw.bin").url
    rest = fetch(url, headers={"Range": "bytes=5-", "If-Match": f'"{info.etag}"'})
    assert (rest.status, rest.body) == (206, content(key)[5:])
    assert fetch(url, headers={"Range": "bytes=5-", "If-Match": '"other"'}).status == 412


def test_a_version_is_headed_and_fetched_as_it_was(bucket: Minio, objects: Objects) -> None:
    """Replaced and deleted, the old version is still there by its id, and the key is not."""
    s3 = bucket.client()
    key = "other/versions.bin"
    first = s3.put_object(Bucket=BUCKET, Key=key, Body=b"one")["VersionId"]
    second = s3.put_object(Bucket=BUCKET, Key=key, Body=b"three")["VersionId"]
    marker = s3.delete_object(Bucket=BUCKET, Key=key)["VersionId"]
    sizes = {version: one.size for version in (first, second) if (one := objects.head(key, version)) is not None}
    assert sizes == {first: 3, second: 5}
    assert fetch(objects.presign(key, version_id=first, filename="x").url).body == b"one"
    assert [objects.head(key, version) for version in ("", marker, "nonsense", "null")] == [None] * 4
    assert objects.list_page("other/").objects == ()


def test_a_page_tells_what_is_current_and_passes_over_history(bucket: Minio) -> None:
    """One entry for each key, with its newest version, also where a page ends within a key's history."""
    s3 = bucket.client()
    s3.create_bucket(Bucket="history")
    s3.put_bucket_versioning(Bucket="history", VersioningConfiguration={"Status": "Enabled"})
    newest = {}
    for name in "abcde":
        for body in (b"1", b"22", b"333"):
            newest[name] = s3.put_object(Bucket="history", Key=name, Body=body)["VersionId"]
    s3.delete_object(Bucket="history", Key="b")
    del newest["b"]
    ours = Objects(of_store(bucket), "history", url_ttl_seconds=60)
    for limit in (1, 2, 3, 4, 7, 1000):
        found: dict[str, str] = {}
        start_after, begun = "", False
        while start_after or not begun:
            begun = True
            page = ours.list_page("", start_after=start_after, limit=limit)
            assert all(one.size == 3 for one in page.objects)
            found |= {one.object_key: one.version_id for one in page.objects}
            start_after = page.next_start_after
        assert found == newest


def test_a_bucket_without_versions_names_none(bucket: Minio) -> None:
    """HEAD and LIST agree, to the second."""
    s3 = bucket.client()
    s3.create_bucket(Bucket="plain")
    s3.put_object(Bucket="plain", Key="a", Body=b"1")
    ours = Objects(of_store(bucket), "plain", url_ttl_seconds=60)
    head, (listed,) = ours.head("a"), ours.list_page("").objects
    assert head is not None
    assert replace(listed, last_modified=head.last_modified) == head
    assert head.version_id == ""
    assert head.last_modified.utcoffset() == timedelta(0)
    assert abs(listed.last_modified - head.last_modified) < timedelta(seconds=1)


@pytest.mark.parametrize("store", ["moto", "versitygw"])
def test_other_stores_list_what_they_have(request: pytest.FixtureRequest, store: str) -> None:
    """With or without a list of versions, the objects are told page by page."""
    server: MotoServer | VersityGateway = request.getfixturevalue(store)
    s3 = server.client()
    s3.create_bucket(Bucket=BUCKET)
    for name in "abc":
        s3.put_object(Bucket=BUCKET, Key=f"assets/{name}", Body=name.encode())
    ours = Objects(of_store(server), BUCKET, url_ttl_seconds=60)
    etags = []
    for limit in (1, 2, 3):
        keys, start_after = [], "assets/"
        while start_after:
            page = ours.list_page("assets/", start_after=start_after, limit=limit)
            keys += [one.object_key for one in page.objects]
            etags += [one.etag for one in page.objects]
            start_after = page.next_start_after
        assert keys == ["assets/a", "assets/b", "assets/c"]
    head = ours.head("assets/a")
    assert head is not None
    assert (head.size, head.etag) == (1, etags[0])
    assert fetch(ours.presign("assets/a", filename="a").url).body == b"a"
    assert ours.head("assets/none") is None


def test_a_policy_without_the_list_of_versions_still_lists(bucket: Minio) -> None:
    """ListObjectsV2 tells the rest, and is asked at once from then on."""
    ours = Objects(of_store(bucket), BUCKET, url_ttl_seconds=60)
    asked: list[str] = []

    def deny_versions(model: Any, **_: object) -> object:  # noqa: ANN401 - botocore's hooks are untyped
        asked.append(model.name)
        answer = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        return (AWSResponse("", 403, HTTPHeaders(), None), answer) if model.name == "ListObjectVersions" else None

    ours.client.meta.events.register("before-call.s3", deny_versions)  # type: ignore[arg-type] # may answer by itself
    assert len(ours.list_page("assets/").objects) == len(HOSTILE_KEYS)
    assert len(ours.list_page("assets/", limit=2).objects) == 2
    assert asked == ["GetBucketVersioning", "ListObjectVersions", "ListObjectsV2", "ListObjectsV2"]


# --- a store in trouble


def test_a_store_that_is_down_or_silent_is_told_within_the_deadline(bucket: Minio) -> None:
    """Nobody listening is told at once, nobody answering after the deadline; then it works again by itself."""
    down = Objects(of_store(bucket, f"http://127.0.0.1:{free_port()}"), BUCKET, url_ttl_seconds=60)
    with TcpProxy("127.0.0.1", bucket.port) as proxy:
        silent = Objects(of_store(bucket, f"http://127.0.0.1:{proxy.port}"), BUCKET, url_ttl_seconds=60)
        assert silent.head(HOSTILE_KEYS[0]) is not None
        proxy.blackhole()
        for ours, deadline_seconds in ((down, 0.0), (silent, S3_DEADLINE_SECONDS)):
            for call in (partial(ours.head, "assets/x"), partial(ours.list_page, "assets/")):
                begun = time.monotonic()
                with pytest.raises(StorageError) as caught:
                    call()
                assert caught.value.code == UNREACHABLE
                assert time.monotonic() - begun < deadline_seconds + SLACK_SECONDS
        proxy.heal()
        assert silent.head(HOSTILE_KEYS[0]) is not None


@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=lambda key: key[7:30])
def test_a_head_tells_what_boto3s_tells(objects: Objects, key: str) -> None:
    """Tag, size, date and version, now and at that version."""
    told = objects.client.head_object(Bucket=BUCKET, Key=key)
    for version in ("", told["VersionId"]):
        info = objects.head(key, version)
        assert info is not None
        assert (f'"{info.etag}"', info.size, info.last_modified, info.version_id) == (
            told["ETag"],
            told["ContentLength"],
            told["LastModified"],
            told["VersionId"],
        )


HEADED = {
    "ETag": '"e"',
    "Last-Modified": "Fri, 20 Nov 2026 12:00:00 GMT",
    "x-amz-bucket-region": "eu-west-1",
}


@contextmanager
def scripted_store(*script: int) -> Iterator[tuple[Objects, list[str]]]:
    """A store that answers with these statuses in turn, and closes without an answer at a 0; what it was asked."""
    asked: list[str] = []
    answers = iter(script)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:  # the name that http.server calls
            asked.append(self.path)
            if status := next(answers):
                self.send_response(status)
                for name, value in HEADED.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "7")
                self.end_headers()
            self.close_connection = not status

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            endpoint_url = f"http://127.0.0.1:{server.server_port}"
            yield Objects(configured(AWS_ENDPOINT_URL_S3=endpoint_url), BUCKET, url_ttl_seconds=60), asked
        finally:
            server.shutdown()
            thread.join(5)


def test_a_connection_that_the_store_had_given_up_is_tried_once_more() -> None:
    """Once: a store that closes every time is down."""
    with scripted_store(200, 0, 200, 0, 0) as (ours, asked):
        for _ in range(2):
            info = ours.head("assets/a")
            assert info is not None
            assert (info.etag, info.size, info.last_modified) == ("e", 7, NOW)
        with pytest.raises(StorageError) as caught:
            ours.head("assets/a")
        assert (caught.value.code, len(asked)) == (UNREACHABLE, 5)


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_refusal_is_told_as_boto3_tells_it(status: int) -> None:
    """The same code, words, status and server, for one request."""
    with scripted_store(status, status) as (ours, asked):
        with pytest.raises(StorageError) as mine:
            ours.head("assets/a")
        assert asked == [f"/{BUCKET}/assets/a"]
        with pytest.raises(StorageError) as theirs, storage.storage_errors():
            ours.client.head_object(Bucket=BUCKET, Key="assets/a")
        assert vars(mine.value) == vars(theirs.value)
        assert mine.value.status == status


@pytest.mark.parametrize("status", [301, 307, 400])
def test_a_bucket_in_another_region_is_followed_by_boto3(status: int) -> None:
    """Which is told of the region by the store, and asks again."""
    with scripted_store(status, status, 200) as (ours, asked):
        assert ours.head("assets/a") is not None
        assert asked == [f"/{BUCKET}/assets/a"] * 3


def test_a_wrong_secret_or_bucket_is_told_by_name(bucket: Minio) -> None:
    """The store's own code."""
    stranger = configured(AWS_ENDPOINT_URL_S3=bucket.endpoint_url, AWS_ACCESS_KEY_ID=bucket.access_key)
    with pytest.raises(StorageError) as caught:
        Objects(stranger, BUCKET, url_ttl_seconds=60).head("assets/x")
    assert caught.value.status == 403
    with pytest.raises(StorageError, match="NoSuchBucket"):
        Objects(of_store(bucket), "nowhere", url_ttl_seconds=60).list_page("assets/")
