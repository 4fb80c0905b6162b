"""`bucketbell doctor` on brokers, databases, hosts and a queue, one at a time: each planted fault is named first."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from functions.stored.model import MqttConfigChange
from infra.cli import app
from infra.local.certificates import Certificates, make_certificates, renew_server
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stack import OURS
from infra.local.stores import MotoServer
from infra.migrations.runner import NEWEST_REVISION, upgrade
from infra.subscriber import Subscriber
from tests.databases import execute, new_key, new_sqlite, store_of
from tests.doctor import ADMIN, first, health
from tests.fakes.broker import Behaviour, FakeBroker
from tests.hosts import Host, environment, eventually

PASSWORD = "a-bells-password"
LONG = dt.timedelta(days=40)


def examined(directory: Path, *options: str, **more: str) -> dict[str, Any]:
    """What the doctor says with these settings alone."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith(OURS)}
    with contextlib.chdir(directory):  # not the developer's .env
        done = CliRunner().invoke(app, ["doctor", "--json", *options], env={**ours, **more})
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.exit_code == (0 if found["ok"] else 1), done.output
    assert PASSWORD not in done.output
    return found


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """Those of a broker with TLS."""
    return make_certificates(tmp_path / "certificates", authority_valid_for=LONG)


def with_tls(broker: Mosquitto, certificates: Certificates) -> dict[str, str]:
    """How to reach it."""
    return {"MQTT_URL": broker.url, "MQTT_CA_FILE": str(certificates.ca_file)}


@pytest.mark.parametrize(
    ("valid_for", "named"),
    [
        (dt.timedelta(minutes=-5), ("broker's TLS", "expired", "Renew the certificate on the broker")),
        (dt.timedelta(days=13), ("broker's certificate", "ends soon", "before that day")),
        (LONG, ("host", "does not answer", "bucketbell host")),
    ],
)
def test_a_certificate_that_ends_is_named_first(
    valid_for: dt.timedelta, named: tuple[str, str, str], certificates: Certificates, tmp_path: Path
) -> None:
    """It has, or will within 14 days; after that, nothing but the host is missing."""
    renew_server(certificates, valid_for=valid_for)
    with Mosquitto(tmp_path / "mosquitto", certificates=certificates) as broker:
        said = first(
            examined(tmp_path, "--host-url", f"http://127.0.0.1:{free_port()}", **with_tls(broker, certificates))
        )
    assert said[0] == named[0]
    assert all(words in text for words, text in zip(named, said, strict=True))


def test_an_authority_that_ends_is_named_first(tmp_path: Path) -> None:
    """Where it is known which one signed."""
    certificates = make_certificates(tmp_path / "certificates", authority_valid_for=dt.timedelta(days=10))
    renew_server(certificates, valid_for=LONG)
    with Mosquitto(tmp_path / "mosquitto", certificates=certificates) as broker:
        name, detail, remedy = first(examined(tmp_path, **with_tls(broker, certificates)))
    assert name == "broker's certificate"
    assert "broker's authority ends soon" in detail
    assert "MQTT_CA_FILE" in remedy


def test_a_wrong_authority_is_named_first(certificates: Certificates, tmp_path: Path) -> None:
    """And which variable names the right one."""
    with Mosquitto(tmp_path / "mosquitto", certificates=certificates) as broker:
        found = examined(tmp_path, MQTT_URL=broker.url, MQTT_CA_FILE=str(certificates.stranger_ca_file))
    name, detail, remedy = first(found)
    assert name == "broker's TLS"
    assert "an authority that is not trusted" in detail
    assert "MQTT_CA_FILE" in remedy
    assert health(found)["broker's login"] == "not checked"


