"""The SHA-256 of a file, from those stores that know it to the device that compares it."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.awsrequest import AWSPreparedRequest

from functions.devices import manifest
from functions.devices.api import router
from functions.devices.downloads import Downloads
from functions.s3.clients import StorageError
from functions.s3.objects import Objects
from functions.settings import load
from functions.web.tokens import Keyring
from infra.local.stores import Minio, Store
from tests.fakes.device_rig import FILE, NEW, DeviceRig
from tests.fakes.slow_store import Behaviour, SlowStore
from tests.gateway import Answered, http_event
from tests.hosts import Host
from tests.integration.test_device_host import device_of, knowing
from tests.timing import PATIENCE_SECONDS

MAC = "aa-bb-cc-dd-ee-ff"
RING = Keyring.parse(["k:" + "A" * 44])
TOKEN = RING.mint(MAC)
PARTS = TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=5 * 2**20)
BODY = b"firmware"
SHA256, OTHER = hashlib.sha256(BODY).hexdigest(), hashlib.sha256(b"another").hexdigest()
LONG = os.urandom(6 * 2**20)
LONG_SHA256 = hashlib.sha256(LONG).hexdigest()

UPLOADS: dict[str, tuple[bytes, dict[str, Any], str | None]] = {
    "a-plain": (BODY, {}, None),
    "b-checksum": (BODY, {"ChecksumAlgorithm": "SHA256"}, SHA256),
    "c-metadata": (BODY, {"Metadata": {"sha256": SHA256.upper()}}, SHA256),
    "d-no-hash": (BODY, {"Metadata": {"sha256": f"sha256:{SHA256}"}}, None),
    "e-contradiction": (BODY, {"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": OTHER}}, SHA256),
    "f-parts": (LONG, {"ChecksumAlgorithm": "SHA256"}, None),
    "g-parts-metadata": (LONG, {"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": LONG_SHA256}}, LONG_SHA256),
}
"""Content, how it is uploaded, and the SHA-256 that a device is told."""


def objects_of(store: Store, bucket: str) -> Objects:
    """That bucket, as the host sees it."""
    environ = {"AWS_ENDPOINT_URL_S3": store.endpoint_url, "AWS_ACCESS_KEY_ID": store.access_key}
    settings = load(environ | {"AWS_SECRET_ACCESS_KEY": store.secret_key}).settings
    return Objects(settings, bucket, url_ttl_seconds=60)


def ask(downloads: Downloads, path: str, **parts: Any) -> Answered:  # noqa: ANN401 - what `http_event` takes
    """Ask as a device that wants JSON."""
    headers = {"authorization": f"Bearer {TOKEN}", "accept": "application/json", **parts.pop("headers", {})}
    return Answered.by(router(downloads), http_event(path, headers=headers, **parts))


def counted(objects: Objects, method: str) -> list[str]:
    """What the store is asked by this method from now on."""
    asked: list[str] = []

    def count(request: AWSPreparedRequest, **_: object) -> None:
        if request.method == method:
            asked.append(str(request.url))

    objects.client.meta.events.register("before-send.s3", count)
    return asked


@pytest.mark.parametrize("kind", ["minio", "versitygw", "moto"])
def test_a_device_is_told_what_the_store_knows(request: pytest.FixtureRequest, kind: str) -> None:
    """The checksum of the whole object before the uploader's metadata; never one made of the parts' checksums."""
    store: Store = request.getfixturevalue(kind)
    s3 = store.client()
    s3.create_bucket(Bucket="sums")
    for name, (body, how, _) in UPLOADS.items():
        s3.upload_fileobj(io.BytesIO(body), "sums", f"assets/{name}", ExtraArgs=how, Config=PARTS)
    objects = objects_of(store, "sums")
    downloads = Downloads(RING, (), objects)
    for name, (_, _, sha256) in UPLOADS.items():
        assert (name, ask(downloads, f"/assets/{name}").document["sha256"]) == (name, sha256)
    heads = counted(objects, "HEAD")
    assert all("sha256" not in one for one in ask(downloads, "/manifest").document["objects"])
    assert len(heads) <= 2  # for the device's own config
    listed = {
        one["filename"]: one["sha256"] for one in ask(downloads, "/manifest", query="checksums=1").document["objects"]
    }
    assert listed == {name: sha256 for name, (_, _, sha256) in UPLOADS.items()}
    asked = len(heads)
    again = ask(downloads, "/manifest", query="checksums=1").document["objects"]
    assert {one["filename"]: one["sha256"] for one in again} == listed
    assert len(heads) - asked <= 2
    s3.put_object(Bucket="sums", Key="assets/a-plain", Body=b"another", ChecksumAlgorithm="SHA256")
    assert ask(downloads, "/manifest", query="checksums=1").document["objects"][0]["sha256"] == OTHER


def test_a_head_carries_the_digest_and_a_redirect_does_not(minio: Minio) -> None:
    """RFC 9530: in a redirect the field would speak of the redirect's own body."""
    s3 = minio.client()
    s3.create_bucket(Bucket="digests")
    s3.put_object(Bucket="digests", Key="assets/f", Body=BODY, ChecksumAlgorithm="SHA256")
    s3.put_object(Bucket="digests", Key="assets/plain", Body=BODY)
    downloads = Downloads(RING, (), objects_of(minio, "digests"))
    digest = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    assert ask(downloads, "/assets/f", method="HEAD").headers["repr-digest"] == f"sha-256=:{digest}:"
    assert "repr-digest" not in ask(downloads, "/assets/plain", method="HEAD").headers
    redirect = ask(downloads, "/assets/f", headers={"accept": "*/*"})
    assert redirect.status == 307
    assert "repr-digest" not in redirect.headers


