"""The host with stored broker settings where keys, database or broker are missing, or another host changes them."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import SecretStr

from functions.stored.model import MqttConfigChange
from infra.host.broker_settings import RELOAD_SECONDS, RETRY_SECONDS
from infra.host.mqtt.link import LASTING_SECONDS
from infra.local.mosquitto import Mosquitto
from infra.local.postgres import Postgres
from infra.local.process import free_port
from infra.subscriber import Subscriber
from tests.databases import execute, new_key, new_postgresql, new_sqlite, store_of
from tests.fakes.broker import Behaviour, FakeBroker
from tests.hosts import TOPICS, Host, eventually, upload
from tests.stored import API, KEY, PASSWORD, SHORT, USER, Admin, readiness, settings_of, stored, storing
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

ELSEWHERE_SECONDS = 30.0  # within these a change is in force in the other processes
STALE = "Bucketbell-Stale"
ROUND_SECONDS = 0.3  # more than one of SHORT's polls
CANARY = "canary-" + PASSWORD


# Back-off.


@contextmanager
def rude_listener() -> Iterator[tuple[int, list[float]]]:
    """A port where every connection is taken and closed at once, and when each came."""
    came: list[float] = []
    with socket.create_server(("127.0.0.1", free_port())) as server:

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                came.append(time.monotonic())
                connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server.getsockname()[1], came
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_SECONDS)


def test_attempts_come_after_1_2_and_4_seconds_less_up_to_half_by_chance(tmp_path: Path) -> None:
    """As a broker that is down sees them."""
    with rude_listener() as (port, came), stored(tmp_path, storing(new_sqlite(tmp_path)), port):
        eventually(lambda: len(came) >= 4)
    pauses = [after - before for before, after in pairwise(came[:4])]
    for pause, ceiling in zip(pauses, (1.0, 2.0, 4.0), strict=True):
        assert ceiling / 2 <= pause <= ceiling + SLACK_SECONDS, pauses


def test_only_a_connection_that_lasted_ends_the_row_of_failures(tmp_path: Path) -> None:
    """One that the broker accepts and drops at once is one failure more."""
    unit, lasting = 1.0, 0.5
    patch = (
        f"{SHORT}\nfrom functools import partial\nfrom infra.host.mqtt import link\nlink.LASTING_SECONDS = {lasting}\n"
        f"link.backoff_seconds = partial(link.backoff_seconds, first_seconds={unit})"
    )
    assert lasting < LASTING_SECONDS
    dropped = Behaviour(cut_at_publish=0)
    with FakeBroker(script=[*[Behaviour(raw_answer=b"")] * 2, dropped, Behaviour()]) as broker:
        with Host(tmp_path, storing(new_sqlite(tmp_path), broker.url), patch=patch):
            eventually(lambda: broker.connects >= 2)
            time.sleep(2 * lasting)
            lost_at = time.monotonic()
            broker.disconnect_all()
            eventually(lambda: broker.connections >= 5)
        came = [packet.received_at for packet in broker.of_kind("CONNECT")]
    # Two failures without a CONNACK, then one that was dropped after it: the pause is the third of the row.
    assert 2 * unit <= came[1] - came[0] <= 4 * unit + SLACK_SECONDS
    assert came[2] - lost_at <= unit + SLACK_SECONDS, "after one that lasted it begins anew"


# Keys.


@pytest.mark.parametrize("lost", ["", new_key().get_secret_value()], ids=["lost", "wrong"])
def test_without_the_key_nothing_is_sent_to_the_broker_until_it_is_brought_back(tmp_path: Path, lost: str) -> None:
    """`credentials_unreadable` in status, config and readiness; the process serves, and the sure door keeps events."""
    url = new_sqlite(tmp_path)
    with FakeBroker() as broker:
        with stored(tmp_path, storing(url), broker.port, username=USER, password=PASSWORD):
            broker.wait_for("CONNECT")
        before, body = broker.connections, upload()
        with Host(tmp_path, storing(url, broker.url, ENCRYPTION_KEYS=lost), ready=False, patch=SHORT) as host:
            admin = Admin(host)
            eventually(lambda: "credentials_unreadable" in readiness(host)[1]["reason"])
            assert readiness(host)[0] == 503
            assert (admin.config()["credentials"], admin.config()["has_password"]) == ("unreadable", True)
            status = admin.status()
            assert (status["connected"], status["broker"]) == (False, None)
            assert "credentials_unreadable" in status["last_error"]["reason"]
            assert host.http.get("/healthz").status_code == 200
            assert host.post(body).status_code == 503
            assert host.post(body, "/events/fast").status_code == 202
            time.sleep(ROUND_SECONDS)
            assert broker.connections == before
            told = [line for line in host.lines("WARNING") if "credentials_unreadable" in str(line)]
            assert len(told) == 1
            host.stop()
        with Host(tmp_path, storing(url, ENCRYPTION_KEYS=KEY)) as host:
            assert host.post(body).json() == {"outcomes": ["delivered"]}
    assert {connect.password for connect in broker.connect_packets} == {PASSWORD.encode()}


def test_a_password_stored_again_heals_unreadable_credentials_at_once(tmp_path: Path) -> None:
    """And so does switching off: nothing is left to read."""
    url = new_sqlite(tmp_path)
    with FakeBroker() as broker:
        with stored(tmp_path, storing(url), broker.port, username=USER, password=PASSWORD):
            pass
        other = storing(url, ENCRYPTION_KEYS=new_key().get_secret_value())
        with Host(tmp_path, other, ready=False, patch=SHORT) as host:
            eventually(lambda: "credentials_unreadable" in readiness(host)[1]["reason"])
            Admin(host).put(broker.port, username=USER, enabled=False)
            assert readiness(host) == (200, {"configured": False})
            Admin(host).put(broker.port, username=USER)
            assert "credentials_unreadable" in readiness(host)[1]["reason"]
            Admin(host).put(broker.port, username=USER, password=CANARY)
            eventually(lambda: readiness(host)[0] == 200)
    assert broker.connect_packets[-1].password == CANARY.encode()


def test_the_password_is_in_no_log_metric_answer_or_file(tmp_path: Path, mosquitto_binary: Path) -> None:
    """Accepted or refused, at DEBUG too, and in what the crash of a handler would show."""
    del mosquitto_binary
    with Mosquitto(tmp_path / "broker", users={USER: PASSWORD}) as broker:
        known = storing(new_sqlite(tmp_path), LOG_LEVEL="DEBUG")
        seen: list[str] = []
        with stored(tmp_path, known, broker.port, username=USER, password=CANARY) as (host, admin):
            eventually(lambda: admin.status()["last_error"] is not None)
            right = settings_of(broker.port, username=USER, password=PASSWORD)
            wrong = ({"qos": 3}, {"password": PASSWORD + "\0"}, {"password": [PASSWORD]}, {"username": None})
            refused = [admin.ask("PUT", "config", json=right | one) for one in wrong]
            assert {answer.status_code for answer in refused} == {422}
            seen += [answer.text for answer in refused]
            seen.append(admin.ask("POST", "test", json=right).text)
            seen.append(admin.ask("PUT", "config", json=right).text)
            eventually(lambda: readiness(host)[0] == 200)
            seen += [admin.ask("GET", path).text for path in ("config", "status")]
            seen += [host.http.get(path).text for path in ("/metrics", "/readyz", "/healthz", "/openapi.json")]
            host.stop()
            seen.append(host.log)
    files = b"".join(path.read_bytes() for path in tmp_path.glob("settings.db*"))
    for secret in (PASSWORD, CANARY, KEY):
        assert not [text for text in seen if secret in text]
        assert secret.encode() not in files
    assert b"127.0.0.1" in files, "it is there that the settings are"


def test_keys_that_are_rotated_before_a_host_has_the_new_one_cost_it_nothing(
    tmp_path: Path, mosquitto_binary: Path, database_url: str
) -> None:
    """The settings are the same: it stays connected, and says once that the password is unreadable by now."""
    del mosquitto_binary
    new = new_key()
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(tmp_path / "broker", users={USER: PASSWORD}))
        known = storing(database_url)
        host, admin = parts.enter_context(
            stored(tmp_path, known, broker.port, username=USER, password=PASSWORD, retain_messages=True)
        )
        eventually(lambda: readiness(host)[0] == 200)
        assert store_of(database_url, new, SecretStr(KEY)).rotate_keys() == 1
        eventually(lambda: troubles(host))
        time.sleep(ROUND_SECONDS)
        assert host.post(upload()).json() == {"outcomes": ["no_subscribers"]}
        assert (admin.connected(), admin.config()["credentials"]) == (True, "unreadable")
        (told,) = troubles(host)
        assert "Bring back the key" in str(told)
        assert broker.log_text().count("New client connected") == 1
        # Other settings with a password that nobody here can read are another matter.
        change = MqttConfigChange.model_validate(settings_of(broker.port, username="another", password=PASSWORD))
        store_of(database_url, new).save(change, expected_version=1)
        eventually(lambda: "credentials_unreadable" in readiness(host)[1]["reason"])


# Several hosts.


@pytest.mark.parametrize("versions", [1, 2])
def test_a_row_that_was_deleted_by_hand_and_stored_anew_is_in_force(
    tmp_path: Path, mosquitto_binary: Path, database_url: str, versions: int
) -> None:
    """By another host: its version is 1 again, which is no sign that nothing has changed."""
    del mosquitto_binary
    with ExitStack() as parts:
        old, new = (parts.enter_context(Mosquitto(tmp_path / name)) for name in ("old", "new"))
        host, admin = parts.enter_context(stored(tmp_path, storing(database_url), old.port))
        for _ in range(1, versions):
            admin.put(old.port)
        eventually(admin.connected)
        change = MqttConfigChange.model_validate(settings_of(new.port))
        with stopped_unlocked(host, database_url):
            execute(database_url, "DELETE FROM mqtt_config")
            assert store_of(database_url).save(change, expected_version=0).version == 1
        eventually(lambda: admin.status()["broker"] == new.url)
        assert readiness(host)[1]["broker"] == new.url


def test_a_row_that_was_changed_by_hand_is_in_force(tmp_path: Path, mosquitto_binary: Path, database_url: str) -> None:
    """Also where nobody thought of its version."""
    del mosquitto_binary
    with ExitStack() as parts:
        old, new = (parts.enter_context(Mosquitto(tmp_path / name)) for name in ("old", "new"))
        _, admin = parts.enter_context(stored(tmp_path, storing(database_url), old.port))
        eventually(admin.connected)
        execute(database_url, f"UPDATE mqtt_config SET broker_port = {new.port}")  # noqa: S608 - of this test
        eventually(lambda: admin.status()["broker"] == new.url)


def test_settings_stored_anew_through_a_host_are_in_force_there_at_once(tmp_path: Path, mosquitto_binary: Path) -> None:
    """Their version is lower than that of the row that was deleted by hand."""
    del mosquitto_binary
    never = f"{SHORT}\nbroker_settings.RELOAD_SECONDS = 3600"
    url = new_sqlite(tmp_path)
    with ExitStack() as parts:
        old, new = (parts.enter_context(Mosquitto(tmp_path / name)) for name in ("old", "new"))
        host, admin = parts.enter_context(stored(tmp_path, storing(url), old.port, never))
        admin.put(old.port)
        execute(url, "DELETE FROM mqtt_config")
        assert admin.put(new.port)["version"] == 1
        assert readiness(host)[1]["broker"] == new.url


@contextmanager
def stopped_unlocked(host: Host, url: str) -> Iterator[None]:
    """As `stopped`, at a moment when the host holds no lock: SQLite has one for the whole file."""
    for _ in range(100):
        with stopped(host):
            try:
                execute(url, "UPDATE mqtt_config SET version = version")
            except sqlite3.OperationalError:  # it is in the middle of a look
                continue
            yield
            return
    raise TimeoutError


@contextmanager
def stopped(host: Host) -> Iterator[None]:
    """The host is frozen meanwhile, and so reads nothing."""
    host.child.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        host.child.send_signal(signal.SIGCONT)


def test_a_change_at_one_host_is_in_force_at_the_other_and_each_lists_the_other(
    tmp_path: Path, mosquitto_binary: Path, database_url: str
) -> None:
    """On SQLite and on PostgreSQL; both began with an empty database at the same time."""
    del mosquitto_binary
    assert RELOAD_SECONDS + 5.0 < ELSEWHERE_SECONDS, "one poll, and its deadline"
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(tmp_path / "broker"))
        listener = parts.enter_context(Subscriber(broker.url, TOPICS))
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
        known = storing(database_url)
        one = parts.enter_context(Host(tmp_path / "one", known, ready=False, patch=SHORT))
        other = parts.enter_context(Host(tmp_path / "other", known, ready=False, patch=SHORT))
        here, there = Admin(one), Admin(other)
        for admin in (here, there):
            eventually(lambda admin=admin: admin.ask("GET", "config").status_code == 200)  # type: ignore[misc]  # the default binds it
        here.put(broker.port)
        eventually(there.connected)
        assert there.config() == here.config()
        assert other.post(upload()).status_code == 200
        listener.next()
        there.put(broker.port, enabled=False)
        eventually(lambda: readiness(one) == (200, {"configured": False}))
        there.put(broker.port)
        eventually(here.connected)

        def listed(admin: Admin) -> list[bool]:
            return [recorded["connected"] for recorded in admin.status()["recorded"]]

        for admin in (here, there):
            eventually(lambda admin=admin: listed(admin) == [True])  # type: ignore[misc]  # the default binds it
        assert here.status()["process"] != there.status()["process"]
        other.stop()
        eventually(lambda: listed(here) == [False])


# The database.


@contextmanager
def renamed(file: Path) -> Iterator[None]:
    """The database's file is elsewhere meanwhile."""
    away = file.with_suffix(".away")
    file.rename(away)
    yield
    away.rename(file)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Somebody else writes all the while, and lets nobody read either."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def down(server: Postgres) -> Iterator[None]:
    """The server is stopped, and comes back."""
    server.stop()
    try:
        yield
    finally:
        server.start()


