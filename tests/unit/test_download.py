"""A device reaches its own config and every asset; whatever else is asked gets a problem that gives nothing away."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest

from functions import download
from functions.devices.api import router
from functions.devices.downloads import Downloads
from functions.s3.clients import NO_CREDENTIALS, UNREACHABLE, StorageError
from functions.s3.objects import ObjectInfo, Objects, Page, Presigned
from functions.settings import load
from functions.telemetry import logger
from functions.web.tokens import Keyring
from tests.gateway import CONTEXT, Answered, http_event

MAC, OTHER_MAC = "aa-bb-cc-dd-ee-ff", "11-22-33-44-55-66"
SECRET = bytes(range(32))
KEYS = ["k:" + base64.b64encode(SECRET).decode()]
ADMIN = "admin-token-0123456789"
RING = Keyring.parse(KEYS)
TOKEN = RING.mint(MAC)
SIGNATURE = "0f" * 32
MODIFIED = datetime(2026, 11, 20, 12, 0, 0, 250_000, tzinfo=UTC)
END = datetime(2026, 11, 20, 12, 15, tzinfo=UTC)
NAMES = [
    f"configs/{MAC}.json",
    f"configs/{OTHER_MAC}.json",
    "configs/",
    "configs/readme.txt",
    "assets/",
    "assets/a b+c%.bin",
    "assets/dir/",
    "assets/dir//twice.bin",
    "assets/fw.bin",
    "assets/q?u#o\"t'e.bin",
    "assets/../etc/passwd",
    "secret.txt",
]


class Shelf(Objects):
    """A bucket in memory, that says what was asked of it, and may be told to fail."""

    def __init__(self, keys: list[str]) -> None:
        self.things = {key: ObjectInfo(key, f"etag-of-{key[:12]}", len(key), MODIFIED, "v1") for key in keys}
        self.asked: list[tuple[str, ...]] = []
        self.failure: Exception | None = None

    def _ask(self, *question: str) -> None:
        self.asked.append(question)
        if self.failure is not None:
            raise self.failure

    def head(self, key: str, version_id: str = "", *, with_checksum: bool = False) -> ObjectInfo | None:
        """The object, at any version."""
        del with_checksum
        self._ask("head", key, version_id)
        return self.things.get(key)

    def presign(self, key: str, *, version_id: str = "", filename: str) -> Presigned:
        """Something like a URL."""
        self._ask("presign", key, version_id, filename)
        return Presigned(f"https://s3.example.com/{key!r}?X-Amz-Signature={SIGNATURE}", END)

    def list_page(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Page:
        """The keys in S3's order."""
        self._ask("list", prefix, start_after, str(limit))
        keys = sorted((key for key in self.things if key.startswith(prefix) and key > start_after), key=str.encode)
        more = keys[limit - 1] if len(keys) > limit else ""
        return Page(tuple(self.things[key] for key in keys[:limit]), more)


@pytest.fixture
def shelf() -> Shelf:
    """A bucket with good names and bad ones."""
    return Shelf(NAMES)


@pytest.fixture
def downloads(shelf: Shelf) -> Downloads:
    """Downloads from it."""
    return Downloads(RING, (ADMIN, "another-admin-token-000"), shelf)


def ask(downloads: Downloads, path: str, **parts: Any) -> Answered:  # noqa: ANN401 - what `http_event` takes
    """Ask as the device, unless there are other headers."""
    headers = {"authorization": f"Bearer {TOKEN}", **parts.pop("headers", {})}
    return Answered.by(router(downloads), http_event(path, headers=headers, **parts))


