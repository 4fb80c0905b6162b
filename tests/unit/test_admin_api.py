"""The administration's API as Lambda calls it: who may ask, what is stored and what is refused."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from openapi_schema_validator import OAS31Validator
from pydantic import SecretStr

from functions import broker, integration
from functions.admin import operations as module
from functions.admin.api import MAX_BODY_BYTES, router
from functions.admin.openapi import BASE, OPERATIONS, RING, WHY, document
from functions.admin.operations import Administration, CannotPublishError, TopicVerdict
from functions.admin.probe import ProbeVerdict
from functions.admin.uploads import Uploads
from functions.events.routes import Routes
from functions.integration import NoLocalPublisher
from functions.mqtt.broker import BrokerConfig
from functions.settings import load
from functions.settings.reach import Targets
from functions.stored.errors import NoEncryptionKeyError, StoreUnavailableError, VersionConflictError
from functions.stored.model import MqttConfig, MqttConfigChange
from functions.stored.store import ConfigStore, ProcessStatus, Stored
from functions.telemetry import logger
from tests.gateway import CONTEXT, Answered, http_event

ADMIN, NEXT_ADMIN = "admin-token-0123456789", "admin-token-of-next-year"
CANARY = "canary-5f3a-password"
MOMENT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
GOOD: dict[str, Any] = {"broker_host": "broker.local", "topic_prefix": "unifi"}
ENVIRONMENT = {
    "ADMIN_TOKENS": f"{ADMIN},{NEXT_ADMIN}",
    "MQTT_URL": "mqtts://env.local",
    "MQTT_USERNAME": "envuser",
    "MQTT_PASSWORD": CANARY,
    "TOPIC_PREFIX": "iot",
}
DOCUMENT = document()


class Shelf(ConfigStore):
    """A store in memory, that may be told to fail."""

    def __init__(self) -> None:
        self.stored: Stored | None = None
        self.statuses: tuple[ProcessStatus, ...] = ()
        self.failure: Exception | None = None
        self.readable = True
        self.saves = 0

    def load(self) -> Stored | None:
        """See ConfigStore."""
        self._fail()
        if self.stored is None or self.readable:
            return self.stored
        return replace(self.stored, password=None, credentials_readable=False)

    def save(self, change: MqttConfigChange, *, expected_version: int | None) -> Stored:
        """See ConfigStore."""
        self._fail()
        before = self.stored
        current = 0 if before is None else before.version
        if expected_version not in {None, current}:
            raise VersionConflictError(current)
        given = "password" in change.model_fields_set
        password = change.password if given or before is None else before.password
        self.saves += 1
        self.stored = Stored(change.config, password, password is not None, True, current + 1, MOMENT, MOMENT)  # noqa: FBT003 - a field
        return self.stored

    def recorded(self) -> tuple[ProcessStatus, ...]:
        """See ConfigStore."""
        self._fail()
        return self.statuses

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class Here(NoLocalPublisher):
    """A process that publishes, and notes what it is asked for."""

    def __init__(self) -> None:
        self.applied: list[Stored | None] = []
        self.said: ProcessStatus | None = process("here")
        self.cameras = {"front-door"}
        self.failure: Exception | None = None

    def status(self) -> ProcessStatus | None:
        """See Publishing."""
        return self.said

    def topics(self) -> tuple[TopicVerdict, ...]:
        """See Publishing."""
        return (TopicVerdict("camera/+/event", accepted=False, reason="forbidden", reason_code=0x87, at=MOMENT),)

    def availability_topic(self, config: MqttConfig) -> str | None:  # type: ignore[override]  # this one has a topic
        """See Publishing."""
        return "here/availability" if config.discovery_enabled else None

    def apply(self, stored: Stored | None) -> None:
        """See Publishing."""
        if self.failure is not None:
            raise self.failure
        self.applied.append(stored)

    def publish_discovery(self) -> int:
        """See Publishing."""
        if self.failure is not None:
            raise self.failure
        return len(self.cameras)

    def forget_camera(self, camera_id: str) -> bool:
        """See Publishing."""
        known = camera_id in self.cameras
        self.cameras.discard(camera_id)
        return known


def process(name: str, scope: Any = "host", **changes: Any) -> ProcessStatus:  # noqa: ANN401 - any field
    """What a process recorded."""
    status = ProcessStatus(
        process=name,
        scope=scope,
        broker="mqtt://broker.local:1883",
        connected=True,
        since=MOMENT,
        last_connected_at=MOMENT,
        last_error="refused: Not authorized",
        last_error_code=0x87,
        last_error_at=MOMENT,
        messages_published=7,
        reconnect_attempts=2,
        recorded_at=MOMENT,
    )
    return replace(status, **changes)


class Rig:
    """An API with its store and its process."""

    def __init__(self, *, store: bool = True, elsewhere: bool = False, **variables: str) -> None:
        self.store = Shelf()
        self.here = Here()
        if elsewhere:
            self.here.said = None
        settings = load(ENVIRONMENT | variables).settings
        self.api = Administration(settings, self.store if store else None, self.here)
        self.uploads = Uploads(Routes.of(settings))

    def ask(
        self,
        method: str,
        what: str,
        body: object = None,
        *,
        token: str | None = ADMIN,
        headers: Mapping[str, str] | None = None,
        raw: str | bytes | None = None,
        query: str = "",
    ) -> Answered:
        """One answer, which is as the OpenAPI document says."""
        path = what if what.startswith("/") else f"{BASE}/{what}"
        sent = {"Authorization": f"Bearer {token}"} if token else {}
        headers = {**sent, "Content-Type": "application/json", **(headers or {})}
        event = http_event(path, method=method, query=query, headers=headers)
        if isinstance(raw, bytes):
            event["body"], event["isBase64Encoded"] = base64.b64encode(raw).decode(), True
        elif raw is not None or body is not None:
            event["body"] = json.dumps(body) if raw is None else raw
        answer = Answered.by(router(self.api, self.uploads), event)
        check_against_document(method, path, answer)
        assert CANARY not in json.dumps(answer.headers) + answer.body
        return answer

    def why(self, key: str) -> Any:  # noqa: ANN401 - a document
        """What became of a file."""
        answer = self.ask("GET", WHY, query=f"key={quote(key)}")
        assert answer.status == 200
        return answer.document

    def put(self, body: object = None, **more: Any) -> Answered:  # noqa: ANN401 - as `ask`
        """Store settings."""
        return self.ask("PUT", "config", body, **more)

    def untouched(self) -> bool:
        """Whether nothing was stored, nor the connection touched."""
        return (self.store.saves, self.here.applied) == (0, [])


def check_against_document(method: str, path: str, answer: Answered) -> None:
    """Fails where an answer is not what docs/openapi.json promises."""
    template = f"{BASE}/cameras/{{camera_id}}" if path.startswith(f"{BASE}/cameras/") else path
    operation = DOCUMENT["paths"].get(template, {}).get(method.lower())
    if operation is None:
        assert answer.status in {200, 404, 405}
        return
    promised = operation["responses"][str(answer.status)]
    if "content" not in promised:
        assert not answer.body
        return
    ((content_type, content),) = promised["content"].items()
    assert answer.headers["content-type"] == content_type
    OAS31Validator({**content["schema"], "components": DOCUMENT["components"]}).validate(answer.document)
    for name in promised.get("headers", {}):
        assert name != "ETag" or name.lower() in answer.headers


# Who may ask.

EVERY = [(one.method, one.path.replace("{camera_id}", "front-door")) for one in OPERATIONS]


@pytest.mark.parametrize(("method", "path"), EVERY)
@pytest.mark.parametrize("token", [None, "wrong-token-0123456789", ADMIN[:-1], ADMIN + "x", "\xff"])
def test_nobody_without_an_admin_token_gets_anything(method: str, path: str, token: str | None) -> None:
    """401, with what is asked for (RFC 6750); the body is not even looked at."""
    rig = Rig()
    refused = rig.ask(method, path, GOOD, token=token)
    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith('Bearer realm="bucketbell"')
    assert ("invalid_token" in refused.headers["www-authenticate"]) is bool(token)
    assert rig.untouched()


@pytest.mark.parametrize(("method", "path"), EVERY)
def test_without_admin_tokens_the_api_is_off(method: str, path: str) -> None:
    """503, and what to set; an empty token is none."""
    for token in (None, "", ADMIN):
        refused = Rig(ADMIN_TOKENS="").ask(method, path, GOOD, token=token)
        assert (refused.status, "ADMIN_TOKENS" in refused.document["detail"]) == (503, True)


def test_either_of_two_tokens_will_do() -> None:
    """So that they can be changed one after the other."""
    assert [Rig().ask("GET", "config", token=token).status for token in (ADMIN, NEXT_ADMIN)] == [200, 200]


def test_other_paths_and_methods_are_refused() -> None:
    """404 and 405, the latter with what is allowed."""
    rig = Rig()
    assert rig.ask("GET", "nothing").status == 404
    assert rig.ask("GET", f"{BASE}/cameras/a/b").status == 404
    refused = rig.ask("DELETE", "config")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, PUT")
    assert rig.ask("GET", "test").headers["allow"] == "POST"


# Reading.


def test_without_a_row_the_environment_is_in_force() -> None:
    """And the answer says so; the password is not in it."""
    answer = Rig().ask("GET", "config")
    assert (answer.status, answer.headers["etag"], answer.headers["cache-control"]) == (200, '"0"', "no-store")
    assert answer.document == {
        "source": "environment",
        "version": 0,
        "credentials": "ok",
        "has_password": True,
        "broker_host": "env.local",
        "broker_port": 8883,
        "username": "envuser",
        "use_tls": True,
        "topic_prefix": "iot",
        "qos": 1,
        "enabled": True,
        "discovery_enabled": False,
        "discovery_prefix": "homeassistant",
        "retain_messages": False,
        "created_at": None,
        "updated_at": None,
    }


def test_without_a_database_reading_works_and_storing_says_what_is_missing() -> None:
    """409 with the variable's name; nothing is applied."""
    rig = Rig(store=False)
    assert rig.ask("GET", "config").document["source"] == "environment"
    refused = rig.put(GOOD)
    assert (refused.status, "DATABASE_URL" in refused.document["detail"]) == (409, True)
    assert rig.ask("GET", "status").document["recorded"] == []
    assert rig.untouched()


