"""A device gets its next token for the one that it has: under the same id, by the first key, one a day."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from functions import download
from functions.devices.api import router
from functions.devices.downloads import Downloads
from functions.s3.objects import Objects
from functions.telemetry import logger
from functions.web.tokens import DAY_SECONDS, YEAR_SECONDS, DeviceToken, Keyring, TokenError
from infra.device.held_token import HeldToken
from infra.device.store import DeviceStore
from tests.gateway import CONTEXT, Answered, http_event

MAC = "AA-bb-cc-dd-ee-ff"
NOW = 1_800_000_000
TODAY = NOW // DAY_SECONDS * DAY_SECONDS
OLD_KEY, NEW_KEY = (f"{kid}:{base64.b64encode(kid.encode() * 16).decode()}" for kid in ("k1", "k2"))
OLD, NEW, BOTH = Keyring.parse([OLD_KEY]), Keyring.parse([NEW_KEY]), Keyring.parse([NEW_KEY, OLD_KEY])
ADMIN = "admin-token-0123456789"


class Nothing(Objects):
    """A bucket that nobody asks."""

    def __init__(self) -> None:
        pass


def ask(ring: Keyring, token: str, method: str = "POST", path: str = "/token", **parts: Any) -> Answered:  # noqa: ANN401
    """Ask as whoever has this token."""
    downloads = Downloads(ring, (ADMIN,), Nothing())
    return Answered.by(
        router(downloads), http_event(path, method=method, headers={"authorization": f"Bearer {token}"}, **parts)
    )


def claims(token: str) -> dict[str, Any]:
    """What a token says."""
    return dict(jwt.decode(token, options={"verify_signature": False}))


def test_the_next_token_is_the_same_devices_for_a_year_by_the_first_key() -> None:
    """Subject and id stay; so a fleet moves to a new key."""
    before = OLD.verify(OLD.mint(MAC, now=time.time() - 300 * DAY_SECONDS))
    minted = BOTH.renew(before)
    after = NEW.verify(minted.token)
    assert after == minted.said
    assert (after.mac, after.jti, after.kid) == (MAC, before.jti, "k2")
    assert after.expires_at.timestamp() - after.issued_at.timestamp() == YEAR_SECONDS
    assert abs(after.expires_at.timestamp() - time.time() - YEAR_SECONDS) <= DAY_SECONDS
    assert minted.token not in repr(minted)


def test_revoking_the_id_of_any_revokes_them_all() -> None:
    """One that was stolen and renewed itself ends with the first, whichever of them a person looks at."""
    first = BOTH.mint(MAC, now=time.time() - 200 * DAY_SECONDS)
    second = BOTH.renew(BOTH.verify(first), now=time.time() - 100 * DAY_SECONDS).token
    third = BOTH.renew(BOTH.verify(second)).token
    assert len({first, second, third}) == 3
    for seen in (first, second, third):
        ring = Keyring.parse([NEW_KEY, OLD_KEY], revoked=[claims(seen)["jti"]])
        for token in (first, second, third):
            with pytest.raises(TokenError) as caught:
                ring.verify(token)
            assert caught.value.reason == "revoked"
            assert ask(ring, token).status == 401


def test_the_next_token_is_the_same_one_all_day() -> None:
    """However often it is asked for, and with whichever of the two: nobody collects many."""
    before = OLD.issue(MAC, now=NOW - 200 * DAY_SECONDS).said
    of_today = {OLD.renew(before, now=TODAY + second).token for second in (0, 1, DAY_SECONDS - 1)}
    assert len(of_today) == 1
    after = OLD.renew(before, now=TODAY).said
    assert {OLD.renew(after, now=NOW).token} == of_today
    assert {OLD.renew(before, now=TODAY + DAY_SECONDS).token}.isdisjoint(of_today)


def test_it_never_ends_earlier_than_the_one_before() -> None:
    """One of ten years is renewed, too: by a new key, to its own end."""
    before = OLD.issue(MAC, expires_seconds=10 * YEAR_SECONDS, now=NOW).said
    after = BOTH.renew(before, now=NOW + YEAR_SECONDS).said
    assert (after.expires_at, after.kid) == (before.expires_at, "k2")
    assert BOTH.renew(OLD.issue(MAC, now=NOW).said, now=NOW + 1).said.expires_at.timestamp() == NOW + YEAR_SECONDS


def test_a_device_is_answered_and_counted_and_no_token_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """200 with the token and its end, never from a cache; the log has the id."""
    token = OLD.mint(MAC, now=time.time() - 200 * DAY_SECONDS)
    counted: list[int] = []
    downloads = Downloads(BOTH, (), Nothing())
    event = http_event("/token", method="POST", headers={"authorization": f"Bearer {token}"})
    answer = Answered.by(router(downloads, lambda: counted.append(1)), event)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert set(answer.document) == {"token", "expires_at"}
    said = NEW.verify(answer.document["token"])
    assert answer.document["expires_at"] == f"{said.expires_at:%Y-%m-%dT%H:%M:%SZ}"
    assert counted == [1]
    form = logger.registered_formatter
    printed = "".join(form.format(one) for one in caplog.records if one.name == logger.name)
    assert said.jti in printed
    for one in (token, answer.document["token"]):
        assert one.split(".")[2] not in printed


@pytest.mark.parametrize(
    ("token", "status", "words"),
    [
        (ADMIN, 403, "device's own"),
        (OLD.mint(MAC, expires_seconds=30 * DAY_SECONDS), 403, "less than a year"),
        (OLD.mint(MAC, expires_seconds=YEAR_SECONDS - 1), 403, "less than a year"),
        (OLD.mint_for_object("events/a/b.jpg", expires_seconds=YEAR_SECONDS), 401, "valid bearer token"),
        (OLD.mint(MAC, now=time.time() - YEAR_SECONDS - 60), 401, "valid bearer token"),
        (NEW.mint(MAC), 401, "valid bearer token"),
        ("", 401, "valid bearer token"),
    ],
    ids=["administrator", "short", "a second short", "picture", "expired", "unknown key", "none"],
)
def test_nobody_else_gets_one(token: str, status: int, words: str) -> None:
    """Administrators make tokens by command; what was made for a short time is to end; a picture's token is none."""
    answer = ask(OLD, token)
    assert answer.status == status
    assert words in answer.document["detail"]
    assert "token" not in answer.document