def test_a_port_that_speaks_no_tls_is_named_first(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """MQTT_URL begins with the wrong word."""
    name, detail, _ = first(examined(tmp_path, MQTT_URL=mosquitto.url.replace("mqtt:", "mqtts:")))
    assert name == "broker's TLS"
    assert "TLS" in detail


def test_no_broker_is_named_first(tmp_path: Path) -> None:
    """Then nothing is published."""
    assert first(examined(tmp_path))[2] == "Set MQTT_URL for the host, and restart it."


def stored(url: str, port: int, key: SecretStr, **more: object) -> None:
    """Settings for the broker at this port, in the database."""
    change = MqttConfigChange.model_validate(
        {
            "broker_host": "127.0.0.1",
            "broker_port": port,
            "use_tls": False,
            "topic_prefix": "unifi/protect",
            "qos": 1,
            "enabled": True,
            "discovery_enabled": False,
            "discovery_prefix": "homeassistant",
            "retain_messages": False,
            **more,
        }
    )
    store_of(url, key).save(change, expected_version=None)


@pytest.fixture
def guarded(tmp_path: Path, mosquitto_binary: Path) -> Iterator[Mosquitto]:
    """A broker with a password, and rules that forbid the last will's topic."""
    del mosquitto_binary
    rules = "user bell\ntopic write iotsupport/#\ntopic write unifi/protect/camera/#\n"
    with Mosquitto(tmp_path / "mosquitto", users={"bell": PASSWORD}, acl=rules) as broker:
        yield broker


def test_a_last_will_that_the_broker_refuses_is_named_first(migrated_url: str, tmp_path: Path) -> None:
    """The broker lets us in without it."""
    key = new_key()
    with FakeBroker(script=[Behaviour(will_reason=0x87, reason_string="topic not allowed")]) as broker:
        stored(migrated_url, broker.port, key, discovery_enabled=True, username="bell", password=PASSWORD)
        found = examined(tmp_path, DATABASE_URL=migrated_url, ENCRYPTION_KEYS=key.get_secret_value())
    name, detail, remedy = first(found)
    assert name == "last will"
    assert "/availability: " in detail
    assert "Allow the user bell to write unifi/protect/bucketbell/#" in remedy
    assert health(found)["broker's login"] == "ok"


def test_a_broker_without_retained_messages_is_named_first(tmp_path: Path) -> None:
    """Rights are not what it lacks."""
    key, url = new_key(), new_sqlite(tmp_path)
    upgrade(url)
    with FakeBroker(script=[Behaviour(retain_available=False)]) as broker:
        stored(url, broker.port, key, discovery_enabled=True)
        name, detail, remedy = first(examined(tmp_path, DATABASE_URL=url, ENCRYPTION_KEYS=key.get_secret_value()))
    assert name == "last will"
    assert "no retained messages" in detail
    assert "--no-discovery" in remedy


def test_a_last_will_that_the_broker_would_drop_is_named_first(guarded: Mosquitto, tmp_path: Path) -> None:
    """Mosquitto says nothing about it in CONNACK; but the host was not let say `online` there."""
    key = new_key()
    url = new_sqlite(tmp_path)
    upgrade(url)
    stored(url, guarded.port, key, discovery_enabled=True, username="bell", password=PASSWORD)
    variables = environment(None, DATABASE_URL=url, ENCRYPTION_KEYS=key.get_secret_value(), ADMIN_TOKENS=ADMIN)
    with Host(tmp_path, variables) as host:
        name, detail, remedy = first(examined(tmp_path, "--host-url", host.url, **variables))
    assert name == "publish rights"
    assert "unifi/protect/bucketbell/+/availability" in detail
    assert "topic write unifi/protect/bucketbell/+/availability" in remedy


@pytest.mark.parametrize(("keys", "detail"), [(0, "ENCRYPTION_KEYS is not set"), (1, "none of ENCRYPTION_KEYS")])
def test_an_encryption_key_that_is_missing_is_named_first(
    keys: int, detail: str, guarded: Mosquitto, migrated_url: str, tmp_path: Path
) -> None:
    """None at all, or another one."""
    stored(migrated_url, guarded.port, new_key(), username="bell", password=PASSWORD)
    more = {"ENCRYPTION_KEYS": new_key().get_secret_value()} if keys else {}
    found = examined(tmp_path, DATABASE_URL=migrated_url, **more)
    assert first(found)[0] == "stored settings"
    assert detail in first(found)[1]
    assert "Bring back the key" in first(found)[2]
    assert health(found)["broker's name"] == "not checked"


@pytest.mark.parametrize(
    ("statement", "detail", "remedy"),
    [
        ("UPDATE bucketbell_version SET version_num = '9999'", "of a newer release", "Install the newer release"),
        ("UPDATE bucketbell_version SET version_num = '0001'", "of an older release", "bucketbell migrate"),
        ("DROP TABLE bucketbell_version", "no tables of ours", "bucketbell migrate"),
    ],
)
def test_tables_of_another_release_are_named_first(
    statement: str, detail: str, remedy: str, migrated_url: str, tmp_path: Path
) -> None:
    """And nothing is changed."""
    execute_all(migrated_url, statement)
    name, said, what = first(examined(tmp_path, DATABASE_URL=migrated_url))
    assert name == "tables"
    assert detail in said
    assert remedy in what


def execute_all(url: str, statement: str) -> None:
    """Raw SQL, which must hit something."""
    assert execute(url, "SELECT version_num FROM bucketbell_version") == [(NEWEST_REVISION,)]
    execute(url, statement)


def test_a_database_that_does_not_answer_is_named_first(tmp_path: Path) -> None:
    """A file that is not there; a server that is not there. No password is shown."""
    for url in (new_sqlite(tmp_path / "nowhere"), f"postgresql://me:{PASSWORD}@127.0.0.1:9/bell"):
        name, detail, remedy = first(examined(tmp_path, DATABASE_URL=url))
        assert name == "database"
        assert "cannot be used" in detail
        assert remedy


def test_two_hosts_that_share_nothing_are_named_first(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """Each has a database of its own, and both are online at the broker."""
    key = new_key()
    with contextlib.ExitStack() as stack:
        hosts: list[Host] = []
        for name in ("one", "other"):
            directory = tmp_path / name
            directory.mkdir()
            url = new_sqlite(directory)
            upgrade(url)
            stored(url, mosquitto.port, key, discovery_enabled=True)
            variables = environment(None, DATABASE_URL=url, ENCRYPTION_KEYS=key.get_secret_value())
            hosts.append(stack.enter_context(Host(directory, variables)))
            if name == "one":
                options, settings = ("--host-url", hosts[0].url), variables
                online(mosquitto, 1)
                assert health(examined(tmp_path, *options, **settings))["other hosts"] == "ok"
        online(mosquitto, 2)
        name, detail, remedy = first(examined(tmp_path, *options, **settings))
    assert name == "other hosts"
    assert str(hosts[1].port) in detail
    assert str(hosts[0].port) not in detail
    assert "DATABASE_URL of PostgreSQL" in remedy


def test_events_in_a_queue_are_followed_to_its_end(moto: MotoServer, tmp_path: Path) -> None:
    """The rules, the queue that they name, and whether the host takes its messages."""
    store = {
        "AWS_ENDPOINT_URL": moto.endpoint_url,
        "AWS_ACCESS_KEY_ID": moto.access_key,
        "AWS_SECRET_ACCESS_KEY": moto.secret_key,
        "AWS_REGION": moto.region,
        "BUCKET": "queued",
    }
    with contextlib.chdir(tmp_path):
        done = CliRunner().invoke(app, ["connect", "--create", "--queue", "of-its-own", "--json"], env=store)
    url = json.loads(done.stdout)["host_environment"]["SQS_QUEUE_URL"]

    assert health(examined(tmp_path, SQS_QUEUE_URL=url, **store))["notification rules"] == "ok"
    name, detail, remedy = first(examined(tmp_path, **store))
    assert (name, "SQS_QUEUE_URL is not set" in detail, f"SQS_QUEUE_URL={url}" in remedy) == (
        "notification rules",
        True,
        True,
    )
    with contextlib.closing(moto.client("sqs")) as sqs:
        sqs.delete_queue(QueueUrl=url)
    for more in ({"SQS_QUEUE_URL": url}, {}):
        name, detail, remedy = first(examined(tmp_path, **store, **more))
        assert name == "notification rules"
        assert "queue of-its-own, which does not exist" in detail
        assert "connect --create" in remedy


def online(broker: Mosquitto, count: int) -> None:
    """Wait until so many hosts say so at the broker."""
    with Subscriber(broker.url, ["unifi/protect/bucketbell/+/availability"]) as ear:
        eventually(lambda: len({one.topic for one in ear.messages if one.payload == b"online"}) == count)
