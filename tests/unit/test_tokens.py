"""A device token says which device asks, for as long as its key, its id and its date stand."""

from __future__ import annotations

import base64
import json
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from functions.web import tokens
from functions.web.tokens import (
    LEEWAY_SECONDS,
    MAX_TOKEN_CHARACTERS,
    YEAR_SECONDS,
    Keyring,
    KeyringError,
    TokenError,
)

MAC = "aa-bb-cc-dd-ee-ff"
SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(1, 33))


def entry(kid: str = "new", secret: bytes = SECRET) -> str:
    """An HS256 key as DEVICE_TOKEN_KEYS has it."""
    return f"{kid}:{base64.b64encode(secret).decode()}"


RING = Keyring.parse([entry()])


def signed(
    claims: dict[str, Any] | None = None,
    *,
    kid: str | None = "new",
    secret: bytes | rsa.RSAPrivateKey = SECRET,
    alg: str = "HS256",
) -> str:
    """A token whose claims differ from a good one's; a claim of None is left out."""
    now = int(time.time())
    good: dict[str, Any] = {"sub": MAC, "aud": "bucketbell", "iat": now, "exp": now + 60, "jti": "id"}
    kept = {name: value for name, value in (good | (claims or {})).items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyJWT's, of short keys and odd claims: they are the point
        return jwt.encode(kept, secret, algorithm=alg, headers={} if kid is None else {"kid": kid})


def reason(token: str, ring: Keyring = RING) -> str:
    """Why `ring` refuses `token`."""
    with pytest.raises(TokenError) as caught:
        ring.verify(token)
    assert token not in str(caught.value) or not token
    assert caught.value.__cause__ is None
    return caught.value.reason


def test_a_minted_token_says_which_device_it_is_for_a_year() -> None:
    """The MAC keeps its case, the id is new each time, the key is named."""
    first, second = (RING.verify(RING.mint("AA:bb:cc:dd:ee:ff")) for _ in range(2))
    assert (first.mac, first.kid) == ("AA-bb-cc-dd-ee-ff", "new")
    assert first.jti != second.jti
    assert abs(first.expires_at.timestamp() - time.time() - YEAR_SECONDS) < 5


def test_its_claims_are_the_registered_ones_and_no_more() -> None:
    """Any JWT library reads it."""
    token = RING.mint(MAC, expires_seconds=60, now=1_000_000)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert {**claims, "jti": ""} == {"sub": MAC, "aud": "bucketbell", "iat": 1_000_000, "exp": 1_000_060, "jti": ""}
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT", "kid": "new"}


def test_keys_are_rotated_by_putting_a_new_one_in_front() -> None:
    """The first signs, all verify, and taking a key out takes its tokens out."""
    old = Keyring.parse([entry("old", OTHER_SECRET)])
    both = Keyring.parse([entry(), entry("old", OTHER_SECRET)])
    assert both.verify(old.mint(MAC)).kid == "old"
    assert both.verify(both.mint(MAC)).kid == "new"
    assert reason(old.mint(MAC)) == "unknown_kid"


def test_a_token_is_revoked_by_its_id() -> None:
    """One device's token goes, the others stay; the log learns which."""
    token, other = RING.mint(MAC), RING.mint(MAC)
    jti = RING.verify(token).jti
    ring = Keyring.parse([entry()], revoked=[jti])
    with pytest.raises(TokenError) as caught:
        ring.verify(token)
    assert (caught.value.reason, caught.value.kid, caught.value.jti) == ("revoked", "new", jti)
    assert ring.verify(other).mac == MAC


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"exp": int(time.time()) - LEEWAY_SECONDS - 5}, "expired"),
        ({"iat": int(time.time()) + 3600}, "not_yet_valid"),
        ({"nbf": int(time.time()) + 3600}, "not_yet_valid"),
        ({"aud": "elsewhere"}, "wrong_audience"),
        *(({claim: None}, "missing_claim") for claim in ("sub", "exp", "iat", "jti", "aud")),
        ({"sub": "gateway-7"}, "bad_subject"),
        ({"sub": "AABBCCDDEEFF"}, "bad_subject"),
        ({"sub": f"{MAC}\n"}, "bad_subject"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": 10**30}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
    ],
)
def test_a_good_signature_does_not_make_bad_claims_good(claims: dict[str, Any], expected: str) -> None:
    """Dates, audience and subject are checked, and none of them may be missing."""
    assert reason(signed(claims)) == expected


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -5), ("iat", 5)])
def test_clocks_may_differ_a_little(claim: str, seconds: int) -> None:
    """Within the leeway a token is in force."""
    assert RING.verify(signed({claim: int(time.time()) + seconds})).mac == MAC