def printed(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log as it is printed: every line of ours as JSON, and the others' words."""
    form = logger.registered_formatter
    return [form.format(one) if one.name == logger.name else one.getMessage() for one in caplog.records]


def problem(answer: Answered, status: int) -> str:
    """The detail of a problem (RFC 9457)."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    document = answer.document
    assert set(document) == {"title", "status", "detail"}
    assert document["status"] == status
    return str(document["detail"])


# --- files


def test_a_file_is_a_redirect_to_the_store(downloads: Downloads, shelf: Shelf) -> None:
    """307, so that the method stays; never from a cache, for there it would be a dead link."""
    answer = ask(downloads, "/assets/fw.bin")
    assert (answer.status, answer.body) == (307, "")
    assert answer.headers["location"] == f"https://s3.example.com/'assets/fw.bin'?X-Amz-Signature={SIGNATURE}"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["etag"] == '"etag-of-assets/fw.bi"'
    assert shelf.asked == [("head", "assets/fw.bin", ""), ("presign", "assets/fw.bin", "", "fw.bin")]


def test_whoever_accepts_json_gets_the_link_in_it(downloads: Downloads) -> None:
    """For clients that would carry Authorization along to the store."""
    answer = ask(downloads, f"/configs/{MAC}.json", headers={"accept": "text/html;q=0.1, Application/JSON; q=0.9"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.document == {
        "url": f"https://s3.example.com/'configs/{MAC}.json'?X-Amz-Signature={SIGNATURE}",
        "expires_at": "2026-11-20T12:15:00Z",
        "filename": f"{MAC}.json",
        "size": 30,
        "etag": "etag-of-configs/aa-b"[:20],
        "last_modified": "2026-11-20T12:00:00Z",
        "version_id": "v1",
        "sha256": None,
    }


def test_a_file_without_an_etag_has_none_in_any_answer(downloads: Downloads, shelf: Shelf) -> None:
    """`null` in JSON, no header elsewhere; an empty tag in the request is not taken for it."""
    for key in (f"configs/{MAC}.json", "assets/fw.bin"):
        shelf.things[key] = replace(shelf.things[key], etag="")
        for more in ({"method": "HEAD"}, {}, {"headers": {"accept": "application/json", "if-none-match": '""'}}):
            answer = ask(downloads, f"/{key}", **more)
            assert answer.status in {200, 307}
            assert "etag" not in answer.headers
        assert answer.document["etag"] is None
        held = ask(downloads, f"/{key}", headers={"if-none-match": "*"})
        assert (held.status, "etag" in held.headers) == (304, False)
    listed = {entry["filename"]: entry["etag"] for entry in ask(downloads, "/manifest").document["objects"]}
    assert (listed[f"{MAC}.json"], listed["fw.bin"]) == (None, None)
    assert all(etag for name, etag in listed.items() if name not in {f"{MAC}.json", "fw.bin"})


@pytest.mark.parametrize("accept", ["*/*", "", "text/html", "application/json;q=0", "application/json-seq"])
def test_whoever_does_not_name_json_is_redirected(downloads: Downloads, accept: str) -> None:
    """The `*/*` of curl is no wish for JSON."""
    assert ask(downloads, "/assets/fw.bin", headers={"accept": accept}).status == 307


def test_head_describes_the_file_itself(downloads: Downloads, shelf: Shelf) -> None:
    """A URL signed for GET cannot be HEADed: size, tag and date are answered here, and nothing is signed."""
    answer = ask(downloads, "/assets/fw.bin", method="HEAD")
    assert (answer.status, answer.body) == (200, "")
    assert answer.headers == {
        "cache-control": "no-store",
        "etag": '"etag-of-assets/fw.bi"',
        "last-modified": "Fri, 20 Nov 2026 12:00:00 GMT",
        "content-length": "13",
        "x-object-size": "13",
    }
    assert [question[0] for question in shelf.asked] == ["head"]
    assert ask(downloads, "/assets/none", method="HEAD").body == ""


@pytest.mark.parametrize(
    "held", ['"etag-of-assets/fw.bi"', 'W/"etag-of-assets/fw.bi"', '"x", "etag-of-assets/fw.bi"', "*"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_whoever_has_it_is_told_so(downloads: Downloads, held: str, method: str) -> None:
    """304, by weak comparison, with the tag and without a link."""
    answer = ask(downloads, "/assets/fw.bin", method=method, headers={"if-none-match": held})
    assert (answer.status, answer.body, answer.headers["etag"]) == (304, "", '"etag-of-assets/fw.bi"')
    assert "location" not in answer.headers


@pytest.mark.parametrize("held", ['"other"', "etag-of-assets/fw.bi", "", '"' * 9000])
def test_whoever_has_another_gets_this_one(downloads: Downloads, held: str) -> None:
    """An unquoted tag is none."""
    assert ask(downloads, "/assets/fw.bin", headers={"if-none-match": held}).status == 307


def test_a_version_may_be_pinned(downloads: Downloads, shelf: Shelf) -> None:
    """`?version_id=` goes into the HEAD and into the URL."""
    assert ask(downloads, "/assets/fw.bin", query="version_id=a%2Fb%2Bc").status == 307
    assert shelf.asked == [("head", "assets/fw.bin", "a/b+c"), ("presign", "assets/fw.bin", "a/b+c", "fw.bin")]


@pytest.mark.parametrize("name", ["a b+c%.bin", "q?u#o\"t'e.bin"])
def test_an_asset_of_any_name_is_reached_by_path_and_by_query(downloads: Downloads, shelf: Shelf, name: str) -> None:
    """The path comes decoded; where AWS decodes it twice, the query is the way that is not touched."""
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    assert ask(downloads, f"/assets/{name}").status == 307
    assert ask(downloads, "/assets", query=f"filename={encoded}").status == 307
    assert [question[1] for question in shelf.asked] == [f"assets/{name}"] * 4


def test_a_stage_in_the_path_is_not_part_of_it(downloads: Downloads) -> None:
    """AWS puts the name of a stage in front, unless it is the default one."""
    assert ask(downloads, "/assets/fw.bin", stage="prod").status == 307


def test_prefixes_are_the_buckets_and_the_routes_stay(shelf: Shelf) -> None:
    """Devices ask for /assets wherever the bucket keeps them."""
    shelf.things["fw/x"] = ObjectInfo("fw/x", "e", 1, MODIFIED)
    elsewhere = Downloads(RING, (), shelf, "cfg/", "fw/")
    assert ask(elsewhere, "/assets/x").status == 307
    assert [one["filename"] for one in ask(elsewhere, "/manifest").document["objects"]] == ["x"]


# --- who may


def test_a_mac_in_another_case_is_the_same_device(downloads: Downloads, shelf: Shelf) -> None:
    """The token's is compared without case; the key is asked for as it is."""
    upper = {"authorization": f"Bearer {RING.mint(MAC.upper())}"}
    assert ask(downloads, f"/configs/{MAC}.json", headers=upper).status == 307
    assert ask(downloads, f"/configs/{MAC.upper()}.json").status == 404
    assert shelf.asked[-1] == ("head", f"configs/{MAC.upper()}.json", "")


def test_absent_and_forbidden_are_one_answer_after_one_question(downloads: Downloads, shelf: Shelf) -> None:
    """Neither body nor headers nor the calls to the store tell which it was."""
    answers = []
    for name in (OTHER_MAC, "99-99-99-99-99-99"):
        for headers in ({}, {"if-none-match": "*"}, {"accept": "application/json"}):
            shelf.asked.clear()
            answers.append(ask(downloads, f"/configs/{name}.json", headers=headers))
            assert shelf.asked == [("head", f"configs/{name}.json", "")]
    answers.append(ask(downloads, "/assets/none"))
    assert len({(answer.status, answer.body, tuple(answer.headers.items())) for answer in answers}) == 1
    problem(answers[0], 404)


@pytest.mark.parametrize("token", [ADMIN, "another-admin-token-000"])
def test_an_admin_reaches_all(downloads: Downloads, token: str) -> None:
    """Any of the admin tokens."""
    headers = {"authorization": f"bearer {token}"}
    for path in (f"/configs/{MAC}.json", f"/configs/{OTHER_MAC}.json", "/assets/fw.bin"):
        assert ask(downloads, path, headers=headers).status == 307


def good_claims() -> dict[str, Any]:
    """Claims that are in force."""
    now = int(time.time())
    return {"sub": MAC, "aud": "bucketbell", "iat": now, "exp": now + 60, "jti": "id"}


def forged(header: dict[str, Any]) -> str:
    """A token without a signature."""
    parts = [header, good_claims()]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


HOSTILE_AUTHORIZATIONS = {
    "none": "",
    "scheme alone": "Bearer",
    "blank": "Bearer  ",
    "basic": "Basic " + base64.b64encode(ADMIN.encode()).decode(),
    "no scheme": TOKEN,
    "two headers": f"Bearer {TOKEN},Bearer {TOKEN}",
    "two admins": f"Bearer {ADMIN},Bearer {ADMIN}",
    "8 KB": "Bearer " + "x" * 8192,
    "8 KB of a token": f"Bearer {TOKEN}{'A' * 8192}",
    "not ASCII": "Bearer t\u00f6ken",
    "surrogate": "Bearer \ud800",
    "CRLF": f"Bearer {TOKEN}\r\nX-Evil: 1",
    "alg none": "Bearer " + forged({"alg": "none", "kid": "k"}),
    "unknown kid": "Bearer " + jwt.encode(good_claims(), SECRET, headers={"kid": "other"}),
    "other key": "Bearer " + jwt.encode(good_claims(), SECRET[::-1], headers={"kid": "k"}),
    "expired": "Bearer " + jwt.encode(good_claims() | {"exp": 1_000_000}, SECRET, headers={"kid": "k"}),
    "future": "Bearer " + jwt.encode(good_claims() | {"nbf": 9_999_999_999}, SECRET, headers={"kid": "k"}),
    "other audience": "Bearer " + jwt.encode(good_claims() | {"aud": "x"}, SECRET, headers={"kid": "k"}),
    "admin in another case": f"Bearer {ADMIN.upper()}",
    "admin, cut": f"Bearer {ADMIN[:-1]}",
}


@pytest.mark.parametrize("path", ["/assets/fw.bin", "/assets/../x", f"/configs/{MAC}.json", "/manifest"])
@pytest.mark.parametrize("name", HOSTILE_AUTHORIZATIONS)
def test_without_a_good_token_nothing_is_answered_or_asked(
    downloads: Downloads, shelf: Shelf, caplog: pytest.LogCaptureFixture, name: str, path: str
) -> None:
    """401 with a challenge, the store is not asked, and the token is in no log."""
    authorization = HOSTILE_AUTHORIZATIONS[name]
    answer = ask(downloads, path, headers={"authorization": authorization})
    problem(answer, 401)
    challenge = 'Bearer realm="bucketbell"'
    without = name in {"none", "scheme alone", "blank", "basic", "no scheme"}
    assert answer.headers["www-authenticate"] == (challenge if without else challenge + ', error="invalid_token"')
    assert shelf.asked == []
    (logged,) = printed(caplog)
    sent = authorization.rpartition(" ")[2]
    assert len(sent) < 8 or (sent not in answer.body and sent[:60] not in logged)


def test_a_header_that_is_not_there_is_no_token(downloads: Downloads) -> None:
    """Nor does its absence raise."""
    assert Answered.by(router(downloads), http_event("/manifest")).status == 401


def test_a_revoked_token_is_logged_by_key_and_id(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    """One line, from which an operator knows whose it was."""
    jti = RING.verify(TOKEN).jti
    refusing = Downloads(Keyring.parse(KEYS, revoked=[jti]), (), shelf)
    problem(ask(refusing, "/manifest"), 401)
    (line,) = map(json.loads, printed(caplog))
    assert {name: line[name] for name in ("reason", "kid", "jti", "status")} == {
        "reason": "revoked",
        "kid": "k",
        "jti": jti,
        "status": 401,
    }


# --- bad input


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "..\\secret.txt",
        "../secret.txt",
        "a/../../secret.txt",
        "./a",
        "a//b",
        "/etc/passwd",
        "a/",
        "a\x00.bin",
        "a\r\nLocation: https://evil.example",
        "a\n",
        "\x7f",
        "\ud800",
        "x" * 1018,
        "x" * 10_240,
        "\u00e9" * 509,
    ],
    ids=lambda name: repr(name[:20]),
)
def test_a_name_that_no_asset_can_have_is_refused(downloads: Downloads, shelf: Shelf, name: str) -> None:
    """400, by path and by query, before the store is asked, and nothing of it comes back."""
    quoted = "".join(f"%{byte:02x}" for byte in name.encode(errors="surrogatepass"))
    for answer in (ask(downloads, f"/assets/{name}"), ask(downloads, "/assets", query=f"filename={quoted}")):
        assert "evil" not in problem(answer, 400) + str(answer.headers)
    assert shelf.asked == []