def test_without_any_broker_the_host_is_null() -> None:
    """Where neither MQTT_URL nor a row is there."""
    shown = Rig(MQTT_URL="", MQTT_USERNAME="", MQTT_PASSWORD="").ask("GET", "config").document
    assert (shown["broker_host"], shown["enabled"], shown["credentials"]) == (None, False, "none")


def test_what_is_stored_is_in_force_and_its_password_untold() -> None:
    """Stored, applied, and shown with its version; the row says where it comes from."""
    rig = Rig()
    answer = rig.put({**GOOD, "username": "u", "password": CANARY, "qos": 2})
    assert (answer.status, answer.headers["etag"]) == (200, '"1"')
    assert answer.document == rig.ask("GET", "config").document
    assert (answer.document["source"], answer.document["credentials"]) == ("database", "ok")
    assert (answer.document["has_password"], answer.document["qos"]) == (True, 2)
    assert answer.document["updated_at"] == "2026-11-21T12:00:00Z"
    assert [one.version for one in rig.here.applied if one] == [1]
    assert rig.store.stored is not None
    assert rig.store.stored.password == SecretStr(CANARY)


def test_a_password_is_kept_when_left_out_and_cleared_by_null() -> None:
    """The two are not the same."""
    rig = Rig()
    rig.put({**GOOD, "username": "u", "password": CANARY})
    assert rig.put({**GOOD, "username": "u"}).document["has_password"] is True
    assert rig.put({**GOOD, "username": "u", "password": None}).document["has_password"] is False
    assert rig.ask("GET", "config").document["credentials"] == "none"


