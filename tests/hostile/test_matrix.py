"""Every device's token against every device's config, in every way to ask: nobody reaches, or learns of, another's."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

import httpx
import jwt
import pytest

from functions.web.tokens import AUDIENCE, Keyring
from infra.local.stores import Minio
from tests.hostile.searching import FUZZ
from tests.hostile.wire import Answer, connected, next_answer, request
from tests.hosts import Host, environment

DEVICES = 12 if FUZZ else 3
BUCKET = "devices"
SECRET = b"0123456789abcdef0123456789ABCDEF"
RING = Keyring.parse([f"k1:{base64.b64encode(SECRET).decode()}"])
OTHER_RING = Keyring.parse([f"k1:{base64.b64encode(SECRET[::-1]).decode()}"])
ADMIN = "admin-token-0123456789"
VARYING = {"date", "location"}  # a signature holds the time


@dataclass(frozen=True, slots=True)
class Device:
    """A device and its config; `etag` and `version_id` as the store gave them, "" where there is none."""

    mac: str
    token: str
    body: bytes = b""
    etag: str = ""
    version_id: str = ""

    @property
    def name(self) -> str:
        """The config's file name, as it was uploaded."""
        return f"{self.mac}.json"


ABSENT = Device("0d-15-ab-5e-17-aa", "")
SINGLE = Device("a0-b0-c0-d0-e0-f0", RING.mint("a0-b0-c0-d0-e0-f0"))  # it has a token and no config


@pytest.fixture(scope="module")
def devices(minio: Minio) -> list[Device]:
    """Devices with a config each, every other one uploaded in upper case; and an asset for all."""
    found = []
    s3 = minio.client()
    s3.create_bucket(Bucket=BUCKET)
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for number in range(DEVICES):
        mac = f"aa-bb-cc-dd-ee-{number:02x}"
        mac = mac.upper() if number % 2 else mac
        body = json.dumps({"mac": mac, "canary": hashlib.sha256(mac.encode()).hexdigest()}).encode()
        answer = s3.put_object(Bucket=BUCKET, Key=f"configs/{mac}.json", Body=body)
        found.append(Device(mac, RING.mint(mac.lower()), body, answer["ETag"].strip('"'), answer["VersionId"]))
    s3.put_object(Bucket=BUCKET, Key="assets/firmware.bin", Body=b"for all")
    s3.close()
    return found


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, minio: Minio, devices: list[Device]) -> Iterator[Host]:
    """A host that knows the store and the keys, and does not count requests."""
    known = environment(
        None,
        BUCKET=BUCKET,
        AWS_ENDPOINT_URL=minio.endpoint_url,
        AWS_ACCESS_KEY_ID=minio.access_key,
        AWS_SECRET_ACCESS_KEY=minio.secret_key,
        S3_PUBLIC_ENDPOINT_URL=minio.endpoint_url,
        EVENTS_PREFIX="events/",
        DEVICE_TOKEN_KEYS=f"k1:{base64.b64encode(SECRET).decode()}",
        DEVICE_TOKENS_REVOKED=RING.verify(REVOKED).jti,
        ADMIN_TOKENS=ADMIN,
        DEVICE_REQUESTS_PER_MINUTE="0",
    )
    with Host(tmp_path_factory.mktemp("host"), known, ready=False) as running:
        yield running
        assert not running.lines("ERROR")
        assert "Traceback" not in running.log
        assert not [device for device in devices if device.token in running.log]


class Ask(Protocol):
    """Asks on a connection of its own."""

    def __call__(self, target: str, *fields: bytes, method: str = "GET", token: str = "") -> Answer:
        """The answer to one request; `target` as it stands on the wire."""