def test_the_log_learns_the_id_of_a_token_that_expired_but_not_of_a_forged_one() -> None:
    """What is named in the log is vouched for by a key."""
    late = int(time.time()) - 3600
    for token, jti in ((signed({"exp": late}), "id"), (signed({"exp": late}, secret=OTHER_SECRET), "")):
        with pytest.raises(TokenError) as caught:
            RING.verify(token)
        assert caught.value.jti == jti


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens whose signature was checked, as often as it was."""
    seen: list[str] = []
    decode = jwt.decode

    def spy(token: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - PyJWT's
        seen.append(token)
        return decode(token, *arguments, **options)

    monkeypatch.setattr(jwt, "decode", spy)
    return seen


def test_a_good_token_is_checked_once_and_a_bad_one_each_time(checked: list[str]) -> None:
    """What is remembered is that a signature was good, never that one was not."""
    ring = Keyring.parse([entry()])
    good, bad = ring.mint(MAC), signed({"aud": "elsewhere"})
    assert {ring.verify(good) for _ in range(3)} == {Keyring.parse([entry()]).verify(good)}
    assert checked.count(good) == 2  # once by each ring
    assert [reason(bad, ring) for _ in range(3)] == ["wrong_audience"] * 3
    assert checked.count(bad) == 6  # and each time once more for its id


@pytest.mark.parametrize("exp", [2_000_000_000, 2_000_000_000.9])
def test_a_remembered_token_expires_to_the_second_as_a_new_one_does(
    monkeypatch: pytest.MonkeyPatch, exp: float
) -> None:
    """At `exp` and the leeway, by its reason and its id."""
    ring = Keyring.parse([entry()])
    token = signed({"exp": exp})
    ring.verify(token)
    for seconds, in_force in ((LEEWAY_SECONDS - 0.01, True), (LEEWAY_SECONDS, False), (LEEWAY_SECONDS - 0.01, True)):
        moment = 2_000_000_000 + seconds
        monkeypatch.setattr(tokens, "time", SimpleNamespace(time=lambda moment=moment: moment))
        if in_force:
            assert ring.verify(token).jti == "id"
            continue
        with pytest.raises(TokenError) as caught:
            ring.verify(token)
        assert (caught.value.reason, caught.value.kid, caught.value.jti) == ("expired", "new", "id")


def test_a_ring_with_other_revocations_remembers_nothing_of_the_first() -> None:
    """A token that was good is out at once."""
    ring = Keyring.parse([entry()])
    token = ring.mint(MAC)
    assert reason(token, replace(ring, revoked=frozenset({ring.verify(token).jti}))) == "revoked"
    assert ring.verify(token).mac == MAC


def test_no_more_tokens_are_remembered_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, checked: list[str]
) -> None:
    """The one that was asked for longest ago goes first."""
    monkeypatch.setattr(tokens, "MAX_REMEMBERED_TOKENS", 2)
    ring = Keyring.parse([entry()])
    first, second, third = (ring.mint(MAC) for _ in range(3))
    for token in (first, second, first, third, first, second):
        ring.verify(token)
    assert checked == [first, second, third, second]


def test_only_an_unknown_token_of_a_known_key_costs_a_signature(checked: list[str]) -> None:
    """Length, form and key are told without one; so is what is remembered, a link's and a revoked one too."""
    ring = Keyring.parse([entry()])
    device, link, revoked = ring.mint(MAC), ring.mint_for_object("events/1.jpg"), ring.mint(MAC)
    assert [ring.needs_signature(token) for token in (device, link)] == [True, True]
    ring.verify(device)
    ring.verify_for_object(link)
    ring.verify(revoked)
    for worthless in ("", "x", "a.b.c", "é.é.é", device + "x" * 2048, signed(kid="other"), signed(kid=None)):
        assert not ring.needs_signature(worthless)
    assert [ring.needs_signature(token) for token in (device, link, revoked)] == [False] * 3
    assert ring.needs_signature(device[:-4] + "AAAA")
    assert reason(link, ring) == "wrong_audience"
    with pytest.raises(TokenError, match="wrong_audience"):
        ring.verify_for_object(device)
    before = len(checked)
    assert reason(signed(secret=b"0" * 32), ring) == "bad_signature"
    assert len(checked) == before + 1  # not once more for an id that nobody vouches for


