"""Requests of devices and administrators, bent: tokens, paths, queries, headers, bodies and manifests' cursors."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from functions.admin.api import router as admin_router
from functions.admin.openapi import OPERATIONS
from functions.admin.operations import Administration
from functions.admin.uploads import Uploads
from functions.devices.api import router as devices_router
from functions.devices.downloads import Downloads
from functions.events.names import is_asset_path, is_config_name
from functions.events.routes import Routes
from functions.integration import NoLocalPublisher
from functions.s3.objects import MAX_PAGE_OBJECTS, ObjectInfo, Objects, Page, Presigned
from functions.settings import Settings, load
from functions.stored.store import ConfigStore
from functions.web.api_gateway import respond
from functions.web.tokens import Keyring, TokenError
from infra.migrations.runner import upgrade
from tests.databases import new_key, new_sqlite
from tests.gateway import http_event
from tests.hostile.searching import ODD_TEXTS, Draw, assert_discreet, damaged, leaks, mutants, strict_log, tries

MAC, OTHER_MAC = "aa-bb-cc-dd-ee-ff", "11-22-33-44-55-66"
SECRET = b"device-key-canary-0123456789abcd"
PRIVATE = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PRIVATE.public_key().public_bytes_raw()
HS, ED = (base64.b64encode(raw).decode() for raw in (SECRET, PRIVATE.private_bytes_raw()))
RING = Keyring.parse([f"hs:{HS}", f"ed:ed25519:{ED}"], revoked=["revoked"])
ADMIN = "admin-token-canary-0123456789"
MODIFIED = datetime(2026, 11, 20, 12, tzinfo=UTC)
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # huge values are the point


def coded(raw: bytes) -> str:
    """Base64 as in a token."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def claims(**changes: object) -> dict[str, Any]:
    """A good token's, with changes."""
    now = int(time.time())
    return {"sub": MAC, "aud": "bucketbell", "iat": now - 5, "exp": now + 600, "jti": "id", **changes}


# What keys somebody may try: ours for the other algorithm above all (RFC 8725 §2.1), and none at all.
SIGNERS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda _: b"",
    "hs": lambda text: hmac.digest(SECRET, text, "sha256"),
    "hs512": lambda text: hmac.digest(SECRET, text, "sha512"),
    "hs-empty": lambda text: hmac.digest(b"", text, "sha256"),
    "hs-by-public-key": lambda text: hmac.digest(PUBLIC, text, "sha256"),
    "hs-by-kid": lambda text: hmac.digest(b"hs", text, "sha256"),
    "ed": PRIVATE.sign,
    "ed-strange": ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).sign,
    "zeros": lambda _: bytes(32),
    "long": lambda text: text * 3,
}
KIDS: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(["hs", "ed", "hs\0", "HS", "", "../hs", "/dev/null", "' OR 1=1 --", "hs,ed", 0, None, ["hs"], {}]),
    ODD_TEXTS,
)
HEADERS = st.fixed_dictionaries(
    {
        "alg": st.sampled_from(
            ["HS256", "EdDSA", "none", "None", "nOnE", "HS512", "RS256", "ES256", "", 5, None, ["HS256"]]
        )
    },
    optional={
        "kid": KIDS,
        "typ": ODD_TEXTS,
        "crit": st.sampled_from([[], ["exp"], ["b64"], "exp", 5]),
        "b64": st.booleans(),
        "zip": st.just("DEF"),
        "jwk": st.just({"kty": "oct", "k": coded(b"k" * 32)}),
        "jku": st.just("http://127.0.0.1:1/keys"),
        "x5u": st.just("file:///etc/passwd"),
        "cty": st.just("JWT"),
    },
)
CLAIMS = mutants([claims(), claims(jti="revoked"), claims(sub=OTHER_MAC), claims(aud=["bucketbell"])], most=3)


@st.composite
def forgeries(draw: Draw) -> str:
    """A token of any header, claims and signature, now and then damaged; a good one among a few hundred."""
    header = draw(st.sampled_from([{"alg": "HS256", "kid": "hs"}, {"alg": "EdDSA", "kid": "ed"}]) | HEADERS)
    parts = [coded(json.dumps(one).encode()) for one in (header, draw(CLAIMS))]
    signature = SIGNERS[draw(st.sampled_from(sorted(SIGNERS)))](".".join(parts).encode())
    token = ".".join([*parts, coded(signature)])
    if draw(st.integers(0, 3)) == 0:
        token = draw(damaged(st.just(token.encode()), most=2)).decode("latin-1")
    return token


