"""Brings the database's tables up to this release: by `bucketbell migrate`, and when the host starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from functions.stored.database import VERSION_TABLE, Database
from functions.stored.errors import StoreUnavailableError

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATION_DEADLINE_SECONDS = 30.0
MIGRATIONS = Path(__file__).parent

# Of the only release that kept its revision in Alembic's usual table, which another program may have overwritten since.
REVISIONS = tuple(sorted(file.name.partition("_")[0] for file in MIGRATIONS.glob("versions/0*.py")))
NEWEST_REVISION = REVISIONS[-1]
FIRST_REVISION, FIRST_TABLES = "0001", ("mqtt_config", "mqtt_process_status")


def upgrade(url: str | Path, revision: str = "head") -> bool:
    """Run the steps that this database has not had; return whether there were any.

    Of several processes at once one runs them, and the others wait for it. All steps are done or none. A path is
    that of a SQLite file. Raises `StoreUnavailableError`.
    """
    if revision == "head" and _is_newest(url):
        return False  # as nearly always: a host need not keep ten megabytes of Alembic in memory
    from alembic import command  # noqa: PLC0415 - see above

    return _run(command.upgrade, url, revision)


def downgrade(url: str | Path, revision: str) -> bool:
    """Undo the steps behind `revision` ("base": all of them), with what their tables hold. Otherwise as `upgrade`."""
    from alembic import command  # noqa: PLC0415 - see `upgrade`

    return _run(command.downgrade, url, revision)


def revision_of(url: str | Path) -> str | None:
    """Return the step that this database has had last, None where there was none. Raises `StoreUnavailableError`."""
    with Database(url).transaction() as connection:
        if not connection.dialect.has_table(connection, VERSION_TABLE):
            return None
        found = connection.exec_driver_sql(f"SELECT max(version_num) FROM {VERSION_TABLE}")  # noqa: S608 - a constant
        return found.scalar()


def _is_newest(url: str | Path) -> bool:
    with Database(url, deadline_seconds=MIGRATION_DEADLINE_SECONDS).migrating() as connection:
        if not connection.dialect.has_table(connection, VERSION_TABLE):
            return False
        revisions = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 - a constant
        return list(revisions.scalars()) == [NEWEST_REVISION]


def _run(step: Callable[[Config, str], None], url: str | Path, revision: str) -> bool:
    from alembic import command  # noqa: PLC0415 - see `upgrade`
    from alembic.config import Config  # noqa: PLC0415 - see `upgrade`
    from alembic.migration import MigrationContext  # noqa: PLC0415 - see `upgrade`
    from alembic.util import CommandError  # noqa: PLC0415 - see `upgrade`

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with Database(url, deadline_seconds=MIGRATION_DEADLINE_SECONDS).migrating() as connection:
        config.attributes["connection"] = connection
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        has_table = partial(connection.dialect.has_table, connection)
        found = [] if has_table(VERSION_TABLE) else [table for table in FIRST_TABLES if has_table(table)]
        if len(found) == len(FIRST_TABLES):
            command.stamp(config, FIRST_REVISION)
        elif found:
            raise StoreUnavailableError(
                f"the database has a table {found[0]} that belongs to another program: name a database in DATABASE_URL "
                "that is bucketbell's own"
            )
        before = context.get_current_heads()
        try:
            step(config, revision)
        except CommandError:
            newer = ", ".join(before)
            raise StoreUnavailableError(
                f"the database's tables are of a newer release ({newer}): run that one. Or have it take them back "
                f"first, as far as this one knows them: bucketbell migrate --to {NEWEST_REVISION}"
            ) from None
        return context.get_current_heads() != before
