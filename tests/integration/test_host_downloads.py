"""The way to the files through the real process, `bucketbell host`, on a real MinIO, over raw HTTP."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest

from functions.s3.objects import S3_DEADLINE_SECONDS
from functions.web.tokens import Keyring
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stores import Minio
from infra.subscriber import Subscriber
from tests.fakes.broker import FakeBroker
from tests.fakes.proxy import TcpProxy
from tests.hosts import STOP_SECONDS, TOPICS, Host, environment, eventually, upload
from tests.hosts import TOKEN as DOOR_TOKEN
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

BUCKET = "devices"
MAC, OTHER_MAC = "aa-bb-cc-dd-ee-ff", "11-22-33-44-55-66"
SECRET = b"0123456789abcdef0123456789ABCDEF"
KEY = base64.b64encode(SECRET).decode()
OTHER_KEY = base64.b64encode(SECRET[::-1]).decode()
RING = Keyring.parse([f"k1:{KEY}"])
TOKEN, OTHER_TOKEN, REVOKED = RING.mint(MAC), RING.mint(OTHER_MAC), RING.mint(MAC)
ADMIN = "admin-token-0123456789"
CONFIG, OTHER_CONFIG = b'{"mine": true}', b'{"theirs": true}'
NAME, BODY = "dir/a b+c&100%\u00e9.bin", bytes(range(256)) * 64
PATH = f"/assets/{quote(NAME)}"
ANSWER_SECONDS = PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class Said:
    """One answer, off the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, object]:
        """The body of an RFC 9457 problem, which says what the status line says."""
        assert self.headers["content-type"] == "application/problem+json", self
        document: dict[str, object] = json.loads(self.body)
        assert document["status"] == self.status
        assert document["title"]
        assert document["detail"]
        return document


def ask(
    host: Host, path: str | bytes = PATH, *lines: str | bytes, method: str = "GET", token: str | None = TOKEN
) -> Said:
    """Send these very bytes as a request on a connection of its own; no library has a say in them."""
    target = path if isinstance(path, bytes) else path.encode()
    login = [f"Authorization: Bearer {token}"] if token else []
    fields = [line if isinstance(line, bytes) else line.encode("latin-1") for line in ("Host: bell", *login, *lines)]
    with socket.create_connection(("127.0.0.1", host.port), timeout=ANSWER_SECONDS) as sock:
        sock.sendall(b"\r\n".join([method.encode() + b" " + target + b" HTTP/1.1", *fields, b"", b""]))
        answer = http.client.HTTPResponse(sock, method=method)
        answer.begin()
        body = answer.read()
        return Said(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)


def knowing(store: Minio, mqtt_url: str | None = None, **more: str) -> dict[str, str]:
    """What a host must be told to hand out this store's files."""
    known = {
        "BUCKET": BUCKET,
        "AWS_ENDPOINT_URL": store.endpoint_url,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
        "DEVICE_TOKEN_KEYS": f"k1:{KEY},k0:{OTHER_KEY}",
        "DEVICE_TOKENS_REVOKED": str(RING.verify(REVOKED).jti),
        "ADMIN_TOKENS": ADMIN,
        "DEVICE_REQUESTS_PER_MINUTE": "0",
        "S3_PUBLIC_ENDPOINT_URL": store.endpoint_url,
    }
    return environment(mqtt_url, **(known | more))


SECRETS = (
    TOKEN,
    TOKEN.rpartition(".")[2],
    OTHER_TOKEN,
    REVOKED,
    ADMIN,
    KEY,
    OTHER_KEY,
    "bucketbell-local",
    "X-Amz-Signature",
)


def assert_discreet(host: Host, *more: str) -> None:
    """Nothing that opens a door was ever logged, and nothing was unforeseen."""
    for secret in (*SECRETS, *more):
        assert secret not in host.log
    assert "Traceback" not in host.log
    assert "never retrieved" not in host.log