def test_a_page_with_checksums_ends_when_its_time_is_over(minio: Minio, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on in the next page; nothing is left out, and nothing comes twice."""
    s3 = minio.client()
    s3.create_bucket(Bucket="late")
    s3.put_object(Bucket="late", Key=f"configs/{MAC}.json", Body=b"{}")
    for number in range(5):
        s3.put_object(Bucket="late", Key=f"assets/{number}", Body=BODY, ChecksumAlgorithm="SHA256")
    monkeypatch.setattr(manifest, "CHECKSUM_SECONDS", -1.0)
    downloads = Downloads(RING, (), objects_of(minio, "late"))
    names, sums, pages, query = [], set(), 0, "checksums=1"
    while query:
        page = ask(downloads, "/manifest", query=query).document
        names += [one["filename"] for one in page["objects"]]
        sums |= {one["sha256"] for one in page["objects"] if one["kind"] == "asset"}
        query = f"checksums=1&next={page['next']}" if page["next"] else ""
        pages += 1
    assert names == [f"{MAC}.json", *"01234"]
    assert sums == {SHA256}
    assert pages > 2


def test_checksums_is_yes_or_no(minio: Minio) -> None:
    """Anything else is refused by name."""
    answer = ask(Downloads(RING, (), objects_of(minio, "any")), "/manifest", query="checksums=yes")
    assert (answer.status, answer.document["detail"]) == (400, "`checksums` is 0 or 1.")


def test_no_more_checksums_are_kept_than_there_is_room_for(minio: Minio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first."""
    s3 = minio.client()
    s3.create_bucket(Bucket="bounded")
    for number in range(4):
        s3.put_object(Bucket="bounded", Key=f"assets/{number}", Body=BODY)
    monkeypatch.setattr(manifest, "MAX_CHECKSUMS", 3)
    objects, known = objects_of(minio, "bounded"), manifest.Checksums()
    heads = counted(objects, "HEAD")
    listed = objects.list_page("assets/").objects
    for info in (*listed, listed[-1], listed[0]):
        known.of(objects, info)
    assert [url[-1] for url in heads] == ["0", "1", "2", "3", "0"]


@contextmanager
def without_checksums(status: int) -> Iterator[tuple[Objects, list[str | None]]]:
    """A store that answers this to everybody who asks for checksums; who asked for which."""
    asked: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:  # the name that http.server calls
            mode = self.headers["x-amz-checksum-mode"]
            asked.append(mode)
            self.send_response(200 if mode is None else status)
            for name, value in {
                "ETag": '"e"',
                "Last-Modified": "Fri, 20 Nov 2026 12:00:00 GMT",
                "Content-Length": "7",
                "x-amz-meta-sha256": SHA256,
            }.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        environ = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "a"}
        settings = load(environ | {"AWS_SECRET_ACCESS_KEY": "b"}).settings
        yield Objects(settings, "devices", url_ttl_seconds=60), asked
        server.shutdown()


