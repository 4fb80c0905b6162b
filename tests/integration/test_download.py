"""Through the handler to a real store: the link works, the manifest is cheap, and no time tells what is there."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from botocore.awsrequest import AWSPreparedRequest

from functions.devices.api import router
from functions.devices.downloads import Downloads
from functions.s3.objects import S3_DEADLINE_SECONDS, Objects
from functions.settings import load
from functions.web.tokens import Keyring
from infra.local.process import free_port
from infra.local.stores import Minio
from tests.fakes.proxy import TcpProxy
from tests.gateway import Answered, http_event
from tests.hosts import eventually
from tests.timing import SLACK_SECONDS

BUCKET, MANY = "devices", "many"
MAC, OTHER_MAC = "aa-bb-cc-dd-ee-ff", "11-22-33-44-55-66"
RING = Keyring.parse(["k:" + "A" * 44])
ADMIN = "admin-token-0123456789"
TOKEN = RING.mint(MAC)
ASSET_COUNT = 2500
HOSTILE_NAMES = [
    "fw.bin",
    "with space.bin",
    "plus+plus.bin",
    "100%.bin",
    "%2e%2e%2fencoded.bin",
    "a&b=c?d#e.bin",
    "quote\"quote'quote.bin",
    "back\\slash.bin",
    "dir/gr\u00fc\u00dfe/\u4e16\u754c/\U0001f514.bin",
    "long/" * 150 + "x" * 243,
]


def objects_at(endpoint_url: str, store: Minio, bucket: str = BUCKET, **more: Any) -> Objects:  # noqa: ANN401 - options
    """A bucket of the store, through this endpoint."""
    settings = load(
        {
            "AWS_ENDPOINT_URL_S3": endpoint_url,
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
        }
    ).settings
    return Objects(settings, bucket, url_ttl_seconds=900, **more)


def ask(downloads: Downloads, path: str, *, token: str = TOKEN, **parts: Any) -> Answered:  # noqa: ANN401 - see `http_event`
    """Ask the handler as a device."""
    headers = {"authorization": f"Bearer {token}", **parts.pop("headers", {})}
    return Answered.by(router(downloads), http_event(path, headers=headers, **parts))


@pytest.fixture(scope="module")
def filled(minio: Minio) -> Minio:
    """A MinIO with two configs and the hostile assets in one bucket, and many assets in another."""
    s3 = minio.client()
    for bucket in (BUCKET, MANY):
        s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket=bucket, Key=f"configs/{MAC}.json", Body=b'{"mine": true}')
    s3.put_object(Bucket=BUCKET, Key=f"configs/{OTHER_MAC}.json", Body=b"{}")
    for name in HOSTILE_NAMES:
        s3.put_object(Bucket=BUCKET, Key=f"assets/{name}", Body=name.encode())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: s3.put_object(Bucket=MANY, Key=f"assets/fw-{n:05}.bin"), range(ASSET_COUNT)))
    return minio


@pytest.fixture(scope="module")
def downloads(filled: Minio) -> Downloads:
    """Downloads from the first bucket."""
    return Downloads(RING, (ADMIN,), objects_at(filled.endpoint_url, filled))


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: name[:20])
@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_every_asset_is_listed_and_fetched_byte_for_byte(downloads: Downloads, name: str, accept: str) -> None:
    """The name of the manifest, asked for by path and by query, leads to the bytes and to that ETag."""
    listed = {one["filename"]: one for one in ask(downloads, "/manifest").document["objects"]}
    for path, query in ((f"/assets/{name}", ""), ("/assets", f"filename={quote(name, safe='')}")):
        answer = ask(downloads, path, query=query, headers={"accept": accept})
        url = answer.headers["location"] if accept == "*/*" else answer.document["url"]
        got = httpx.get(httpx.URL(url))
        assert (got.status_code, got.content) == (200, name.encode())
        assert got.headers["etag"] == answer.headers["etag"] == f'"{listed[name]["etag"]}"'
        assert listed[name]["size"] == len(got.content)


def test_head_and_if_none_match_agree_with_the_store(downloads: Downloads) -> None:
    """Size, tag and date are the store's."""
    described = ask(downloads, "/assets/fw.bin", method="HEAD")
    got = httpx.get(ask(downloads, "/assets/fw.bin").headers["location"])
    for header in ("etag", "last-modified", "content-length"):
        assert described.headers[header] == got.headers[header]
    held = {"if-none-match": got.headers["etag"]}
    assert ask(downloads, "/assets/fw.bin", headers=held).status == 304