@pytest.fixture(scope="module")
def store(minio: Minio) -> Minio:
    """A MinIO with two configs and an asset."""
    s3 = minio.client()
    s3.create_bucket(Bucket=BUCKET)
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=BUCKET, Key=f"configs/{MAC}.json", Body=CONFIG)
    s3.put_object(Bucket=BUCKET, Key=f"configs/{OTHER_MAC}.json", Body=OTHER_CONFIG)
    s3.put_object(Bucket=BUCKET, Key=f"assets/{NAME}", Body=b"the older one")
    s3.put_object(Bucket=BUCKET, Key=f"assets/{NAME}", Body=BODY)
    s3.put_object(Bucket=BUCKET, Key="secret.txt", Body=b"outside of both prefixes")
    s3.close()
    return minio


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, store: Minio) -> Iterator[Host]:
    """A host without a broker, at DEBUG, that takes any number of refusals from one address."""
    known = knowing(store, LOG_LEVEL="DEBUG")
    with Host(tmp_path_factory.mktemp("host"), known, ready=False) as running:
        yield running
        assert_discreet(running)


def from_store(url: str) -> bytes:
    """What the link leads to, without any header of ours."""
    answer = httpx.get(url, trust_env=False)
    assert answer.status_code == 200
    return answer.content


# What devices get.


@pytest.mark.parametrize("target", [PATH, f"/assets?filename={quote(NAME, safe='')}"])
def test_a_link_opens_and_gives_the_bytes(host: Host, target: str) -> None:
    """By redirection and by JSON; never from a cache."""
    moved = ask(host, target)
    assert (moved.status, moved.body, moved.headers["cache-control"]) == (307, b"", "no-store")
    assert from_store(moved.headers["location"]) == BODY
    told = ask(host, target, "Accept: application/json")
    document = json.loads(told.body)
    assert (told.status, told.headers["content-type"]) == (200, "application/json")
    assert list(document) == ["url", "expires_at", "filename", "size", "etag", "last_modified", "version_id", "sha256"]
    assert (document["filename"], document["size"]) == (NAME, len(BODY))
    assert document["etag"] == hashlib.md5(BODY, usedforsecurity=False).hexdigest()
    assert from_store(document["url"]) == BODY