def test_a_lost_key_is_a_state() -> None:
    """`unreadable`, and a test with the stored password says what to do instead of sending an empty one."""
    rig = Rig()
    stored = {**GOOD, "username": "u"}
    rig.put({**stored, "password": CANARY})
    rig.store.readable = False
    shown = rig.ask("GET", "config").document
    assert (shown["credentials"], shown["has_password"]) == ("unreadable", True)
    refused = rig.ask("POST", "test", stored)
    assert (refused.status, "credentials_unreadable" in refused.document["detail"]) == (409, True)


# Two editors.


def test_of_two_editors_one_wins() -> None:
    """The other gets 412, with the version that is stored now; nothing of its own is stored or applied."""
    rig = Rig()
    assert rig.put(GOOD, headers={"If-Match": '"0"'}).status == 200
    lost = rig.put({**GOOD, "broker_host": "other.local"}, headers={"If-Match": '"0"'})
    assert (lost.status, lost.headers["etag"], lost.document["current_version"]) == (412, '"1"', 1)
    assert rig.ask("GET", "config").document["broker_host"] == "broker.local"
    assert (rig.store.saves, len(rig.here.applied)) == (1, 1)
    assert rig.put(GOOD, headers={"If-Match": '"1"'}).document["version"] == 2


@pytest.mark.parametrize("tag", ['W/"0"', "0", '"x"', '""', '"0", "1"', '"\u0663"', '"' + "9" * 30 + '"'])
def test_a_tag_that_is_none_of_ours_matches_nothing(tag: str) -> None:
    """412: weak ones never match (RFC 9110 §13.1.1)."""
    rig = Rig()
    assert rig.put(GOOD, headers={"If-Match": tag}).status == 412
    assert rig.untouched()