@pytest.mark.parametrize(
    "name", ["%2e%2e/secret.txt", "%252e%252e/x", "%00", "back\\slash.txt", "%0d%0aX: 1", "....//x"[:4]]
)
def test_what_is_still_encoded_is_a_name_like_any_other(downloads: Downloads, shelf: Shelf, name: str) -> None:
    """Nothing is decoded twice: it is asked for below the assets, and is not there."""
    problem(ask(downloads, f"/assets/{name}"), 404)
    assert shelf.asked == [("head", f"assets/{name}", "")]


@pytest.mark.parametrize(
    "name",
    ["", "readme.txt", f"{MAC}", f"{MAC}.json.bak", f"../{MAC}.json", f"a/{MAC}.json", f"{MAC}.json\n", "x" * 10_240],
)
def test_a_name_that_no_config_can_have_is_refused(downloads: Downloads, shelf: Shelf, name: str) -> None:
    """400, before the store is asked."""
    problem(ask(downloads, f"/configs/{name}"), 400)
    assert shelf.asked == []


@pytest.mark.parametrize(
    "path", ["/", "", "/configs", "/asset", "/manifest/", "/assetsx", "//assets/fw.bin", "/healthz"]
)
def test_another_path_is_not_served(downloads: Downloads, path: str) -> None:
    """404, with what is served instead."""
    assert "/manifest" in problem(ask(downloads, path), 404)


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/assets/fw.bin", "GET, HEAD"),
        ("/assets", "GET, HEAD"),
        (f"/configs/{MAC}.json", "GET, HEAD"),
        ("/manifest", "GET"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_another_method_is_not_allowed(downloads: Downloads, path: str, allow: str, method: str) -> None:
    """405, and which are."""
    answer = ask(downloads, path, method=method)
    problem(answer, 405)
    assert answer.headers["allow"] == allow


def test_the_manifest_is_not_headed(downloads: Downloads) -> None:
    """405 without a body, as every answer to HEAD."""
    answer = ask(downloads, "/manifest", method="HEAD")
    assert (answer.status, answer.body, answer.headers["allow"]) == (405, "", "GET")


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/assets/fw.bin", "version_id=1&version_id=2"),
        ("/assets/fw.bin", "version_id=%ff"),
        ("/assets/fw.bin", "version_id=%0d%0a"),
        ("/assets/fw.bin", "version_id=" + "x" * 2000),
        ("/assets/fw.bin", "&".join(f"a{n}=1" for n in range(30))),
        ("/assets", "filename=fw.bin&filename=fw.bin"),
        ("/assets", ""),
        ("/manifest", "limit=10&limit=20"),
        *(
            ("/manifest", f"limit={bad}")
            for bad in ("0", "1001", "-1", "ten", "1e3", "", "%D9%A1", "9" * 5000, "1.5", "+1")
        ),
        ("/manifest", "mac=nonsense"),
        *(("/manifest", f"next={bad}") for bad in ("", "x", "AAAA", "%00", "*" * 40, "A" * 5000, "%F0%9F%94%94")),
    ],
    ids=lambda text: text[:30],
)
def test_a_bad_query_is_refused(downloads: Downloads, shelf: Shelf, path: str, query: str) -> None:
    """400: twice, not UTF-8, out of range, made up."""
    problem(ask(downloads, path, query=query), 400)
    assert [question for question in shelf.asked if question[0] != "head"] == []


