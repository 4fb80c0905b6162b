"""The stored broker settings, credentials encrypted, and what each process last said of its connection.

Light to import: `functions.stored.database` and `functions.stored.encryption`, with all that they bring, are
imported by `ConfigStore.of` and only where DATABASE_URL is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from pydantic import SecretStr, ValidationError

from functions.stored.errors import (
    CredentialsUnreadableError,
    NoEncryptionKeyError,
    PasswordNeededError,
    StoreUnavailableError,
    VersionConflictError,
)
from functions.stored.model import MqttConfig, MqttConfigChange, problems

if TYPE_CHECKING:
    from functions.settings import Settings
    from functions.stored.database import Database
    from functions.stored.encryption import PasswordCipher

STATUS_KEPT = timedelta(days=1)
MAX_ERROR_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Stored:
    """The settings in force, as they were stored. Times are in UTC.

    `password` is None where there is none (`has_password` False), and where no key decrypts it
    (`credentials_readable` False): then nothing may be sent in its place.
    """

    config: MqttConfig
    password: SecretStr | None
    has_password: bool
    credentials_readable: bool
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What one publishing process says of its connection. Times are in UTC; `since` is when it began counting."""

    process: str
    scope: Literal["host", "lambda"]
    broker: str | None
    connected: bool
    since: datetime
    last_connected_at: datetime | None
    last_error: str | None
    last_error_code: int | None
    last_error_at: datetime | None
    messages_published: int
    reconnect_attempts: int
    recorded_at: datetime


class ConfigStore:
    """The database, in our terms. Thread-safe; every call blocks, within `database.DEADLINE_SECONDS` or a little more.

    Every method raises `StoreUnavailableError`.
    """

    def __init__(self, database: Database, cipher: PasswordCipher | None) -> None:
        self._database = database
        self._cipher = cipher

    @classmethod
    def of(cls, settings: Settings) -> ConfigStore | None:
        """Return the store of DATABASE_URL, or None where it is unset. Connects to nothing yet."""
        if settings.database_url is None:
            return None
        try:
            from functions.stored.database import Database  # noqa: PLC0415 - see the module's docstring
            from functions.stored.encryption import PasswordCipher  # noqa: PLC0415 - see the module's docstring
        except ModuleNotFoundError as error:  # a function without the layer that holds them
            lacking = error.name
        else:
            keys = settings.encryption_keys
            return cls(Database(settings.database_url.get_secret_value()), PasswordCipher(keys) if keys else None)
        raise StoreUnavailableError(
            f"DATABASE_URL is set, and {lacking} is not installed: attach the layer of stored settings"
        )

    def load(self) -> Stored | None:
        """Return what is stored, or None where nothing is."""
        with self._database.reading() as rows:
            row = rows.config()
        return None if row is None else self._stored(row)

    def save(self, change: MqttConfigChange, *, expected_version: int | None) -> Stored:
        """Store new settings, and return them. Of several at once with the same `expected_version`, one wins.

        `expected_version` 0 means that nothing must be stored yet, None that anything may be. Raises
        `VersionConflictError`, `PasswordNeededError`, and `NoEncryptionKeyError` where there is a password and no key.
        """
        encrypted = None
        if change.password is not None:
            if self._cipher is None:
                raise NoEncryptionKeyError
            encrypted = self._cipher.encrypt(change.password)
        now = datetime.now(UTC)
        with self._database.writing() as rows:
            row = rows.config()
            current = 0 if row is None else row["version"]
            if expected_version not in {None, current}:
                raise VersionConflictError(current)
            kept = row is not None and "password" not in change.model_fields_set
            if row is not None and kept and row["password_encrypted"] is not None and change.login != _login(row):
                raise PasswordNeededError
            new = change.config.model_dump() | {
                "password_encrypted": row["password_encrypted"] if row is not None and kept else encrypted,
                "version": current + 1,
                "created_at": now if row is None else row["created_at"],
                "updated_at": now,
            }
            rows.put_config(new)
        return self._stored(new)

    def record(self, status: ProcessStatus) -> None:
        """Keep this as what the process last said; forget those who said nothing for `STATUS_KEPT`."""
        error = status.last_error
        if error is not None:
            status = replace(status, last_error=error.replace("\0", "")[:MAX_ERROR_CHARACTERS])
        with self._database.writing() as rows:
            rows.put_status(asdict(status))
            rows.forget_statuses(before=status.recorded_at - STATUS_KEPT)

    def recorded(self) -> tuple[ProcessStatus, ...]:
        """Return what the processes last said, newest first."""
        with self._database.reading() as rows:
            return tuple(ProcessStatus(**row) for row in rows.statuses())

    def removed_cameras(self) -> dict[str, datetime]:
        """Return the cameras that were removed, and had no event since; and when."""
        with self._database.reading() as rows:
            return {row["camera_id"]: row["removed_at"] for row in rows.removed_cameras()}

    def remove_camera(self, camera_id: str, removed_at: datetime) -> None:
        """Have every host leave this camera out until its next event."""
        with self._database.writing() as rows:
            rows.put_removed_camera({"camera_id": camera_id, "removed_at": removed_at})

    def restore_camera(self, camera_id: str, removed_at: datetime) -> None:
        """Take back what was removed then, or before."""
        with self._database.writing() as rows:
            rows.forget_removed_camera(camera_id, before=removed_at)

    def rotate_keys(self) -> int:
        """Encrypt what is stored with the first key; return how many secrets that were: 0 or 1. The version stays.

        Raises `NoEncryptionKeyError` and `CredentialsUnreadableError` where there is a secret that this concerns.
        """
        with self._database.writing() as rows:
            row = rows.config()
            if row is None or row["password_encrypted"] is None:
                return 0
            if self._cipher is None:
                raise NoEncryptionKeyError
            rows.put_config({**row, "password_encrypted": self._cipher.rotate(row["password_encrypted"])})
        return 1

    def _stored(self, row: Mapping[str, Any]) -> Stored:
        try:
            config = MqttConfig(**{name: row[name] for name in MqttConfig.model_fields})
        except ValidationError as error:
            wrong = "; ".join(f"{found['field']} must be {found['expected']}" for found in problems(error))
        else:
            encrypted, password = row["password_encrypted"], None
            if encrypted is not None and self._cipher is not None:
                with suppress(CredentialsUnreadableError):
                    password = self._cipher.decrypt(encrypted)
            return Stored(
                config=config,
                password=password,
                has_password=encrypted is not None,
                credentials_readable=encrypted is None or password is not None,
                version=row["version"],
                created_at=row["created_at"],
                updated_at=row["updated_at"],
            )
        raise StoreUnavailableError(
            f"the stored settings were changed by hand and are not valid: {wrong}. Store them again"
        )


def _login(row: Mapping[str, Any]) -> tuple[str, int, bool, str | None]:
    """See `MqttConfigChange.login`."""
    return row["broker_host"].casefold(), row["broker_port"], row["use_tls"], row["username"]
