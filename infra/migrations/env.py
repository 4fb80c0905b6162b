"""Alembic's entry: runs the steps in the transaction that `infra.migrations.runner` opened."""

from __future__ import annotations

from alembic import context

from functions.stored.database import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