def test_a_parameter_that_is_not_ours_is_not_looked_at(downloads: Downloads) -> None:
    """Proxies add their own."""
    assert ask(downloads, "/assets/fw.bin", query="utm=1&utm=2&flag").status == 307


def test_no_header_of_a_proxy_reaches_a_link(downloads: Downloads) -> None:
    """Host and X-Forwarded-* of the event are evil throughout, and nowhere in the answer."""
    for answer in (ask(downloads, "/assets/fw.bin"), ask(downloads, "/manifest"), ask(downloads, "/nowhere")):
        assert "evil" not in answer.body + str(answer.headers)


@pytest.mark.parametrize("event", [{}, {"requestContext": None}, {"version": "2.0", "rawPath": 7}, None, []])
def test_an_event_that_no_gateway_sends_is_an_error_without_details(downloads: Downloads, event: Any) -> None:  # noqa: ANN401 - anything
    """500: no exception leaves the handler, and none is shown."""
    detail = problem(Answered.by(router(downloads), event), 500)
    assert detail == "Something went wrong here."


# --- trouble


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [
        (StorageError(UNREACHABLE, "http://10.0.0.7:9000 does not answer"), "5"),
        (StorageError("503", "Slow Down http://10.0.0.7", status=503), "5"),
        (StorageError("403", "Forbidden http://10.0.0.7", status=403), "60"),
        (StorageError(NO_CREDENTIALS, "http://10.0.0.7"), "60"),
    ],
)
@pytest.mark.parametrize("path", ["/assets/fw.bin", f"/configs/{OTHER_MAC}.json", "/manifest"])
def test_a_store_in_trouble_is_come_back_later(
    downloads: Downloads, shelf: Shelf, failure: StorageError, seconds: str, path: str
) -> None:
    """503 with Retry-After, sooner where time may cure it, and nothing of what the store said."""
    shelf.failure = failure
    answer = ask(downloads, path)
    assert "10.0.0.7" not in problem(answer, 503)
    assert answer.headers["retry-after"] == seconds


