"""What is printed of an object, an exception or a frame shows no secret: a canary is in every setting for one."""

from __future__ import annotations

import dataclasses
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from functions.admin.operations import Administration
from functions.cameras.reader import DetectionReader
from functions.devices.downloads import Downloads
from functions.integration import NoLocalPublisher
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.connection import Connection
from functions.mqtt.publisher import InlinePublisher
from functions.mqtt.tls import client_context
from functions.notifier import Notifier
from functions.settings import Settings, load, sources
from functions.settings.secret import Access
from functions.stored.database import Database
from functions.stored.model import MqttConfigChange
from functions.stored.store import ConfigStore
from functions.telemetry import EmfTelemetry, logger
from infra.host.server import Host
from tests.databases import new_sqlite
from tests.hostile.canaries import (
    CANARIES,
    HIDDEN,
    INSTEAD,
    KINDS,
    NO_SECRET,
    STORED_PASSWORD,
    environment,
    secret_fields,
    seen,
    suspicious_fields,
)
from tests.hostile.searching import forms, strict_log

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
CHANGE = MqttConfigChange(
    broker_host="127.0.0.1", broker_port=1, topic_prefix="x", username="u", password=SecretStr(STORED_PASSWORD)
)


def everything(**changes: str) -> dict[str, str]:
    """An environment with all secrets, and a broker, a store and a database where nobody is."""
    return {
        "MQTT_URL": "mqtts://127.0.0.1:1",
        "MQTT_USERNAME": "u",
        "MQTT_CERT_PEM": CERTIFICATE,
        "BUCKET": "devices",
        "EVENTS_PREFIX": "events/",
        "PUBLIC_BASE_URL": "http://127.0.0.1:2",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:3",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "R2_QUEUE_URL": "http://127.0.0.1:4/accounts/a/queues/q",
        "NATS_URL": "nats://127.0.0.1:1",
        "NATS_USERNAME": "u",
        **environment(*CANARIES),
        **changes,
    }


def test_no_setting_that_holds_a_secret_is_forgotten() -> None:
    """A new SecretStr needs a canary; a new name that sounds like one needs that, or a reason why it is none."""
    secrets = set(CANARIES) | set(INSTEAD)
    assert secret_fields(Settings) == secrets
    assert suspicious_fields(Settings) == (secrets | set(NO_SECRET)) & suspicious_fields(Settings)
    assert set(NO_SECRET) <= set(Settings.model_fields)
    assert secret_fields(MqttConfigChange) == suspicious_fields(MqttConfigChange) == {"password"}
    settings = load(everything()).settings
    for field in CANARIES:
        value = getattr(settings, field)
        held = [one.get_secret_value() for one in (value if isinstance(value, tuple) else [value])]
        assert "".join(held).split() == "".join(CANARIES[field]).split(), f"{field} holds its canary"


def test_the_search_would_find_each_of_them() -> None:
    """As it is, URL-encoded, in base64 at any offset, in hex, and a part of it."""
    for field, hidden in HIDDEN.items():
        for one in hidden:
            for form in forms(one):
                assert field in seen(f"… {form[2:11]} …"), form
    assert not seen(" ".join(kind.__doc__ or "" for kind in KINDS))


def objects_with_secrets(tmp_path: Path) -> list[object]:
    """Everything that is made of settings and lives on."""
    settings = load(everything()).settings
    broker = BrokerConfig.of(settings)
    assert broker is not None
    store = ConfigStore.of(settings)
    assert store is not None
    kept = load(everything(DATABASE_URL=new_sqlite(tmp_path))).settings
    host = Host(kept)
    access = Access("r", None, "AKIA", CANARIES["aws_secret_access_key"][0], CANARIES["aws_session_token"][0])
    return [
        settings,
        settings.model_dump(mode="json"),
        settings.model_dump_json(),
        broker,
        dataclasses.asdict(broker),
        CHANGE,
        CHANGE.model_dump_json(),
        load(everything()),
        access,
        Connection(broker, "c"),
        InlinePublisher(broker, EmfTelemetry()),
        Notifier(kept),
        Downloads.of(settings),
        Downloads.of(settings).keyring,
        DetectionReader.of(settings),
        Administration(settings, store, NoLocalPublisher()),
        store,
        vars(store),
        Database(settings.database_url.get_secret_value()) if settings.database_url else None,
        host,
        host.site,
        host.publisher,
    ]


