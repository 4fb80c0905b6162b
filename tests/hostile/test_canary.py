"""Where a running host could show a secret, it shows none: log, metrics, answers, command lines, files."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from functions.admin.openapi import BASE, OPERATIONS
from functions.web.tokens import Keyring
from infra.cli import app
from infra.local.certificates import make_certificates
from infra.local.mosquitto import Mosquitto
from infra.local.stores import MotoServer
from tests.databases import new_sqlite
from tests.hostile.canaries import (
    CANARIES,
    HIDDEN,
    STORED_PASSWORD,
    certificate_pem,
    environment,
    seen,
    seen_in_files,
)
from tests.hosts import Host, eventually, upload

MAC = "aa-bb-cc-dd-ee-ff"
END_SECONDS = 20.0
BUCKET = "canaries"
PATHS = (
    *("/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/events", "/events/fast", "/manifest", "/token", "/no"),
    *(f"/configs/{MAC}.json", "/configs/x", "/assets/fw.bin", "/assets/absent", "/assets", "/thumbnails/c/e.jpg"),
    *(operation.path.replace("{camera_id}", "c") for operation in OPERATIONS),
)
# What handles a request fails in a way that nobody foresaw, deep within the frames that hold the secrets.
BREAK = """
import functions.admin.operations, functions.s3.objects, functions.mqtt.connection, functions.stored.store
def forced(*_, **__): raise RuntimeError("forced")
functions.s3.objects.Objects.head = forced
functions.s3.objects.Objects.list_page = forced
functions.stored.store.ConfigStore.save = forced
functions.mqtt.connection.Connection.flush = forced
"""


@pytest.fixture(scope="module")
def store(moto: MotoServer) -> MotoServer:
    """A store that takes any key, with files in a bucket and a secret in Secrets Manager."""
    s3 = moto.client()
    s3.create_bucket(Bucket=BUCKET)
    for key in (f"configs/{MAC}.json", "assets/fw.bin"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    moto.client("sqs").create_queue(QueueName=BUCKET)
    held = environment("admin_tokens", "device_token_keys")
    moto.client("secretsmanager").create_secret(Name=BUCKET, SecretString=json.dumps(held))
    return moto


def known(store: MotoServer, directory: Path, *fields: str) -> dict[str, str]:
    """An environment with these secrets; two more come from Secrets Manager, and one from a file."""
    (directory / "secrets").mkdir()
    (directory / "secrets" / "ENCRYPTION_KEYS").write_text(",".join(CANARIES["encryption_keys"]))
    return {
        "AWS_ENDPOINT_URL": store.endpoint_url,
        "AWS_ACCESS_KEY_ID": "AKIACANARY",
        "SQS_QUEUE_URL": f"{store.endpoint_url}/123456789012/{BUCKET}",
        "R2_QUEUE_URL": f"{store.endpoint_url}/accounts/a/queues/q",
        "NATS_URL": "nats://127.0.0.1:1",
        "NATS_USERNAME": "u",
        "BUCKET": BUCKET,
        "LOG_LEVEL": "DEBUG",
        "SECRETS_DIR": str(directory / "secrets"),
        "SECRET_ID": BUCKET,
        "DEVICE_REQUESTS_PER_MINUTE": "0",
        "MQTT_CONNECT_TIMEOUT_SECONDS": "1",
        "MQTT_PUBLISH_TIMEOUT_SECONDS": "1",
        **environment(
            "webhook_tokens", "aws_secret_access_key", "aws_session_token", "r2_queue_token", "nats_password", *fields
        ),
    }


def bearers() -> list[str]:
    """Tokens of every kind, good and nearly so."""
    admin, webhook = CANARIES["admin_tokens"], CANARIES["webhook_tokens"]
    return ["", admin[1], webhook[0], Keyring.parse(CANARIES["device_token_keys"]).mint(MAC), admin[0] + "x"]


def bodies() -> list[bytes]:
    """Bodies that hold the stored password, well and ill."""
    good = {"broker_host": "127.0.0.1", "broker_port": 1, "topic_prefix": "x", "username": "u"}
    good |= {"password": STORED_PASSWORD, "enabled": False}
    bad: dict[str, Any] = {**good, "broker_port": STORED_PASSWORD, "topic_prefix": [STORED_PASSWORD]}
    return [json.dumps(good).encode(), json.dumps(bad).encode(), json.dumps(good).encode()[:-9]]


def questions() -> Iterator[tuple[str, str, str, bytes]]:
    """Method, path, token and body: every path by every method, and with every token and body where they matter."""
    takes_body = {operation.path for operation in OPERATIONS if operation.method in {"PUT", "POST"}}
    for path in PATHS:
        for bearer in bearers():
            yield "GET", path, bearer, b""
        for method in ("HEAD", "DELETE", "OPTIONS", "PATCH", "POST", "PUT"):
            yield method, path, CANARIES["admin_tokens"][0], b""
        for method, bearer, body in itertools.product(("PUT", "POST"), bearers()[1:3], bodies()):
            if path in takes_body and not path.endswith("/test"):
                yield method, path, bearer, body
    for door, bearer in itertools.product(("/events", "/events/fast"), bearers()):
        yield "POST", door, bearer, upload("assets/fw.bin")


def answers(host: Host) -> Iterator[tuple[str, str]]:
    """What was asked, and all of the answer."""
    for method, path, bearer, body in questions():
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
        answer = host.http.request(method, path, headers=headers, content=body)
        shown = "".join(f"{name}: {value}\n" for name, value in answer.headers.items())
        yield f"{method} {path} → {answer.status_code}", f"{shown}\n{answer.text}"


def presigned(question: str) -> tuple[str, ...]:
    """What an answer may hold all the same: a presigned URL is signed with a session token, and so holds it (SigV4)."""
    return ("aws_session_token",) if question.startswith("GET") and question.endswith(("307", "200")) else ()


def printed(variables: dict[str, str], *arguments: str) -> str:
    """All that a command of `bucketbell` prints."""
    done = CliRunner().invoke(app, arguments, env=variables)
    return f"{done.output}{done.stderr}{done.exception}"


def test_a_host_shows_no_secret_anywhere(
    store: MotoServer, tmp_path: Path, mosquitto_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A canary is in each setting and in the stored password, and in use; then all that can be read is searched."""
    del mosquitto_binary
    certificates = make_certificates(tmp_path / "tls")
    users = {"bell": CANARIES["mqtt_password"][0], "u": STORED_PASSWORD}
    with Mosquitto(tmp_path / "mosquitto", users=users, certificates=certificates) as broker:
        variables = known(store, tmp_path, "mqtt_password", "mqtt_key_pem") | {
            "MQTT_URL": broker.url,
            "MQTT_USERNAME": "bell",
            "MQTT_CA_PEM": certificates.ca_file.read_text(),
            "MQTT_CERT_PEM": certificate_pem(),
            "DATABASE_URL": new_sqlite(tmp_path),
        }
        with Host(tmp_path, variables) as host:
            assert not seen(Path(f"/proc/{host.child.pid}/cmdline").read_bytes())
            statuses = set()
            for question, answer in answers(host):
                assert not seen(answer, but=presigned(question)), question
                statuses.add(int(question.rpartition(" ")[2]))
            assert {200, 202, 307, 401, 404, 405} <= statuses
            assert 500 not in statuses
            stored = {"broker_host": broker.host, "broker_port": broker.port, "use_tls": True, "topic_prefix": "x"}
            stored |= {"username": "u", "password": STORED_PASSWORD}
            admin = {"Authorization": f"Bearer {CANARIES['admin_tokens'][0]}"}
            assert host.http.put(f"{BASE}/config", json=stored, headers=admin).status_code == 200
            eventually(lambda: host.http.get("/readyz").status_code == 200)
            assert host.http.get(f"{BASE}/config", headers=admin).json()["has_password"]
            assert not seen(host.http.get("/metrics").text)
            assert host.post(upload("assets/fw.bin"), token=CANARIES["webhook_tokens"][1]).status_code == 200
            assert not seen(host.http.post(f"{BASE}/test", json=stored, headers=admin).text)
            monkeypatch.chdir(tmp_path)
            commands = [("config",), ("config", "--json"), ("migrate",), ("rotate-keys",), ("token", MAC[:5])]
            for arguments in [*commands, ("token", "inspect", CANARIES["admin_tokens"][0])]:
                assert len(said := printed(variables, *arguments)) > len("None"), arguments
                assert not seen(said), arguments
            host.stop()
    assert "DEBUG" in host.log
    assert not seen(host.log)
    with (
        closing(sqlite3.connect(tmp_path / "settings.db")) as live,
        closing(sqlite3.connect(tmp_path / "copy")) as copy,
    ):
        live.backup(copy)
        assert "password_encrypted" in (dump := "\n".join(live.iterdump()))
        assert not seen(dump)
    assert not seen_in_files(tmp_path / "settings.db", tmp_path / "copy")