@pytest.mark.parametrize("status", [400, 501])
def test_a_store_that_gives_no_checksums_is_asked_for_them_once(status: int) -> None:
    """Then it is asked without, and the metadata still count."""
    with without_checksums(status) as (objects, asked):
        for _ in range(2):
            info = objects.head("assets/a", with_checksum=True)
            assert info is not None
            assert (info.size, info.sha256) == (7, SHA256)
        assert asked == ["ENABLED", None, None]


def test_a_checksum_is_not_asked_for_where_none_is_needed() -> None:
    """With KMS the question takes the right to decrypt, which a host that signs nothing need not have."""
    with without_checksums(403) as (objects, asked):
        assert objects.head("assets/a") is not None
        assert asked == [None]
        with pytest.raises(StorageError):
            objects.head("assets/a", with_checksum=True)


def test_the_device_verifies_a_multipart_file(minio: Minio, tmp_path: Path) -> None:
    """By the uploader's SHA-256, through the real host; one that is wrong keeps the file that was there."""
    s3 = minio.client()
    s3.create_bucket(Bucket="verified")
    key, right = "assets/long.bin", {"Metadata": {"sha256": LONG_SHA256}}

    def upload(body: bytes, how: dict[str, Any]) -> None:
        s3.upload_fileobj(io.BytesIO(body), "verified", key, ExtraArgs=how, Config=PARTS)

    upload(LONG, right)
    with Host(tmp_path, knowing(minio, "verified"), ready=False) as host:
        device = device_of(tmp_path, host)
        assert device.run() == 0
        assert [said["by"] for said in device.named("verified")] == ["sha256"]
        assert device.content(key) == LONG
        upload(LONG[::-1], right)
        assert device.run() == 1
        assert [said["reason"] for said in device.named("failed")] == ["corrupt", "stale_etag"]
        assert "metadata `sha256`" in device.named("failed")[-1]["detail"]
        assert device.content(key) == LONG
        upload(LONG[::-1], {})
        assert device.run() == 0
        assert device.content(key) == LONG[::-1]


def test_damage_on_the_way_is_found_by_the_sha256_alone(world: SlowStore, rig: DeviceRig) -> None:
    """The device says so, keeps the old file, and fetches all of it afresh."""
    world.put(FILE, NEW[::-1], etag="0-2")
    assert rig.once()
    world.put(FILE, NEW, etag="1-2")
    world.ticket_changes = {"sha256": hashlib.sha256(NEW).hexdigest()}
    kept: list[bytes] = []
    world.script = [
        Behaviour(body=NEW[:-1] + b"?"),
        Behaviour(cut_after_bytes=0, at_stop=lambda: kept.append(rig.content(FILE))),
    ]
    assert rig.once()
    assert kept == [NEW[::-1]]
    assert rig.reasons()[:1] == ["corrupt"]
    assert rig.named("verified")[-1]["by"] == "sha256"
    assert rig.content(FILE) == NEW


def test_what_was_begun_without_a_sha256_is_verified_by_it(world: SlowStore, tmp_path: Path) -> None:
    """Also where an earlier run knew only the size."""
    world.put(FILE, NEW, etag="1-2")
    world.script = [Behaviour(cut_after_bytes=200_000, body=b"?" * len(NEW))]
    with DeviceRig(tmp_path, world.url, retry_seconds=PATIENCE_SECONDS) as first:
        first.start()
        first.wait_for("failed")
    world.ticket_changes = {"sha256": hashlib.sha256(NEW).hexdigest()}
    with DeviceRig(tmp_path, world.url) as second:
        assert second.once()
        assert second.reasons() == ["corrupt"]
        assert second.content(FILE) == NEW


@pytest.mark.parametrize("sha256", ["", SHA256.upper(), SHA256[1:], 5])
def test_a_sha256_that_is_none_is_not_believed(world: SlowStore, rig: DeviceRig, sha256: object) -> None:
    """It is a server that makes no sense, and no reason to go without."""
    world.ticket_changes = {"sha256": sha256}
    assert not rig.once()
    assert set(rig.reasons()) == {"protocol"}