def test_nothing_that_is_printed_of_an_object_holds_a_secret(tmp_path: Path) -> None:
    """`repr`, `str` and a format of each, as a stray log line or a debugger's list of variables would have them."""
    for one in objects_with_secrets(tmp_path):
        assert not seen(f"{one!r} {one} {[one]}"), type(one).__name__
        if dataclasses.is_dataclass(one) and not isinstance(one, type):
            assert not seen(repr([getattr(one, field.name) for field in dataclasses.fields(one) if field.repr]))


def nobody() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def from_environment(environ: dict[str, str]) -> object:
    """The settings as a process reads them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        return load()


def bad_settings() -> object:
    """Every secret in a setting that is wrong, so that pydantic's own error would quote it."""
    everywhere = {
        name.upper(): f"?{STORED_PASSWORD} {','.join(HIDDEN['mqtt_password'])}" for name in Settings.model_fields
    }
    return from_environment({n: v for n, v in everywhere.items() if n not in {"SECRET_ID", "SECRETS_DIR"}})


def refused_url() -> object:
    """A password in the URL, where none may be."""
    return from_environment({"MQTT_URL": f"mqtt://u:{CANARIES['mqtt_password'][0]}@b"})


def bad_secret() -> object:
    """A document of Secrets Manager that is none of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "secret_text", lambda *_: f'{{"{STORED_PASSWORD}": "{STORED_PASSWORD}"}}')
        return from_environment({"SECRET_ID": "name"})


def no_broker() -> object:
    """Nobody at the broker's address."""
    variables = everything(MQTT_URL=f"mqtt://127.0.0.1:{nobody()}", MQTT_CERT_PEM="", MQTT_KEY_PEM="")
    broker = BrokerConfig.of(load(variables).settings)
    assert broker is not None
    connection = Connection(broker, "c")
    connection.open(1.0)
    return connection


def bad_key() -> object:
    """A certificate that does not go with its key."""
    broker = BrokerConfig.of(load(everything()).settings)
    assert broker is not None
    return client_context(broker)


def no_database() -> object:
    """Nobody at the database's address."""
    store = ConfigStore.of(load(everything()).settings)
    assert store is not None
    return store.save(CHANGE, expected_version=None)


def no_store() -> object:
    """Nobody at the store's address."""
    objects = Downloads.of(load(everything()).settings).objects
    assert objects is not None
    return objects.head("assets/x")


FAILURES: list[Callable[[], object]] = [
    bad_settings,
    refused_url,
    bad_secret,
    no_broker,
    bad_key,
    no_database,
    no_store,
]


def failure(call: Callable[[], object]) -> Exception:
    """What it raises."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("it should have failed")


def chain(error: BaseException | None) -> list[BaseException]:
    """It and all that led to it."""
    found: list[BaseException] = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


@pytest.mark.parametrize("call", FAILURES, ids=lambda call: str(call.__name__))
def test_a_failure_and_all_that_led_to_it_hold_no_secret(call: Callable[[], object]) -> None:
    """Its text, its arguments, its attributes and its traceback, also through `logger.exception` at DEBUG."""
    error = failure(call)
    for one in chain(error):
        assert not seen(f"{one!r} {one} {one.args} {vars(one)}")
    assert not seen("".join(traceback.format_exception(error)))
    with strict_log("DEBUG") as said:
        logger.exception("forced", exc_info=error)
    assert "forced" in said.getvalue()
    assert not seen(said.getvalue())


# A crash reporter that keeps the local variables of each frame. What can be promised is this much: an error of ours,
# once raised, leads to no frame that holds a secret in clear. While a secret is being read or sent, a frame does hold
# it (paho's CONNECT, botocore's request, `load`'s callees), and an unforeseen exception in there would show it.


@pytest.mark.parametrize("call", FAILURES, ids=lambda call: str(call.__name__))
def test_a_crash_reporter_with_local_variables_sees_no_secret_in_a_failure_of_ours(call: Callable[[], object]) -> None:
    """Neither in the frames that raised it nor in those of what led to it."""
    error = failure(call)
    found: dict[str, set[str]] = {}
    for one in chain(error):
        for frame in traceback.TracebackException.from_exception(one, capture_locals=True).stack:
            if "tests/" not in frame.filename and (parts := seen(str(frame.locals))):
                found[f"{Path(frame.filename).name}:{frame.name}"] = set(parts)
    assert found == {}
