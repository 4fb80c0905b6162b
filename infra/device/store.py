"""The device's folder: files in place, and in `.bucketbell` what is known of them and what was begun.

A file comes under its final name by one rename, from a part that is complete, verified and on the disk. Notes are
written in an order that makes any moment a good one to be killed in:

1. the part of another version is removed, then the note of what is coming is written, then the part begins: a part
   always belongs to its note;
2. the note of what is in place is written before the rename, with the modification time that the part has: until
   then it describes no file, so the next run finds the part whole and renames it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self, cast

from infra.device.checks import By, Check
from infra.device.names import Name
from infra.device.trouble import FetchError, Reason

STATE_FOLDER = ".bucketbell"
_REPORT_SUFFIX = ".report.json"

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PART_FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TOKENS, _OWNER_ONLY = "token.json", 0o600
_CONFLICT = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG}


class StoreError(Exception):
    """The folder cannot be used at all; the message says why."""


@dataclass(frozen=True, slots=True)
class Version:
    """What makes one version of a file: two are the same only if all of it is.

    `last_modified`, as the server writes it, stands in for an ETag where there is none, and is None otherwise: the
    same content uploaded again is no other version.
    """

    etag: str | None
    size: int
    last_modified: str | None = None


class Part:
    """The beginning of one version of a file, on disk. Close it, or use it in a `with`."""

    def __init__(self, name: Name, version: Version, check: Check, file: FileIO) -> None:
        """`file` is open for reading and appending."""
        self.name = name
        self.version = version
        self.check = check
        self.file = file

    @property
    def length(self) -> int:
        """How many bytes are there already."""
        return os.fstat(self.file.fileno()).st_size

    def append(self, chunk: bytes) -> None:
        """Write all of `chunk`, or raise FetchError (`disk_full`, `cannot_store`) with some of it written."""
        left = memoryview(chunk)
        with storing():
            while left:
                left = left[self.file.write(left) :]

    def close(self) -> None:
        """Keeps what is there for `DeviceStore.resume`."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeviceStore:
    """One device's folder, locked against a second process. StoreError when it cannot be had."""

    def __init__(self, directory: Path) -> None:
        """Make the folder where missing."""
        self.directory = directory
        try:
            (directory / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
            self._state = os.open(directory / STATE_FOLDER, _FOLDER_FLAGS)
        except OSError as error:
            raise StoreError(f"{directory} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._state)
            raise StoreError(f"{directory} is in use by another device process") from None

    def close(self) -> None:
        """Let another process have the folder. Idempotent."""
        if self._state >= 0:
            os.close(self._state)
            self._state = -1

    def held(self, name: Name) -> Version | None:
        """The version of the file in place; None unless it is as we put it there, neither removed nor changed since."""
        note = self._read(_record(name))
        version = _version(note)
        if note is None or version is None:
            return None
        try:
            with self._folder(name, make=False) as folder:
                found = os.stat(name.segments[-1], dir_fd=folder, follow_symlinks=False)
        except OSError:
            return None
        untouched = (found.st_size, found.st_mtime_ns) == (version.size, note.get("mtime_ns"))
        return version if stat.S_ISREG(found.st_mode) and untouched else None

    def free_bytes(self) -> int:
        """How much this user may still write here."""
        usage = os.fstatvfs(self._state)
        return usage.f_bavail * usage.f_frsize

    def resume(self, name: Name, version: Version) -> Part | None:
        """What an earlier attempt has of this version; None if it has nothing."""
        note = self._read(_coming(name))
        if note is None or _version(note) != version:
            return None
        try:
            check = Check(cast("By", note["by"]), note["value"])
            file = self._open(_part(name), _PART_FLAGS)
        except (KeyError, OSError):
            return None
        part = Part(name, version, check, file)
        if part.length <= version.size:
            return part
        part.close()
        return None

    def begin(self, name: Name, version: Version, check: Check) -> Part:
        """Start again; what was begun of this file, in any version, is deleted."""
        with storing():
            self.drop(name)
            self._write(_coming(name), {"path": name.path, **asdict(version), **asdict(check)})
            return Part(name, version, check, self._open(_part(name), _PART_FLAGS | os.O_CREAT | os.O_EXCL))

    def drop(self, name: Name) -> None:
        """Forget what was begun of this file; the file in place stays."""
        with storing():
            for note in (_part(name), _coming(name)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(note, dir_fd=self._state)
            os.fsync(self._state)

    def put_in_place(self, part: Part) -> None:
        """Make a whole, verified part the file: on disk first, then by one rename. FetchError leaves the old file."""
        name = part.name
        with storing():
            os.fsync(part.file.fileno())
            written = os.fstat(part.file.fileno())
            with self._folder(name, make=True) as folder:
                self._write(
                    _record(name),
                    {"path": name.path, **asdict(part.version), "mtime_ns": written.st_mtime_ns, **asdict(part.check)},
                )
                os.replace(_part(name), name.segments[-1], src_dir_fd=self._state, dst_dir_fd=folder)
                os.fsync(folder)
            os.unlink(_coming(name), dir_fd=self._state)

    def tokens(self) -> tuple[str, ...]:
        """The tokens that are kept, the one to show first; none if there is no note of any."""
        kept = (self._read(_TOKENS) or {}).get("tokens")
        return tuple(token for token in kept if isinstance(token, str)) if isinstance(kept, list) else ()

    def keep_tokens(self, tokens: Sequence[str]) -> None:
        """Keep these instead, readable for this user only. FetchError leaves what was kept."""
        with storing():
            self._write(_TOKENS, {"tokens": list(tokens)}, _OWNER_ONLY)

    def keep_report(self, name: Name, body: dict[str, Any]) -> None:
        """Keep the newest report of a file until it is delivered. A power cut may lose it: `reported` tells then."""
        with storing():
            self._write(_report(name), {"path": name.path, "body": body}, is_lasting=False)

    def kept_reports(self, limit: int) -> list[tuple[str, dict[str, Any]]]:
        """What is not delivered yet, by path: the newest of it."""
        kept = []
        with storing():
            names = [one.name for one in (self.directory / STATE_FOLDER).glob(f"*{_REPORT_SUFFIX}")]
        for note in names:
            document = self._read(note) or {}
            if isinstance(document.get("path"), str) and isinstance(document.get("body"), dict):
                kept.append((document["path"], document["body"]))
        kept.sort(key=lambda one: str(one[1].get("at")), reverse=True)
        return kept[:limit]

    def report_delivered(self, name: Name, body: dict[str, Any]) -> None:
        """A report is confirmed: nothing, where a newer one is kept meanwhile. `reported` returns it from now on."""
        if (self._read(_report(name)) or {}).get("body") == body:
            with storing():
                os.rename(_report(name), _reported(name), src_dir_fd=self._state, dst_dir_fd=self._state)

    def reported(self, name: Name) -> dict[str, Any]:
        """The last report of a file that was delivered; empty if there is none."""
        body = (self._read(_reported(name)) or {}).get("body")
        return body if isinstance(body, dict) else {}

    @contextmanager
    def _folder(self, name: Name, *, make: bool) -> Iterator[int]:
        """The folder that the file belongs in. No link is followed on the way."""
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for segment in name.segments[:-1]:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(segment, dir_fd=folder)
                        os.fsync(folder)
                below = os.open(segment, _FOLDER_FLAGS, dir_fd=folder)
                os.close(folder)
                folder = below
            yield folder
        finally:
            os.close(folder)

    def _open(self, note: str, flags: int, mode: int = 0o666) -> FileIO:
        return os.fdopen(os.open(note, flags, mode, dir_fd=self._state), "r+b", buffering=0)

    def _read(self, note: str) -> dict[str, Any] | None:
        try:
            with self._open(note, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC) as file:
                document = json.loads(file.read())
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def _write(self, note: str, document: dict[str, Any], mode: int = 0o666, *, is_lasting: bool = True) -> None:
        """Replace a note as a whole, so that a power cut does not undo it where it `is_lasting`."""
        fresh = f"{note}.new"
        with self._open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode) as file:
            file.write(json.dumps(document).encode())
            if is_lasting:
                os.fsync(file.fileno())
        os.replace(fresh, note, src_dir_fd=self._state, dst_dir_fd=self._state)
        if is_lasting:
            os.fsync(self._state)


@contextmanager
def storing() -> Iterator[None]:
    """Turn what the operating system says inside the `with` into FetchError."""
    try:
        yield
    except OSError as error:
        reason: Reason = "cannot_store"
        if error.errno in _FULL:
            reason = "disk_full"
        elif error.errno in _CONFLICT:
            reason = "conflict"
        raise FetchError(reason, error.strerror or "the file could not be written") from None


def _version(note: dict[str, Any] | None) -> Version | None:
    """Which version a note is about; notes of earlier releases know no `last_modified`."""
    try:
        return None if note is None else Version(note["etag"], note["size"], note.get("last_modified"))
    except KeyError:
        return None


def _record(name: Name) -> str:
    return f"{name.digest}.json"


def _coming(name: Name) -> str:
    return f"{name.digest}.coming.json"


def _part(name: Name) -> str:
    return f"{name.digest}.part"


def _report(name: Name) -> str:
    return f"{name.digest}{_REPORT_SUFFIX}"


def _reported(name: Name) -> str:
    return f"{name.digest}.reported.json"
