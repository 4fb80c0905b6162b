"""`bucketbell token --from`: a token for each device of a list, or every wrong line by its number."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from functions.web.tokens import YEAR_SECONDS
from infra.commands import tokens
from tests.integration.test_token_command import BUCKETBELL, KEY, KEYS, OLD_KEY, RING, run

A, B, C = "a1-b2-c3-d4-e5-f6", "AA:BB:CC:DD:EE:FF", "010203040506"
NORMAL = [A, "AA-BB-CC-DD-EE-FF", "01-02-03-04-05-06"]
MANY = 100_000
MORE_KIBIBYTES = 8 * 1024  # what is kept of each device would be more


def rows(text: str) -> list[dict[str, str]]:
    """What was written as CSV."""
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(
    "said",
    [
        f"{A}\n{B}\n{C}\n",
        f"{A}\r\n{B}\r\n{C}",
        f"# the hall\n\n  {A}  \n{B}\n\n{C}\n",
        f"\ufeff{A}\n{B}\n{C}\n",
        f"mac\n{A}\n{B}\n{C}\n",
        f"name,MAC,place\none,{A},hall\ntwo,{B},\n\nthree,{C}\n",
        f'# export\nname;"MAC address"\n"one;two";{A}\nx;{B}\ny; {C}\n',
        f'mac\tnote\n{A}\t"two\nlines"\n{B}\t\n{C}\t""\n',
    ],
    ids=["plain", "DOS", "comments", "BOM", "one column", "CSV", "semicolons", "tabs"],
)
def test_a_list_is_plain_or_has_a_column(tmp_path: Path, said: str) -> None:
    """From a file or standard input, in the order of the list, each MAC as tokens spell it, for a year."""
    (tmp_path / "macs").write_text(said, encoding="utf-8", newline="")
    done = run(tmp_path, "--from", "macs")
    assert (done.returncode, done.stderr) == (0, "")
    made = rows(done.stdout)
    assert [row["mac"] for row in made] == NORMAL
    for row in made:
        device = RING.verify(row["token"])
        assert (device.mac, device.jti, device.kid) == (row["mac"], row["id"], "2026")
        assert f"{device.expires_at:%Y-%m-%dT%H:%M:%SZ}" == row["expires_at"]
        assert device.expires_at.timestamp() - time.time() == pytest.approx(YEAR_SECONDS, abs=60)
    assert len({row["id"] for row in made}) == 3
    if said.isascii() and "\r" not in said:
        assert [row["mac"] for row in rows(run(tmp_path, "mint", "--from", "-", said=said).stdout)] == NORMAL


def test_tokens_come_as_json_too(tmp_path: Path) -> None:
    """One array of objects with the same fields, to be revoked by `id`."""
    done = run(tmp_path, "--from", "-", "--format", "json", "--expires", "30d", said=f"{A}\n{B}\n")
    made = json.loads(done.stdout)
    assert [list(one) for one in made] == [["mac", "token", "expires_at", "id"]] * 2
    assert [RING.verify(one["token"]).jti for one in made] == [one["id"] for one in made]
    assert RING.verify(made[0]["token"]).expires_at.timestamp() - time.time() == pytest.approx(30 * 86_400, abs=60)


def test_a_file_of_tokens_is_only_for_its_owner_and_never_overwritten(tmp_path: Path) -> None:
    """Mode 0600, whatever the umask; a second run is refused before it makes anything."""
    (tmp_path / "macs").write_text(f"{A}\n")
    before = os.umask(0)
    try:
        done = run(tmp_path, "--from", "macs", "--output", "tokens.csv")
    finally:
        os.umask(before)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "tokens in tokens.csv: 1\n")
    assert (tmp_path / "tokens.csv").stat().st_mode & 0o777 == 0o600
    content = (tmp_path / "tokens.csv").read_text()
    assert [row["mac"] for row in rows(content)] == [A]
    again = run(tmp_path, "--from", "macs", "--output", "tokens.csv")
    assert again.returncode == 2
    assert "--output" in again.stderr
    assert (tmp_path / "tokens.csv").read_text() == content
    assert sorted(file.name for file in tmp_path.iterdir()) == ["macs", "tokens.csv"]


def test_every_wrong_line_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    """By its number, not by what is in it: nobody knows what that is."""
    said = f"{A}\n\nnonsense\n{B}\na1-b2\n\x1b[31m\n"
    done = run(tmp_path, "--from", "-", "--output", "tokens.csv", said=said)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        *(f"line {number}: this is not a MAC address" for number in (3, 5, 6)),
        "wrong lines: 3; no token was made",
    ]
    assert not (tmp_path / "tokens.csv").exists()


def test_a_row_of_csv_is_called_by_its_first_line(tmp_path: Path) -> None:
    """Also after a cell of several lines, and where the cell is missing."""
    said = f'x,mac\n"two\nlines",{A}\nshort\n"three\nmore\nlines",wrong\n'
    done = run(tmp_path, "--from", "-", said=said)
    assert done.returncode == 1
    assert done.stderr.splitlines()[:2] == [f"line {number}: this is not a MAC address" for number in (4, 5)]


def test_a_device_that_is_listed_twice_gets_one_token(tmp_path: Path) -> None:
    """Whatever the spelling; the lines are named, since one of them may be a mistake."""
    done = run(tmp_path, "--from", "-", said=f"{A}\n{B}\n{A.upper()}\n{A.replace('-', '')}\n")
    assert done.returncode == 0
    assert [row["mac"] for row in rows(done.stdout)] == NORMAL[:2]
    assert done.stderr.splitlines() == [
        f"line {number}: the same device as in line 1; it gets one token" for number in (3, 4)
    ]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "there is no MAC in it"),
        ("# nothing\n\n", "there is no MAC in it"),
        ("mac\n", "there is no MAC in it"),
        (f"name,address\none,{A}\n", "line 1 is neither a MAC nor a header"),
        (f"mac,mac\n{A},{B}\n", "more than one column"),
        ("0" * 70_000 + "\n", "longer than 65,536"),
        ('mac\n"' + ("a" * 60_000 + "\n") * 3, "line 2 is not CSV"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, said: str, words: str) -> None:
    """In words that say what it is."""
    done = run(tmp_path, "--from", "-", said=said)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert "no token was made" in done.stderr
    assert len(done.stderr) < 300


def test_bytes_that_are_no_text_are_no_mac(tmp_path: Path) -> None:
    """A spreadsheet, for instance."""
    (tmp_path / "macs").write_bytes(b"PK\x03\x04\xff\xfe\x00\x00\n" + A.encode() + b"\n")
    done = run(tmp_path, "--from", "macs")
    assert (done.returncode, done.stdout) == (1, "")
    assert "line 1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (("--from", "missing"), 1, "missing"),
        (("--from", "."), 1, "."),
        ((A, "--from", "-"), 2, "MAC"),
        ((A, "--output", "x"), 2, "--output"),
        (("--from", "-", "--format", "xml"), 2, "--format"),
        (("--from", "-", "--output", "no/such/place"), 1, "No such file"),
        (("--from", "-", "--expires", "11y"), 2, "--expires"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, arguments: tuple[str, ...], status: int, named: str) -> None:
    """And nothing is made."""
    done = run(tmp_path, *arguments, said=f"{A}\n")
    assert (done.returncode, done.stdout) == (status, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_key_that_signs_nothing_is_made(tmp_path: Path) -> None:
    """No file of headers is left behind, and no key is told."""
    done = run(tmp_path, "--from", "-", "--output", "tokens.csv", said=f"{A}\n", DEVICE_TOKEN_KEYS="")
    assert done.returncode == 1
    assert "DEVICE_TOKEN_KEYS" in done.stderr
    assert list(tmp_path.iterdir()) == []
    for words in (done.stdout, done.stderr):
        assert KEY not in words
        assert OLD_KEY not in words


def test_a_long_run_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error, so that the tokens stand alone."""
    monkeypatch.setattr(tokens, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setenv("DEVICE_TOKEN_KEYS", KEYS)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(tokens.token, ["--from", "-"], input=f"{A}\n{B}\n")
    assert done.exit_code == 0
    assert done.stderr.splitlines() == ["1 of 2 tokens", "2 of 2 tokens"]
    assert len(rows(done.stdout)) == 2


def test_a_hundred_thousand_need_no_more_memory_than_one(tmp_path: Path) -> None:
    """What is read and what is made lies on the disk."""
    (tmp_path / "one").write_text(f"{A}\n")
    (tmp_path / "many").write_text("".join(f"{number * 7919:012x}\n" for number in range(MANY)))
    used = []
    for name in ("one", "many"):
        child = subprocess.Popen(
            [BUCKETBELL, "token", "--from", name, "--output", f"{name}.csv"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "DEVICE_TOKEN_KEYS": KEYS},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        used.append(usage.ru_maxrss)
    with (tmp_path / "many.csv").open() as file:
        assert sum(1 for _ in file) == MANY + 1
    assert used[1] - used[0] < MORE_KIBIBYTES
