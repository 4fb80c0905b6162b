"""Stores whose answers lack what S3 always sends: no file hides the others, and no answer is a 500."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from functions.devices.api import router
from functions.devices.downloads import Downloads
from functions.s3.objects import Objects
from functions.settings import load
from functions.web.tokens import Keyring
from tests.gateway import Answered, http_event

MAC = "aa-bb-cc-dd-ee-ff"
RING = Keyring.parse(["k:" + "A" * 44])
ELEMENTS = {
    "Key": "assets/a.bin",
    "VersionId": "null",
    "IsLatest": "true",
    "LastModified": "2026-11-20T12:00:00.000Z",
    "ETag": '"0cc175b9c0f1b6a831c399e269772661"',
    "Size": "1",
}


def listing(root: str, entry: str, elements: dict[str, str]) -> bytes:
    """A page with one object."""
    told = "".join(f"<{name}>{value}</{name}>" for name, value in elements.items())
    return f"<?xml version='1.0'?><{root}><IsTruncated>false</IsTruncated><{entry}>{told}</{entry}></{root}>".encode()


@contextmanager
def store(
    elements: dict[str, str], headers: dict[str, str], *, versions: bool | None = True, asked: list[str] | None = None
) -> Iterator[Downloads]:
    """A store that lists one object with these elements, and answers HEAD with these headers.

    `versions`: whether the bucket has them, None for a store that knows no such thing. `asked` gets what was asked.
    """
    calls = [] if asked is None else asked

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(200 if "assets" in self.path else 404, b"", headers)

        def do_GET(self) -> None:
            query = urlsplit(self.path).query.split("&")
            calls.append(next((word for word in ("versioning", "versions") if word in query), "list"))
            if calls[-1] == "list":
                self.answer(200, listing("ListBucketResult", "Contents", elements), {})
            elif calls[-1] == "versions":
                # Of a bucket without versions SeaweedFS lists them all the same, with wrong ETags.
                told = elements if versions else elements | {"ETag": '"0cc175b9c0f1b6a831c399e269772661-2"'}
                self.answer(200, listing("ListVersionsResult", "Version", told), {})
            elif versions is None:
                self.answer(501, b"", {})
            else:
                status = b"<Status>Suspended</Status>" if versions else b""
                self.answer(200, b"<VersioningConfiguration>" + status + b"</VersioningConfiguration>", {})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        environ = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "a"}
        settings = load(environ | {"AWS_SECRET_ACCESS_KEY": "b"}).settings
        yield Downloads(RING, (), Objects(settings, "devices", url_ttl_seconds=60))
        server.shutdown()


def ask(downloads: Downloads, path: str) -> Answered:
    """Ask as a device that wants JSON."""
    headers = {"authorization": f"Bearer {RING.mint(MAC)}", "accept": "application/json"}
    return Answered.by(router(downloads), http_event(path, headers=headers))


HEADED = {"Content-Length": "1", "Last-Modified": "Fri, 20 Nov 2026 12:00:00 GMT"}


@pytest.mark.parametrize("versions", [True, False, None])
@pytest.mark.parametrize("etag", [None, "", '""'])
def test_an_etag_that_is_missing_or_empty_is_null(etag: str | None, *, versions: bool | None) -> None:
    """In the manifest and in the answer for the file, whichever LIST the store knows."""
    elements = {name: value for name, value in ELEMENTS.items() if name != "ETag"}
    headers = dict(HEADED)
    if etag is not None:
        elements["ETag"] = headers["ETag"] = etag
    with store(elements, headers, versions=versions) as downloads:
        (entry,) = ask(downloads, "/manifest").document["objects"]
        assert (entry["filename"], entry["etag"], entry["size"]) == ("a.bin", None, 1)
        answer = ask(downloads, "/assets/a.bin")
        assert (answer.status, answer.document["etag"]) == (200, None)
        assert answer.document["last_modified"] == entry["last_modified"] == "2026-11-20T12:00:00Z"
        assert "etag" not in answer.headers


@pytest.mark.parametrize(
    ("versions", "calls"),
    [
        (True, ["versioning", "versions", "versions"]),
        (False, ["versioning", "list", "list"]),
        (None, ["versioning", "list", "list"]),
    ],
)
def test_versions_are_listed_only_where_the_bucket_has_them(calls: list[str], *, versions: bool | None) -> None:
    """It is asked once; without versions the ETag is ListObjectsV2's, as HEAD's is."""
    asked: list[str] = []
    with store(ELEMENTS, HEADED, versions=versions, asked=asked) as downloads:
        for _ in range(2):
            (entry,) = ask(downloads, "/manifest").document["objects"]
            assert entry["etag"] == ELEMENTS["ETag"].strip('"')
    assert asked == calls


@pytest.mark.parametrize("missing", ["VersionId", "IsLatest"])
def test_what_only_a_list_of_versions_tells_may_be_missing(missing: str) -> None:
    """The plain LIST is asked instead."""
    with store({name: value for name, value in ELEMENTS.items() if name != missing}, HEADED) as downloads:
        (entry,) = ask(downloads, "/manifest").document["objects"]
        assert (entry["filename"], entry["version_id"]) == ("a.bin", None)


@pytest.mark.parametrize("missing", ["Key", "LastModified", "Size"])
def test_without_name_time_or_size_the_store_is_broken(missing: str, caplog: pytest.LogCaptureFixture) -> None:
    """503, the element named in the log; not an error of ours."""
    with store({name: value for name, value in ELEMENTS.items() if name != missing}, HEADED) as downloads:
        assert ask(downloads, "/manifest").status == 503
    assert missing in str([vars(line) for line in caplog.records])


@pytest.mark.parametrize("missing", ["Last-Modified", "Content-Length"])
def test_a_head_without_time_or_size_is_no_s3(missing: str) -> None:
    """503 as well."""
    headers = {name: value for name, value in HEADED.items() if name != missing}
    with store(ELEMENTS, headers | ({} if missing == "Last-Modified" else {"Content-Length": "x"})) as downloads:
        assert ask(downloads, "/assets/a.bin").status == 503