def test_an_editor_may_do_without() -> None:
    """No If-Match, or `*`: whatever is stored is replaced."""
    rig = Rig()
    assert [rig.put(GOOD).status, rig.put(GOOD, headers={"If-Match": "*"}).status] == [200, 200]


# Bad input.

_NO_QOS: tuple[object, ...] = (3, -1, "1", 1.0, True, None, [], 1e99)
_NO_BOOLEANS: tuple[object, ...] = ("true", 1, None)
MATRIX: list[tuple[str, object]] = [
    *(("qos", value) for value in _NO_QOS),
    *(("broker_port", value) for value in (0, 65536, -1, "1883", 1883.0, True, None, 10**30)),
    *(
        ("broker_host", value)
        for value in ("a..b", "a" * 70 + ".de", "http://x", "a b", " ", "", "x/y", "u@h", "h:1883", None, 7, "a" * 254)
    ),
    *(("username", value) for value in ("u" * 300, "", "a\0b", "a\nb", 7, True)),
    *(("topic_prefix", value) for value in ("", "/a", "a/+/b", "#", "a\0", "$SYS", None, "a" * 200)),
    *(("discovery_prefix", value) for value in ("", "/a", "a#", None)),
    *(
        (name, value)
        for name in ("use_tls", "enabled", "discovery_enabled", "retain_messages")
        for value in _NO_BOOLEANS
    ),
    *(("password", value) for value in ("a\0b", "", 7, "x" * 5000)),
    *((name, 1) for name in ("version", "has_password", "source", "pasword", "Qos", "__proto__")),
]


@pytest.mark.parametrize(("field", "value"), MATRIX, ids=lambda value: repr(value)[:24])
@pytest.mark.parametrize("what", [("PUT", "config"), ("POST", "test")], ids=["put", "test"])
def test_a_field_that_is_not_right_is_named(
    what: tuple[str, str], field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """422, by its name, and what would be right; nothing stored, nothing applied, nothing tried."""
    monkeypatch.setattr(module, "probe", lambda *_args, **_more: pytest.fail("tried"))
    rig = Rig()
    refused = rig.ask(*what, {**GOOD, "username": "u", field: value})
    assert refused.status == 422
    assert refused.document["errors"][0]["field"] == field
    assert all(error["problem"] and error["expected"] for error in refused.document["errors"])
    assert rig.untouched()


def test_every_wrong_field_is_named_at_once() -> None:
    """Not one after the other; values are never repeated."""
    refused = Rig().put({"qos": 3, "password": CANARY + "\0", "broker_port": "1883", "x": CANARY})
    named = {error["field"] for error in refused.document["errors"]}
    assert {"qos", "password", "broker_port", "x", "broker_host", "topic_prefix"} <= named


def test_a_password_without_a_user_name_is_refused() -> None:
    """MQTT 3.1.1 has no such thing."""
    refused = Rig().put({**GOOD, "password": CANARY})
    assert [error["field"] for error in refused.document["errors"]] == ["password"]


@pytest.mark.parametrize("raw", ["", "{", "null garbage", b"\xff\xfe", b"", "[" * 60_000, "\ud800".join("ab")])
def test_a_body_that_is_no_json_is_refused(raw: str | bytes) -> None:
    """400, however deep it is."""
    rig = Rig()
    assert rig.put(raw=raw).status == 400
    assert rig.untouched()


@pytest.mark.parametrize("body", [[], "text", 7, True])
def test_json_that_is_no_object_is_refused(body: object) -> None:
    """422, about the document as a whole."""
    rig = Rig()
    assert [error["field"] for error in rig.put(body).document["errors"]] == ["document"]
    assert rig.untouched()


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_another_content_type_is_refused(content_type: str) -> None:
    """415: a form of another site could send the others (CSRF), this one it cannot."""
    rig = Rig()
    assert rig.put(GOOD, headers={"Content-Type": content_type}).status == 415
    assert rig.untouched()


def test_a_charset_does_no_harm() -> None:
    """In any case."""
    assert Rig().put(GOOD, headers={"Content-Type": "Application/JSON; charset=utf-8"}).status == 200


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 6 << 20])
def test_a_body_that_is_too_large_is_refused(size: int) -> None:
    """413, in either shape; Lambda lets 6 MB through."""
    rig = Rig()
    assert rig.put(raw=" " * size).status == 413
    assert rig.put(raw=b" " * size).status == 413
    fits = json.dumps(GOOD).ljust(MAX_BODY_BYTES)
    assert rig.put(raw=fits).status == 200