def is_ours(token: str) -> bool:
    """Whether one of our keys has signed exactly these bytes with the algorithm that is its own, by our own reading."""
    try:
        text, _, signature = token.rpartition(".")
        header = json.loads(base64.urlsafe_b64decode(text.partition(".")[0] + "=="))
        raw = base64.urlsafe_b64decode(signature + "==")
        if header["kid"] == "hs" and header["alg"] == "HS256":
            return hmac.compare_digest(raw, hmac.digest(SECRET, text.encode(), hashlib.sha256))
        if header["kid"] == "ed" and header["alg"] == "EdDSA":
            PRIVATE.public_key().verify(raw, text.encode())
            return True
    except Exception:  # noqa: BLE001 - whatever it is that is no token
        return False
    return False


@tries(300)
@given(forgeries())
def test_no_token_is_taken_that_our_key_did_not_sign(token: str) -> None:
    """By another algorithm, key or none: what is taken, one of our keys signed, for a device, and for now."""
    for verify in (RING.verify, RING.verify_for_object):
        try:
            said = verify(token)
        except TokenError as error:
            assert_discreet(SECRET.decode(), error)
            continue
        assert is_ours(token)
        payload = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        now = time.time()
        assert float(payload["exp"]) > now - 60
        assert payload["jti"] != "revoked"
        if not isinstance(said, str):
            assert payload["sub"] == said.mac
            assert is_config_name(f"{said.mac}.json")
            assert "bucketbell" in payload["aud"]
            assert payload["aud"] != "bucketbell/object"


GOOD = {mac: [RING.mint(mac), Keyring.parse([f"ed:ed25519:{ED}"]).mint(mac)] for mac in (MAC, OTHER_MAC)}


@tries(200)
@given(st.sampled_from([*GOOD[MAC], *GOOD[OTHER_MAC]]), st.data())
def test_a_changed_token_says_what_it_said_or_nothing(token: str, data: st.DataObject) -> None:
    """A few bits anywhere in it: nobody becomes another device by them."""
    said = RING.verify(token)
    changed = data.draw(damaged(st.just(token.encode()), most=2)).decode("latin-1")
    try:
        assert RING.verify(changed) == said
    except TokenError:
        return
    assert changed.rpartition(".")[0] == token.rpartition(".")[0]


class Shelf(Objects):
    """A bucket in memory, that remembers what was asked of it."""

    def __init__(self, keys: list[str]) -> None:
        self.things = {key: ObjectInfo(key, "etag", 7, MODIFIED, "v1") for key in keys}
        self.asked: list[str] = []

    def head(self, key: str, version_id: str = "", *, with_checksum: bool = False) -> ObjectInfo | None:
        """The object, at any version."""
        del with_checksum
        del version_id
        key.encode()
        self.asked.append(key)
        return self.things.get(key)

    def presign(self, key: str, *, version_id: str = "", filename: str) -> Presigned:
        """Something like a URL."""
        del version_id, filename
        return Presigned(f"https://s3.example.com/{quote(key)}?X-Amz-Signature=0f", MODIFIED)

    presign_picture = presign  # type: ignore[assignment]  # with a default for the name below

    def list_page(self, prefix: str, *, start_after: str = "", limit: int = MAX_PAGE_OBJECTS) -> Page:
        """The keys in S3's order."""
        start_after.encode()
        assert 1 <= limit <= MAX_PAGE_OBJECTS
        assert start_after.startswith(prefix)
        keys = sorted((key for key in self.things if key.startswith(prefix) and key > start_after), key=str.encode)
        return Page(tuple(self.things[key] for key in keys[:limit]), keys[limit - 1] if len(keys) > limit else "")


KEYS = [f"configs/{MAC}.json", f"configs/{OTHER_MAC}.json", "assets/a.bin", "assets/b/c.bin", "assets/d%.bin"]


def downloads(*keys: str) -> Downloads:
    """Downloads of these."""
    return Downloads(RING, (ADMIN,), Shelf([*KEYS, *keys]), events_prefix="events/")


