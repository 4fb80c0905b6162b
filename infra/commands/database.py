"""`bucketbell migrate` and `bucketbell rotate-keys`: look after the database of stored settings."""

from __future__ import annotations

from typing import Annotated

import typer

from functions.settings import Settings
from functions.stored.errors import CredentialsUnreadableError, NoEncryptionKeyError, StoreUnavailableError
from functions.stored.store import ConfigStore
from infra.commands.common import fail, load_or_exit

MIGRATE_EPILOG = (
    "Example: `DATABASE_URL=sqlite:////var/lib/bucketbell/settings.db bucketbell migrate`. Make a copy before `--to`: "
    "what is lost then is lost."
)
ROTATE_KEYS_EPILOG = (
    "Example: `ENCRYPTION_KEYS=new,old bucketbell rotate-keys`. First set that variable everywhere bucketbell runs; "
    "afterwards take the old key out. To make a key: `openssl rand -base64 32 | tr '+/' '-_'`"
)


def migrate(
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="STEP",
            help="Before an earlier release runs again: take the tables back to its last step, e.g. 0002. Ask the "
            "newer release to do it. What its steps have added is lost, with all that it holds.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Create the tables in DATABASE_URL, or bring them up to this release. It may run any number of times.

    The host does it when it starts; a Lambda function never does. If several run at once, they take turns.
    """
    url = _settings().database_url
    from infra.migrations.runner import REVISIONS, downgrade, revision_of, upgrade  # noqa: PLC0415 - Alembic is only here

    if to is not None and to not in REVISIONS:
        raise typer.BadParameter(f"must be one of {', '.join(REVISIONS)}", param_hint="--to")
    try:
        if to is not None and url is not None:
            is_newer = (revision_of(url.get_secret_value()) or "") > to
            done = is_newer and downgrade(url.get_secret_value(), to)
            typer.echo(
                f"the tables are those of step {to} now" if done else f"the tables were not newer than step {to}"
            )
            return
        done = url is not None and upgrade(url.get_secret_value())
    except StoreUnavailableError as error:
        fail(str(error))
    typer.echo("the tables are up to date now" if done else "the tables were up to date already")


def rotate_keys() -> None:
    """Encrypt the stored password with the first of ENCRYPTION_KEYS, so that the others can be taken out."""
    settings = _settings()
    try:
        store = ConfigStore.of(settings)
        count = 0 if store is None else store.rotate_keys()
    except (CredentialsUnreadableError, NoEncryptionKeyError, StoreUnavailableError) as error:
        fail(str(error))
    typer.echo("the stored password is encrypted with the first key now" if count else "no password is stored")


def _settings() -> Settings:
    """Return the settings, DATABASE_URL among them, or say what is wrong and exit 1."""
    settings = load_or_exit().settings
    if settings.database_url is None:
        fail("DATABASE_URL: must be set, e.g. sqlite:////var/lib/bucketbell/settings.db")
    return settings
