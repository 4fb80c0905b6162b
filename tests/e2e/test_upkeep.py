"""docs/upkeep.md, done: copied while the host runs, destroyed, restored; upgraded, and taken back a step."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from functions.stored.database import VERSION_TABLE
from functions.web.tokens import Keyring
from infra.local.mosquitto import Mosquitto
from infra.local.postgres import PASSWORD as DATABASE_PASSWORD
from infra.local.postgres import USER as DATABASE_USER
from infra.local.postgres import Postgres
from infra.local.stores import MotoServer
from infra.migrations.runner import NEWEST_REVISION, revision_of
from infra.subscriber import Subscriber
from tests.databases import execute, new_key, new_postgresql, new_sqlite
from tests.hosts import MAC_KEY, TOPICS, Host, environment, eventually
from tests.stored import ADMIN, KEY, PASSWORD, SHORT, USER, Admin, Stream, readiness
from tests.timing import PATIENCE_SECONDS

PAGE = Path(__file__).parents[2] / "docs" / "upkeep.md"
COMMANDS = re.findall(r"^ *[#$] (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
BUCKETBELL = Path(sys.executable).with_name("bucketbell")
COMMAND_SECONDS = 60.0
DEVICE_KEY = "k:" + base64.b64encode(bytes(range(32))).decode()
MAC = MAC_KEY.removeprefix("configs/").removesuffix(".json")
PREFIX = "home"

_buckets = count()


def page(*words: str) -> str:
    """The one command of the page that has all of these words."""
    (found,) = [command for command in COMMANDS if all(word in command for word in words)]
    return str(found)


def sh(command: str, **variables: str) -> None:
    """Do as the page says."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


class SqliteFile:
    """A SQLite file of the page, `settings.db` or `sweep.db`, where the tests may write."""

    def __init__(self, directory: Path, name: str) -> None:
        self.file = directory / name
        self.url = f"sqlite:///{self.file}"
        self._name = name
        self._kept = directory / "backup" / name
        self._kept.parent.mkdir()

    def _do(self, *words: str) -> None:
        command = page(*words, self._name).replace("/backup", str(self._kept.parent))
        sh(command.replace("/var/lib/bucketbell", str(self.file.parent)))

    def back_up(self) -> None:
        """Into a file for us alone."""
        self._do(".backup(")
        assert self._kept.stat().st_mode & 0o777 == 0o600

    def destroy(self) -> None:
        """The disk is gone."""
        for file in self.file.parent.glob(f"{self._name}*"):
            file.unlink()

    def restore(self) -> None:
        """From the copy."""
        self._do("install ")


class PostgresDatabase:
    """A database of a real server, by its own programs."""

    def __init__(self, directory: Path, server: Postgres) -> None:
        self.url = new_postgresql(server)
        self._server = server
        self._name = urlsplit(self.url).path.removeprefix("/")
        self._directory = directory

    def _do(self, *words: str) -> None:
        command = page(*words).replace("sudo -u postgres ", "").replace("/backup", str(self._directory))
        command = re.sub(r"\bbell\b(?!\.)", self._name, command)
        assert self._name in command
        known = {"PGHOST": "127.0.0.1", "PGPORT": str(self._server.port), "PGUSER": DATABASE_USER}
        sh(command, **known, PGPASSWORD=DATABASE_PASSWORD)

    def back_up(self) -> None:
        """Into a dump."""
        self._do("pg_dump")

    def destroy(self) -> None:
        """The database is gone."""
        with psycopg.connect(self._server.url(), autocommit=True, connect_timeout=30) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self._name)))

    def restore(self) -> None:
        """Into an empty one."""
        self._do("createdb")
        self._do("pg_restore")