def test_a_token_in_the_address_is_none() -> None:
    """Only a link to a picture may carry one."""
    query = f"token={OLD.mint(MAC)}"
    assert (
        Answered.by(router(Downloads(OLD, (), Nothing())), http_event("/token", method="POST", query=query)).status
        == 401
    )


def test_only_post_renews() -> None:
    """Whatever prefetches links gets nothing."""
    answer = ask(OLD, OLD.mint(MAC), method="GET")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_a_host_that_only_verifies_says_so() -> None:
    """Its keys are public ones: tokens are made elsewhere, and nothing is logged as broken."""
    private = ed25519.Ed25519PrivateKey.generate()
    signing = base64.b64encode(private.private_bytes_raw()).decode()
    verifying = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    token = Keyring.parse([f"k3:ed25519:{signing}"]).mint(MAC)
    assert ask(Keyring.parse([f"k3:ed25519:{signing}"]), token).status == 200
    answer = ask(Keyring.parse([f"k3:ed25519-public:{verifying}"]), token)
    assert (answer.status, answer.document["detail"]) == (403, "No key here signs: tokens are made elsewhere.")


def test_the_function_on_lambda_counts_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The same route, and one line for CloudWatch."""
    monkeypatch.setattr(download, "_downloads", None)
    monkeypatch.setattr(download, "_router", None)
    monkeypatch.setattr(download, "_renewal", None)
    for name, value in {
        "DEVICE_TOKEN_KEYS": OLD_KEY,
        "BUCKET": "devices",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)
    headers = {"authorization": f"Bearer {OLD.mint(MAC)}"}
    answer = download.handler(http_event("/token", method="POST", headers=headers), CONTEXT)
    assert answer["statusCode"] == 200
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "_aws" in one]
    assert json.loads(line)["device_tokens_renewed_total"] == 1


# What the reference device keeps.


class Shown:
    """A held token of one store, and the time."""

    def __init__(self, directory: Path, given: str) -> None:
        self.now = float(NOW)
        self.store = DeviceStore(directory)
        self.held = HeldToken(given, self.store, clock=lambda: self.now)

    @property
    def token(self) -> str:
        """What is shown."""
        return self.held.headers["Authorization"].removeprefix("Bearer ")


def test_it_is_renewed_when_half_of_its_life_is_over(tmp_path: Path) -> None:
    """Not before; and never if nobody can tell."""
    shown = Shown(tmp_path, OLD.mint(MAC, now=NOW))
    for seconds, is_due in ((0, False), (YEAR_SECONDS / 2 - 1, False), (YEAR_SECONDS / 2 + 1, True)):
        shown.now = NOW + seconds
        assert shown.held.is_due is is_due
    shown.store.close()
    for odd in ("opaque", "a.b.c", "..", f"x.{base64.urlsafe_b64encode(b'[1]').decode()}.y", "x.eyJleHAiOiAiMSJ9.y"):
        assert not HeldToken(odd, clock=lambda: 1e12).is_due


def test_the_old_token_is_kept_until_the_new_one_was_accepted(tmp_path: Path) -> None:
    """Also over a restart; only the owner can read the note."""
    first = OLD.mint(MAC, now=NOW)
    second = OLD.renew(_said(first), now=NOW + 200 * DAY_SECONDS).token
    shown = Shown(tmp_path, first)
    shown.held.replace(second)
    assert shown.token == second
    note = tmp_path / ".bucketbell" / "token.json"
    assert note.stat().st_mode & 0o777 == 0o600
    shown.store.close()

    again = Shown(tmp_path, first)
    assert again.token == second
    assert again.held.step_back()
    assert again.token == first
    assert not again.held.step_back()
    again.held.replace(second)
    again.held.accepted()
    assert again.store.tokens() == (second,)
    again.store.close()

    third = Shown(tmp_path, first)
    assert third.token == second
    third.store.close()


def test_another_token_that_is_given_wins(tmp_path: Path) -> None:
    """What came of the one before is a stranger to it."""
    first = OLD.mint(MAC, now=NOW)
    shown = Shown(tmp_path, first)
    shown.held.replace(OLD.renew(_said(first), now=NOW + 200 * DAY_SECONDS).token)
    shown.store.close()
    other = OLD.mint(MAC, now=NOW)
    given = Shown(tmp_path, other)
    assert given.token == other
    given.store.close()


@pytest.mark.parametrize("note", [b"", b"[]", b'{"tokens": 5}', b'{"tokens": [5, null]}', b"\xff"])
def test_a_note_that_makes_no_sense_is_none(tmp_path: Path, note: bytes) -> None:
    """The given token is shown."""
    (tmp_path / ".bucketbell").mkdir()
    (tmp_path / ".bucketbell" / "token.json").write_bytes(note)
    first = OLD.mint(MAC, now=NOW)
    shown = Shown(tmp_path, first)
    assert shown.token == first
    shown.store.close()


def _said(token: str) -> DeviceToken:
    """What a token says whose time is not now."""
    before = claims(token)
    return replace(OLD.issue(MAC, now=before["iat"]).said, jti=before["jti"])