def test_a_fault_of_ours_is_an_error_without_details(downloads: Downloads, shelf: Shelf) -> None:
    """500, and the log has the rest."""
    shelf.failure = RuntimeError("the secret is 42")
    assert "42" not in problem(ask(downloads, "/assets/fw.bin"), 500)


def test_what_is_not_configured_says_what_to_set(shelf: Shelf) -> None:
    """503: no token could ever be good, so 401 would be a lie."""
    without_bucket = ask(Downloads(RING, (), None), "/manifest")
    assert "BUCKET" in problem(without_bucket, 503)
    without_keys = ask(Downloads(Keyring.parse([]), (), shelf), "/manifest")
    assert "DEVICE_TOKEN_KEYS or ADMIN_TOKENS" in problem(without_keys, 503)
    assert without_keys.headers["retry-after"] == "60"


def test_neither_tokens_nor_signatures_are_logged(
    shelf: Shelf,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At DEBUG, whatever happens, with Powertools' own debug mode asked for."""
    monkeypatch.setenv("POWERTOOLS_DEV", "true")
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger.name)
    fresh = Downloads(RING, (ADMIN,), shelf)
    ask(fresh, "/assets/fw.bin")
    ask(fresh, "/assets/fw.bin", headers={"accept": "application/json"})
    ask(fresh, "/assets/none", headers={"authorization": f"Bearer {ADMIN}"})
    ask(fresh, "/nowhere")
    shelf.failure = RuntimeError("no")
    ask(fresh, "/assets/fw.bin")
    captured = capsys.readouterr()
    logged = "\n".join(printed(caplog)) + captured.out + captured.err + repr(fresh)
    assert "download refused" in logged
    for secret in (TOKEN, TOKEN.rpartition(".")[2], ADMIN, SIGNATURE):
        assert secret not in logged


