from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.device.checks import Check
from infra.device.names import Name, safe
from infra.device.store import DeviceStore, StoreError, Version, storing
from infra.device.trouble import FetchError

NAME = Name("asset", "sub/firmware.bin")
VERSION = Version("etag-1", 6)
SIZE = Check("size")


def put(store: DeviceStore, name: Name, version: Version, body: bytes) -> None:
    """Bring one version into its place, as a download does."""
    with store.begin(name, version, SIZE) as part:
        part.append(body)
        store.put_in_place(part)


def held(directory: Path) -> bytes:
    """What is under the final name."""
    return (directory / NAME.path).read_bytes()


def test_a_part_becomes_the_file_and_is_known(tmp_path: Path) -> None:
    """Folders are made on the way, nothing is left of the part, and the version is held, also by the next process."""
    store = DeviceStore(tmp_path / "new" / "device")
    assert store.held(NAME) is None
    put(store, NAME, VERSION, b"123456")
    store.close()
    store.close()
    again = DeviceStore(tmp_path / "new" / "device")
    assert held(again.directory) == b"123456"
    assert again.held(NAME) == VERSION

    assert again.resume(NAME, VERSION) is None
    assert [file.suffix for file in (again.directory / ".bucketbell").iterdir()] == [".json"]
    again.close()


def test_a_file_that_somebody_changed_is_not_held(tmp_path: Path) -> None:
    """A removed, a shortened and a touched file are fetched again; so is one that became a link."""
    store = DeviceStore(tmp_path)
    for spoil in (
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"1"),
        lambda file: os.utime(file, (1, 1)),
        lambda file: (file.rename(tmp_path / "elsewhere"), file.symlink_to(tmp_path / "elsewhere")),
    ):
        put(store, NAME, VERSION, b"123456")
        assert store.held(NAME) == VERSION
        spoil(tmp_path / NAME.path)
        assert store.held(NAME) is None
    store.close()


def test_a_part_is_resumed_only_for_its_own_version(tmp_path: Path) -> None:
    """Another ETag or size starts anew; so does a part that is longer than the file."""
    store = DeviceStore(tmp_path)
    with store.begin(NAME, VERSION, Check("md5", "ab")) as part:
        part.append(b"123")
    resumed = store.resume(NAME, VERSION)
    assert resumed is not None
    with resumed:
        assert (resumed.length, resumed.check) == (3, Check("md5", "ab"))
        resumed.append(b"456789")
    assert store.resume(NAME, VERSION) is None
    assert store.resume(NAME, Version("etag-2", 6)) is None
    assert store.resume(NAME, Version("etag-1", 7)) is None
    assert store.resume(Name("asset", "other"), VERSION) is None
    with store.begin(NAME, Version("etag-2", 6), SIZE) as part:
        assert part.length == 0
    assert store.resume(NAME, VERSION) is None
    store.drop(NAME)
    store.drop(NAME)
    assert store.resume(NAME, Version("etag-2", 6)) is None
    store.close()


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"{}", b'{"etag": "etag-1", "size": 6}', b"\xff"])
def test_a_spoilt_note_is_no_note(tmp_path: Path, note: bytes) -> None:
    """Whatever a crash or a person leaves in the notes, the file is fetched again."""
    store = DeviceStore(tmp_path)
    put(store, NAME, VERSION, b"123456")
    with store.begin(NAME, VERSION, SIZE) as part:
        part.append(b"123")
    for file in (tmp_path / ".bucketbell").glob("*.json"):
        file.write_bytes(note)
    assert store.held(NAME) is None
    assert store.resume(NAME, VERSION) is None
    store.close()


class Killed(BaseException):
    """The process is no more."""