@pytest.mark.parametrize("trouble", ["renamed", "locked", "down"])
def test_without_the_database_the_last_good_settings_are_told_and_publishing_goes_on(
    request: pytest.FixtureRequest, tmp_path: Path, mosquitto_binary: Path, trouble: str
) -> None:
    """Reads say since when they are stale, writes are 503, and nobody is disconnected; then all is well again."""
    del mosquitto_binary
    with ExitStack() as parts:
        if trouble == "down":
            server: Postgres = request.getfixturevalue("postgres_server")
            url, away = new_postgresql(server), down(server)
        else:
            url = new_sqlite(tmp_path)
            file = Path(url.removeprefix("sqlite:///"))
            away = renamed(file) if trouble == "renamed" else locked(file)
        broker = parts.enter_context(Mosquitto(tmp_path / "broker"))
        host, admin = parts.enter_context(stored(tmp_path, storing(url), broker.port))
        eventually(lambda: readiness(host)[0] == 200)
        good = admin.config()
        with away:
            answer = admin.ask("GET", "config")
            assert (answer.status_code, answer.json()) == (200, good)
            assert datetime.fromisoformat(answer.headers[STALE]).tzinfo is not None
            refused = admin.ask("PUT", "config", json=settings_of(free_port()))
            assert refused.status_code == 503
            assert refused.headers["Content-Type"] == "application/problem+json"
            status = admin.ask("GET", "status")
            assert (status.status_code, status.json()["connected"]) == (200, True)
            assert STALE in status.headers
            assert host.post(upload()).json() == {"outcomes": ["no_subscribers"]}
            assert readiness(host)[0] == 200
            eventually(lambda: troubles(host))
        eventually(lambda: STALE not in admin.ask("GET", "config").headers)
        assert admin.put(broker.port, qos=2)["version"] == 2
        eventually(lambda: any("can be read again" in line["message"] for line in host.lines("INFO")))
        assert broker.log_text().count("New client connected") == 1
        # A server that stops, or starts, says that too, where it is asked just then.
        assert len(troubles(host)) == (1 if trouble != "down" else len(set(troubles(host))))


