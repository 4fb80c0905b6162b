"""`bucketbell migrate` and `bucketbell rotate-keys`: the care of the database of stored settings."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import typer

from functions.settings import Settings, SettingsError, load
from functions.stored.store import ConfigStore, CredentialsUnreadable, NoEncryptionKey, StoreUnavailable

ENV_FILE = Path(".env")

MIGRATE_EPILOG = "Example: `DATABASE_URL=sqlite:////var/lib/bucketbell/settings.db bucketbell migrate`"
ROTATE_KEYS_EPILOG = (
    "Example: `ENCRYPTION_KEYS=new,old bucketbell rotate-keys`, once that variable is in force wherever bucketbell "
    "runs; afterwards take the old key out. A key: `openssl rand -base64 32 | tr '+/' '-_'`"
)


def migrate() -> None:
    """Make the tables of DATABASE_URL, or bring them up to this release. Again and again does no harm.

    The host does it when it starts; a Lambda function never does. Several at once: one works, the others wait.
    """
    url = _settings().database_url
    from infra.migrations.runner import upgrade  # noqa: PLC0415 - Alembic is only for this command

    try:
        done = url is not None and upgrade(url.get_secret_value())
    except StoreUnavailable as error:
        _fail(str(error))
    typer.echo("the tables are of this release now" if done else "the tables were of this release already")


def rotate_keys() -> None:
    """Encrypt the stored password with the first of ENCRYPTION_KEYS, so that the others can be taken out."""
    settings = _settings()
    try:
        store = ConfigStore.of(settings)
        count = 0 if store is None else store.rotate_keys()
    except (CredentialsUnreadable, NoEncryptionKey, StoreUnavailable) as error:
        _fail(str(error))
    typer.echo("the stored password is encrypted with the first key now" if count else "no password is stored")


def _settings() -> Settings:
    """Return the settings, DATABASE_URL among them, or say what is wrong and exit 1."""
    try:
        settings = load(env_file=ENV_FILE).settings
    except SettingsError as error:
        _fail(str(error))
    if settings.database_url is None:
        _fail("DATABASE_URL: must be set, e.g. sqlite:////var/lib/bucketbell/settings.db")
    return settings


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
