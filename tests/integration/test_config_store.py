"""The stored settings, on SQLite and on PostgreSQL: saved, versioned, encrypted."""

import sqlite3
import traceback
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from functions.stored.errors import (
    CredentialsUnreadableError,
    NoEncryptionKeyError,
    PasswordNeededError,
    StoreUnavailableError,
    VersionConflictError,
)
from functions.stored.model import MqttConfig, MqttConfigChange
from functions.stored.store import ConfigStore, ProcessStatus
from tests.databases import execute, new_key, store_of

CANARY = "canary-5f3a-\N{SNOWMAN}"
NOW = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)


def change(**fields: Any) -> MqttConfigChange:  # noqa: ANN401 - any field
    """Valid settings, with these differences."""
    return MqttConfigChange.model_validate({"broker_host": "broker.local", "topic_prefix": "unifi"} | fields)


def with_password(text: str = CANARY) -> MqttConfigChange:
    """Valid settings with a password."""
    return change(username="u", password=text)


def everything(url: str) -> bytes:
    """All bytes that a copy of the database would hold: SQLite's files, PostgreSQL's rows."""
    if url.startswith("sqlite"):
        file = Path(url.removeprefix("sqlite:///"))
        return b"".join(part.read_bytes() for part in sorted(file.parent.glob(f"{file.name}*")))
    with psycopg.connect(url, connect_timeout=30) as server, server.cursor().copy("COPY mqtt_config TO STDOUT") as copy:
        return b"".join(copy)


def test_what_is_saved_is_loaded(migrated_url: str) -> None:
    """Every field, by another process's store too; nothing before the first save."""
    key = new_key()
    store = store_of(migrated_url, key)
    assert store.load() is None
    new = change(
        broker_host="::1",
        broker_port=65535,
        username="u",
        password=CANARY,
        use_tls=True,
        topic_prefix="a/b",
        qos=2,
        enabled=False,
        discovery_enabled=True,
        discovery_prefix="ha",
        retain_messages=True,
    )
    before = datetime.now(UTC)
    saved = store.save(new, expected_version=None)
    assert saved.config == new.config
    assert saved.password == SecretStr(CANARY)
    assert (saved.has_password, saved.credentials_readable, saved.version) == (True, True, 1)
    assert before <= saved.created_at == saved.updated_at <= datetime.now(UTC)
    assert saved.created_at.tzinfo is UTC
    assert store.load() == store_of(migrated_url, key).load() == saved


def test_saving_again_replaces_and_counts(migrated_url: str) -> None:
    """The version goes up by one, the first moment stays, and all fields are those of the latest."""
    store = store_of(migrated_url)
    first = store.save(change(qos=2, discovery_enabled=True), expected_version=None)
    second = store.save(change(broker_host="other"), expected_version=1)
    assert (second.version, second.created_at) == (2, first.created_at)
    assert second.updated_at > first.updated_at
    assert second.config == MqttConfig(broker_host="other", topic_prefix="unifi")
    assert store.load() == second


def test_an_omitted_password_stays_and_null_clears_it(migrated_url: str) -> None:
    """Saving other fields keeps what was stored; a new password replaces it."""
    store = store_of(migrated_url, new_key())
    store.save(with_password(), expected_version=None)
    assert store.save(change(username="u", qos=0), expected_version=1).password == SecretStr(CANARY)
    assert store.save(with_password("next"), expected_version=2).password == SecretStr("next")
    cleared = store.save(change(username="u", password=None), expected_version=3)
    assert (cleared.password, cleared.has_password, cleared.credentials_readable) == (None, False, True)
    assert store.load() == cleared


@pytest.mark.parametrize("expected", [0, 1, 3])
def test_who_edits_an_older_version_is_told(migrated_url: str, expected: int) -> None:
    """The conflict names the version that is stored, and nothing was written."""
    store = store_of(migrated_url)
    store.save(change(), expected_version=0)
    stored = store.save(change(qos=0), expected_version=1)
    with pytest.raises(VersionConflictError) as caught:
        store.save(change(qos=2), expected_version=expected)
    assert caught.value.current == 2
    assert store.load() == stored


def test_who_edits_what_was_never_stored_is_told(migrated_url: str) -> None:
    """Version 0 is current where there is no row."""
    with pytest.raises(VersionConflictError) as caught:
        store_of(migrated_url).save(change(), expected_version=1)
    assert caught.value.current == 0
    assert store_of(migrated_url).load() is None


