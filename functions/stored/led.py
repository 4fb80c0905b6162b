"""What several hosts share in a database, and one of them at a time does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from functions.stored.database import Database


class LedStore:
    """A part of a database with a lock of its own. Thread-safe; every call blocks."""

    def __init__(self, database: Database, lock_number: int) -> None:
        """Connects to nothing yet. SQLite has no such lock: one host has it to itself."""
        self.database = database
        self._lock = database.session_lock(lock_number)

    def lead(self) -> bool:
        """Whether this process is the one: only one of those that share a server is. Raises StoreUnavailableError."""
        if self._lock is None:
            return True
        with self.database.explained():
            return self._lock.hold()

    def close(self) -> None:
        """Let another process lead, and close what is kept open. Idempotent."""
        if self._lock is not None:
            self._lock.release()
        self.database.dispose()