def test_a_browser_saves_an_asset_under_its_own_name(downloads: Downloads) -> None:
    """Not under the key's whole path."""
    answer = ask(downloads, f"/assets/{HOSTILE_NAMES[-2]}")
    disposition = httpx.get(answer.headers["location"]).headers["content-disposition"]
    assert disposition == "attachment; filename=\"_.bin\"; filename*=UTF-8''%F0%9F%94%94.bin"


def test_the_link_is_for_the_endpoint_that_devices_see(filled: Minio) -> None:
    """Whatever the request's headers call us."""
    with TcpProxy("127.0.0.1", filled.port) as outside:
        public = f"http://127.0.0.1:{outside.port}"
        ours = Downloads(RING, (), objects_at(filled.endpoint_url, filled, public_endpoint_url=public))
        url = ask(ours, "/assets/fw.bin").headers["location"]
        assert f"http://{urlsplit(url).netloc}" == public
        assert httpx.get(url).content == b"fw.bin"


def test_an_unknown_version_is_absent(downloads: Downloads) -> None:
    """Also one that the store calls malformed."""
    for version in ("nonsense", "3e6f0a2e-0000-4000-8000-000000000000"):
        assert ask(downloads, "/assets/fw.bin", query=f"version_id={version}").status == 404


def test_absent_and_forbidden_cost_the_same(filled: Minio) -> None:
    """No time tells them apart: the store is asked the same, in as many bytes, and the answers are one."""
    answers, costs = set(), set()
    with TcpProxy("127.0.0.1", filled.port) as proxy:
        ours = Downloads(RING, (), objects_at(f"http://127.0.0.1:{proxy.port}", filled))
        ask(ours, "/configs/00-00-00-00-00-00.json")  # which connects
        for mac in (OTHER_MAC, "99-99-99-99-99-99") * 5:
            before = proxy.bytes_up
            answer = ask(ours, f"/configs/{mac}.json")
            answers.add((answer.status, answer.body, tuple(answer.headers.items())))
            costs.add(proxy.bytes_up - before)
    assert len(answers) == 1
    assert len(costs) == 1
    assert min(costs) > 0