def check(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer that any gateway can send: no 500, headers of one line of latin-1, a body of UTF-8."""
    assert 200 <= answer["statusCode"] < 500 or answer["statusCode"] == 503
    for name, value in answer["headers"].items():
        f"{name}{value}".encode("latin-1")
        assert not {"\r", "\n"} & set(f"{name}{value}")
    body = (answer.get("body") or "").encode()
    assert not leaks(ADMIN, body.decode())
    json.dumps(answer)
    return answer


PATHS = st.one_of(
    st.sampled_from(
        [*(f"/{key}" for key in KEYS), "/manifest", "/token", "/assets", "/thumbnails", "/thumbnails/c/e.jpg"]
    ),
    st.builds(
        "{}{}".format,
        st.sampled_from(["/configs/", "/assets/", "/assets", "/thumbnails/", "/manifest", "/"]),
        ODD_TEXTS,
    ),
)
QUERIES = st.lists(
    st.builds(
        "{}={}".format,
        st.sampled_from(["filename", "version_id", "token", "limit", "next", "mac", "x"]),
        ODD_TEXTS | st.sampled_from([MAC, OTHER_MAC, "a.bin", "1", "1000", "0", "v1", "%FF", *GOOD[MAC]]),
    ),
    max_size=4,
).map("&".join)
BEARERS = st.one_of(
    st.sampled_from([*GOOD[MAC], *GOOD[OTHER_MAC], ADMIN, ADMIN[:-1], RING.mint_for_object("events/c/e.jpg")]),
    forgeries(),
    ODD_TEXTS,
)
FIELDS = st.fixed_dictionaries(
    {"authorization": st.builds("{} {}".format, st.sampled_from(["Bearer", "bearer", "Basic", ""]), BEARERS)},
    optional={
        "accept": st.sampled_from(["application/json", "*/*", "application/json;q=0", ",;,;"]) | ODD_TEXTS,
        "if-none-match": st.sampled_from(['"etag"', 'W/"etag"', "*", '"' * 9000]) | ODD_TEXTS,
    },
)


@tries(250)
@given(st.sampled_from(["GET", "GET", "HEAD", "POST", "\u017f"]), PATHS, QUERIES, FIELDS)
def test_no_request_for_a_file_fails_or_gets_another_devices_config(
    method: str, path: str, query: str, fields: dict[str, str]
) -> None:
    """Any path, query and header: never a 500, and a config only for its device or an administrator."""
    ready = downloads()
    with strict_log() as said:
        answer = check(respond(devices_router(ready), http_event(path, method=method, query=query, headers=fields)))
    assert not leaks(ADMIN, said.getvalue())
    token = fields["authorization"].partition(" ")[2].strip()
    told = answer["headers"].get("Location", "") + str(answer.get("body"))
    for mac in (MAC, OTHER_MAC):
        if answer["statusCode"] in {200, 304, 307} and mac in told.casefold():
            assert token in {*GOOD[mac], ADMIN} or RING.verify(token).mac == mac


@tries(200)
@given(ODD_TEXTS | st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30), st.booleans())
def test_what_is_announced_is_what_a_device_gets(name: str, by_query: bool) -> None:  # noqa: FBT001 - drawn, not passed
    """The filename of a notification, asked for as the host's clients do, leads to that very key."""
    if not is_asset_path(name) or len(f"assets/{name}".encode()) > 1024:
        return
    ready = downloads(f"assets/{name}")
    path, query = ("/assets", f"filename={quote(name, safe='')}") if by_query else (f"/assets/{quote(name)}", "")
    event = http_event(unquote(path), query=query, headers={"authorization": f"Bearer {GOOD[MAC][0]}"})
    answer = check(respond(devices_router(ready), event))
    assert answer["statusCode"] == 307
    assert isinstance(ready.objects, Shelf)
    assert ready.objects.asked == [f"assets/{name}"]


@tries(200)
@given(st.data(), st.integers(1, 3))
def test_a_cursor_opens_only_what_it_was_given_for(data: st.DataObject, limit: int) -> None:
    """Bent, or shown by another device: it goes on where it stood, or is refused; it never leads to others' configs."""
    ready = downloads(*(f"assets/{number}" for number in range(9)))

    def page(token: str, following: str, **more: str) -> dict[str, Any]:
        query = "&".join(
            f"{name}={quote(value, safe='')}"
            for name, value in {"limit": str(limit), "next": following, **more}.items()
        )
        event = http_event("/manifest", query=query, headers={"authorization": f"Bearer {token}"})
        return check(respond(devices_router(ready), event))

    first = http_event("/manifest", query=f"limit={limit}", headers={"authorization": f"Bearer {GOOD[MAC][0]}"})
    given_one = json.loads(respond(devices_router(ready), first)["body"])["next"]
    whole = page(GOOD[MAC][0], given_one)
    assert whole["statusCode"] == 200
    raw = base64.urlsafe_b64decode(given_one + "=" * (-len(given_one) % 4))
    bent = data.draw(
        st.one_of(
            damaged(st.just(given_one.encode()), most=2).map(lambda one: one.decode("latin-1")),
            damaged(st.just(raw), most=2).map(coded),
            st.just(coded(raw[:16] + b"configs/")),
            ODD_TEXTS.filter(_is_text),
        )
    )
    token = data.draw(st.sampled_from([*GOOD[MAC], *GOOD[OTHER_MAC], ADMIN]))
    mac = data.draw(st.sampled_from([{}, {"mac": MAC}, {"mac": OTHER_MAC}]))
    answer = page(token, bent, **mac)
    if answer["statusCode"] == 200:
        assert token == GOOD[MAC][0]
        assert answer["body"] == whole["body"]
    else:
        assert answer["statusCode"] in {400, 404}


def _is_text(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


@pytest.fixture(scope="module")
def administration(tmp_path_factory: pytest.TempPathFactory) -> Administration:
    """With a database of its own, and nobody to connect to."""
    url = new_sqlite(tmp_path_factory.mktemp("settings"))
    upgrade(url)
    keys = {"DATABASE_URL": url, "ENCRYPTION_KEYS": new_key().get_secret_value(), "ADMIN_TOKENS": ADMIN}
    settings: Settings = load(keys | {"MQTT_TEST_ALLOWED_HOSTS": "192.0.2.1,::1"}).settings
    return Administration(settings, ConfigStore.of(settings), NoLocalPublisher())


PASSWORD = "p4ssw0rd-Kx7/canary+"
STORED = [
    {"broker_host": "b", "topic_prefix": "home", "username": "u", "password": PASSWORD},
    {
        "broker_host": "::1",
        "broker_port": 1,
        "topic_prefix": "a/b",
        "use_tls": True,
        "enabled": False,
        "password": None,
    },
    {"broker_host": "b", "topic_prefix": "x", "qos": 2, "username": "u", "password": None, "discovery_prefix": "ha"},
]
BODIES = st.one_of(
    mutants(STORED, most=3).map(json.dumps),
    damaged(mutants(STORED, most=1).map(lambda document: json.dumps(document).encode())).map(
        lambda raw: raw.decode("latin-1")
    ),
    ODD_TEXTS,
)


@tries(120)
@given(
    st.sampled_from([(one.method, one.path) for one in OPERATIONS] + [("PUT", "/api/v1/integrations/mqtt/config")] * 4),
    BODIES,
    st.fixed_dictionaries(
        {"content-type": st.sampled_from(["application/json", "application/json; charset=x", ""]) | ODD_TEXTS},
        optional={"if-match": st.sampled_from(['"1"', "*", 'W/"1"', '"' + "9" * 30 + '"', '"²"']) | ODD_TEXTS},
    ),
    st.tuples(
        st.sampled_from([ADMIN, ADMIN, ADMIN, ADMIN[:-1], "", GOOD[MAC][0]]),
        st.sampled_from(["", "x.bin", MAC, "configs/", "assets/a\0b", "x" * 1025, "2026-11-30T12:00:00Z"]) | ODD_TEXTS,
    ),
)
def test_no_request_of_an_administrator_fails(
    administration: Administration,
    operation: tuple[str, str],
    body: str,
    headers: dict[str, str],
    token_and_key: tuple[str, str],
) -> None:
    """Any settings are stored and read back the same, or refused field by field; no password comes back."""
    method, path = (
        operation[0],
        operation[1].replace("{camera_id}", quote(f"c{body[:20]}".replace("/", "_"), safe="", errors="replace")),
    )
    token, asked = token_and_key
    query = "&".join(f"{name}={quote(asked, safe='', errors='surrogatepass')}" for name in ("key", "since", "after"))
    event = http_event(path, method=method, query=query, headers=headers | {"authorization": f"Bearer {token}"})
    event["body"], event["isBase64Encoded"] = body, False
    if len(body) % 2:
        event["body"], event["isBase64Encoded"] = base64.b64encode(body.encode(errors="replace")).decode(), True
    with strict_log() as said:
        answer = check(respond(admin_router(administration, Uploads(Routes())), event))
    assert not leaks(PASSWORD, said.getvalue() + json.dumps(answer))
    if token != ADMIN:
        assert answer["statusCode"] == 401
    if method == "PUT" and answer["statusCode"] == 200:
        sent = json.loads(body)
        for name, value in json.loads(answer["body"]).items():
            if name in sent and name not in {"broker_host", "topic_prefix", "discovery_prefix"}:
                assert value == sent[name]
        again = http_event(path, headers={"authorization": f"Bearer {ADMIN}"})
        assert json.loads(respond(admin_router(administration, Uploads(Routes())), again)["body"]) == json.loads(
            answer["body"]
        )


def test_the_searches_begin_with_what_is_good(administration: Administration) -> None:
    """Unbent, each of these is taken: otherwise nothing but the door would be searched."""
    for token in GOOD[MAC]:
        assert RING.verify(token).mac == MAC
        assert is_ours(token)
    for document in copy.deepcopy(STORED):
        event = http_event(
            "/api/v1/integrations/mqtt/config",
            method="PUT",
            headers={"authorization": f"Bearer {ADMIN}", "content-type": "application/json"},
        )
        event["body"] = json.dumps(document)
        assert respond(admin_router(administration, Uploads(Routes())), event)["statusCode"] == 200