def troubles(host: Host) -> list[object]:
    """What the host said about settings that it could not read."""
    lines = [line for line in host.lines("WARNING") if "stored settings cannot be read" in line["message"]]
    return [line["reason"] for line in lines]


def test_a_host_that_starts_without_its_database_waits_for_it(tmp_path: Path, mosquitto_binary: Path) -> None:
    """It does not guess a broker: the environment's is not asked. It serves, says why, and goes on by itself."""
    del mosquitto_binary
    assert RETRY_SECONDS <= 1.0
    folder = tmp_path / "not-yet"
    with Mosquitto(tmp_path / "broker") as broker:
        known = storing(new_sqlite(folder), broker.url)
        with Host(tmp_path, known, ready=False, patch=SHORT) as host:
            eventually(lambda: "cannot be" in readiness(host)[1]["reason"])
            code, mqtt = readiness(host)
            assert (code, mqtt["connected"]) == (503, False)
            assert re.search("not read yet.*not-yet/settings.db", mqtt["reason"])
            assert "not-yet" in Admin(host).status()["last_error"]["reason"]
            assert Admin(host).ask("GET", "config").status_code == 503
            body = upload()
            assert host.post(body).status_code == 503
            assert "New client" not in broker.log_text()
            folder.mkdir()
            eventually(lambda: readiness(host)[0] == 200)
            assert Admin(host).config()["source"] == "environment"
            assert host.post(body).json() == {"outcomes": ["no_subscribers"]}


def test_a_database_that_hangs_does_not_hold_up_the_end(tmp_path: Path, postgres_server: Postgres) -> None:
    """Its server is frozen: exit 0 in time, and the broker is told."""
    with FakeBroker() as broker:
        with stored(tmp_path, storing(new_postgresql(postgres_server)), broker.port) as (host, admin):
            eventually(admin.connected)
            os.kill(postgres_server.pid, signal.SIGSTOP)
            try:
                time.sleep(ROUND_SECONDS)
                host.stop()
            finally:
                os.kill(postgres_server.pid, signal.SIGCONT)
        broker.wait_for("DISCONNECT")
    assert API not in host.log