def test_requests_on_many_threads_do_not_mix(shelf: Shelf) -> None:
    """Each device gets its own config while the others ask for theirs."""
    macs = [f"00-00-00-00-00-{n:02x}" for n in range(16)]
    for mac in macs:
        shelf.things[f"configs/{mac}.json"] = ObjectInfo(f"configs/{mac}.json", mac, 1, MODIFIED)
    shared = Downloads(RING, (), shelf)
    tokens = {mac: RING.mint(mac) for mac in macs}
    together = threading.Barrier(len(macs))

    def device(mac: str) -> list[tuple[int, str]]:
        together.wait(10)
        headers = {"authorization": f"Bearer {tokens[mac]}", "accept": "application/json"}
        answers = [ask(shared, f"/configs/{mac}.json", headers=headers) for _ in range(40)]
        return [(answer.status, answer.document.get("filename", "")) for answer in answers]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns at every chance
    try:
        with ThreadPoolExecutor(len(macs)) as pool:
            for mac, answers in zip(macs, pool.map(device, macs), strict=True):
                assert answers == [(200, f"{mac}.json")] * 40
    finally:
        sys.setswitchinterval(interval)


# --- the manifest


def walk(downloads: Downloads, limit: int, **parts: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - see `ask`
    """Every object of a manifest, page by page."""
    found: list[dict[str, Any]] = []
    query = f"limit={limit}"
    if extra := parts.pop("query", ""):
        query += f"&{extra}"
    following = ""
    for _ in range(100):
        page = ask(downloads, "/manifest", query=query + following, **parts).document
        assert len(page["objects"]) <= limit
        found += page["objects"]
        if page["next"] is None:
            return found
        following = f"&next={page['next']}"
    raise AssertionError("the manifest does not end")


ASSETS = ["a b+c%.bin", "fw.bin", "q?u#o\"t'e.bin"]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 1000])
def test_a_manifest_is_the_devices_config_and_then_every_asset(downloads: Downloads, limit: int) -> None:
    """In S3's order, whatever the size of a page, and only names that are announced."""
    found = walk(downloads, limit)
    assert [(one["kind"], one["filename"]) for one in found] == [
        ("config", f"{MAC}.json"),
        *(("asset", name) for name in ASSETS),
    ]
    assert found[0] == {
        "filename": f"{MAC}.json",
        "kind": "config",
        "etag": "etag-of-configs/aa-b"[:20],
        "size": 30,
        "last_modified": "2026-11-20T12:00:00Z",
        "version_id": "v1",
    }


