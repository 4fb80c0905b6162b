"""The database's migrations, run by `infra.migrate`."""