class Place:
    """A bucket without events, a broker that asks for a password, and what a host of them needs to know."""

    def __init__(self, directory: Path, store: MotoServer, broker: Mosquitto, ear: Subscriber, **known: str) -> None:
        self.s3 = store.client()
        self.bucket = f"upkeep-{next(_buckets)}"
        self.s3.create_bucket(Bucket=self.bucket)
        self.broker, self.ear = broker, ear
        self._directory = directory
        self.known = environment(
            None,
            BUCKET=self.bucket,
            AWS_ENDPOINT_URL=store.endpoint_url,
            AWS_ACCESS_KEY_ID=store.access_key,
            AWS_SECRET_ACCESS_KEY=store.secret_key,
            SWEEP_SECONDS="1",
            TOPIC_PREFIX=PREFIX,
            DEVICE_TOKEN_KEYS=DEVICE_KEY,
            ADMIN_TOKENS=ADMIN,
            ENCRYPTION_KEYS=KEY,
            DEVICE_REQUESTS_PER_MINUTE="0",
            **known,
        )

    def host(self, **changes: str) -> Host:
        """A host; two of one place are one after the other."""
        return Host(self._directory, self.known | changes, ready=False, patch=SHORT)

    def put(self, *names: str) -> None:
        """Upload assets."""
        for name in names:
            self.s3.put_object(Bucket=self.bucket, Key=f"assets/{name}", Body=name.encode())

    def hear(self, *names: str) -> None:
        """Wait until all of these rang."""
        eventually(lambda: set(names) <= set(self.heard()), 2 * PATIENCE_SECONDS)

    def heard(self) -> Counter[str]:
        """How often each file rang, those of the stream left out."""
        said = (json.loads(message.payload)["filename"] for message in self.ear.messages)
        return Counter(name for name in said if not name.startswith("busy"))


def after_sweeps(host: Host, number: int = 2) -> None:
    """Wait until so many have begun and ended."""
    begin = host.metric("sweep_seconds_count")
    eventually(lambda: host.metric("sweep_seconds_count") >= begin + number)


def store_settings(host: Host, broker: Mosquitto) -> None:
    """As an administrator does, with a password."""
    admin = Admin(host)
    eventually(lambda: admin.ask("GET", "config").status_code == 200)
    admin.put(broker.port, username=USER, password=PASSWORD)
    eventually(admin.connected)


@contextmanager
def placed(directory: Path, store: MotoServer, **known: str) -> Iterator[Place]:
    """A place for one test."""
    topics = [topic.replace("iotsupport", PREFIX) for topic in TOPICS]
    with (
        Mosquitto(directory / "broker", users={USER: PASSWORD}, acl=f"user {USER}\ntopic readwrite #") as broker,
        Subscriber(broker.url, topics, username=USER, password=PASSWORD) as ear,
    ):
        yield Place(directory, store, broker, ear, **known)


@pytest.mark.usefixtures("mosquitto_binary")
@pytest.mark.parametrize("home", ["sqlite", "postgresql", "file"])
def test_what_was_backed_up_while_the_host_ran_is_there_again(
    request: pytest.FixtureRequest, moto: MotoServer, tmp_path: Path, home: str
) -> None:
    """The stored password decrypts, tokens are valid, nothing is lost, and what rang before the copy rings no more."""
    database: SqliteFile | PostgresDatabase
    if home == "postgresql":
        database = PostgresDatabase(tmp_path, request.getfixturevalue("postgres_server"))
        known = {"DATABASE_URL": database.url}
    else:
        database = SqliteFile(tmp_path, "settings.db" if home == "sqlite" else "sweep.db")
        known = {"DATABASE_URL": database.url} if home == "sqlite" else {"SWEEP_STATE_FILE": str(database.file)}
    token = {"Authorization": f"Bearer {Keyring.parse([DEVICE_KEY]).mint(MAC)}"}
    with placed(tmp_path, moto, **known) as place:
        if home == "file":
            place.known |= {"MQTT_URL": place.broker.url, "MQTT_USERNAME": USER, "MQTT_PASSWORD": PASSWORD}
        with place.host() as host:
            if home != "file":
                store_settings(host, place.broker)
            after_sweeps(host)
            place.put("one", "two")
            place.hear("one", "two")
            after_sweeps(host)
            with Stream(host, "busy") as stream:
                eventually(lambda: len(stream.confirmed) > 20)
                database.back_up()
            place.put("after-the-copy")
            place.hear("after-the-copy")
        database.destroy()
        place.put("while-down")
        database.restore()
        with place.host() as host:
            place.hear("while-down")
            after_sweeps(host, 3)
            assert place.heard() == {"one": 1, "two": 1, "after-the-copy": 2, "while-down": 1}
            assert host.http.get("/manifest", headers=token).status_code == 200
            if home != "file":
                config = Admin(host).config()
                assert (config["source"], config["credentials"], config["version"]) == ("database", "ok", 1)
            assert host.lines("ERROR") == []
        if home == "sqlite":
            with place.host(ENCRYPTION_KEYS=new_key().get_secret_value()) as host:
                eventually(lambda: Admin(host).config()["credentials"] == "unreadable")
                assert readiness(host)[0] == 503
            with place.host() as host:
                eventually(Admin(host).connected)