def test_head_tells_the_files_own_length(host: Host) -> None:
    """Though the body is empty, and the connection can be used again."""
    described = ask(host, method="HEAD")
    assert (described.status, described.body) == (200, b"")
    assert described.headers["content-length"] == described.headers["x-object-size"] == str(len(BODY))
    assert described.headers["last-modified"].endswith("GMT")
    again = host.http.head(PATH, headers={"Authorization": f"Bearer {TOKEN}"})
    after = host.http.get("/manifest", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (again.status_code, after.status_code) == (200, 200)


@pytest.mark.parametrize("target", [PATH, "/manifest"])
def test_what_is_held_already_is_304(host: Host, target: str) -> None:
    """Without a body or a length, and the connection goes on."""
    etag = ask(host, target, "Accept: application/json").headers["etag"]
    unchanged = ask(host, target, f"If-None-Match: {etag}")
    assert (unchanged.status, unchanged.body, unchanged.headers["etag"]) == (304, b"", etag)
    assert "content-length" not in unchanged.headers
    assert "transfer-encoding" not in unchanged.headers
    login = {"Authorization": f"Bearer {TOKEN}"}
    assert host.http.get(target, headers={**login, "If-None-Match": etag}).status_code == 304
    assert host.http.get("/healthz").status_code == 200


def test_a_version_is_pinned(host: Host, store: Minio) -> None:
    """The older bytes by their id; an id that is none is 404."""
    with contextlib.closing(store.client()) as s3:
        versions = s3.list_object_versions(Bucket=BUCKET, Prefix=f"assets/{NAME}")["Versions"]
    older = next(one["VersionId"] for one in versions if not one["IsLatest"])
    assert from_store(ask(host, f"{PATH}?version_id={older}").headers["location"]) == b"the older one"
    assert ask(host, f"{PATH}?version_id=00000000-0000-0000-0000-000000000000").status == 404


def test_the_manifest_lists_what_is_this_devices(host: Host) -> None:
    """Its config and the asset; nobody else's, nothing outside."""
    listed = json.loads(ask(host, "/manifest").body)["objects"]
    assert [one["filename"] for one in listed] == [f"{MAC}.json", NAME]


def test_a_config_is_its_own_devices_in_any_case_and_an_admins(host: Host) -> None:
    """The other's is answered as one that is not there, byte for byte."""
    assert from_store(ask(host, f"/configs/{MAC}.json").headers["location"]) == CONFIG
    upper = ask(host, f"/configs/{MAC}.json", token=RING.mint(MAC.upper()))
    assert from_store(upper.headers["location"]) == CONFIG
    assert from_store(ask(host, f"/configs/{OTHER_MAC}.json", token=ADMIN).headers["location"]) == OTHER_CONFIG
    refused = [ask(host, f"/configs/{mac}.json") for mac in (OTHER_MAC, "99-99-99-99-99-99")]
    refused.append(ask(host, "/assets/none"))
    for one in refused:
        assert (one.status, one.problem["title"]) == (404, "Not Found")
    assert len({one.body for one in refused}) == 1
    assert len({tuple(sorted(one.headers.items() - {("date", one.headers["date"])})) for one in refused}) == 1


@pytest.mark.parametrize(
    "lines",
    [
        ("X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https", "X-Forwarded-Port: 1"),
        ("Forwarded: host=evil.example;proto=https", "X-Original-Host: evil.example", "X-Host: evil.example"),
        ("Host: evil.example",),
    ],
)
def test_the_link_names_the_public_endpoint_whatever_the_request_says(
    store: Minio, tmp_path: Path, lines: tuple[str, ...]
) -> None:
    """The one that is set, which opens."""
    with TcpProxy("127.0.0.1", store.port) as outside:
        public = f"http://127.0.0.1:{outside.port}"
        with Host(tmp_path, knowing(store, S3_PUBLIC_ENDPOINT_URL=public), ready=False) as shown:
            for target in (PATH, f"http://evil.example{PATH}"):
                location = ask(shown, target, *lines).headers["location"]
                assert location.startswith(f"{public}/{BUCKET}/assets/")
                assert from_store(location) == BODY
            assert outside.connections > 0


# Bad input.


def jwt(
    header: Mapping[str, object], claims: Mapping[str, object], secret: bytes | None, digest: str = "sha256"
) -> str:
    """A token made by hand; unsigned without a secret."""
    encoded = ".".join(
        base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=") for one in (header, claims)
    )
    signature = hmac.digest(secret, encoded.encode(), digest) if secret else b""
    return f"{encoded}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def claims(**changes: object) -> dict[str, object]:
    """What a good token claims, but for these."""
    now = int(time.time())
    return {"sub": MAC, "aud": "bucketbell", "iat": now, "exp": now + 600, "jti": "made-by-hand"} | changes


HS = {"alg": "HS256", "typ": "JWT", "kid": "k1"}
_BAD_TOKENS = {
    "alg none": jwt({**HS, "alg": "none"}, claims(), None),
    "alg None, signed": jwt({**HS, "alg": "None"}, claims(), SECRET),
    "alg RS256": jwt({**HS, "alg": "RS256"}, claims(), SECRET),
    "alg HS512": jwt({**HS, "alg": "HS512"}, claims(), SECRET, "sha512"),
    "alg missing": jwt({"kid": "k1"}, claims(), SECRET),
    "kid unknown": jwt({**HS, "kid": "k9"}, claims(), SECRET),
    "kid missing": jwt({"alg": "HS256"}, claims(), SECRET),
    "kid a list": jwt({**HS, "kid": ["k1"]}, claims(), SECRET),
    "kid of another key": jwt({**HS, "kid": "k0"}, claims(), SECRET),
    "jwk brought along": jwt({**HS, "kid": "kx", "jwk": {"kty": "oct", "k": KEY}}, claims(), SECRET),
    "another secret": jwt(HS, claims(), b"x" * 32),
    "empty secret's": jwt(HS, claims(), b"\0"),
    "expired": jwt(HS, claims(exp=int(time.time()) - 60), SECRET),
    "of the future": jwt(HS, claims(nbf=int(time.time()) + 3600), SECRET),
    "issued in the future": jwt(HS, claims(iat=int(time.time()) + 3600), SECRET),
    "another audience": jwt(HS, claims(aud="else"), SECRET),
    "subject with a path": jwt(HS, claims(sub=f"../configs/{MAC}"), SECRET),
    "subject a number": jwt(HS, claims(sub=7), SECRET),
    "exp a string": jwt(HS, claims(exp="never"), SECRET),
    "exp beyond time": jwt(HS, claims(exp=10**30), SECRET),
    "no claims": jwt(HS, {}, SECRET),
    "revoked": REVOKED,
    "cut short": TOKEN[:-2],
    "two parts": TOKEN.rpartition(".")[0],
    "8 KB": "x" * 8192,
    "8 KB of dots": "." * 8192,
    "8 KB behind a good one": f"{TOKEN}{'x' * 8192}",
    "NUL-like": "a%00b",
}


@pytest.mark.parametrize("token", _BAD_TOKENS.values(), ids=_BAD_TOKENS)
def test_a_bad_token_is_401_and_the_client_learns_no_reason(host: Host, token: str) -> None:
    """The same challenge and body for each, whatever is asked for."""
    answers = [ask(host, path, token=token) for path in (f"/configs/{MAC}.json", PATH, "/assets/none", "/manifest")]
    for answer in answers:
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="bucketbell", error="invalid_token"'
        assert answer.problem["detail"] == "A valid bearer token is needed: Authorization: Bearer <device token>."
    assert len({answer.body for answer in answers}) == 1


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("Authorization:",),
        ("Authorization: Bearer",),
        (f"Authorization: {TOKEN}",),
        (f"Authorization: Basic {TOKEN}",),
        (f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"),
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer x"),
        ("Authorization: Bearer \xfc\xff" + TOKEN,),
        ("Authorization: \xff",),
        (f"Authorization: Bearer {TOKEN} {TOKEN}",),
        (f"Authorization: Bearer {TOKEN},",),
        (f"Cookie: token={TOKEN}",),
        (f"X-Authorization: Bearer {TOKEN}",),
    ],
    ids=lambda lines: str(lines).replace(TOKEN, "TOKEN"),
)
def test_a_header_that_brings_no_one_token_is_401(host: Host, lines: tuple[str, ...]) -> None:
    """Missing, doubled, of another scheme, not ASCII."""
    answer = ask(host, PATH, *lines, token=None)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith('Bearer realm="bucketbell"')
    assert TOKEN not in str(answer.problem)