@contextmanager
def asking(host: Host) -> Iterator[Ask]:
    """One connection for all questions."""
    with connected(host) as sock, sock.makefile("rb") as stream:

        def ask(target: str, *fields: bytes, method: str = "GET", token: str = "") -> Answer:
            login = [f"Authorization: Bearer {token}".encode()] if token else []
            sock.sendall(request(f"{method} {target} HTTP/1.1".encode("latin-1"), *login, *fields))
            answer = next_answer(stream, method)
            assert answer is not None
            return answer

        yield ask


@pytest.fixture
def ask(host: Host) -> Iterator[Ask]:
    """As `asking`."""
    with asking(host) as one:
        yield one


def everywhere(text: str) -> str:
    """Every character percent-encoded."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


def targets(victim: Device, own: Device) -> dict[str, str]:
    """Every way to write where the victim's config is; `own` is the asker's."""
    name, mac = victim.name, victim.mac
    fullwidth = mac.translate({ord(c): 0xFEE0 + ord(c) for c in "abcdef0123456789ABCDEF"})
    return {
        "plain": f"/configs/{name}",
        "lower": f"/configs/{name.lower()}",
        "upper": f"/configs/{mac.upper()}.json",
        "mixed": f"/configs/{mac[:8].upper()}{mac[8:].lower()}.json",
        "encoded": f"/configs/{everywhere(name)}",
        "encoded whole": f"/{everywhere('configs/' + name)}",
        "encoded twice": f"/configs/{everywhere(everywhere(name))}",
        "slash encoded": f"/configs%2F{name}",
        "slash encoded twice": f"/configs%252F{name}",
        "two slashes": f"/configs//{name}",
        "leading slashes": f"//configs/{name}",
        "dot": f"/configs/./{name}",
        "up and down": f"/configs/../configs/{name}",
        "up and down encoded": f"/configs/%2e%2e%2fconfigs%2f{name}",
        "through one's own": f"/configs/{own.name}/../{name}",
        "through one's own encoded": f"/configs/{own.name}%2F..%2F{name}",
        "behind one's own": f"/configs/{own.name}{everywhere('/')}{name}",
        "both, comma": f"/configs/{own.name},{name}",
        "NUL behind": f"/configs/{name}%00",
        "NUL between": f"/configs/{own.name}%00{name}",
        "newline behind": f"/configs/{name}%0A",
        "blank behind": f"/configs/{name}%20",
        "slash behind": f"/configs/{name}/",
        "parameter behind": f"/configs/{name};{own.name}",
        "query": f"/configs/{name}?filename={own.name}&mac={own.mac}",
        "fragment": f"/configs/{name}#{own.name}",
        "query only": f"/configs/{own.name[:-5]}?filename={name}",
        "backslash": f"/configs\\{name}".replace("\\", "%5C"),
        "backslash up": f"/configs/x%5C..%5C{name}",
        "colons": f"/configs/{mac.replace('-', ':')}.json",
        "no separators": f"/configs/{mac.replace('-', '')}.json",
        "dots": f"/configs/{mac.replace('-', '.')}.json",
        "full width": f"/configs/{quote(fullwidth)}.json",
        "another end": f"/configs/{mac}.JSON",
        "no end": f"/configs/{mac}",
        "asset up": f"/assets/../configs/{name}",
        "asset up encoded": f"/assets/%2e%2e/configs/{name}",
        "asset up in the query": f"/assets?filename=../configs/{name}",
        "asset up encoded in the query": f"/assets?filename=..%2Fconfigs%2F{name}",
        "asset backslash": f"/assets?filename=..%5Cconfigs%5C{name}",
        "asset absolute": f"/assets?filename=/configs/{name}",
        "asset": f"/assets/configs/{name}",
        "asset of the bucket": f"/assets/../../{BUCKET}/configs/{name}",
        "asset filename twice": f"/assets?filename=firmware.bin&filename=../configs/{name}",
        "thumbnail": f"/thumbnails?filename=../configs/{name}&token={own.token}",
        "thumbnail path": f"/thumbnails/../configs/{name}?token={own.token}",
        "absolute form": f"http://bell/configs/{name}",
        "absolute form, userinfo": f"http://{own.mac}:x@bell/configs/{name}",
        "version": f"/configs/{name}?version_id={victim.version_id or ABSENT.mac}",
        "null version": f"/configs/{name}?version_id=null",
        "one's own with its version": f"/configs/{own.name[:-1]}n?version_id={victim.version_id or ABSENT.mac}&x=1",
    }


def forms(victim: Device, own: Device) -> dict[str, tuple[str, tuple[bytes, ...]]]:
    """Every other part of a question: method and fields."""
    etag = (victim.etag or "0" * 32).encode()
    path = f"/configs/{victim.name}".encode()
    return {
        "GET": ("GET", ()),
        "HEAD": ("HEAD", ()),
        "JSON": ("GET", (b"Accept: application/json",)),
        "has it": ("GET", (b'If-None-Match: "%b"' % etag,)),
        "has anything": ("HEAD", (b"If-None-Match: *",)),
        "rewritten": (
            "GET",
            (
                *(b"X-Original-URL: " + path, b"X-Rewrite-URL: " + path, b"X-Forwarded-Prefix: /configs"),
                *(b"X-HTTP-Method-Override: PUT", b"X-Device: " + victim.mac.encode()),
                *(b"Cookie: token=" + own.token.encode(), b"X-Forwarded-For: 127.0.0.1"),
            ),
        ),
    }


def same(answer: Answer, other: Answer) -> bool:
    """Whether nobody could tell them apart."""

    def shown(one: Answer) -> Answer:
        return replace(one, headers={name: value for name, value in one.headers.items() if name not in VARYING})

    return shown(answer) == shown(other)


def is_silent_of(answer: Answer, victim: Device) -> bool:
    """Whether nothing in it is the victim's config's."""
    said = (json.dumps(answer.headers) + answer.body.decode()).casefold()
    secrets = [
        victim.etag,
        victim.version_id,
        f"/configs/{victim.name}",
        hashlib.sha256(victim.mac.encode()).hexdigest(),
    ]
    return not any(secret and secret.casefold() in said for secret in secrets)


@pytest.mark.parametrize("asker", range(-1, DEVICES))
def test_no_device_reaches_or_learns_of_the_config_of_another(host: Host, devices: list[Device], asker: int) -> None:
    """Whatever the way to ask: 4xx, silent, and the same as for a config that is not there."""
    own = SINGLE if asker < 0 else devices[asker]
    asked = 0
    with asking(host) as ask:
        for victim in (device for device in devices if device != own):
            there, not_there = targets(victim, own), targets(ABSENT, own)
            for way, target in there.items():
                for form, (method, fields) in forms(victim, own).items():
                    answer = ask(target, *fields, method=method, token=own.token)
                    assert 400 <= answer.status < 500, (way, form, answer)
                    assert is_silent_of(answer, victim), (way, form, answer)
                    absent = ask(not_there[way], *forms(ABSENT, own)[form][1], method=method, token=own.token)
                    assert same(answer, absent), (way, form, answer, absent)
                    asked += 2
    assert asked >= (DEVICES - (asker >= 0)) * 2 * 250


@pytest.mark.parametrize("asker", range(DEVICES))
def test_a_device_reaches_its_own_config_and_the_assets(ask: Ask, devices: list[Device], asker: int) -> None:
    """As it was uploaded, byte for byte; and by no name that it was not uploaded under."""
    own = devices[asker]
    for target in (f"/configs/{own.name}", f"/configs/{everywhere(own.name)}", f"/configs%2F{own.name}"):
        answer = ask(target, token=own.token)
        assert answer.status == 307, target
        assert httpx.get(answer.headers["location"], trust_env=False).content == own.body
    other_case = own.name.swapcase().replace(".JSON", ".json")
    assert ask(f"/configs/{other_case}", token=own.token).status == 404
    assert ask("/assets/firmware.bin", token=own.token).status == 307
    listed = json.loads(ask("/manifest", token=own.token).body)["objects"]
    assert [entry["filename"] for entry in listed] == [own.name, "firmware.bin"]


def test_a_manifest_is_ones_own(ask: Ask, devices: list[Device]) -> None:
    """Nobody's config is on it but one's own, whoever is named, and no page of another leads there."""
    admins = json.loads(ask("/manifest?limit=1", token=ADMIN).body)
    for own in devices:
        mine = json.loads(ask("/manifest?limit=1", token=own.token).body)
        for victim in (device for device in devices if device != own):
            theirs = json.loads(ask("/manifest?limit=1", token=victim.token).body)
            for asked in (
                *(f"/manifest?mac={mac}" for mac in (victim.mac, victim.mac.swapcase(), victim.mac.replace("-", ":"))),
                *(f"/manifest?mac={own.mac}&mac={victim.mac}", f"/manifest?mac={victim.mac}&limit=1"),
                *(f"/manifest?next={theirs['next']}", f"/manifest?next={admins['next']}"),
                f"/manifest?next={mine['next']}&mac={victim.mac}",
            ):
                answer = ask(asked, token=own.token)
                assert answer.status in {400, 404}, asked
                assert is_silent_of(answer, victim)
            absent = ask(f"/manifest?mac={ABSENT.mac}", token=own.token)
            assert same(ask(f"/manifest?mac={victim.mac}", token=own.token), absent)


REVOKED = RING.mint("aa-bb-cc-dd-ee-00")


def worthless(mac: str) -> dict[str, str]:
    """Tokens for this device that open nothing."""
    claims = {"sub": mac, "aud": AUDIENCE, "iat": 1_700_000_000, "exp": 4_000_000_000, "jti": "made-up"}
    kid = {"kid": "k1"}
    good = RING.mint(mac)
    header, payload, signature = good.split(".")
    admin_payload = base64.urlsafe_b64encode(json.dumps(claims | {"admin": True}).encode()).decode().rstrip("=")
    return {
        "none": "",
        "revoked": REVOKED,
        "expired": RING.mint(mac, expires_seconds=60, now=1_700_000_000),
        "not yet": RING.mint(mac, now=3_900_000_000),
        "of another key": OTHER_RING.mint(mac),
        "for an object": RING.mint_for_object(f"configs/{mac}.json"),
        "of another audience": jwt.encode(claims | {"aud": "elsewhere"}, SECRET, "HS256", kid),
        "of two audiences": jwt.encode(claims | {"aud": ["elsewhere"]}, SECRET, "HS256", kid),
        "without an end": jwt.encode({k: v for k, v in claims.items() if k != "exp"}, SECRET, "HS256", kid),
        "without an id": jwt.encode({k: v for k, v in claims.items() if k != "jti"}, SECRET, "HS256", kid),
        "unsigned": jwt.encode(claims, None, "none", kid),  # type: ignore[arg-type]  # that is the point
        "another algorithm": jwt.encode(claims, SECRET * 2, "HS512", kid),
        "another key's id": jwt.encode(claims, SECRET, "HS256", {"kid": "k2"}),
        "no key's id": jwt.encode(claims, SECRET, "HS256"),
        "for all": jwt.encode(claims | {"sub": "*"}, SECRET, "HS256", kid),
        "for nobody": jwt.encode(claims | {"sub": ""}, SECRET, "HS256", kid),
        "for a path": jwt.encode(claims | {"sub": f"../configs/{mac}"}, SECRET, "HS256", kid),
        "without its signature": f"{header}.{payload}.",
        "with another's payload": f"{header}.{admin_payload}.{signature}",
        "cut": good[:-1],
        "longer": good + "A",
        "twice": f"{good},{good}",
        "an admin's, nearly": ADMIN[:-1],
        "an admin's, and more": ADMIN + "x",
        "an admin's in another case": ADMIN.upper(),
        "a store's": "t0ken-of-this-quarter",
    }


@pytest.mark.parametrize("kind", worthless("aa-bb-cc-dd-ee-00"))
def test_a_worthless_token_opens_nothing_and_tells_nothing(ask: Ask, devices: list[Device], kind: str) -> None:
    """401 for what is there and for what is not, in the same words, wherever it is put."""
    victim = devices[0]
    token = worthless(victim.mac)[kind]
    assert ask("/token", method="POST", token=token).status == 401
    places = [f"/configs/{{}}.json{extra}" for extra in ("", f"?token={quote(token)}", "?version_id=null")]
    places += ["/assets/../configs/{}.json", "/manifest?mac={}", "/thumbnails?filename=../configs/{}.json"]
    for place in places:
        for method, *fields in (
            ("GET",),
            ("HEAD",),
            ("GET", b"Accept: application/json"),
            ("GET", b"If-None-Match: *"),
        ):
            if method == "HEAD" and "manifest" in place:
                continue
            answer = ask(place.format(victim.mac), *fields, method=method, token=token)
            assert answer.status == 401, (place, method, answer)
            assert is_silent_of(answer, victim)
            assert same(answer, ask(place.format(ABSENT.mac), *fields, method=method, token=token))


def test_two_tokens_at_once_are_none(ask: Ask, devices: list[Device]) -> None:
    """Neither the first nor the last of several counts, though both are good."""
    own, victim = devices[0], devices[1]
    for first, second in ((own.token, victim.token), (own.token, ADMIN), (ADMIN, own.token)):
        both = f"Authorization: Bearer {second}".encode()
        assert ask(f"/configs/{victim.name}", both, token=first).status == 401
        assert ask(f"/configs/{victim.name}", token=f"{first}, Bearer {second}").status == 401


def test_an_administrator_reaches_every_config(ask: Ask, devices: list[Device]) -> None:
    """By its token, in a header."""
    for device in devices:
        answer = ask(f"/configs/{device.name}", token=ADMIN)
        assert httpx.get(answer.headers["location"], trust_env=False).content == device.body
        assert ask(f"/configs/{device.name}?token={ADMIN}").status == 401
    listed = json.loads(ask("/manifest", token=ADMIN).body)["objects"]
    assert {entry["filename"] for entry in listed} == {device.name for device in devices}


def test_a_presigned_url_opens_one_object_for_reading(ask: Ask, devices: list[Device]) -> None:
    """Nothing in it can be exchanged: neither the key, nor the version, nor the method."""
    with httpx.Client(trust_env=False) as http:
        for own in devices:
            url = ask(f"/configs/{own.name}?version_id={own.version_id}", token=own.token).headers["location"]
            assert http.get(url).content == own.body
            parts = urlsplit(url)
            bucket = f"{parts.scheme}://{parts.netloc}/{BUCKET}"
            for victim in (device for device in devices if device != own):
                for changed in (
                    url.replace(own.name, victim.name),
                    url.replace(own.version_id, victim.version_id).replace(own.name, victim.name),
                    url.replace(own.name, f"{own.name}/../{victim.name}"),
                    f"{bucket}/configs/{victim.name}?{parts.query}",
                    f"{bucket}?list-type=2&{parts.query}",
                ):
                    answer = http.get(changed)
                    assert answer.status_code in {400, 403, 404}, changed
                    assert victim.body not in answer.content
            for method in ("HEAD", "PUT", "DELETE", "POST"):
                assert http.request(method, url).status_code in {400, 403, 405}
            assert http.get(url).content == own.body


def test_the_matrix_is_not_empty(host: Host, devices: list[Device], tmp_path: Path) -> None:
    """A host that let everybody in would fail the tests above: they can tell."""
    del tmp_path
    with asking(host) as ask:
        answer = ask(f"/configs/{devices[1].name}", token=ADMIN)
        assert not is_silent_of(answer, devices[1])
        assert not same(answer, ask(f"/configs/{ABSENT.name}", token=ADMIN))