@pytest.mark.parametrize("limit", [1000, 700])
def test_a_manifest_of_many_takes_a_list_for_a_page_and_one_head(filled: Minio, limit: int) -> None:
    """The config, then 2,500 assets in order, none twice: ceil(n / limit) LISTs, and one question for versions."""
    objects = objects_at(filled.endpoint_url, filled, MANY)
    calls: list[str] = []

    def count(request: AWSPreparedRequest, **_: object) -> None:
        calls.append(f"{request.method} {urlsplit(str(request.url)).query}")

    objects.client.meta.events.register("before-send.s3", count)
    ours = Downloads(RING, (ADMIN,), objects)
    names: list[str] = []
    query, pages = f"limit={limit}", 0
    while query:
        page = ask(ours, "/manifest", query=query).document
        names += [one["filename"] for one in page["objects"]]
        query = f"limit={limit}&next={page['next']}" if page["next"] else ""
        pages += 1
    assert names == [f"{MAC}.json", *(f"fw-{n:05}.bin" for n in range(ASSET_COUNT))]
    assert pages == -(-(ASSET_COUNT + 1) // limit)
    assert calls[:2] == ["HEAD ", "GET versioning"]
    assert len(calls[2:]) == pages
    assert all(call.startswith("GET list-type=2&") for call in calls[2:])


def test_a_manifest_changes_its_tag_with_any_object(filled: Minio) -> None:
    """304 while nothing has changed; the new ETag, size and version once something has."""
    s3 = filled.client()
    s3.create_bucket(Bucket="changing")
    s3.put_bucket_versioning(Bucket="changing", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket="changing", Key="assets/a", Body=b"1")
    ours = Downloads(RING, (), objects_at(filled.endpoint_url, filled, "changing"))
    first = ask(ours, "/manifest")
    held = {"if-none-match": first.headers["etag"]}
    assert ask(ours, "/manifest", headers=held).status == 304
    version = s3.put_object(Bucket="changing", Key="assets/a", Body=b"22")["VersionId"]
    second = ask(ours, "/manifest", headers=held)
    assert [(one["size"], one["version_id"]) for one in second.document["objects"]] == [(2, version)]
    pinned = ask(ours, "/assets/a", query=f"version_id={first.document['objects'][0]['version_id']}")
    assert httpx.get(pinned.headers["location"]).content == b"1"
    s3.delete_object(Bucket="changing", Key="assets/a")
    assert ask(ours, "/manifest", headers=held).document == {"objects": [], "next": None}


def test_a_store_that_is_slow_or_down_is_503_within_the_deadline(filled: Minio) -> None:
    """With Retry-After; and the same process answers again once the store does."""
    down = Downloads(RING, (), objects_at(f"http://127.0.0.1:{free_port()}", filled))
    with TcpProxy("127.0.0.1", filled.port) as proxy:
        slow = Downloads(RING, (), objects_at(f"http://127.0.0.1:{proxy.port}", filled))
        proxy.delay_seconds = S3_DEADLINE_SECONDS + 2 * SLACK_SECONDS
        for ours in (slow, down):
            begun = time.monotonic()
            answer = ask(ours, "/assets/fw.bin")
            assert time.monotonic() - begun < S3_DEADLINE_SECONDS + SLACK_SECONDS
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert answer.headers["content-type"] == "application/problem+json"
        proxy.delay_seconds = 0.0
        assert ask(slow, "/assets/fw.bin").status == 307


def test_a_store_that_was_restarted_is_asked_again_at_once(filled: Minio) -> None:
    """Connections that it closed are not the devices' trouble."""
    ours = Downloads(RING, (), objects_at(filled.endpoint_url, filled))
    assert ask(ours, "/assets/fw.bin").status == 307
    filled.restart()
    # For a moment after its health page says that it is ready, MinIO may put everybody off with 503.
    eventually(
        lambda: ask(Downloads(RING, (), objects_at(filled.endpoint_url, filled)), "/assets/fw.bin").status == 307
    )
    assert ask(ours, "/assets/fw.bin").status == 307


@pytest.mark.parametrize("wrong", ["secret", "bucket"])
def test_a_store_that_is_set_up_wrongly_is_503_for_longer(filled: Minio, wrong: str) -> None:
    """A person has to act: the answer says neither what is wrong nor where the store is."""
    bucket = "nowhere" if wrong == "bucket" else BUCKET
    settings = load(
        {
            "AWS_ENDPOINT_URL_S3": filled.endpoint_url,
            "AWS_ACCESS_KEY_ID": filled.access_key,
            "AWS_SECRET_ACCESS_KEY": filled.secret_key if wrong == "bucket" else "x" * 20,
        }
    ).settings
    answer = ask(Downloads(RING, (ADMIN,), Objects(settings, bucket, url_ttl_seconds=60)), "/manifest", token=ADMIN)
    assert (answer.status, answer.headers["retry-after"]) == (503, "60")
    assert str(filled.port) not in answer.body
