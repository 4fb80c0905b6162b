"""Requests that Hypothesis makes for every route of the host: each is answered once, as documented, never by a 5xx."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.admin.openapi import BASE, WHY
from functions.admin.openapi import RING as RING_AGAIN
from functions.web.tokens import Keyring
from infra.local.mosquitto import Mosquitto
from infra.local.stores import Minio
from tests.databases import new_key, new_sqlite
from tests.hostile.searching import ODD_TEXTS, tries
from tests.hostile.test_openapi import NOWHERE
from tests.hostile.wire import Answer, chunked, connected, next_answer, request
from tests.hosts import NEXT_TOKEN, TOKEN, Host, environment, eventually, upload
from tests.timing import PATIENCE_SECONDS

BUCKET, MAC, ADMIN = "devices", "aa-bb-cc-dd-ee-ff", "admin-token-0123456789"
KEY = base64.b64encode(b"0123456789abcdef0123456789ABCDEF").decode()
RING = Keyring.parse([f"k1:{KEY}"])
DEVICE, PICTURE = RING.mint(MAC), RING.mint_for_object("events/door/1.jpg")
ADMINISTRATION = (
    "GET config",
    "PUT config",
    "GET status",
    "POST test",
    "POST publish-discovery",
    "DELETE cameras/door",
)
GOOD = [
    *(("POST", door, TOKEN) for door in ("/events", "/events/fast")),
    *(("GET", path, "") for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/start.js")),
    *(("GET", f"/configs/{MAC}.json", token) for token in (DEVICE, ADMIN)),
    *(("GET", path, DEVICE) for path in ("/assets/dir/firmware.bin", "/assets?filename=dir/firmware.bin", "/manifest")),
    *(("HEAD", path, DEVICE) for path in (f"/configs/{MAC}.json", "/assets/dir/firmware.bin")),
    *(
        ("GET", path, "")
        for path in (f"/thumbnails/door/1.jpg?token={PICTURE}", f"/thumbnails?filename=door/1.jpg&token={PICTURE}")
    ),
    *((what.split()[0], f"{BASE}/{what.split()[1]}", ADMIN) for what in ADMINISTRATION),
    *(("GET", f"{WHY}?key={key}", ADMIN) for key in ("assets/dir/firmware.bin", MAC)),
    *(("GET", f"{RING_AGAIN}?since={since}", ADMIN) for since in ("2026-01-01T00:00:00Z", "2999-01-01T00:00:00Z")),
    ("POST", RING_AGAIN, ADMIN),
]
"""What is asked rightly; a search spoils up to two things about it."""

METHODS = ["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "LOCK", "M-SEARCH"]
EXPECTED = {200, 202, 204, 304, 307, 400, 401, 403, 404, 405, 409, 412, 413, 415, 422, 431}

_latin = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=40).map(str.strip)
_encoded = st.one_of(
    ODD_TEXTS.map(lambda text: quote(text.encode(errors="surrogatepass"), safe="/")),
    st.binary(max_size=20).map(lambda data: quote(data, safe="/.")),
    st.sampled_from(["%", "%0", "%0d%0a", "%00", "%ff", "..", "/..", "//", "%2e%2e%2f", "%252e", "%c0%ae", "/" * 500]),
)
_query = st.lists(
    st.tuples(
        st.sampled_from(
            ["filename", "version_id", "token", "limit", "next", "mac", "key", "since", "after", "Filename", "x", ""]
        ),
        st.one_of(
            _encoded,
            st.sampled_from([MAC, "0", "-1", "1", "1000", "1001", "9" * 5000, "null", "dir/firmware.bin", "+", "a=b"]),
            st.sampled_from([quote(DEVICE), quote(PICTURE), ADMIN]),
        ),
    ),
    max_size=4,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))
_login = st.one_of(
    st.sampled_from([TOKEN, NEXT_TOKEN, DEVICE, ADMIN, PICTURE]).map(lambda token: f"Bearer {token}"),
    st.sampled_from(
        ["", "Bearer", "Bearer ", f"bearer\t{DEVICE}", f"Basic {TOKEN}", "Bearer " + "." * 3000, f"Bearer {DEVICE}x"]
    ),
    _latin,
)
_field = st.one_of(
    st.tuples(
        st.just("Accept"), st.sampled_from(["application/json", "*/*", "application/json;q=0", ",;,", "a/" * 900])
    ),
    st.tuples(
        st.just("If-None-Match"), st.one_of(_latin, st.sampled_from(["*", '"x"', 'W/"x"', '"' * 900, "," * 9000]))
    ),
    st.tuples(st.just("If-Match"), st.one_of(_latin, st.sampled_from(["*", '"0"', '"' + "9" * 400 + '"', '"-1"']))),
    st.tuples(st.just("Content-Type"), st.one_of(st.just("application/json"), _latin)),
    st.tuples(
        st.sampled_from(
            ["Range", "Cookie", "X-Forwarded-For", "Forwarded", "Accept-Encoding", "Referer", "X-Amz-Date", "TE"]
        ),
        _latin,
    ),
    st.tuples(st.sampled_from(["Expect"]), st.sampled_from(["100-continue", "200-ok", ""])),
)
_body = st.one_of(
    st.just(b""),
    st.binary(max_size=200),
    st.builds(upload),
    st.just(b"x" * 70_000),
    (st.sampled_from(["dir/firmware.bin", "a\0b", "x" * 1025, "\ud800", "..", "configs/", "%2e%2e"]) | ODD_TEXTS).map(
        lambda text: json.dumps({"key": text}).encode()
    ),
    ODD_TEXTS.map(lambda text: json.dumps({"broker_host": text, "topic_prefix": text, "password": text}).encode()),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; framing and line ends are always right, everything else is not."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes
    chunk_bytes: int

    @property
    def wire(self) -> bytes:
        """As it is sent."""
        fields = [f"{name}: {value}".encode("latin-1") for name, value in self.fields]
        line = f"{self.method} {self.target} HTTP/1.1".encode("latin-1")
        if self.chunk_bytes:
            return request(line, *fields, b"Transfer-Encoding: chunked", body=chunked(self.body, self.chunk_bytes))
        return request(line, *fields, b"Content-Length: %d" % len(self.body), body=self.body)


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    """A request that is right but for a few things, or for nothing."""
    method, target, token = draw(st.sampled_from(GOOD))
    login = f"Bearer {token}" if token else ""
    spoiled = draw(st.sets(st.sampled_from(["method", "path", "query", "login"]), max_size=2))
    if "method" in spoiled:
        method = draw(st.sampled_from(METHODS))
    if "path" in spoiled:
        path, mark, query = target.partition("?")
        at = draw(st.integers(0, len(path) - 1))
        target = f"{path[: at + 1]}{draw(_encoded)}{draw(st.sampled_from([path[at + 1 :], '']))}{mark}{query}"
    if "query" in spoiled:
        target += f"{'&' if '?' in target else '?'}{draw(st.one_of(_query, _encoded))}"
    if "login" in spoiled:
        login = draw(_login)
    fields = draw(st.lists(_field, max_size=4))
    return Asked(
        method,
        target,
        [*([("Authorization", login)] if login else []), *fields],
        draw(_body),
        draw(st.sampled_from([0, 0, 1, 1000])),
    )


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, minio: Minio, mosquitto_binary: Path) -> Iterator[Host]:
    """A host with everything switched on."""
    del mosquitto_binary
    directory = tmp_path_factory.mktemp("host")
    s3 = minio.client()
    s3.create_bucket(Bucket=BUCKET)
    for key in (f"configs/{MAC}.json", "assets/dir/firmware.bin", "events/door/1.jpg"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"content")
    s3.close()
    with Mosquitto(directory / "mosquitto") as broker:
        known = environment(
            broker.url,
            BUCKET=BUCKET,
            AWS_ENDPOINT_URL=minio.endpoint_url,
            AWS_ACCESS_KEY_ID=minio.access_key,
            AWS_SECRET_ACCESS_KEY=minio.secret_key,
            EVENTS_PREFIX="events/",
            DEVICE_TOKEN_KEYS=f"k1:{KEY}",
            ADMIN_TOKENS=ADMIN,
            DATABASE_URL=new_sqlite(directory),
            ENCRYPTION_KEYS=new_key().get_secret_value(),
            MQTT_CONNECT_TIMEOUT_SECONDS="1",
            DEVICE_REQUESTS_PER_MINUTE="0",
        )
        with Host(directory, known, ready=False, patch=NOWHERE) as running:
            eventually(lambda: running.http.get("/readyz").status_code == 200, PATIENCE_SECONDS)
            yield running
            assert running.http.get("/healthz").status_code == 200
            assert "Traceback" not in running.log
            unforeseen = [line for line in running.lines("ERROR") if line.get("outcome") != "malformed"]
            assert not unforeseen


@pytest.fixture(scope="module")
def count() -> Iterator[list[int]]:
    """How many requests were answered, by status."""
    found: list[int] = []
    yield found
    assert len(set(found)) >= 8  # else the search only scratches at the door


@given(asked=requests())
@tries(300)
def test_every_request_is_answered_once_and_as_documented(host: Host, count: list[int], asked: Asked) -> None:
    """A known status, problems as in RFC 9457, the fields that belong to 401, 405 and 307; then the next request."""
    with connected(host, asked.wire) as sock, sock.makefile("rb") as stream:
        answer = next_answer(stream, asked.method)
        assert answer is not None, asked
        count.append(answer.status)
        _check(asked, answer)
        if answer.headers.get("connection") != "close":
            sock.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: bell\r\n\r\n")
            follower = next_answer(stream, "HEAD")
            assert follower is not None
            assert follower.status == 200


def _check(asked: Asked, answer: Answer) -> None:
    headers = answer.headers
    if answer.status == 503:  # some settings were stored: then the broker is nowhere
        assert asked.target.partition("?")[0] == "/readyz" or headers["retry-after"], (asked, answer)
        return
    assert answer.status in EXPECTED, (asked, answer)
    if answer.status == 401:
        assert headers["www-authenticate"].startswith("Bearer")
    if answer.status == 405:
        assert headers["allow"]
        assert asked.method not in headers["allow"].split(", ")
    if answer.status == 307:
        assert headers["location"].startswith("http://")
        assert headers["cache-control"] == "no-store"
    if answer.status >= 400 and asked.method != "HEAD":
        assert headers["content-type"] == "application/problem+json", (asked, answer)
        problem = json.loads(answer.body)
        assert problem["status"] == answer.status
        assert problem["title"]