# Trouble.


def test_without_the_database_reading_tells_the_last_good_settings_and_of_when() -> None:
    """In the header Bucketbell-Stale; what would change something is 503 with Retry-After."""
    rig = Rig()
    rig.put(GOOD)
    rig.ask("GET", "status")
    rig.store.failure = StoreUnavailableError("the disk is full")
    shown = rig.ask("GET", "config")
    assert (shown.status, shown.document["broker_host"]) == (200, "broker.local")
    assert datetime.fromisoformat(shown.headers["bucketbell-stale"]).tzinfo is not None
    assert rig.ask("GET", "status").headers["bucketbell-stale"].startswith("20")
    refused = rig.put({**GOOD, "broker_host": "other.local"})
    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    assert "the disk is full" in refused.document["detail"]
    assert len(rig.here.applied) == 1
    rig.store.failure = None
    assert "bucketbell-stale" not in rig.ask("GET", "config").headers


def test_a_database_that_was_never_there_is_503_but_the_status_is_told() -> None:
    """This process knows its own connection."""
    rig = Rig()
    rig.store.failure = StoreUnavailableError("it is away")
    assert rig.ask("GET", "config").status == 503
    status = rig.ask("GET", "status")
    assert (status.document["connected"], status.headers["bucketbell-stale"]) == (True, "never")


def test_without_a_key_no_password_is_stored() -> None:
    """409, and which variable to set."""
    rig = Rig()
    rig.store.failure = NoEncryptionKeyError()
    refused = rig.put({**GOOD, "username": "u", "password": CANARY})
    assert (refused.status, "ENCRYPTION_KEYS" in refused.document["detail"]) == (409, True)


def test_settings_that_cannot_be_applied_are_stored_all_the_same() -> None:
    """The status says what has become of them."""
    rig = Rig()
    rig.here.failure = RuntimeError("the loop is busy")
    assert rig.put(GOOD).status == 200
    assert rig.store.saves == 1


def test_what_nobody_expected_is_500_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Not even in the log, where a message could quote a password."""
    rig = Rig()
    rig.store.failure = RuntimeError(CANARY)
    assert rig.ask("GET", "config").status == 500
    assert CANARY not in logged(caplog)


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """All that was logged, with every field; something was."""
    assert caplog.records
    return "\n".join(str(vars(one)) for one in caplog.records) + caplog.text


def test_no_log_holds_a_password_or_a_token(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is asked, well or ill."""
    caplog.set_level(logging.INFO, logger=logger.name)
    rig = Rig()
    secret = {**GOOD, "username": "u", "password": CANARY}
    rig.put(secret)
    rig.put({**secret, "qos": 3})
    rig.put(raw=json.dumps(secret)[:-1])
    rig.put(secret, token="guess-" + CANARY)
    rig.store.failure = StoreUnavailableError("away")
    rig.put(secret)
    said = logged(caplog)
    assert "broker settings stored" in said
    assert CANARY not in said
    assert ADMIN not in said
    assert CANARY not in repr(rig.store.stored)


# Status.


def test_the_status_is_this_process_and_what_others_recorded() -> None:
    """The own row among them is left out: it is older than what is said now."""
    rig = Rig()
    rig.store.statuses = (process("here", messages_published=1), process("there", connected=False))
    answer = rig.ask("GET", "status").document
    assert (answer["scope"], answer["process"], answer["connected"], answer["probe"]) == ("host", "here", True, None)
    assert (answer["messages_published"], answer["reconnect_attempts"]) == (7, 2)
    assert answer["last_error"] == {
        "reason": "refused: Not authorized",
        "reason_code": 0x87,
        "at": "2026-11-21T12:00:00Z",
    }
    assert [(one["process"], one["connected"]) for one in answer["recorded"]] == [("there", False)]


