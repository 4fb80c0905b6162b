"""`notify.handler`'s process follows the stored broker settings: on a real database, broker and store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from functions.lifecycle import Renewal
from functions.notifier import Notifier
from functions.settings import Settings, SettingsError, load
from functions.stored import effective
from functions.stored.model import MqttConfigChange
from functions.stored.store import ConfigStore, Stored
from infra.local.mosquitto import Mosquitto
from infra.local.stores import Minio
from infra.migrations.runner import upgrade
from infra.subscriber import Subscriber
from tests.databases import execute, new_key
from tests.hosts import record

KEY = new_key().get_secret_value()
BUCKET = "stored-settings"
SECONDS = 30.0
NOBODY = 9  # the discard port, where no broker is
CONFIG = "configs/aa-bb-cc-dd-ee-ff.json"


@pytest.fixture(autouse=True)
def looking_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for half a minute."""
    monkeypatch.setattr(effective, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(effective, "RETRY_SECONDS", 0.0)


def settings_of(tmp_path: Path, **more: str) -> Settings:
    """Settings with a SQLite database; no broker in the environment."""
    known = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/settings.sqlite",
        "ENCRYPTION_KEYS": KEY,
        "MQTT_PUBLISH_TIMEOUT_SECONDS": "20",
    }
    return load({name: value for name, value in (known | more).items() if value}).settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A database with its tables, and nothing in them."""
    made = settings_of(tmp_path)
    assert made.database_url is not None
    upgrade(made.database_url.get_secret_value())
    return made


@pytest.fixture
def notifier(settings: Settings) -> Iterator[Notifier]:
    """A process that has just started."""
    with closing(Notifier(settings)) as made:
        yield made


def store_of(settings: Settings) -> ConfigStore:
    """The database as the API writes it."""
    store = ConfigStore.of(settings)
    assert store is not None
    return store


def save(settings: Settings, port: int, **changes: object) -> Stored:
    """Store settings as `PUT …/config` does."""
    document = {"broker_host": "127.0.0.1", "broker_port": port, "topic_prefix": "home"} | changes
    return store_of(settings).save(MqttConfigChange.model_validate(document), expected_version=None)


class Changing(Renewal):
    """Other settings as soon as the broker cannot be used; others are stored at the same moment."""

    def __init__(self, settings: Settings, store: Callable[[], object]) -> None:
        super().__init__(after_seconds=0, read=lambda: settings)
        self._store = store

    def renew(self) -> bool:
        """They have changed."""
        self._store()
        return True


def batch(*records: dict[str, Any]) -> dict[str, Any]:
    """SQS messages `m0`, `m1` …, each with one record."""
    messages = enumerate(records)
    return {
        "Records": [
            {"messageId": f"m{number}", "body": json.dumps({"Records": [one]}), "eventSource": "aws:sqs"}
            for number, one in messages
        ]
    }


def failed(answer: dict[str, Any]) -> list[str]:
    """The messages that SQS is to keep."""
    return [one["itemIdentifier"] for one in answer["batchItemFailures"]]


def test_it_goes_where_the_settings_say_and_leaves_word(
    settings: Settings, notifier: Notifier, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """Nothing stored and no MQTT_URL: silent. Stored: published. Stored anew: to the other broker, and only there."""
    assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == []
    with (
        Mosquitto(tmp_path / "second", users={"bell": "secret"}) as second,
        Subscriber(mosquitto.url, ["#"]) as at_first,
        Subscriber(second.url, ["#"], username="bell", password="secret") as at_second,
    ):
        save(settings, mosquitto.port)
        assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == []
        assert at_first.next().topic == "iotsupport/updates/configs", "updates keep TOPIC_PREFIX"
        save(settings, second.port, username="bell", password="secret")
        assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == []
        assert at_second.next().qos == 1
        assert at_first.silence(0.2) == []
        (said,) = [one for one in store_of(settings).recorded() if one.scope == "lambda"]
        assert (said.connected, said.broker, said.messages_published) == (True, second.url, 2)
        save(settings, second.port, username="bell", enabled=False)
        assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == []
        assert at_second.silence(0.2) == [], "switched off, it is silent"


def test_a_bad_broker_keeps_events_in_the_queue_and_shows_in_the_status(
    settings: Settings, notifier: Notifier, mosquitto: Mosquitto
) -> None:
    """All ids come back; after a good one is stored they are published."""
    save(settings, NOBODY)
    assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == ["m0"]
    (said,) = store_of(settings).recorded()
    assert not said.connected
    assert "refused" in str(said.last_error).lower()
    save(settings, mosquitto.port)
    with Subscriber(mosquitto.url, ["#"]) as ear:
        assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == []
        ear.next()


@pytest.mark.parametrize("keys", ["", new_key().get_secret_value()], ids=["lost", "wrong"])
def test_without_the_key_nothing_is_sent_and_nothing_is_lost(
    settings: Settings, mosquitto: Mosquitto, tmp_path: Path, keys: str
) -> None:
    """No CONNECT with an empty password: the events wait, and the reason is named."""
    save(settings, mosquitto.port, username="bell", password="secret")
    with Subscriber(mosquitto.url, ["#"]) as ear, closing(Notifier(settings_of(tmp_path, ENCRYPTION_KEYS=keys))) as it:
        assert failed(it.handle(batch(record(CONFIG)), SECONDS)) == ["m0"]
        assert it.publisher.attempts == 0
        assert ear.silence(0.2) == []


def test_keys_that_are_rotated_before_a_warm_process_has_the_new_one_cost_it_nothing(
    settings: Settings, notifier: Notifier, mosquitto: Mosquitto
) -> None:
    """It goes on with the password that it has read; other settings wait for the key."""
    save(settings, mosquitto.port, username="bell", password="secret")
    with Subscriber(mosquitto.url, ["#"]) as ear:
        assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == []
        ear.next()
        rotated = settings.model_copy(update={"encryption_keys": (new_key(), *settings.encryption_keys)})
        assert store_of(rotated).rotate_keys() == 1
        attempts = notifier.publisher.attempts
        assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == []
        assert notifier.publisher.attempts == attempts
        ear.next()
        save(rotated, mosquitto.port, username="bell", qos=2)
        assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == ["m0"]


def test_a_row_that_was_deleted_by_hand_and_stored_anew_is_in_force(
    settings: Settings, notifier: Notifier, mosquitto: Mosquitto
) -> None:
    """Its version is 1 again."""
    save(settings, NOBODY)
    assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == ["m0"]
    assert settings.database_url is not None
    execute(settings.database_url.get_secret_value(), "DELETE FROM mqtt_config")
    assert save(settings, mosquitto.port).version == 1
    assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == []


def test_a_database_that_is_away_stops_a_new_process_and_not_a_warm_one(
    settings: Settings, notifier: Notifier, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """Whoever knows the settings goes on with them; whoever does not keeps everything in the queue."""
    save(settings, mosquitto.port)
    with Subscriber(mosquitto.url, ["#"]) as ear:
        assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == []
        ear.next()
        (tmp_path / "settings.sqlite").unlink()
        assert failed(notifier.handle(batch(record(CONFIG)), SECONDS)) == []
        ear.next()
        with closing(Notifier(settings)) as fresh:
            assert failed(fresh.handle(batch(record(CONFIG)), SECONDS)) == ["m0"]
        assert ear.silence(0.2) == []


def test_a_url_that_has_no_driver_here_fails_the_start_by_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function without the layer of the database's packages says what is missing."""
    monkeypatch.setitem(__import__("sys").modules, "functions.stored.database", None)
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        Notifier(settings)


