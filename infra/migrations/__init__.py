"""The database's migrations, run by `infra.migrations.runner`."""
