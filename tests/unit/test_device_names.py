from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.device.names import (
    MAX_PAYLOAD_BYTES,
    Kind,
    Name,
    UnsafeNameError,
    is_own,
    parse_payload,
    safe,
)

MAC = "a1-b2-c3-d4-e5-f6"

HOSTILE: list[tuple[Kind, str]] = [
    ("asset", "../x"),
    ("asset", "a/../../x"),
    ("asset", ".."),
    ("asset", "."),
    ("asset", "a/./b"),
    ("asset", "/etc/passwd"),
    ("asset", "//host/share"),
    ("asset", "a//b"),
    ("asset", "a/"),
    ("asset", ""),
    ("asset", "a\0b"),
    ("asset", "a\nb"),
    ("asset", "a\x1b[2Jb"),
    ("asset", "a\x85b"),
    ("asset", "a\ud800b"),
    ("asset", "..\\x"),
    ("asset", "C:\\x"),
    ("asset", "x" * 256),
    ("asset", "é" * 128),
    ("asset", "a/" * 512 + "b"),
    ("config", "../a1-b2-c3-d4-e5-f6.json"),
    ("config", "a1-b2-c3-d4-e5-f6.json/x"),
    ("config", "a1-b2-c3-d4-e5-f6.json\n"),
    ("config", "a1-b2-c3-d4-e5-f6"),
    ("config", "\u06611-b2-c3-d4-e5-f6.json"),
    ("config", ".bucketbell"),
]


@pytest.mark.parametrize(("kind", "filename"), HOSTILE)
def test_a_hostile_name_has_no_place(kind: Kind, filename: str) -> None:
    """What would leave the folder, or no file system can hold, is refused with a reason."""
    with pytest.raises(UnsafeNameError, match=r"\w"):
        safe(kind, filename)


@pytest.mark.parametrize(
    "filename",
    [
        "firmware.bin",
        "a b+c%2e%2e&d='\"?#;.bin",
        "%2e%2e/x",
        "..x/x..",
        ".bucketbell/x.part",
        ".hidden",
        "~root/x",
        "$HOME`id`",
        "-rf",
        "ünï/códe 日本.bin",
        "con/nul",
        "x" * 255,
        "/".join(["é" * 127] * 4),
    ],
)
def test_an_odd_name_keeps_every_character(filename: str) -> None:
    """What only looks dangerous is a file below `assets` under exactly that name."""
    assert safe("asset", filename).path == f"assets/{filename}"


@given(st.text(max_size=80) | st.text("./\\\0a", max_size=20))
def test_no_name_leads_out_of_its_folder(filename: str) -> None:
    """Whatever is let through lies below the folder, segment for segment, for the operating system too."""
    try:
        name = safe("asset", filename)
    except UnsafeNameError:
        return
    assert PurePosixPath(name.path).parts == name.segments
    assert Path("/d", name.path).resolve().is_relative_to("/d/assets")


@given(st.text(), st.text())
def test_notes_cannot_collide(one: str, other: str) -> None:
    """Two files have two notes, called by hex digits alone."""
    try:
        names = safe("asset", one), safe("asset", other)
    except UnsafeNameError:
        return
    assert (names[0].digest == names[1].digest) == (one == other)
    assert set(names[0].digest) <= set("0123456789abcdef")


def test_a_device_wants_its_own_config_and_every_asset() -> None:
    """The config's MAC may have any case; another's config is not wanted."""
    assert is_own(Name("config", "A1-B2-C3-D4-E5-F6.json"), MAC)
    assert not is_own(Name("config", "a1-b2-c3-d4-e5-f7.json"), MAC)
    assert is_own(Name("asset", "a1-b2-c3-d4-e5-f7.json"), MAC)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"x",
        b"null",
        b"[]",
        b'"a"',
        b"{}",
        b'{"filename": 1}',
        b'{"filename": null}',
        b"\xff\xfe",
        b'{"filename": "a"',
        b"[" * 5000,
        b'{"filename": "' + b"a" * MAX_PAYLOAD_BYTES + b'"}',
    ],
)
def test_what_is_no_notification_is_refused(payload: bytes) -> None:
    """Anybody may publish anything; nothing but UnsafeNameError comes of it."""
    with pytest.raises(UnsafeNameError):
        parse_payload(payload)


def test_a_notification_gives_its_filename() -> None:
    """Escapes and additional keys are fine."""
    assert parse_payload(json.dumps({"filename": "é/b", "more": 1}).encode()) == "é/b"
