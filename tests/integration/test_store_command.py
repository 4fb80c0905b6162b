"""`bucketbell migrate` and `bucketbell rotate-keys`, as a person runs them."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from functions.stored.model import MqttConfigChange
from infra.migrations.runner import NEWEST_REVISION
from tests.databases import execute, new_key, new_sqlite, store_of

BUCKETBELL = Path(sys.executable).parent / "bucketbell"
DEADLINE_SECONDS = 60.0
CANARY = "canary-5f3a"


def run(directory: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error of the real command, with these variables alone."""
    done = subprocess.run(
        [str(BUCKETBELL), *arguments],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin"} | variables,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_migrate_makes_the_tables_once(tmp_path: Path, database_url: str) -> None:
    """The second time it says that there was nothing to do; either way it exits 0."""
    first, second = (run(tmp_path, "migrate", DATABASE_URL=database_url) for _ in range(2))
    assert first == (0, "the tables are up to date now", "")
    assert second == (0, "the tables were up to date already", "")
    assert store_of(database_url).load() is None
    if database_url.startswith("sqlite"):
        mode = Path(database_url.removeprefix("sqlite:///")).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


def test_migrate_takes_tables_back_for_an_earlier_release(tmp_path: Path, migrated_url: str) -> None:
    """To the step that is named, and only back; what an earlier step holds stays. Up again by the plain command."""
    key = new_key()
    change = MqttConfigChange(broker_host="b", topic_prefix="x", username="u", password=SecretStr(CANARY))
    saved = store_of(migrated_url, key).save(change, expected_version=None)
    there = [
        run(tmp_path, "migrate", *arguments, DATABASE_URL=migrated_url)
        for arguments in (("--to", NEWEST_REVISION), ("--to", "0001"), ("--to", "0002"), ())
    ]
    assert there == [
        (0, f"the tables were not newer than step {NEWEST_REVISION}", ""),
        (0, "the tables are those of step 0001 now", ""),
        (0, "the tables were not newer than step 0002", ""),
        (0, "the tables are up to date now", ""),
    ]
    assert store_of(migrated_url, key).load() == saved


def test_a_step_that_is_none_is_named(tmp_path: Path, migrated_url: str) -> None:
    """Exit 2 with those that there are; tables of a newer release are left alone, and the words say what to do."""
    for step in ("base", "head", "9999", "-1", ""):
        status, _, said = run(tmp_path, "migrate", f"--to={step}", DATABASE_URL=migrated_url)
        assert status == 2
        assert "0001, 0002" in said
    execute(migrated_url, "UPDATE bucketbell_version SET version_num = '9999'")
    for arguments in ((), ("--to", "0002")):
        status, _, said = run(tmp_path, "migrate", *arguments, DATABASE_URL=migrated_url)
        assert status == 1
        assert "newer release (9999): run that one. " in said
        assert said.endswith(f": bucketbell migrate --to {NEWEST_REVISION}")
    assert execute(migrated_url, "SELECT version_num FROM bucketbell_version") == [("9999",)]


def test_rotate_keys_lets_the_old_key_go(tmp_path: Path, migrated_url: str) -> None:
    """With both keys, then with the new one alone the password is readable."""
    old, new = new_key(), new_key()
    change = MqttConfigChange(broker_host="b", topic_prefix="x", username="u", password=SecretStr(CANARY))
    store_of(migrated_url, old).save(change, expected_version=None)
    keys = f"{new.get_secret_value()},{old.get_secret_value()}"
    status, said, _ = run(tmp_path, "rotate-keys", DATABASE_URL=migrated_url, ENCRYPTION_KEYS=keys)
    assert (status, said) == (0, "the stored password is encrypted with the first key now")
    stored = store_of(migrated_url, new).load()
    assert stored is not None
    assert stored.password == SecretStr(CANARY)


def test_rotating_nothing_says_so(tmp_path: Path, migrated_url: str) -> None:
    """An empty table is no error."""
    assert run(tmp_path, "rotate-keys", DATABASE_URL=migrated_url) == (0, "no password is stored", "")


@pytest.mark.parametrize("command", ["migrate", "rotate-keys"])
def test_without_a_database_the_variable_is_named(tmp_path: Path, command: str) -> None:
    """Exit 1, with an example."""
    status, _, said = run(tmp_path, command)
    assert status == 1
    assert said.startswith("DATABASE_URL: must be set, e.g. sqlite:///")


def test_a_lost_key_is_explained(tmp_path: Path, migrated_url: str) -> None:
    """Exit 1, and what to do; without any key the variable is named."""
    change = MqttConfigChange(broker_host="b", topic_prefix="x", username="u", password=SecretStr(CANARY))
    store_of(migrated_url, new_key()).save(change, expected_version=None)
    variables = {"DATABASE_URL": migrated_url, "ENCRYPTION_KEYS": new_key().get_secret_value()}
    status, _, said = run(tmp_path, "rotate-keys", **variables)
    assert status == 1
    assert said.startswith("credentials_unreadable: ")
    status, _, said = run(tmp_path, "rotate-keys", DATABASE_URL=migrated_url)
    assert status == 1
    assert said.startswith("ENCRYPTION_KEYS must be set")


def test_trouble_is_one_line_without_credentials(tmp_path: Path) -> None:
    """A missing directory and a server that is not there: exit 1, no traceback."""
    for url in (new_sqlite(tmp_path / "nowhere"), f"postgresql://u:{CANARY}@127.0.0.1:1/x", f"mysql://u:{CANARY}@h/x"):
        status, _, said = run(tmp_path, "migrate", DATABASE_URL=url)
        assert status == 1
        assert "\n" not in said
        assert CANARY not in said