def test_a_token_in_the_query_opens_nothing(host: Host) -> None:
    """URLs end up in logs."""
    assert ask(host, f"{PATH}?access_token={TOKEN}&token={TOKEN}", token=None).status == 401


_BAD_PATHS = [
    "/assets/../secret.txt",
    "/assets/..",
    "/assets/%2e%2e/secret.txt",
    "/assets/%2E%2E%2Fsecret.txt",
    "/assets/..%2fsecret.txt",
    "/assets/%252e%252e%252fsecret.txt",
    "/assets/..%5csecret.txt",
    "/assets/..\\secret.txt",
    "/assets/%5c..%5csecret.txt",
    "/assets/a/%00/b",
    "/assets/fw%00.bin",
    "/assets//etc/passwd",
    "/assets/%2fetc/passwd",
    "/assets/./x",
    "/assets/a%0d%0aSet-Cookie:%20x=y",
    "/assets/a%0a",
    "/assets/%ff%fe",
    "/assets/%",
    "/assets/%zz",
    "/assets/" + "x" * 10_240,
    "/assets/" + "%41" * 4000,
    "/assets/" + "a/" * 600,
    "/assets/" + "x" * 300,
    "/assets/" + "x" * 255 + "/" + "y" * 256,
    "/assets/a%5c",
    "/assets/%5c",
    "/assets/a%5c.%5cb",
    "/assets/C:%5cx",
    "/assets/a%7f",
    "/assets/%ef%bf%bd",
    "/assets/%c2%80",
    "/assets/%ed%a0%80",
    "/assets/",
    "/assets",
    "/assets?filename=",
    "/assets?filename=..%2fsecret.txt",
    "/assets?filename=%252e%252e%2fsecret.txt",
    "/assets?filename=%00",
    "/assets?filename=%ff",
    "/assets?filename=a&filename=b",
    f"{PATH}?version_id=a&version_id=b",
    f"{PATH}?version_id=%0d%0aX:y",
    f"{PATH}?version_id=" + "v" * 10_240,
    f"{PATH}?" + "a=b&" * 100,
    "/assetsx",
    "/configs/",
    "/configs/..%2fsecret.txt",
    f"/configs/../configs/{OTHER_MAC}.json",
    f"/configs/..%2fconfigs%2f{OTHER_MAC}.json",
    f"/configs/{OTHER_MAC}.json%00",
    f"/configs/{OTHER_MAC}.json/",
    f"/configs/{OTHER_MAC}.json?mac={OTHER_MAC}",
    f"/configs/{MAC.replace('-', ':')}.json",
    "/configs/" + "a" * 10_240 + ".json",
    f"/assets/..%2fconfigs%2f{OTHER_MAC}.json",
    f"/manifest?mac={OTHER_MAC}",
    f"/manifest?mac={MAC}&mac={OTHER_MAC}",
    "/manifest?limit=0",
    "/manifest?limit=1&limit=2",
    "/manifest?next=AAAA",
    "/manifest?next=" + "A" * 10_240,
    "/manifest/",
    "/manifestx",
]