def test_threads_do_not_mix_remembered_tokens() -> None:
    """Each gets what its own token says, remembered or not."""
    ring = Keyring.parse([entry()])
    minted = {ring.mint(f"00-00-00-00-00-{n:02x}"): f"00-00-00-00-00-{n:02x}" for n in range(16)}
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda token: ring.verify(token).mac, list(minted) * 20)) == list(minted.values()) * 20


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    """The public half, as an attacker knows it."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def unsigned(header: dict[str, Any], claims: dict[str, Any] | None = None, signature: str = "") -> str:
    """A token put together by hand."""
    now = int(time.time())
    body = claims or {"sub": MAC, "aud": "bucketbell", "iat": now, "exp": now + 60, "jti": "id"}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, body)]
    return ".".join([*parts, signature])


def test_the_key_says_which_algorithm_not_the_token() -> None:
    """`none`, another HMAC, RSA, and a public key used as an HMAC secret are refused."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert reason(unsigned({"alg": "none", "kid": "new"})) == "wrong_algorithm"
    assert reason(unsigned({"alg": "None", "kid": "new"}, signature="AA")) == "wrong_algorithm"
    assert reason(signed(alg="HS512")) == "wrong_algorithm"
    assert reason(signed(alg="RS256", secret=private)) == "wrong_algorithm"
    ed = ed25519.Ed25519PrivateKey.generate()
    public = ed.public_key().public_bytes_raw()
    ring = Keyring.parse([f"new:ed25519-public:{base64.b64encode(public).decode()}"])
    assert reason(signed(secret=public), ring) == "wrong_algorithm"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (signed(kid="unheard-of"), "unknown_kid"),
        (signed(kid=None), "unknown_kid"),
        (signed(secret=OTHER_SECRET), "bad_signature"),
        (signed()[:-4] + "AAAA", "bad_signature"),
        (signed().rpartition(".")[0] + ".", "bad_signature"),
        ("", "malformed"),
        ("a.b", "malformed"),
        ("...", "malformed"),
        ("é.é.é", "malformed"),
        (signed() + "," + signed(), "malformed"),
        ("x" * (MAX_TOKEN_CHARACTERS + 1), "too_long"),
        ("x" * 8192, "too_long"),
        (unsigned({"alg": "HS256", "kid": 7}), "malformed"),
        (unsigned({"alg": "HS256", "kid": ["new"]}), "malformed"),
        (base64.urlsafe_b64encode(b"[" * 1400).decode().rstrip("=") + ".e30.AA", "malformed"),
    ],
    ids=lambda value: value[:24],
)
def test_whatever_is_no_token_is_refused_with_a_reason(token: str, expected: str) -> None:
    """Forged, cut, doubled, too long, not ASCII, nested: a slug, and no exception of another kind."""
    assert reason(token) == expected


@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_any_text_is_refused_without_surprise(text: str) -> None:
    """Nothing but TokenError ever comes out."""
    for token in (text, f"{text}.{text}.{text}"):
        with pytest.raises(TokenError):
            RING.verify(token)


def test_ed25519_keys_sign_and_verify_where_cryptography_is_installed() -> None:
    """A private key does both; a public one verifies only, and another's token is none."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = "ed:ed25519:" + base64.b64encode(key.private_bytes_raw()).decode()
    public = "ed:ed25519-public:" + base64.b64encode(key.public_key().public_bytes_raw()).decode()
    token = Keyring.parse([private]).mint(MAC)
    assert Keyring.parse([public]).verify(token).mac == MAC
    with pytest.raises(KeyringError, match="DEVICE_TOKEN_KEYS"):
        Keyring.parse([public]).mint(MAC)
    assert Keyring.parse([public, entry()]).verify(Keyring.parse([public, entry()]).mint(MAC)).kid == "new"
    stranger = "ed:ed25519:" + base64.b64encode(ed25519.Ed25519PrivateKey.generate().private_bytes_raw()).decode()
    assert reason(Keyring.parse([stranger]).mint(MAC), Keyring.parse([public])) == "bad_signature"


def test_without_cryptography_an_ed25519_key_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the package."""
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(KeyringError, match="cryptography"):
        Keyring.parse(["ed:ed25519:" + base64.b64encode(bytes(32)).decode()])


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "kidonly",
        base64.b64encode(SECRET).decode(),
        entry(kid=""),
        entry(kid="a b"),
        entry(kid="k" * 65),
        entry(secret=SECRET[:31]),
        "new:not*base64*" + "A" * 60,
        "new:hs512:" + base64.b64encode(SECRET).decode(),
        "new:ed25519:" + base64.b64encode(SECRET[:31]).decode(),
        "new:ed25519:" + base64.b64encode(SECRET * 2).decode(),
    ],
)
def test_a_bad_key_is_named_by_variable_and_place_and_never_shown(bad: str) -> None:
    """The error says DEVICE_TOKEN_KEYS and which entry, and repeats none of it."""
    with pytest.raises(KeyringError) as caught:
        Keyring.parse([entry("first", OTHER_SECRET), bad])
    assert "DEVICE_TOKEN_KEYS: entry 2" in str(caught.value)
    assert len(bad) < 8 or bad.rpartition(":")[2] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_two_keys_with_one_id_are_refused() -> None:
    """Nobody could tell which of them a token means."""
    with pytest.raises(KeyringError, match="same id"):
        Keyring.parse([entry(), entry(secret=OTHER_SECRET)])