def test_a_manifest_takes_one_list_for_a_page_and_one_head_in_all(downloads: Downloads, shelf: Shelf) -> None:
    """No call for an object."""
    walk(downloads, 1000)
    assert [question[0] for question in shelf.asked] == ["head", "list"]


def test_a_manifest_finds_the_config_in_either_case(downloads: Downloads, shelf: Shelf) -> None:
    """As the token spells it, then in lower, then in upper case; none is no error."""
    shelf.things["configs/AB-CD-EF-00-11-22.json"] = ObjectInfo("configs/AB-CD-EF-00-11-22.json", "e", 1, MODIFIED)
    for mac, config in (
        (MAC.upper(), f"{MAC}.json"),
        ("ab-cd-ef-00-11-22", "AB-CD-EF-00-11-22.json"),
        ("99-99-99-99-99-99", None),
    ):
        headers = {"authorization": f"Bearer {RING.mint(mac)}"}
        page = ask(downloads, "/manifest", headers=headers).document
        assert [one["filename"] for one in page["objects"] if one["kind"] == "config"] == ([config] if config else [])


def test_an_unchanged_manifest_is_not_sent_again(downloads: Downloads, shelf: Shelf) -> None:
    """304 by its ETag, until an object changes."""
    first = ask(downloads, "/manifest")
    held = {"if-none-match": first.headers["etag"]}
    again = ask(downloads, "/manifest", headers=held)
    assert (again.status, again.body, again.headers["etag"]) == (304, "", first.headers["etag"])
    shelf.things["assets/fw.bin"] = ObjectInfo("assets/fw.bin", "new", 1, MODIFIED)
    assert ask(downloads, "/manifest", headers=held).status == 200


def test_an_admins_manifest_is_everybodys_or_one_devices(downloads: Downloads) -> None:
    """All configs, then all assets; or, with `mac`, what that device would see."""
    headers = {"authorization": f"Bearer {ADMIN}"}
    for limit in (1, 2, 1000):
        everything = [one["filename"] for one in walk(downloads, limit, headers=headers)]
        assert everything == [f"{OTHER_MAC}.json", f"{MAC}.json", *ASSETS]
        one_device = walk(downloads, limit, query="mac=11:22:33:44:55:66", headers=headers)
        assert [one["filename"] for one in one_device] == [f"{OTHER_MAC}.json", *ASSETS]