@pytest.mark.parametrize("path", _BAD_PATHS, ids=lambda path: path[:48])
def test_a_hostile_path_is_a_problem_and_leads_nowhere(host: Host, path: str) -> None:
    """400 or 404, as a problem that repeats nothing; no link, no header of the client's making."""
    for method in ("GET", "HEAD"):
        answer = ask(host, path, method=method)
        assert answer.status in ({400, 404} if method == "GET" else {400, 404, 405})
        assert "location" not in answer.headers
        assert "set-cookie" not in answer.headers
        if method == "GET":
            assert "secret" not in str(answer.problem)
            assert OTHER_MAC not in str(answer.problem)
        else:
            assert answer.body == b""


@pytest.mark.parametrize(
    "target",
    [b"/assets/\xff", b"/assets/a b", b"/assets/\x00", b"assets/x", b"/assets/a\tb", b"*", b"http://", b"/assets/\x7f"],
    ids=str,
)
def test_what_is_no_http_is_400_as_a_problem(host: Host, target: bytes) -> None:
    """A target that no client may send."""
    answer = ask(host, target)
    assert answer.status in {400, 404}
    if b"detail" in answer.body:
        assert answer.problem
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("line", ["A: b\nC: d\r", "A : b", "A: b\x00c", "X\r: y"], ids=repr)
def test_a_header_with_line_breaks_or_controls_smuggles_nothing(host: Host, line: str) -> None:
    """400 and the end of the connection, or an ordinary answer: never two."""
    with socket.create_connection(("127.0.0.1", host.port), timeout=ANSWER_SECONDS) as sock:
        sock.sendall(f"GET {PATH} HTTP/1.1\r\nHost: bell\r\nConnection: close\r\n{line}\r\n\r\n".encode("latin-1"))
        said = b"".join(iter(lambda: sock.recv(65536), b""))
    assert said.count(b"HTTP/1.1 ") == 1
    assert said.split()[1] in {b"400", b"401"}
    assert b"application/problem+json" in said


def test_a_header_without_end_is_refused_before_it_fills_the_memory(host: Host) -> None:
    """431 after 64 KiB and what one read brings; nothing of it is kept."""
    with socket.create_connection(("127.0.0.1", host.port), timeout=ANSWER_SECONDS) as sock:
        sock.sendall(b"GET /manifest HTTP/1.1\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 64 << 20:
                sock.sendall(b"X-Filler: " + b"x" * 65_536 + b"\r\n")
                sent += 65_536
        assert sent < 16 << 20
    with socket.create_connection(("127.0.0.1", host.port), timeout=ANSWER_SECONDS) as sock:
        sock.sendall(b"GET /manifest HTTP/1.1\r\nX-Filler: ")
        for _ in range(8):
            sock.sendall(b"x" * 8192)
            time.sleep(0.02)  # each is a read of its own
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert answer.status == 431
        assert json.loads(answer.read())["status"] == 431


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    ("path", "allowed"), [(PATH, "GET, HEAD"), ("/manifest", "GET"), (f"/configs/{MAC}.json", "GET, HEAD")]
)
def test_a_wrong_method_is_405_and_says_which_are_right(host: Host, method: str, path: str, allowed: str) -> None:
    """With `Allow`; a stranger learns nothing."""
    answer = ask(host, path, "Content-Length: 0", method=method)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert answer.problem["title"] == "Method Not Allowed"
    assert ask(host, path, "Content-Length: 0", method=method, token=None).status == 401