def test_the_password_is_nowhere_in_plain(migrated_url: str) -> None:
    """Not in the row, not in a copy of the database, not in what the values print as."""
    key = new_key()
    store = store_of(migrated_url, key)
    saved = store.save(with_password("first-" + CANARY), expected_version=None)
    saved = store.save(with_password(), expected_version=1)
    copy = everything(migrated_url)
    assert b"broker.local" in copy
    assert b"canary" not in copy
    assert key.get_secret_value().encode() not in copy
    assert "canary" not in str(execute(migrated_url, "SELECT * FROM mqtt_config"))
    assert "canary" not in f"{saved} {saved!r} {store!r} {vars(store)}"


def test_no_traceback_shows_the_password(migrated_url: str) -> None:
    """Whatever fails, and even where the local variables are printed along."""
    store = store_of(migrated_url, new_key())
    store.save(change(), expected_version=None)
    failures: list[Exception] = []
    with pytest.raises(VersionConflictError) as conflict:
        store.save(with_password(), expected_version=7)
    failures.append(conflict.value)
    with pytest.raises(NoEncryptionKeyError) as keyless:
        store_of(migrated_url).save(with_password(), expected_version=1)
    failures.append(keyless.value)
    execute(migrated_url, "DROP TABLE mqtt_config")
    with pytest.raises(StoreUnavailableError) as gone:
        store.save(with_password(), expected_version=1)
    failures.append(gone.value)
    for failure in failures:
        shown = "".join(traceback.TracebackException.from_exception(failure, capture_locals=True).format())
        assert "canary" not in shown


def test_without_a_key_no_password_is_stored(migrated_url: str) -> None:
    """The message says how to make one; settings without a password need none."""
    store = store_of(migrated_url)
    with pytest.raises(NoEncryptionKeyError, match="openssl rand"):
        store.save(with_password(), expected_version=None)
    assert store.load() is None
    assert store.save(change(username="u"), expected_version=None).has_password is False


@pytest.mark.parametrize("keys", [0, 1, 2])
def test_a_lost_key_is_a_state(migrated_url: str, keys: int) -> None:
    """Everything else is readable, no password stands in its place, and a new one mends it."""
    key = new_key()
    store_of(migrated_url, key).save(with_password(), expected_version=None)
    store = store_of(migrated_url, *(new_key() for _ in range(keys)))
    stored = store.load()
    assert stored is not None
    assert (stored.password, stored.has_password, stored.credentials_readable) == (None, True, False)
    assert stored.config.username == "u"
    kept = store.save(change(username="u", qos=2), expected_version=1)
    assert (kept.has_password, kept.credentials_readable) == (True, False)
    back = store_of(migrated_url, key).load()
    assert back is not None
    assert back.password == SecretStr(CANARY)
    with pytest.raises(NoEncryptionKeyError if keys == 0 else CredentialsUnreadableError):
        store.rotate_keys()
    if keys:
        assert store.save(with_password("next"), expected_version=2).credentials_readable


def test_a_damaged_token_is_unreadable(migrated_url: str) -> None:
    """What somebody wrote into the column by hand is no password, and no crash."""
    key = new_key()
    store_of(migrated_url, key).save(with_password(), expected_version=None)
    for token in ("", "plain", "\N{SNOWMAN}", "gAAAAA"):
        execute(migrated_url, f"UPDATE mqtt_config SET password_encrypted = '{token}'")  # noqa: S608 - of this test
        stored = store_of(migrated_url, key).load()
        assert stored is not None
        assert (stored.password, stored.has_password, stored.credentials_readable) == (None, True, False)


def test_keys_are_rotated(migrated_url: str) -> None:
    """With new and old key the password is encrypted anew, and then the old one may go; version and times stay."""
    old, new = new_key(), new_key()
    saved = store_of(migrated_url, old).save(with_password(), expected_version=None)
    both = store_of(migrated_url, new, old)
    assert both.load() == saved
    before = execute(migrated_url, "SELECT password_encrypted FROM mqtt_config")
    assert both.rotate_keys() == 1
    assert execute(migrated_url, "SELECT password_encrypted FROM mqtt_config") != before
    assert store_of(migrated_url, new).load() == saved
    lost = store_of(migrated_url, old).load()
    assert lost is not None
    assert not lost.credentials_readable


def test_where_no_password_is_stored_there_is_nothing_to_rotate(migrated_url: str) -> None:
    """Neither without a row nor with one; a key is not needed for that."""
    store = store_of(migrated_url)
    assert store.rotate_keys() == 0
    store.save(change(), expected_version=None)
    assert store.rotate_keys() == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE mqtt_config SET qos = 3",
        "UPDATE mqtt_config SET qos = -1",
        "UPDATE mqtt_config SET qos = NULL",
        "UPDATE mqtt_config SET broker_port = 0",
        "UPDATE mqtt_config SET broker_port = 65536",
        "UPDATE mqtt_config SET version = 0",
        "UPDATE mqtt_config SET id = 2",
        "UPDATE mqtt_config SET broker_host = NULL",
    ],
)
def test_the_table_itself_refuses_what_cannot_be(migrated_url: str, statement: str) -> None:
    """Also for who comes past our validation."""
    stored = store_of(migrated_url).save(change(), expected_version=None)
    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.IntegrityError)):
        execute(migrated_url, statement)
    assert store_of(migrated_url).load() == stored