def test_detections_go_where_and_how_it_is_stored(
    settings: Settings, minio: Minio, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """Prefix, QoS and retain as stored; the camera is announced first, once, and again when that failed."""
    s3 = minio.client()
    s3.create_bucket(Bucket=BUCKET)
    access = {"AWS_ACCESS_KEY_ID": minio.access_key, "AWS_SECRET_ACCESS_KEY": minio.secret_key}
    known = settings_of(tmp_path, BUCKET=BUCKET, EVENTS_PREFIX="events/", AWS_ENDPOINT_URL=minio.endpoint_url, **access)

    def upload(event_id: str) -> dict[str, Any]:
        document = {
            "event_id": event_id,
            "camera_id": "yard",
            "camera_name": "Yard",
            "description": None,
            "objects_detected": ["person"],
            "confidence": 0.9,
            "source_type": "protect",
            "smart_detection_type": "person",
            "timestamp": "2026-11-20T21:20:28Z",
        }
        key = f"events/yard/{event_id}.json"
        s3.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(document).encode())
        made = record(key)
        made["s3"]["bucket"]["name"] = BUCKET
        return made

    save(settings, mosquitto.port, qos=2, retain_messages=True, discovery_enabled=True)
    with Subscriber(mosquitto.url, ["#"]) as ear, closing(Notifier(known)) as it:
        assert failed(it.handle(batch(upload("e1"), upload("e2")), SECONDS)) == []
        heard = ear.wait_for(3)
        assert [one.topic for one in heard] == [
            "homeassistant/device/bucketbell_yard/config",
            "home/camera/yard/event",
            "home/camera/yard/event",
        ]
        assert {one.qos for one in heard} == {2}
        with Subscriber(mosquitto.url, ["#"]) as late:
            assert {one.topic for one in late.wait_for(2)} == {one.topic for one in heard}
        mosquitto.kill()
        save(settings, mosquitto.port, qos=1, discovery_enabled=True)
        assert failed(it.handle(batch(upload("e3")), SECONDS)) == ["m0"]
        mosquitto.start()
        save(settings, NOBODY, qos=2, retain_messages=True, discovery_enabled=True)
        source = Changing(
            known.model_copy(update={"topic_prefix": "other"}),
            lambda: save(settings, mosquitto.port, topic_prefix="house", discovery_prefix="ha", discovery_enabled=True),
        )
        with Subscriber(mosquitto.url, ["#"]) as late, closing(Notifier(known, source)) as other:
            config = record(CONFIG)
            config["s3"]["bucket"]["name"] = BUCKET
            assert failed(other.handle(batch(upload("e4"), config), SECONDS)) == []
            assert [(one.topic, one.qos, one.retain) for one in late.wait_for(3)] == [
                ("ha/device/bucketbell_yard/config", 1, False),
                ("house/camera/yard/event", 1, False),
                ("other/updates/configs", 1, False),
            ]
            assert late.silence(0.2) == []