def test_a_body_that_nobody_wants_hurts_nobody(host: Host) -> None:
    """The answer comes without it, and the next request on that connection is answered too."""
    with httpx.Client(base_url=host.url, trust_env=False, timeout=ANSWER_SECONDS) as client:
        for _ in range(3):
            assert client.put(PATH, content=b"x" * (1 << 20)).status_code == 401
            assert client.get("/manifest", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


# Limits.


def test_a_device_beyond_its_share_gets_429_and_waits(store: Minio, tmp_path: Path) -> None:
    """With the seconds; the others and the doors for events are not touched."""
    with Host(tmp_path, knowing(store, DEVICE_REQUESTS_PER_MINUTE="5"), ready=False) as limited:
        assert [ask(limited).status for _ in range(6)] == [307] * 5 + [429]
        refused = ask(limited)
        assert 1 <= int(refused.headers["retry-after"]) <= 13
        assert refused.problem["title"] == "Too Many Requests"
        assert ask(limited, token=OTHER_TOKEN).status == 307
        assert limited.http.get("/healthz").status_code == 200
        assert_discreet(limited)


def test_wrong_tokens_shut_nobody_out(store: Minio, tmp_path: Path) -> None:
    """Thirty devices with an old key and a restart are enough to have all come at once, from a proxy's one address."""
    old = Keyring.parse([f"k1:{OTHER_KEY}"])
    wrong = [old.mint(MAC) for _ in range(30)]
    fresh = [RING.mint(f"00-00-00-00-00-{number:02x}") for number in range(20)]
    with Host(tmp_path, knowing(store), ready=False) as host:
        asked = [*wrong, *wrong, "guess", *fresh, *wrong, *fresh]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda token: ask(host, "/manifest", token=token).status, asked))
        assert answers == [200 if token in fresh else 401 for token in asked]
        assert host.metric("strangers_total", reason="bad_token") == 91
        assert not [line for line in host.lines("INFO") if "refused" in line["message"]]
        assert_discreet(host, *fresh, *wrong)


def test_a_made_up_word_lifts_no_limits(store: Minio, tmp_path: Path) -> None:
    """What anybody may read is counted by address, and makes no word a token."""
    with Host(tmp_path, knowing(store, DEVICE_REQUESTS_PER_MINUTE="5"), ready=False) as host:
        statuses = [ask(host, "/openapi.json", token=f"word-{number}").status for number in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        assert ask(host, "/api/v1/integrations/mqtt/status", token="word-0").status == 401
        assert ask(host, "/manifest", token=ADMIN).status == 200


def test_a_pictures_link_has_its_tokens_share(store: Minio, tmp_path: Path) -> None:
    """Two hundred links from one address are two hundred shares; one link has one."""
    names = [f"door/{number}.jpg" for number in range(20)]
    tokens = {name: RING.mint_for_object(f"events/{name}") for name in names}
    with Host(tmp_path, knowing(store, EVENTS_PREFIX="events/", DEVICE_REQUESTS_PER_MINUTE="2"), ready=False) as host:
        for name, expected in [*((name, 404) for name in names), (names[0], 404), (names[0], 429), (names[1], 404)]:
            assert ask(host, f"/thumbnails/{name}?token={tokens[name]}", token=None).status == expected
        assert ask(host, f"/thumbnails/{names[0]}?token=x", token=None).status == 401


@pytest.mark.parametrize("length", [16, 19, 20])
def test_short_secrets_are_not_asked_for_by_who_guesses(store: Minio, tmp_path: Path, length: int) -> None:
    """After thirty wrong tries the right one is refused unverified, if it is short; the start warns of it."""
    short = "s" * length
    with Host(tmp_path, knowing(store, ADMIN_TOKENS=f"{ADMIN},{short}"), ready=False) as host:
        assert ask(host, "/manifest", token=short).status == 200
        guesses = [ask(host, "/manifest", token=f"guess-{number}").status for number in range(32)]
        assert guesses == ([401] * 30 + [429] * 2 if length < 20 else [401] * 32)
        assert ask(host, "/manifest", token=short).status == (429 if length < 20 else 200)
        for token in (ADMIN, TOKEN):
            assert ask(host, "/manifest", token=token).status == 200
        assert ask(host, "/manifest", token=f"{ADMIN}x").status == 401
        warned = [line["variable"] for line in host.lines("WARNING") if "short" in line["message"]]
        assert warned == (["ADMIN_TOKENS"] if length < 20 else [])


# When the store is slow or down.


@contextmanager
def behind(store: Minio) -> Iterator[tuple[TcpProxy, dict[str, str]]]:
    """A line between the host and the store that can be cut, and what a host must be told to use it."""
    with TcpProxy("127.0.0.1", store.port) as line:
        yield line, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.port}"}