@pytest.mark.usefixtures("mosquitto_binary")
@pytest.mark.parametrize(("kind", "step"), [("sqlite", "0002"), ("postgresql", "0001")])
def test_tables_of_an_earlier_step_are_brought_up_at_the_start(
    request: pytest.FixtureRequest, moto: MotoServer, tmp_path: Path, kind: str, step: str
) -> None:
    """Back by the command of the page, up by the host: the settings stay, and nothing that is uploaded is lost."""
    url = new_sqlite(tmp_path) if kind == "sqlite" else new_postgresql(request.getfixturevalue("postgres_server"))
    with placed(tmp_path, moto, DATABASE_URL=url) as place:
        with place.host() as host:
            store_settings(host, place.broker)
            after_sweeps(host)
            place.put("one")
            place.hear("one")
        back = page("migrate --to").replace("0002", step).replace("bucketbell", str(BUCKETBELL), 1)
        sh(f"cd {tmp_path} && {back} && {back}", DATABASE_URL=url)
        assert revision_of(url) == step
        place.put("while-down")
        with place.host() as host:
            eventually(Admin(host).connected)
            assert Admin(host).config()["credentials"] == "ok"
            place.hear("while-down")
            after_sweeps(host)
            assert place.heard() == {
                "one": 2,
                "while-down": 1,
            }  # both are young, and what rang was lost with its tables
            assert "the sweep's state is lost" in host.log
        assert revision_of(url) == NEWEST_REVISION


@pytest.mark.usefixtures("mosquitto_binary")
def test_an_earlier_release_goes_on_with_newer_tables_but_does_not_start_with_them(
    moto: MotoServer, tmp_path: Path
) -> None:
    """It says so, serves downloads, lets events wait, and connects by itself once the tables are back."""
    url = new_sqlite(tmp_path)
    newer = f"UPDATE {VERSION_TABLE} SET version_num = '9999'"  # noqa: S608 - of this test
    token = {"Authorization": f"Bearer {Keyring.parse([DEVICE_KEY]).mint(MAC)}"}
    with placed(tmp_path, moto, DATABASE_URL=url) as place:
        with place.host() as host:
            store_settings(host, place.broker)
            after_sweeps(host)
            execute(url, newer)
            place.put("one")
            place.hear("one")
            after_sweeps(host)  # it is noted
        place.put("two")
        with place.host() as host:
            eventually(lambda: "newer release (9999)" in str(readiness(host)[1]["reason"]))
            assert "migrate --to" in host.log
            assert host.http.get("/manifest", headers=token).status_code == 200
            assert readiness(host)[0] == 503
            time.sleep(2.0)  # a sweep would have been
            assert place.heard() == {"one": 1}
            execute(url, newer.replace("9999", NEWEST_REVISION))
            eventually(Admin(host).connected)
            place.hear("two")
        assert place.heard() == {"one": 1, "two": 1}
