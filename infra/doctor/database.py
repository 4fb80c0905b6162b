"""The database of stored settings: does it answer, are its tables of this release, and can the password be read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NoReturn

from functions.stored.effective import effective_broker
from functions.stored.errors import CredentialsUnreadableError, StoreUnavailableError
from functions.stored.store import ConfigStore
from infra.doctor.checks import Checkup, Timed, WrongError

if TYPE_CHECKING:
    from functions.mqtt.broker import BrokerConfig
    from functions.settings import Settings
    from functions.stored.store import Stored

DATABASE, TABLES, STORED = "database", "tables", "stored settings"


class DatabaseLeg:
    """DATABASE_URL. Without one, the environment alone is in force."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is connected yet."""
        self.settings = settings
        self.stored: Stored | None = None
        """What is stored, as far as it was read."""
        self._revision: str | None = None

    def checks(self) -> tuple[Checkup, ...]:
        """All of them, in order."""
        if self.settings.database_url is None:
            return ()
        return (
            Checkup(DATABASE, self._database),
            Checkup(TABLES, self._tables, (DATABASE,)),
            Checkup(STORED, self._stored, (TABLES,)),
        )

    def broker(self) -> BrokerConfig | None:
        """The broker in force. Raises CredentialsUnreadableError."""
        return effective_broker(self.settings, self.stored)

    def _database(self) -> Timed:
        from infra.migrations.runner import revision_of  # noqa: PLC0415 - SQLAlchemy is for who has a database

        url = self.settings.database_url
        assert url is not None  # noqa: S101 - there are no checks without it
        began_at = time.monotonic()
        try:
            self._revision = revision_of(url.get_secret_value())
        except StoreUnavailableError as error:
            _refuse(error)
        return Timed.since(began_at, "it answers")

    def _tables(self) -> str:
        from infra.migrations.runner import NEWEST_REVISION  # noqa: PLC0415 - as above

        if self._revision is None:
            raise WrongError(
                "The database has no tables of ours.",
                "Run `bucketbell migrate`, or start the host, which does the same.",
            )
        if self._revision > NEWEST_REVISION:
            raise WrongError(
                f"The tables are of a newer release (step {self._revision}; this one knows {NEWEST_REVISION}).",
                "Install the newer release here and for every host that uses this database. Or have it take the tables "
                f"back (`bucketbell migrate --to {NEWEST_REVISION}`), or bring back a copy from before its migration.",
            )
        if self._revision < NEWEST_REVISION:
            raise WrongError(
                f"The tables are of an older release (step {self._revision}; this one needs {NEWEST_REVISION}).",
                "Run `bucketbell migrate`, or restart the host, which does the same.",
            )
        return f"of this release (step {NEWEST_REVISION})"

    def _stored(self) -> str:
        try:
            store = ConfigStore.of(self.settings)
            self.stored = None if store is None else store.load()
        except StoreUnavailableError as error:
            _refuse(error)
        if self.stored is None:
            return "none: the environment's MQTT_URL is in force"
        try:
            broker = self.broker()
        except CredentialsUnreadableError:
            keys = self.settings.encryption_keys
            raise WrongError(
                "The stored password cannot be read: "
                + ("none of ENCRYPTION_KEYS decrypts it." if keys else "ENCRYPTION_KEYS is not set."),
                "Bring back the key that it was stored with, into ENCRYPTION_KEYS of the host. If it is lost, set a "
                "new key, restart the host, and store the password again: `bucketbell mqtt set --password prompt`.",
            ) from None
        return "publishing is switched off" if broker is None else broker.url


def _refuse(error: StoreUnavailableError) -> NoReturn:
    """Its message ends with what to do."""
    what, _, remedy = str(error).rpartition(": ")
    raise WrongError(f"{what[:1].upper()}{what[1:]}.", f"{remedy[:1].upper()}{remedy[1:]}.") from None