def test_a_store_that_is_down_is_503_in_time_and_its_return_heals(store: Minio, tmp_path: Path) -> None:
    """Refused or silent: `Retry-After` within the deadline."""
    with behind(store) as (line, known), Host(tmp_path, knowing(store, **known), ready=False) as host:
        assert ask(host).status == 307
        for trouble, deadline_seconds in ((line.blackhole, S3_DEADLINE_SECONDS), (line.cut, 0.0)):
            if trouble == line.cut:
                line.refuse_new = True
            trouble()
            for path in (PATH, "/manifest", f"/configs/{OTHER_MAC}.json"):
                began_at = time.monotonic()
                answer = ask(host, path)
                assert (answer.status, answer.headers["retry-after"]) == (503, "5")
                assert answer.problem["detail"] == "The object store does not answer as it should."
                assert time.monotonic() - began_at < deadline_seconds + SLACK_SECONDS
        line.heal()
        line.refuse_new = False
        assert ask(host).status == 307
        assert_discreet(host)


def test_notifications_flow_while_the_store_hangs(store: Minio, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """More requests hang than there are threads: events are confirmed, health answers, and all of them hear 503."""
    patient = "import functions.s3.objects, infra.host.web.limited_router\n"
    patient += "functions.s3.objects.S3_READ_TIMEOUT_SECONDS = infra.host.web.limited_router.HANDLER_SECONDS = 6.0"
    with (
        behind(store) as (line, known),
        Host(tmp_path, knowing(store, mosquitto.url, **known), patch=patient) as host,
        Subscriber(mosquitto.url, TOPICS) as listener,
        ThreadPoolExecutor(24) as pool,
    ):
        assert ask(host).status == 307
        line.blackhole()
        hanging = [pool.submit(ask, host, f"/assets/{number}") for number in range(24)]
        time.sleep(0.3)
        for number in range(20):
            assert host.post(upload(f"assets/{number}"), token=DOOR_TOKEN).status_code == 200
            assert host.http.get("/readyz").status_code == 200
        assert not any(one.done() for one in hanging)
        assert len(listener.wait_for(20)) == 20
        assert {one.result(ANSWER_SECONDS).status for one in hanging} == {503}
        line.heal()
        eventually(lambda: ask(host).status == 307)
        assert_discreet(host)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_does_not_wait_for_a_store_that_hangs(store: Minio, tmp_path: Path, number: signal.Signals) -> None:
    """Exit 0 within 3 s with requests in hand, each of which is answered 503; DISCONNECT at the broker."""
    patch = "import functions.s3.objects\nfunctions.s3.objects.S3_READ_TIMEOUT_SECONDS = 30.0"
    with (
        FakeBroker() as broker,
        behind(store) as (line, known),
        Host(tmp_path, knowing(store, broker.url, **known), patch=patch) as host,
        ThreadPoolExecutor(20) as pool,
    ):
        assert ask(host).status == 307
        line.blackhole()
        hanging = [pool.submit(ask, host, f"/assets/{n}") for n in range(20)]
        time.sleep(0.5)
        for _ in range(3):  # connections are taken in the order in which they came: those before these are in hand
            assert httpx.get(f"{host.url}/healthz", trust_env=False, timeout=ANSWER_SECONDS).status_code == 200
        assert host.stop(number) < STOP_SECONDS
        assert {one.result(ANSWER_SECONDS).status for one in hanging} == {503}
        assert broker.packets[-1].kind == "DISCONNECT"
        assert_discreet(host)


def test_the_end_does_not_wait_for_imports(store: Minio, tmp_path: Path) -> None:
    """SIGTERM right after the start, while boto3 is still being loaded."""
    with Host(tmp_path, knowing(store), ready=False) as host:
        assert host.stop() < STOP_SECONDS
        assert_discreet(host)


# Settings.


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ({"BUCKET": ""}, "BUCKET"),
        ({"DEVICE_TOKEN_KEYS": "", "ADMIN_TOKENS": ""}, "DEVICE_TOKEN_KEYS or ADMIN_TOKENS"),
    ],
)
def test_without_a_bucket_or_keys_it_says_what_to_set(
    store: Minio, tmp_path: Path, missing: dict[str, str], named: str
) -> None:
    """503 for every file; boto3 is not loaded."""
    with Host(tmp_path, knowing(store, **missing), ready=False) as host:
        for token in (TOKEN, ADMIN, None):
            for path in (PATH, "/manifest", f"/configs/{MAC}.json"):
                answer = ask(host, path, token=token)
                assert (answer.status, answer.headers["retry-after"]) == (503, "60")
                assert answer.problem["detail"] == f"Downloads are not configured: set {named}."
        assert host.http.get("/healthz").status_code == 200
        assert_discreet(host)