def die_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let that many system calls through, of those that change a folder."""
    left = calls

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*arguments, **options)

        return counted

    for call in ("open", "mkdir", "unlink", "replace", "fsync"):
        monkeypatch.setattr(os, call, dying(getattr(os, call)))


def test_killed_between_any_two_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call is the last, the final name has the old bytes or the new, and the next run gets the new."""
    moments = 0
    while True:
        directory = tmp_path / str(moments)
        store = DeviceStore(directory)
        put(store, NAME, Version("old", 3), b"old")
        finished = False
        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            die_after(patched, moments)
            put(store, NAME, VERSION, b"new456")
            finished = True
        store.close()
        assert held(directory) in {b"old", b"new456"}
        store = DeviceStore(directory)
        if store.held(NAME) == Version("old", 3):
            assert held(directory) == b"old"
        if store.held(NAME) == VERSION:
            assert held(directory) == b"new456"
        part = store.resume(NAME, VERSION)
        with part or store.begin(NAME, VERSION, SIZE) as part:
            part.append(b"new456"[part.length :])
            store.put_in_place(part)
        assert held(directory) == b"new456"
        assert store.held(NAME) == VERSION
        store.close()
        if finished:
            break
        moments += 1
    assert moments > 10


def test_no_link_is_followed(tmp_path: Path) -> None:
    """A linked folder is refused; a link in the file's place is replaced, its target untouched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "firmware.bin").write_bytes(b"theirs")
    device = tmp_path / "device"
    store = DeviceStore(device)
    (device / "assets").mkdir()
    (device / "assets" / "sub").symlink_to(outside)
    with pytest.raises(FetchError) as refused:
        put(store, NAME, VERSION, b"123456")
    assert refused.value.reason == "conflict"
    (device / "assets" / "sub").unlink()
    (device / "assets" / "sub").mkdir()
    (device / "assets" / "sub" / "firmware.bin").symlink_to(outside / "firmware.bin")
    put(store, NAME, VERSION, b"123456")
    assert (outside / "firmware.bin").read_bytes() == b"theirs"
    assert not (device / NAME.path).is_symlink()
    assert held(device) == b"123456"
    store.close()


def test_a_linked_assets_or_state_folder_is_refused(tmp_path: Path) -> None:
    """Neither the first folder on the way nor our own may lead elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    store = DeviceStore(tmp_path / "device")
    (tmp_path / "device" / "assets").symlink_to(outside)
    with pytest.raises(FetchError):
        put(store, NAME, VERSION, b"123456")
    store.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".bucketbell").symlink_to(outside)
    with pytest.raises(StoreError):
        DeviceStore(tmp_path / "other")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a/b"), ("a/b", "a")], ids=["a file where a folder is wanted", "and the reverse"]
)
def test_a_file_and_a_folder_of_one_name_conflict(tmp_path: Path, first: str, second: str) -> None:
    """S3 may hold both; a folder cannot: the first stays, the second is told."""
    store = DeviceStore(tmp_path)
    put(store, safe("asset", first), VERSION, b"123456")
    with pytest.raises(FetchError) as refused:
        put(store, safe("asset", second), VERSION, b"654321")
    assert refused.value.reason == "conflict"
    assert (tmp_path / "assets" / first).read_bytes() == b"123456"
    store.close()


def test_names_like_our_own_notes_are_ordinary(tmp_path: Path) -> None:
    """An asset may be called as our notes are: it lies below `assets`."""
    store = DeviceStore(tmp_path)
    digest = NAME.digest
    put(store, NAME, VERSION, b"123456")
    for filename in (f".bucketbell/{digest}.json", f"{digest}.part", f"{digest}.coming.json.new"):
        put(store, safe("asset", filename), VERSION, b"654321")
    assert store.held(NAME) == VERSION
    assert held(tmp_path) == b"123456"
    store.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second device on the same folder is refused until the first has ended."""
    store = DeviceStore(tmp_path)
    with pytest.raises(StoreError, match="in use"):
        DeviceStore(tmp_path)
    store.close()
    DeviceStore(tmp_path).close()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be used"):
        DeviceStore(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "disk_full"),
        (errno.EFBIG, "disk_full"),
        (errno.EIO, "cannot_store"),
        (errno.EACCES, "cannot_store"),
        (errno.ELOOP, "conflict"),
    ],
)
def test_the_systems_errors_have_reasons(number: int, reason: str) -> None:
    """What the operating system says decides what the loop does."""
    with pytest.raises(FetchError) as raised, storing():
        raise OSError(number, os.strerror(number))
    assert raised.value.reason == reason