def test_a_row_that_was_spoilt_by_hand_is_explained(migrated_url: str) -> None:
    """Reading names the field and what would be right; saving puts it right."""
    store = store_of(migrated_url)
    store.save(change(), expected_version=None)
    execute(migrated_url, "UPDATE mqtt_config SET broker_host = 'a..b', topic_prefix = '#'")
    with pytest.raises(StoreUnavailableError, match=r"broker_host must be .*; topic_prefix must be .*Store them again"):
        store.load()
    assert store.save(change(), expected_version=None).version == 2


STATUS = ProcessStatus(
    process="host-1",
    scope="host",
    broker="mqtt://broker.local:1883",
    connected=True,
    since=NOW,
    last_connected_at=NOW,
    last_error="Not authorized",
    last_error_code=0x87,
    last_error_at=NOW,
    messages_published=2**40,
    reconnect_attempts=3,
    recorded_at=NOW,
)


def test_each_process_keeps_its_latest_status(migrated_url: str) -> None:
    """One row for each, newest first, every field as it was."""
    store = store_of(migrated_url)
    assert store.recorded() == ()
    never = replace(
        STATUS,
        process="lambda-1",
        scope="lambda",
        broker=None,
        connected=False,
        last_connected_at=None,
        last_error=None,
        last_error_code=None,
        last_error_at=None,
        recorded_at=NOW + timedelta(seconds=1),
    )
    for status in (STATUS, never, replace(STATUS, messages_published=1), STATUS):
        store.record(status)
    assert store.recorded() == (never, STATUS)
    later = replace(STATUS, connected=False, recorded_at=NOW + timedelta(seconds=2))
    store.record(later)
    assert store.recorded() == (later, never)


def test_processes_that_are_gone_are_forgotten(migrated_url: str) -> None:
    """After a day without a word."""
    store = store_of(migrated_url)
    store.record(STATUS)
    store.record(replace(STATUS, process="host-2", recorded_at=NOW + timedelta(hours=23)))
    assert len(store.recorded()) == 2
    store.record(replace(STATUS, process="host-3", recorded_at=NOW + timedelta(hours=25)))
    assert [status.process for status in store.recorded()] == ["host-3", "host-2"]


def test_a_broker_may_say_what_it_likes(migrated_url: str) -> None:
    """A long error is cut, and a NUL, which PostgreSQL cannot hold, left out."""
    store = store_of(migrated_url)
    store.record(replace(STATUS, last_error="a\x00b" + "x" * 10_000))
    (status,) = store.recorded()
    assert status.last_error == "ab" + "x" * 498


def test_times_are_moments_in_any_zone(migrated_url: str) -> None:
    """What is given in another zone comes back as the same moment in UTC."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - of this test alone

    store = store_of(migrated_url)
    store.record(replace(STATUS, since=NOW.astimezone(ZoneInfo("Pacific/Auckland"))))
    (status,) = store.recorded()
    assert (status.since, status.since.utcoffset()) == (NOW, timedelta(0))


def test_a_store_is_shared_by_threads(migrated_url: str) -> None:
    """Many at once: each save is one version, and none is lost."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - of this test alone

    store: ConfigStore = store_of(migrated_url, new_key())
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: store.save(with_password(), expected_version=None).version, range(40)))
    assert sorted(versions) == list(range(1, 41))


@pytest.mark.parametrize(
    "elsewhere", [{"broker_host": "evil.example"}, {"broker_port": 1884}, {"use_tls": True}, {"username": "other"}]
)
def test_the_stored_password_is_not_kept_for_somebody_else(migrated_url: str, elsewhere: dict[str, Any]) -> None:
    """Whoever may store settings could have it sent to any host; nothing is stored, and null or a new one will do."""
    store = store_of(migrated_url, new_key())
    store.save(with_password(), expected_version=None)
    with pytest.raises(PasswordNeededError):
        store.save(change(**{"username": "u"} | elsewhere), expected_version=None)
    kept = store.load()
    assert kept is not None
    assert (kept.version, kept.config.broker_host, kept.password) == (1, "broker.local", SecretStr(CANARY))
    assert store.save(change(username="u", broker_host="BROKER.local", qos=0), expected_version=None).has_password
    moved = store.save(change(**{"username": "u", "password": None} | elsewhere), expected_version=None)
    assert not moved.has_password
    assert store.save(change(username="third"), expected_version=None).version == 4