_LOADED = """
import os, sys, threading, time
def loaded():
    return sorted({"boto3", "botocore.client"} & set(sys.modules))
def watch():
    while len(loaded()) < 2:
        time.sleep(0.05)
    print("both are here", flush=True)
threading.Thread(target=watch, daemon=True).start()
leave = os._exit
def told(code):
    print("loaded", loaded(), flush=True)
    leave(code)
os._exit = told
"""


@pytest.mark.parametrize(
    ("known", "loaded"), [({}, "loaded []"), ({"configured": "yes"}, "loaded ['boto3', 'botocore.client']")]
)
def test_boto3_is_loaded_only_where_files_are_handed_out(
    store: Minio, tmp_path: Path, known: dict[str, str], loaded: str
) -> None:
    """Before the first request there, never elsewhere."""
    variables = knowing(store) if known else environment(None)
    with Host(tmp_path, variables, ready=False, patch=_LOADED) as host:
        assert ask(host, token=None).status in {401, 503}  # answered by what warms up first
        if known:
            eventually(lambda: "both are here" in host.log)
        assert host.stop() < STOP_SECONDS
        assert loaded in host.log


def test_a_bad_key_stops_the_start(tmp_path: Path) -> None:
    """Exit 1; the variable is named, and the key is not shown."""
    command = [str(Path(sys.executable).with_name("bucketbell")), "host", "--port", str(free_port())]
    for keys in (f"k1:{KEY},k2:c2hvcnQtY2FuYXJ5", f"k1:{KEY},k1:{OTHER_KEY}", f"{KEY}", "k1:rsa:c2hvcnQtY2FuYXJ5"):
        known = {**os.environ, "DEVICE_TOKEN_KEYS": keys, "MQTT_URL": "", "WEBHOOK_TOKENS": ""}
        ended = subprocess.run(
            command, env=known, cwd=tmp_path, capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False
        )
        assert ended.returncode == 1
        assert ended.stderr.startswith("DEVICE_TOKEN_KEYS: ")
        assert "Traceback" not in ended.stderr
        for secret in (KEY, OTHER_KEY, "c2hvcnQtY2FuYXJ5"):
            assert secret not in ended.stdout + ended.stderr


def test_links_are_signed_and_nothing_of_them_is_logged(host: Host) -> None:
    """Not even at DEBUG: whoever reads the log can fetch nothing by it."""
    location = ask(host).headers["location"]
    (signature,) = parse_qs(urlsplit(location).query)["X-Amz-Signature"]
    document = json.loads(ask(host, PATH, "Accept: application/json").body)
    (other,) = parse_qs(urlsplit(document["url"]).query)["X-Amz-Signature"]
    assert_discreet(host, signature, other)


def test_many_at_once_are_each_told_their_own(host: Host) -> None:
    """A hundred requests of two devices and an admin, over the same threads."""
    wanted = [(TOKEN, MAC, CONFIG), (OTHER_TOKEN, OTHER_MAC, OTHER_CONFIG), (ADMIN, MAC, CONFIG)] * 33
    barrier = threading.Barrier(11)

    def device(one: tuple[str, str, bytes]) -> bool:
        barrier.wait(ANSWER_SECONDS)
        token, mac, config = one
        return from_store(ask(host, f"/configs/{mac}.json", token=token).headers["location"]) == config

    with ThreadPoolExecutor(11) as pool:
        assert all(pool.map(device, wanted))