def test_elsewhere_the_status_is_what_was_recorded_and_a_live_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled, with the settings in force, and not tried again within a few seconds."""
    tried: list[BrokerConfig] = []

    def fake(target: BrokerConfig, *_: object, timeout_seconds: float) -> ProbeVerdict:
        assert timeout_seconds < 5
        tried.append(target)
        return ProbeVerdict("unreachable", "Nobody.", 0.1)

    monkeypatch.setattr(module, "probe", fake)
    rig = Rig(elsewhere=True)
    unknown = rig.ask("GET", "status").document
    assert (unknown["scope"], unknown["connected"], unknown["messages_published"]) == ("lambda", None, None)
    assert (unknown["probe"]["outcome"], unknown["probe"]["broker"]) == ("unreachable", "mqtts://env.local:8883")
    rig.store.statuses = (process("a-host"), process("f2", "lambda"), process("f1", "lambda", connected=False))
    known = rig.ask("GET", "status").document
    assert (known["scope"], known["process"], len(known["recorded"])) == ("lambda", "f2", 3)
    assert len(tried) == 1
    rig.put({**GOOD, "username": "u", "password": CANARY})
    assert rig.ask("GET", "status").document["probe"]["broker"] == "mqtt://broker.local:1883"
    assert (len(tried), tried[1].password) == (2, SecretStr(CANARY))
    rig.put({**GOOD, "enabled": False})
    assert rig.ask("GET", "status").document["probe"] is None


# The test: which password goes where.


@pytest.mark.parametrize(
    ("changes", "sent", "which"),
    [
        ({}, CANARY, "stored"),
        ({"qos": 0, "broker_host": "BROKER.local"}, CANARY, "stored"),
        ({"broker_host": "evil.example"}, None, "none"),
        ({"broker_port": 1884}, None, "none"),
        ({"use_tls": True}, None, "none"),
        ({"username": "other"}, None, "none"),
        ({"username": None}, None, "none"),
        ({"password": None}, None, "none"),
        ({"password": "given"}, "given", "given"),
        ({"broker_host": "evil.example", "password": "given"}, "given", "given"),
    ],
)
@pytest.mark.parametrize("source", ["database", "environment"])
def test_the_stored_password_goes_only_where_it_belongs(
    monkeypatch: pytest.MonkeyPatch, source: str, changes: dict[str, Any], sent: str | None, which: str
) -> None:
    """Same host, port, TLS and user name: anything else could be used to fetch it."""
    seen: list[BrokerConfig] = []

    def fake(target: BrokerConfig, _targets: Targets) -> ProbeVerdict:
        seen.append(target)
        return ProbeVerdict("not_authorized", "No.", 0.1, 0x87)

    monkeypatch.setattr(module, "probe", fake)
    in_force = {**GOOD, "username": "u"}
    if source == "database":
        rig = Rig()
        rig.put({**in_force, "password": CANARY})
    else:
        rig = Rig(MQTT_URL="mqtt://broker.local", MQTT_USERNAME="u")
    before = rig.store.stored
    answer = rig.ask("POST", "test", {**in_force, **changes})
    assert (answer.status, answer.document["ok"], answer.document["password"]) == (200, False, which)
    (target,) = seen
    assert (target.password.get_secret_value() if target.password else None) == sent
    assert rig.store.stored is before
    assert len(rig.here.applied) == (source == "database")
    if which == "none" and target.username:
        assert "No password was sent" in answer.document["detail"]


def test_a_test_asks_for_what_the_host_asks_for_and_says_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last will where discovery is on, retained messages, QoS; and what the broker in force last said to topics."""
    seen: list[BrokerConfig] = []

    def fake(target: BrokerConfig, _targets: Targets) -> ProbeVerdict:
        seen.append(target)
        refused = "refused: Not authorized" if target.availability_topic else ""
        return ProbeVerdict("ok", "Accepted.", 0.1, will_refused=refused, retain_available=False, maximum_qos=1)

    monkeypatch.setattr(module, "probe", fake)
    rig = Rig()
    plain = rig.ask("POST", "test", GOOD).document
    assert (plain["ok"], plain["left_out"], plain["detail"]) == (True, [], "Accepted.")
    full = rig.ask("POST", "test", {**GOOD, "discovery_enabled": True, "qos": 2}).document
    assert [target.availability_topic for target in seen] == [None, "here/availability"]
    assert [next(one for one in full["left_out"] if word in one) for word in ("last will", "retained", "QoS 2")]
    assert (full["ok"], "Not authorized" in full["detail"]) == (True, True)
    (topic,) = full["topics"]
    assert (topic["topic"], topic["accepted"], topic["reason_code"]) == ("camera/+/event", False, 0x87)
    assert rig.ask("GET", "status").document["topics"] == [topic]
    other = rig.ask("POST", "test", {**GOOD, "broker_host": "other.local"}).document
    assert other["topics"] == [], "of another broker nobody knows"