def test_a_device_sees_no_manifest_but_its_own(downloads: Downloads, shelf: Shelf) -> None:
    """Its own MAC may be named; another's is absent."""
    assert ask(downloads, "/manifest", query=f"mac={MAC.upper()}").status == 200
    shelf.asked.clear()
    problem(ask(downloads, "/manifest", query=f"mac={OTHER_MAC}"), 404)
    assert shelf.asked == []


def test_a_cursor_is_good_for_the_token_and_the_device_it_was_given_to(downloads: Downloads) -> None:
    """Changed, shortened, another's, or another device's: 400."""
    cursor = ask(downloads, "/manifest", query="limit=2").document["next"]
    assert ask(downloads, "/manifest", query=f"next={cursor}").status == 200
    for place in range(0, len(cursor), 3):
        changed = cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
        problem(ask(downloads, "/manifest", query=f"next={changed}"), 400)
    problem(ask(downloads, "/manifest", query=f"next={cursor[:-4]}"), 400)
    another = {"authorization": f"Bearer {RING.mint(MAC)}"}
    problem(ask(downloads, "/manifest", query=f"next={cursor}", headers=another), 400)
    admin = {"authorization": f"Bearer {ADMIN}"}
    of_one = ask(downloads, "/manifest", query=f"limit=1&mac={MAC}", headers=admin).document["next"]
    problem(ask(downloads, "/manifest", query=f"mac={OTHER_MAC}&next={of_one}", headers=admin), 400)
    problem(ask(downloads, "/manifest", query=f"next={of_one}", headers=admin), 400)


def test_a_cursor_made_up_by_its_device_leads_to_no_other_config(downloads: Downloads, shelf: Shelf) -> None:
    """Who holds a token could compute a cursor's seal: it must open nothing."""
    from functions.devices.manifest import _seal_cursor  # noqa: PLC0415 - what an attacker would write himself

    for start_after in ("configs/", "configs/0", "", "secret", "\x00"):
        shelf.asked.clear()
        made_up = _seal_cursor(start_after, TOKEN, MAC)
        problem(ask(downloads, "/manifest", query=f"next={made_up}"), 400)
        assert shelf.asked == []


# --- the entry


def test_the_entry_answers_503_where_the_settings_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong variable is named in the log only, and is no exception for AWS to make a 502 of."""
    monkeypatch.setattr(download, "_downloads", None)
    monkeypatch.setenv("MQTT_QOS", "seven")
    answer = Answered.of(download.handler(http_event("/manifest"), CONTEXT))
    assert "MQTT_QOS" not in problem(answer, 503)


def test_the_entry_is_made_from_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And stays warm."""
    monkeypatch.setattr(download, "_downloads", None)
    for name, value in {"BUCKET": "devices", "DEVICE_TOKEN_KEYS": KEYS[0], "ADMIN_TOKENS": ADMIN}.items():
        monkeypatch.setenv(name, value)
    answer = Answered.of(download.handler(http_event("/manifest"), CONTEXT))
    problem(answer, 401)
    monkeypatch.setenv("MQTT_QOS", "seven")
    problem(Answered.of(download.handler(http_event("/manifest"), CONTEXT)), 401)
    monkeypatch.delenv("MQTT_QOS")
    made = Downloads.of(load().settings)
    assert made.keyring.verify(TOKEN).mac == MAC
    assert made.admin_tokens == (ADMIN,)


@pytest.mark.parametrize(
    ("variables", "loaded"),
    [
        ({}, False),
        ({"AWS_LAMBDA_FUNCTION_NAME": "download"}, True),
        ({"AWS_LAMBDA_FUNCTION_NAME": "download", "MQTT_QOS": "seven"}, False),
        ({"AWS_LAMBDA_FUNCTION_NAME": "download", "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}, False),
    ],
)
def test_boto3_is_imported_while_lambda_starts_and_nowhere_else(variables: dict[str, str], loaded: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """Elsewhere at the first request; a wrong setting stops no start, because each request says so."""
    environment = {"BUCKET": "devices", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", **variables}
    answer = subprocess.run(
        [sys.executable, "-c", "import functions.download, sys; print('boto3' in sys.modules)"],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert answer.stdout.split() == [str(loaded)]