def test_a_host_in_trouble_shows_no_secret_either(store: MotoServer, tmp_path: Path, mosquitto_binary: Path) -> None:
    """The broker refuses the password, the database is down, and what handles requests raises what nobody foresaw."""
    del mosquitto_binary
    with Mosquitto(tmp_path / "mosquitto", users={"bell": "another one"}) as broker:
        variables = known(store, tmp_path, "mqtt_password", "database_url")
        variables |= {"MQTT_URL": broker.url, "MQTT_USERNAME": "bell"}
        with Host(tmp_path, variables, ready=False, patch=BREAK) as host:
            for question, answer in answers(host):
                assert not seen(answer), question
            host.child.terminate()
            host.child.wait(END_SECONDS)
        assert "Traceback" in host.log, "the failures were forced"
        assert not seen(host.log)
        sure = {name: value for name, value in variables.items() if name != "DATABASE_URL"}
        with Host(tmp_path, sure, ready=False, patch=BREAK) as host:
            eventually(lambda: "not authorised" in host.log.lower() or "refused" in host.log.lower())
        assert not seen(host.log)


def test_nothing_is_left_out() -> None:
    """Each canary is in the environment, the document or the file of one of the hosts above."""
    used = {"webhook_tokens", "aws_secret_access_key", "aws_session_token", "mqtt_password", "mqtt_key_pem"}
    used |= {"database_url", "admin_tokens", "device_token_keys", "encryption_keys", "r2_queue_token"}
    used |= {"nats_password"}
    assert used == set(CANARIES) == set(HIDDEN) - {"stored password"}