def test_a_forbidden_target_is_403() -> None:
    """Whatever the operator allows; another only where a list names others."""
    assert Rig().ask("POST", "test", {**GOOD, "broker_host": "169.254.169.254"}).status == 403
    rig = Rig(MQTT_TEST_ALLOWED_HOSTS="broker.example,10.0.0.0/8")
    assert rig.ask("POST", "test", {**GOOD, "broker_host": "192.0.2.1"}).status == 403


@pytest.mark.parametrize(
    ("host", "allowed", "status"),
    [
        ("169.254.169.254", "", 403),
        ("fd20:ce::254", "::/0", 403),
        ("192.0.2.1", "broker.example,10.0.0.0/8", 403),
        ("other.example", "broker.example", 403),
        ("other.example", "broker.example,10.0.0.0/8", 200),
        ("broker.example", "broker.example", 200),
        ("10.1.2.3", "broker.example,10.0.0.0/8", 200),
    ],
)
def test_what_must_not_be_tested_is_not_stored(host: str, allowed: str, status: int) -> None:
    """403, and nothing is applied. A name that an allowed network may hold is judged when it is connected to."""
    rig = Rig(MQTT_TEST_ALLOWED_HOSTS=allowed)
    assert rig.put({**GOOD, "broker_host": host}).status == status
    assert rig.untouched() is (status == 403)


def test_a_live_probe_keeps_to_what_may_be_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored broker's, by the operator's list; the environment's broker is the operator's own."""
    seen: list[Targets | None] = []

    def fake(_target: BrokerConfig, targets: Targets | None, **_: object) -> ProbeVerdict:
        seen.append(targets)
        return ProbeVerdict("forbidden", "No.", 0.1)

    monkeypatch.setattr(module, "probe", fake)
    rig = Rig(elsewhere=True, MQTT_TEST_ALLOWED_HOSTS="10.0.0.0/8")
    assert rig.ask("GET", "status").status == 200
    rig.put({**GOOD, "broker_host": "elsewhere.example"})
    assert rig.ask("GET", "status").document["probe"]["outcome"] == "forbidden"
    assert seen == [None, Targets.parse(["10.0.0.0/8"])]


# Cameras.


def test_discovery_is_published_again() -> None:
    """With the number of cameras; where that cannot be done, 409 and why."""
    rig = Rig()
    assert rig.ask("POST", "publish-discovery").document == {"cameras": 1}
    rig.here.failure = CannotPublishError("Discovery is off.")
    refused = rig.ask("POST", "publish-discovery")
    assert (refused.status, refused.document["detail"]) == (409, "Discovery is off.")


def test_a_camera_is_forgotten_once() -> None:
    """204, then 404."""
    rig = Rig()
    assert [rig.ask("DELETE", "cameras/front-door").status for _ in range(2)] == [204, 404]


def test_a_function_says_that_it_publishes_nothing() -> None:
    """409, and who could."""
    rig = Rig()
    rig.api = Administration(load(ENVIRONMENT).settings, rig.store, NoLocalPublisher())
    for asked in (("POST", "publish-discovery"), ("DELETE", "cameras/front-door")):
        refused = rig.ask(*asked)
        assert (refused.status, "host" in refused.document["detail"]) == (409, True)


def test_a_function_says_what_can_be_known_of_an_upload() -> None:
    """That another one publishes, and where to look; a key that rings no bell is told at once, without the bucket."""
    rig = Rig()
    for key, found in (("x.bin", "assets/x.bin"), ("A1B2C3D4E5F6", "configs/A1-B2-C3-D4-E5-F6.json")):
        said = rig.why(key)
        assert (said["key"], said["scope"], said["verdict"], said["well"]) == (found, "lambda", "elsewhere", False)
        assert (said["object"]["state"], said["known_since"], said["events"]) == ("not_checked", None, [])
        assert "NotifyFunction" in said["answer"]
        assert said["route"]["topic"].startswith("iot/updates/")
    said = rig.why("configs/kitchen.json")
    assert (said["verdict"], said["route"]["reason"]) == ("not_announced", "bad_config_name")
    for asked in (("POST", RING, {"key": "assets/x.bin"}), ("GET", RING)):
        refused = rig.ask(*asked, query="since=2026-01-01T00:00:00Z")
        assert (refused.status, "host" in refused.document["detail"]) == (409, True)


def test_what_can_be_no_key_and_no_time_is_refused_by_its_field() -> None:
    """422, before anybody is asked."""
    rig = Rig()
    for query in ("", "key=", "key=a%00b", f"key={'x' * 1025}", f"key={'%c3%a4' * 513}"):
        refused = rig.ask("GET", WHY, query=query)
        assert (refused.status, refused.document["errors"][0]["field"]) == (422, "key")
    bodies: list[object] = [{"key": ""}, {"key": "x" * 1025}, {"key": 7}, {"key": "a", "more": 1}, {}, []]
    for body in bodies:
        refused = rig.ask("POST", RING, body)
        assert (refused.status, refused.document["errors"][0]["field"]) == (422, "key")
    for query in ("", "since=yesterday", "since=2026-11-30", "since=2026-11-30T12:00:00"):
        refused = rig.ask("GET", RING, query=query)
        assert (refused.status, refused.document["errors"][0]["field"]) == (422, "since")
    assert rig.ask("GET", WHY, query="key=a&key=b").status == 400


def test_the_document_is_served_to_anybody() -> None:
    """It is no secret, and the same as the code's."""
    answer = Rig().ask("GET", "/openapi.json", token=None)
    assert (answer.status, answer.document) == (200, DOCUMENT)


