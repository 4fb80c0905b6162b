"""Several processes on one database: two editors at once, two replicas that start together; migrations up and down."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url

from functions.config_store import StoreUnavailable
from functions.database import METADATA
from functions.mqtt_config import MqttConfigChange
from infra.migrate import downgrade, upgrade
from tests.databases import store_of

ROOT = Path(__file__).parents[2]
ROUNDS = 15
EXIT_SECONDS = 60.0

# Each says that it is ready, then does one thing for each line that it is given, and says what came of it.
EDITOR = """
import sys
from functions.config_store import VersionConflict
from functions.mqtt_config import MqttConfigChange
from tests.databases import store_of
store = store_of(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    change = MqttConfigChange(broker_host="b", topic_prefix=sys.argv[2])
    try:
        print("stored", store.save(change, expected_version=int(line)).version, flush=True)
    except VersionConflict as conflict:
        print("conflict", conflict.current, flush=True)
"""
REPLICA = """
import sys
from infra.migrate import upgrade
print("ready", flush=True)
sys.stdin.readline()
print(upgrade(sys.argv[1]), flush=True)
"""


class Child:
    """A Python process that reads lines and answers with lines."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self._in, self._out = process, process.stdin, process.stdout

    def tell(self, line: str) -> None:
        """Send one line."""
        self._in.write(f"{line}\n")
        self._in.flush()

    def hear(self) -> str:
        """Wait for one line; pytest's deadline is ours."""
        return self._out.readline().strip()


@contextmanager
def child(script: str, *arguments: str) -> Iterator[Child]:
    """A child that is ready, and is gone at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            running = Child(process)
            assert running.hear() == "ready"
            yield running
            process.communicate(timeout=EXIT_SECONDS)  # its input ends, and so does it
            assert process.returncode == 0
        finally:
            process.kill()


def test_of_two_editors_at_once_one_wins(migrated_url: str) -> None:
    """Round after round, the first of them on an empty table: one stores, the other hears of the new version."""
    with child(EDITOR, migrated_url, "first") as first, child(EDITOR, migrated_url, "second") as second:
        for version in range(ROUNDS):
            first.tell(str(version))
            second.tell(str(version))
            answers = {"first": first.hear(), "second": second.hear()}
            assert sorted(answers.values()) == [f"conflict {version + 1}", f"stored {version + 1}"]
            stored = store_of(migrated_url).load()
            assert stored is not None
            assert answers[stored.config.topic_prefix].startswith("stored")


def test_replicas_that_start_together_migrate_once(database_url: str) -> None:
    """Of four processes one runs the steps, the others wait for it, and all can go on."""
    with ExitStack() as stack:
        replicas = [stack.enter_context(child(REPLICA, database_url)) for _ in range(4)]
        for replica in replicas:
            replica.tell("go")
        assert sorted(replica.hear() for replica in replicas) == ["False", "False", "False", "True"]
    assert store_of(database_url).load() is None


def test_migrations_go_up_and_down_and_up(database_url: str) -> None:
    """Down to nothing, which drops the tables, and up again; a second time there is nothing to do."""
    assert upgrade(database_url)
    assert not upgrade(database_url)
    store = store_of(database_url)
    store.save(MqttConfigChange(broker_host="b", topic_prefix="x"), expected_version=0)
    assert not upgrade(database_url)
    assert store.load() is not None
    assert downgrade(database_url, "base")
    with pytest.raises(StoreUnavailable, match="bucketbell migrate"):
        store.load()
    assert not downgrade(database_url, "base")
    assert upgrade(database_url)
    assert store.load() is None


def test_migrations_make_the_tables_that_the_code_names(migrated_url: str) -> None:
    """Alembic finds no difference between the database and the code's tables."""
    engine = create_engine(make_url(migrated_url).set(drivername=dialect(migrated_url)))
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, METADATA) == []
    finally:
        engine.dispose()


def dialect(url: str) -> str:
    """SQLAlchemy's name for it."""
    return "sqlite" if url.startswith("sqlite") else "postgresql+psycopg"


def test_tables_of_a_newer_release_are_left_alone(migrated_url: str) -> None:
    """An older process says so, and changes nothing."""
    engine = create_engine(make_url(migrated_url).set(drivername=dialect(migrated_url)))
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    finally:
        engine.dispose()
    with pytest.raises(StoreUnavailable, match=r"newer release \(9999\)"):
        upgrade(migrated_url)
    assert store_of(migrated_url).load() is None
