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

from functions.stored.database import METADATA, VERSION_TABLE
from functions.stored.errors import StoreUnavailableError
from functions.stored.model import MqttConfigChange
from infra.migrations.runner import FIRST_REVISION, downgrade, upgrade
from tests.databases import execute, store_of

ROOT = Path(__file__).parents[2]
CHANGE = MqttConfigChange(broker_host="b", topic_prefix="x")
WHAT_ALEMBIC_KNOWS = "SELECT version_num FROM alembic_version"
ROUNDS = 15
EXIT_SECONDS = 60.0

# Each says that it is ready, then does one thing for each line that it is given, and says what came of it.
EDITOR = """
import sys
from functions.stored.errors import VersionConflictError
from functions.stored.model import MqttConfigChange
from tests.databases import store_of
store = store_of(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    change = MqttConfigChange(broker_host="b", topic_prefix=sys.argv[2])
    try:
        print("stored", store.save(change, expected_version=int(line)).version, flush=True)
    except VersionConflictError as conflict:
        print("conflict", conflict.current, flush=True)
"""
REPLICA = """
import sys
from infra.migrations.runner import upgrade
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
    store.save(CHANGE, expected_version=0)
    assert not upgrade(database_url)
    assert store.load() is not None
    assert downgrade(database_url, "base")
    with pytest.raises(StoreUnavailableError, match="bucketbell migrate"):
        store.load()
    assert not downgrade(database_url, "base")
    assert upgrade(database_url)
    assert store.load() is None


def test_migrations_make_the_tables_that_the_code_names(migrated_url: str) -> None:
    """Alembic finds no difference between the database and the code's tables."""
    engine = create_engine(make_url(migrated_url).set(drivername=dialect(migrated_url)))
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "version_table": VERSION_TABLE}
            )
            assert compare_metadata(context, METADATA) == []
    finally:
        engine.dispose()


def dialect(url: str) -> str:
    """SQLAlchemy's name for it."""
    return "sqlite" if url.startswith("sqlite") else "postgresql+psycopg"


def test_tables_of_a_newer_release_are_left_alone(migrated_url: str) -> None:
    """An older process says so, and changes nothing."""
    execute(migrated_url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")  # noqa: S608 - of this test
    with pytest.raises(StoreUnavailableError, match=r"newer release \(9999\)"):
        upgrade(migrated_url)
    assert store_of(migrated_url).load() is None


# Other programs in the same database.


@pytest.mark.parametrize("revision", ["ae1027a6acf", "0001", "0002"])
def test_another_program_that_uses_alembic_is_no_newer_release(database_url: str, revision: str) -> None:
    """Whatever its revision is called: our tables are made, its own word stays, and no second start has work to do."""
    theirs(database_url, revision)
    assert upgrade(database_url)
    assert not upgrade(database_url)
    saved = store_of(database_url).save(CHANGE, expected_version=0)
    assert store_of(database_url).load() == saved
    assert execute(database_url, WHAT_ALEMBIC_KNOWS) == [(revision,)]
    assert downgrade(database_url, "base")
    assert execute(database_url, WHAT_ALEMBIC_KNOWS) == [(revision,)]
    assert upgrade(database_url), "the tables are gone, whatever the other program's revision is called"


@pytest.mark.parametrize("known", [["0001"], ["0001", "ae1027a6acf"], ["ae1027a6acf"], []])
def test_tables_of_a_release_without_a_version_table_of_its_own_are_kept(migrated_url: str, known: list[str]) -> None:
    """Settings that were stored then are there, also where another program has replaced our word by its own."""
    saved = store_of(migrated_url).save(CHANGE, expected_version=0)
    downgrade(migrated_url, FIRST_REVISION)
    execute(migrated_url, f"DROP TABLE {VERSION_TABLE}")
    theirs(migrated_url, *known)
    assert upgrade(migrated_url), "the steps since then"
    assert not upgrade(migrated_url)
    assert store_of(migrated_url).load() == saved
    assert sorted(execute(migrated_url, WHAT_ALEMBIC_KNOWS)) == [(one,) for one in sorted(known)], "left alone"


@pytest.mark.parametrize("name", ["mqtt_config", "mqtt_process_status"])
def test_a_table_of_another_program_under_a_name_of_ours_is_named_and_left_alone(database_url: str, name: str) -> None:
    """Not called a release of ours, and nothing of ours is made beside it."""
    theirs(database_url, "ae1027a6acf")
    execute(database_url, f"CREATE TABLE {name} (topic TEXT)")
    with pytest.raises(StoreUnavailableError, match=rf"{name} that belongs to another program: name a database"):
        upgrade(database_url)
    execute(database_url, f"INSERT INTO {name} VALUES ('theirs')")  # noqa: S608 - of this test
    execute(database_url, f"DROP TABLE {name}")
    assert upgrade(database_url)


def theirs(url: str, *revisions: str) -> None:
    """What Alembic keeps for another program, or kept for us."""
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).touch()
    execute(url, "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    for revision in revisions:
        execute(url, f"INSERT INTO alembic_version VALUES ('{revision}')")  # noqa: S608 - of this test