def test_base64_of_either_alphabet_is_read_with_or_without_padding() -> None:
    """`openssl rand -base64 32` and Python's urlsafe form are the same key."""
    secret = bytes([251, 239, 190] * 11)
    forms = [base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode().rstrip("=")]
    assert forms[0] != forms[1]
    token = Keyring.parse([f"k:{forms[0]}"]).mint(MAC)
    assert Keyring.parse([f"k:{forms[1]}"]).verify(token).mac == MAC


def test_no_key_is_shown_by_the_ring() -> None:
    """Neither its repr nor its keys' hold the secret."""
    assert repr(SECRET)[2:-1] not in repr(RING)


def test_inspecting_explains_a_token_without_its_signature() -> None:
    """Header, claims and a verdict, also of a token that is worth nothing."""
    seen = RING.inspect(RING.mint(MAC))
    assert (seen.header["kid"], seen.claims["sub"], seen.reason) == ("new", MAC, "")
    forged = signed(secret=OTHER_SECRET)
    assert RING.inspect(forged).reason == "bad_signature"
    assert forged.rpartition(".")[2] not in repr(RING.inspect(forged))
    with pytest.raises(TokenError, match="malformed"):
        RING.inspect("nothing of the kind")


# --- one object


def test_a_token_for_an_object_names_it_and_ends() -> None:
    """Its key comes back as it was, in any script; a year by default."""
    key = "events/Küche 1/☃.jpg"
    token = RING.mint_for_object(key)
    assert RING.verify_for_object(token) == key
    claims = RING.inspect(token).claims
    assert claims["exp"] - claims["iat"] == YEAR_SECONDS
    with pytest.raises(TokenError, match="expired"):
        RING.verify_for_object(RING.mint_for_object(key, expires_seconds=-LEEWAY_SECONDS - 1))


def test_no_kind_of_token_passes_for_the_other() -> None:
    """A device's token opens no picture, and a picture's makes nobody a device: not even one called by a MAC."""
    with pytest.raises(TokenError, match="wrong_audience"):
        RING.verify(RING.mint_for_object(MAC))
    with pytest.raises(TokenError, match="wrong_audience"):
        RING.verify_for_object(RING.mint(MAC))


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (lambda good: good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB"), "bad_signature"),
        (lambda good: ".".join(("e30", *good.split(".")[1:])), "unknown_kid"),
        (lambda good: good + "é", "malformed"),
        (lambda good: good + "x" * MAX_TOKEN_CHARACTERS, "too_long"),
        (lambda _: "", "malformed"),
        (lambda _: signed({"aud": "bucketbell/object"}, secret=OTHER_SECRET), "bad_signature"),
        (lambda _: signed({"aud": "bucketbell/object", "exp": None}), "missing_claim"),
    ],
    ids=range(7),
)
def test_a_token_for_an_object_is_checked_as_a_devices_is(token: Callable[[str], str], reason: str) -> None:
    """By key, signature, form and claims."""
    with pytest.raises(TokenError, match=reason):
        RING.verify_for_object(token(RING.mint_for_object("events/a/b.jpg")))


def test_a_token_for_an_object_can_be_revoked() -> None:
    """By its id, as any other."""
    token = RING.mint_for_object("events/a/b.jpg")
    revoking = Keyring.parse([entry()], revoked=[str(RING.inspect(token).claims["jti"])])
    with pytest.raises(TokenError, match="revoked"):
        revoking.verify_for_object(token)


def test_who_has_public_keys_alone_cannot_sign() -> None:
    """Nor has who has none."""
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    assert not Keyring.parse([f"p:ed25519-public:{base64.b64encode(raw).decode()}"]).can_sign
    assert not Keyring.parse([]).can_sign
    assert RING.can_sign
