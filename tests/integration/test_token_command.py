"""`bucketbell token` as a person or a script runs it."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from functions.web.tokens import Keyring

BUCKETBELL = Path(sys.executable).with_name("bucketbell")
DEADLINE_SECONDS = 60.0
YEAR_SECONDS = 365 * 24 * 3600
MAC = "a1-b2-c3-d4-e5-f6"
KEY, OLD_KEY = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
KEYS = f"2026:{KEY},2025:{OLD_KEY}"
RING, OLD_RING = Keyring.parse([f"2026:{KEY}"]), Keyring.parse([f"2025:{OLD_KEY}"])


def run(directory: Path, *arguments: str, said: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `bucketbell token` to its end, with a bare environment and the two keys unless `variables` say otherwise."""
    bare = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONWARNINGS": "error", "COLUMNS": "200"}
    return subprocess.run(
        [BUCKETBELL, "token", *arguments],
        cwd=directory,
        env={**bare, "DEVICE_TOKEN_KEYS": KEYS, **variables},
        input=said,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", [(MAC,), ("A1:B2:C3:D4:E5:F6",), ("mint", "a1b2c3d4e5f6"), ("mint", "--expires", "1y", MAC)]
)
def test_the_token_stands_alone_on_standard_output(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """One line; signed by the first key, for that device, for a year."""
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    device = RING.verify(done.stdout.strip())
    assert (device.mac.lower(), device.kid) == (MAC, "2026")
    assert device.expires_at.timestamp() - time.time() == pytest.approx(YEAR_SECONDS, abs=60)


@pytest.mark.parametrize(
    ("expires", "seconds"), [("90s", 90), ("2m", 120), ("12h", 43_200), ("30d", 2_592_000), ("10y", 10 * YEAR_SECONDS)]
)
def test_it_ends_when_it_is_told_to(tmp_path: Path, expires: str, seconds: int) -> None:
    """A number and a unit."""
    device = RING.verify(run(tmp_path, MAC, "--expires", expires).stdout.strip())
    assert device.expires_at.timestamp() - time.time() == pytest.approx(seconds, abs=60)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nonsense",), "MAC"),
        (("a1-b2-c3-d4-e5",), "MAC"),
        (("../../etc/passwd",), "MAC"),
        ((MAC, "--expires", "0d"), "--expires"),
        ((MAC, "--expires", "11y"), "--expires"),
        ((MAC, "--expires", "-1d"), "--expires"),
        ((MAC, "--expires", "1"), "--expires"),
        ((MAC, "--expires", "\u0661d"), "--expires"),
        ((MAC, MAC), "argument"),
        (("mint",), "MAC"),
        (("inspect",), "TOKEN"),
        ((), "Usage"),
    ],
)
def test_wrong_options_exit_2_and_name_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    """Nothing that looks like a token is printed."""
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert named in done.stdout + done.stderr
    assert re.search("eyJ[a-zA-Z0-9]{9}", done.stdout) is None
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "keys",
    ["", f"2026:{KEY[:8]}", f"{KEY}", f"2026:{KEY},2026:{OLD_KEY}", "2026:%%%", f"2026:ed25519-public:{KEY}"],
)
def test_keys_that_cannot_be_used_exit_1_and_are_not_shown(tmp_path: Path, keys: str) -> None:
    """The variable is named on standard error."""
    done = run(tmp_path, MAC, DEVICE_TOKEN_KEYS=keys)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("DEVICE_TOKEN_KEYS: ")
    assert KEY[:8] not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    """Whichever it is."""
    done = run(tmp_path, MAC, MQTT_URL="nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert "MQTT_URL" in done.stderr


def test_keys_may_come_from_a_file(tmp_path: Path) -> None:
    """`.env` of the working directory, as for the host."""
    (tmp_path / ".env").write_text(f"DEVICE_TOKEN_KEYS=2026:{KEY}\n")
    bare = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(
        [BUCKETBELL, "token", MAC], cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=20, check=True
    )
    assert RING.verify(done.stdout.strip()).mac == MAC


@pytest.mark.parametrize("from_stdin", [False, True])
def test_a_good_token_is_explained(tmp_path: Path, *, from_stdin: bool) -> None:
    """Its claims and their dates in words, its signature left out; exit 0."""
    token = OLD_RING.mint(MAC)
    done = run(tmp_path, "inspect", "-", said=f" {token}\n") if from_stdin else run(tmp_path, "inspect", token)
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (rows["valid"], rows["kid"], rows["sub"], rows["aud"]) == ("yes", "2025", MAC, "bucketbell")
    assert "UTC" in rows["exp"]
    assert "UTC" in rows["iat"]
    assert token.rpartition(".")[2] not in done.stdout


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (RING.mint(MAC, now=time.time() - 1000, expires_seconds=10), "expired"),
        (Keyring.parse([f"2024:{KEY}"]).mint(MAC), "unknown_kid"),
        (Keyring.parse([f"2026:{OLD_KEY}"]).mint(MAC), "bad_signature"),
    ],
)
def test_a_bad_token_is_explained_with_the_reason(tmp_path: Path, token: str, reason: str) -> None:
    """Exit 1, in words and in JSON."""
    told = run(tmp_path, "inspect", token)
    assert (told.returncode, told.stdout.splitlines()[0]) == (1, f"valid    no: {reason}")
    done = run(tmp_path, "inspect", token, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["valid"], document["reason"]) == (1, False, reason)
    assert document["claims"]["sub"] == MAC
    assert set(document["header"]) == {"alg", "kid", "typ"}


def test_a_revoked_token_is_said_to_be(tmp_path: Path) -> None:
    """By its id."""
    token = RING.mint(MAC)
    done = run(tmp_path, "inspect", token, "--json", DEVICE_TOKENS_REVOKED=f"other,{RING.verify(token).jti}")
    assert (done.returncode, json.loads(done.stdout)["reason"]) == (1, "revoked")


@pytest.mark.parametrize("text", ["nonsense", "a.b.c", "..", "", "eyJ\u00fc.x.y", "[" * 20_000])
def test_what_is_no_token_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    """Exit 1, one line on standard error."""
    done = run(tmp_path, "inspect", "-", said=text)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "this is not a token: malformed\n"


def test_a_token_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    """Names and values of an unsigned token are a stranger's words: no control character, no line of its own."""
    # Escape sequences are what `echo` leaves out where it does not write to a terminal; bells and line ends stay.
    parts = [
        {"alg": "HS256", "\x07kid": "\x1b]0;x\x07"},
        {"a\nvalid    yes": "b\nvalid    yes\x9b", "\x9bexp": 10**30, "exp": 10**30},
    ]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    done = run(tmp_path, "inspect", "-", said=".".join([*encoded, "AAAA"]))
    assert done.returncode == 1
    assert done.stdout.replace("\n", "").isprintable()
    assert [line for line in done.stdout.splitlines() if line.startswith("valid")] == ["valid    no: unknown_kid"]
