"""Where the sweep's state is at home (the database, a file of its own, or the bucket), and what if it is lost there."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from functions.s3.clients import StorageError, configured_endpoint
from functions.stored.errors import StoreDamagedError, StoreUnavailableError
from functions.telemetry import logger
from infra.host.sweep.marker import KEY, Marker, MarkerDamagedError, NewerMarkerError, Swept

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from mypy_boto3_s3.client import S3Client

    from functions.settings import Settings
    from functions.stored.ring import Ring
    from functions.stored.rings import PrefixProgress, RingStore

SAVE_SECONDS = 300.0
CLOSE_SECONDS = 0.2
AWS = "AWS"  # the endpoint where none is set: its name says the region, which may be found out later
LOOKED_AT_BYTES = 4096
DAMAGED = ".damaged"
JOURNAL = "-journal"
TEMPORARY = "bucketbell-sweep-"
LOCK = "lock"
JUST_MADE_SECONDS = 60.0

T = TypeVar("T")


class Home(Enum):
    """Where the state is when the host is not running."""

    DATABASE = auto()
    FILE = auto()
    BUCKET = auto()


class State:
    """The rings of one host, and how they come and go. Every method blocks, is thread-safe, and may be called again.

    It has the methods of `RingStore`, which raise `StoreUnavailableError`. The first makes the tables usable: fetched,
    whole, and of this release; and so does the next one after such an error.
    """

    def __init__(
        self,
        home: Home,
        place: str | Path,
        rings: RingStore,
        marker: Marker | None,
        temporary: Temporary | None = None,
    ) -> None:
        """Nothing is opened yet. Without a `marker` nobody is told what was swept, since nothing is."""
        self._temporary = temporary
        self.rings = rings
        self._home = home
        self._place = place
        self._marker = marker
        self._turn = threading.RLock()
        self._is_open = self._is_looked = self._is_compared = False
        self._swept: Swept = {}
        self._is_checked = self._is_unreadable = False
        self._is_marked = True
        self._saved_at = -SAVE_SECONDS
        self._saved_changes = 0
        self._problem = ""

    @classmethod
    def of(cls, settings: Settings) -> State | None:
        """The state where there is something to keep: a sweep, or what hosts with one server tell each other.

        Raises `StoreUnavailableError` where there is no directory for it.
        """
        sweeps = bool(settings.sweep_seconds and settings.bucket)
        url = settings.database_url.get_secret_value() if settings.database_url is not None else None
        if not sweeps and (url is None or url.startswith("sqlite")):
            return None
        from functions.stored.database import Database  # noqa: PLC0415 - SQLAlchemy is for hosts that need it
        from functions.stored.rings import RingStore, Scope  # noqa: PLC0415 - as above

        place: str | Path
        temporary = None
        if url is not None:
            home, place = Home.DATABASE, url
        elif settings.sweep_state_file is not None:
            home, place = Home.FILE, settings.sweep_state_file.absolute()
        else:
            home, temporary = Home.BUCKET, Temporary()
            place = temporary.path / "state.db"
        scope = Scope(settings.bucket or "", (configured_endpoint("s3", settings) or AWS).rstrip("/"))
        rings = RingStore(Database(place, keeps_connections=True), scope, sweeps=sweeps)
        return cls(home, place, rings, Marker(settings, scope.bucket) if sweeps else None, temporary)

    @property
    def is_shared(self) -> bool:
        """Whether other hosts may write there too."""
        return self.rings.database.file is None

    def s3(self) -> S3Client:
        """The client of the bucket, where there is a sweep. Raises StorageError."""
        if self._marker is None:
            raise TypeError("without a sweep nobody asks the bucket")
        return self._marker.s3()

    def open(self) -> None:
        """Make the tables usable, if they are not, and compare what they and the bucket say of what was swept."""
        with self._turn:
            self._open_rings()
            if self._is_compared or self._marker is None:
                return
            if not self._is_looked:
                self._look_at_marker()
            begun = self.rings.prefixes()
            self._look_at_scopes(is_new=not begun)
            self._is_compared = True
            self._mark({prefix: progress.t0 for prefix, progress in begun.items()})

    def begin(self, prefix: str, t0: int) -> PrefixProgress:
        """Note that the first sweep of this prefix begins, and say whether there was one before whose state is lost."""
        with self._turn:
            self.open()
            is_lost = self._is_unreadable or prefix in self._ours()
            progress = self._use(lambda rings: rings.begin(prefix, t0, lost=is_lost))
            if progress.is_lost:
                logger.info("the sweep's state is lost", extra={"prefix": prefix, "scope": str(self.rings.scope)})
            self._mark({prefix: progress.t0})
            return progress

    def progress(self, prefix: str) -> PrefixProgress | None:
        """See `RingStore.progress`; the bucket's word is heard, too."""
        self.open()
        return self._use(lambda rings: rings.progress(prefix))

    def complete(self, prefix: str) -> None:
        """See `RingStore.complete`."""
        self._use(lambda rings: rings.complete(prefix))
        self.save()

    def record(self, rings: Sequence[Ring]) -> None:
        """See `RingStore.record`."""
        self._use(lambda store: store.record(rings))
        self.save()

    def of_keys(self, keys: Sequence[str]) -> dict[str, list[Ring]]:
        """See `RingStore.of_keys`. Where no prefix was begun, an error: all of the bucket would look new."""
        if not self._use(lambda rings: rings.prefixes()):
            raise StoreUnavailableError("the sweep's state is begun anew: the next sweep counts with that")
        return self._use(lambda rings: rings.of_keys(keys))

    def known(self, identities: Sequence[bytes]) -> set[bytes]:
        """See `RingStore.known`."""
        return self._use(lambda rings: rings.known(identities))

    def forget_gone(self, prefix: str, after: str, upto: str | None, keys: Collection[str]) -> int:
        """See `RingStore.forget_gone`."""
        return self._use(lambda rings: rings.forget_gone(prefix, after, upto, keys))

    def lead(self) -> bool:
        """See `RingStore.lead`."""
        return self._use(lambda rings: rings.lead())

    def save(self, *, last: bool = False) -> None:
        """Bring to the bucket what belongs there, if it changed; not more often than every `SAVE_SECONDS`.

        To be called now and then. Trouble is said, and the next time it is tried again.
        """
        with self._turn:
            is_changed = self._home is Home.BUCKET and self.rings.changes != self._saved_changes
            if not self._is_open or not (is_changed or not self._is_marked):
                return
            if last or time.monotonic() - self._saved_at >= SAVE_SECONDS:
                self._put()

    def save_last(self) -> None:
        """As `save`, now: the process ends."""
        self.save(last=True)

    def close(self) -> None:
        """Let go of everything; what is not saved is lost. Idempotent, and waits for nobody who hangs."""
        self._is_open = False
        is_ours = self._turn.acquire(timeout=CLOSE_SECONDS)
        try:
            self.rings.close()
            if self._temporary is not None:
                self._temporary.remove()
        finally:
            if is_ours:
                self._turn.release()

    # The tables.

    @property
    def _file(self) -> Path:
        if not isinstance(self._place, Path):
            raise TypeError("the tables of a database are no file of ours")
        return self._place

    def _use(self, call: Callable[[RingStore], T]) -> T:
        """Let it use the tables; if they cannot be used, they are looked at before the next call."""
        try:
            self._open_rings()
            return call(self.rings)
        except StoreUnavailableError as error:
            self._is_open = False
            self._is_checked = self._is_checked and not isinstance(error, StoreDamagedError)
            raise

    def _open_rings(self) -> None:
        if self._is_open:
            return
        with self._turn:
            if self._home is not Home.DATABASE and not self._file.exists():
                self._is_checked = False
                self._look_at_marker(self._file)
            try:
                self._upgrade()
            except StoreDamagedError as error:
                if self._home is Home.DATABASE:  # it holds settings too, and is not ours alone
                    raise
                self._set_aside(error)
                self._upgrade()
            self._is_open = True

    def _upgrade(self) -> None:
        from infra.migrations.runner import upgrade  # noqa: PLC0415 - Alembic is for hosts with a database only

        try:
            upgrade(self._place)
            if self._home is not Home.DATABASE and not self._is_checked:
                self.rings.check()  # seconds, where there are a million
                self._is_checked = True
        except StoreDamagedError:
            raise
        except StoreUnavailableError as error:
            raise StoreUnavailableError(f"the sweep's state cannot be used: {error}") from None

    def _set_aside(self, error: StoreDamagedError) -> None:
        file = self._file
        with file.open("rb") as content:
            is_text = b"\0" not in content.read(LOOKED_AT_BYTES)
        if is_text and self._home is Home.FILE:  # nobody's letter is moved because a variable names it
            raise StoreUnavailableError(f"SWEEP_STATE_FILE names {file}, which is no SQLite database: name another")
        aside, kept = file.with_name(file.name + DAMAGED), ""
        if self._home is Home.BUCKET and self._marker is not None:
            kept = self._marker.set_aside()
        for ending in ("", JOURNAL):  # SQLite would roll a journal that is left back into the next file
            with suppress(FileNotFoundError):
                Path(f"{file}{ending}").replace(f"{aside}{ending}")
        logger.error(
            "the sweep's state is damaged, and begun anew", extra={"kept": kept or str(aside), "reason": str(error)}
        )

    def _look_at_scopes(self, *, is_new: bool) -> None:
        if not is_new or self._ours():
            return
        others = {str(scope) for scope in self.rings.scopes()} | self._swept.keys()
        if others:
            words = "the sweep's state is of another bucket or endpoint: this one begins anew"
            logger.warning(words, extra={"scope": str(self.rings.scope), "others": ", ".join(sorted(others))})

    # The object in the bucket.

    def _ours(self) -> dict[str, int]:
        """The prefixes that were swept, as the bucket says."""
        return self._swept.get(str(self.rings.scope), {})

    def _look_at_marker(self, into: Path | None = None) -> None:
        """Learn what was swept; where there is a state of ours, have it in the file."""
        if self._marker is None:
            return
        part = None if into is None else into.with_name(into.name + ".part")
        try:
            self._swept = self._marker.fetch(part) or {}
            if into is not None and part is not None and part.exists():
                part.replace(into)
                self._saved_changes = self.rings.changes
        except MarkerDamagedError as error:
            self._is_unreadable = True
            kept = self._marker.set_aside()
            words = "the sweep's state in the bucket is damaged, and begun anew"
            logger.error(words, extra={"kept": kept, "reason": str(error)})
        except NewerMarkerError:
            raise StoreUnavailableError(f"{KEY} in the bucket is of a newer release: run that one") from None
        except StorageError as error:
            raise StoreUnavailableError(f"{KEY} in the bucket cannot be read: {error}") from None
        except OSError as error:
            raise StoreUnavailableError(
                f"{into} cannot be made: {error.strerror}. Make its directory, writable for this process, or make room"
            ) from None
        finally:
            if part is not None:
                part.unlink(missing_ok=True)
        self._is_looked = True

    def _mark(self, begun: dict[str, int]) -> None:
        """Have the bucket say that these prefixes were swept."""
        ours = self._ours()
        if begun.keys() <= ours.keys():
            return
        scope = str(self.rings.scope)
        self._swept.pop(scope, None)  # the newest is the last
        self._swept[scope] = begun | ours
        self._is_marked = False
        self._put()

    def _put(self) -> None:
        if self._marker is None:
            return
        copy = None
        self._saved_at = time.monotonic()
        changes = self.rings.changes
        try:
            if self._home is Home.BUCKET:
                copy = self._file.with_name("copy.db")
                copy.unlink(missing_ok=True)
                self.rings.database.copy_to(copy)
            self._marker.put(self._swept, copy)
        except (StorageError, StoreUnavailableError, OSError) as error:
            if not self._problem:
                words = f"the sweep's state cannot be brought to {KEY} in the bucket; it is tried again"
                logger.warning(words, extra={"reason": str(error)})
            self._problem = str(error)
            return
        finally:
            if copy is not None:
                copy.unlink(missing_ok=True)
        self._is_marked, self._saved_changes, self._problem = True, changes, ""


class Temporary:
    """A directory that goes with the process; one that was killed has left its own, which goes now."""

    def __init__(self) -> None:
        """Raises `StoreUnavailableError`."""
        try:
            for other in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
                _remove_left(other)
            self.path = Path(tempfile.mkdtemp(prefix=TEMPORARY))
            self._lock = (self.path / LOCK).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            said = error.strerror
        else:
            return
        raise StoreUnavailableError(f"there is no directory for the sweep's state ({said}): set SWEEP_STATE_FILE")

    def remove(self) -> None:
        """Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_left(directory: Path) -> None:
    with suppress(OSError):  # not ours, in use, or gone
        if time.time() - directory.stat().st_mtime < JUST_MADE_SECONDS:
            return
        with (directory / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