# As Lambda starts it.


def test_as_a_function_without_a_database_it_answers_and_imports_none() -> None:
    """From the environment, with a live probe of nothing; neither SQLAlchemy nor cryptography is loaded, nor boto3."""
    script = (
        "import json, sys\n"
        "from functions.integration import handler\n"
        "from tests.gateway import CONTEXT, http_event\n"
        f"headers = {{'Authorization': 'Bearer {ADMIN}'}}\n"
        f"events = [http_event('{BASE}/' + what, headers=headers) for what in ('config', 'status')]\n"
        f"events.append(http_event('{WHY}', query='key=x.bin', headers=headers))\n"
        "answers = [handler(event, CONTEXT) for event in events]\n"
        "heavy = {'sqlalchemy', 'alembic', 'psycopg', 'cryptography', 'boto3'} & set(sys.modules)\n"
        "print(json.dumps([[one['statusCode'] for one in answers], answers[0]['body'], sorted(heavy)]))"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MQTT_"))}
    environ |= {"ADMIN_TOKENS": ADMIN, "AWS_LAMBDA_FUNCTION_NAME": "integration"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    statuses, body, heavy = json.loads(done.stdout.splitlines()[-1])
    assert (statuses, json.loads(body)["source"], heavy) == ([200, 200, 200], "environment", [])


def test_as_a_function_with_wrong_settings_it_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes well again once they are right; the log names the variable."""
    monkeypatch.setattr(integration, "_routers", ())
    monkeypatch.setattr(integration, "_renewal", None)
    monkeypatch.setenv("ADMIN_TOKENS", ADMIN)
    monkeypatch.setenv("MQTT_TEST_ALLOWED_HOSTS", "10.0.0.0/99")
    event = http_event(f"{BASE}/config", headers={"Authorization": f"Bearer {ADMIN}"})
    assert Answered.of(integration.handler(event, CONTEXT)).status == 503
    monkeypatch.setattr(integration, "_renewal", None)
    monkeypatch.setenv("MQTT_TEST_ALLOWED_HOSTS", "")
    assert Answered.of(integration.handler(event, CONTEXT)).status == 200


def test_a_deployment_may_name_the_function_as_before() -> None:
    """`functions.broker.handler` is the same one; it goes with the next release."""
    assert broker.handler is integration.handler


def test_an_event_that_no_gateway_sends_is_answered() -> None:
    """500, and no trace of it."""
    assert Answered.by(router(Rig().api, Uploads(Routes())), {}).status == 500
