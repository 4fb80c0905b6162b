"""Secrets of AWS Secrets Manager: read when a process starts, and again when they may have changed. moto plays AWS."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from functions import download, notify
from functions.lifecycle import Renewal
from functions.mqtt.broker import BrokerConfig
from functions.notifier import Notifier, PublishFailed
from functions.settings import Settings, SettingsError, load, secret
from functions.telemetry import SERVICE
from functions.web.tokens import Keyring
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stores import MotoServer
from infra.subscriber import Subscriber
from tests.fakes.broker import Behaviour, FakeBroker
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

CANARY = "canary-5f3a"
PLENTY_SECONDS = 30.0
MAC = "aa-bb-cc-dd-ee-ff"
CONFIG = f"configs/{MAC}.json"


class Vault:
    """One secret in moto's Secrets Manager, and the environment of a process that may read it."""

    def __init__(self, moto: MotoServer) -> None:
        self.name = f"bucketbell/{uuid.uuid4().hex}"
        self.environ = {
            "SECRET_ID": self.name,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": moto.endpoint_url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }
        self._client = moto.client("secretsmanager")

    def hold(self, value: object) -> None:
        """Make this the secret's current version: text and bytes as they are, the rest as JSON."""
        kind = "SecretBinary" if isinstance(value, bytes) else "SecretString"
        content = {kind: value if isinstance(value, (str, bytes)) else json.dumps(value)}
        try:
            self._client.put_secret_value(SecretId=self.name, **content)
        except self._client.exceptions.ResourceNotFoundException:
            self._client.create_secret(Name=self.name, **content)

    def arn(self) -> str:
        """The secret's other name."""
        return str(self._client.describe_secret(SecretId=self.name)["ARN"])

    def lose(self) -> None:
        """Delete the secret at once."""
        self._client.delete_secret(SecretId=self.name, ForceDeleteWithoutRecovery=True)


@pytest.fixture
def vault(moto: MotoServer) -> Vault:
    """A secret of this test alone, not made yet."""
    return Vault(moto)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.getMessage()} {record.__dict__}")

    handler = Keep()
    logging.getLogger(SERVICE).addHandler(handler)
    yield lines
    logging.getLogger(SERVICE).removeHandler(handler)


def refusal(environ: dict[str, str]) -> str:
    """What is wrong with the secret; nothing of it is in the error, nor rides along with it."""
    with pytest.raises(SettingsError) as caught:
        load(environ)
    error = caught.value
    assert error.__context__ is error.__cause__ is None
    assert CANARY not in "".join(traceback.format_exception(error))
    ((variable, problem),) = error.problems
    assert variable == "SECRET_ID"
    return problem


# What is read.


def test_a_secret_is_the_last_source(vault: Vault, tmp_path: Path) -> None:
    """Environment, .env and the directory go before it; blanks are no values; origins name it."""
    (tmp_path / "MQTT_USERNAME").write_text("from-directory")
    (tmp_path / ".env").write_text(f"MQTT_QOS=2\nSECRETS_DIR={tmp_path}\n")
    vault.hold(
        {
            "MQTT_URL": "mqtt://from-secret",
            "MQTT_USERNAME": "from-secret",
            "MQTT_PASSWORD": CANARY,
            "MQTT_QOS": "0",
            "BUCKET": "from-secret",
            "TOPIC_PREFIX": " ",
        }
    )
    loaded = load(vault.environ | {"BUCKET": "from-environment"}, env_file=tmp_path / ".env")
    found = loaded.settings
    assert (found.mqtt_url, found.mqtt_username, found.mqtt_qos) == ("mqtt://from-secret", "from-directory", 2)
    assert (found.bucket, found.topic_prefix) == ("from-environment", "iotsupport")
    assert found.mqtt_password is not None
    assert found.mqtt_password.get_secret_value() == CANARY
    assert loaded.origins["mqtt_url"] == loaded.origins["mqtt_password"] == vault.name
    assert loaded.origins["bucket"] == "environment"
    assert "topic_prefix" not in loaded.origins


def test_a_secret_may_be_named_by_its_arn_and_from_any_source(vault: Vault, tmp_path: Path) -> None:
    """SECRET_ID is a setting as any other."""
    vault.hold({"BUCKET": "devices"})
    (tmp_path / ".env").write_text(f"SECRET_ID={vault.arn()}\n")
    environ = {name: value for name, value in vault.environ.items() if name != "SECRET_ID"}
    loaded = load(environ, env_file=tmp_path / ".env")
    assert (loaded.settings.bucket, loaded.origins["bucket"]) == ("devices", vault.arn())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CANARY, "must hold a JSON object"),
        ("{" + CANARY, "must hold a JSON object"),
        ("mqtt://canary-5f3a", "must hold a JSON object"),
        ([CANARY], "must hold a JSON object"),
        ('"canary-5f3a"', "must hold a JSON object"),
        ("[" * 60_000, "must hold a JSON object"),
        (CANARY.encode(), "text, not bytes"),
        ({CANARY: "x"}, "key 1 of the secret is not a variable"),
        ({"MQTT_URL": "mqtt://b", "mqtt_password": CANARY}, "key 2 of the secret is not a variable"),
        ({"SECRET_ID": CANARY}, "key 1 of the secret is not a variable"),
        ({"MQTT_PASSWORD": {"value": CANARY}}, "MQTT_PASSWORD must be text"),
        ({"DEVICE_TOKEN_KEYS": [CANARY]}, "DEVICE_TOKEN_KEYS must be text"),
        ({"MQTT_QOS": 1}, "MQTT_QOS must be text"),
        ({"MQTT_URL": None}, "MQTT_URL must be text"),
    ],
)
def test_a_secret_that_is_no_list_of_variables_is_refused(vault: Vault, content: object, said: str) -> None:
    """SECRET_ID is named, with what would be right, and nothing of the secret is repeated."""
    vault.hold(content)
    problem = refusal(vault.environ)
    assert said in problem
    assert isinstance(content, bytes) or 'e.g. {"MQTT_PASSWORD": ' in problem


def test_a_wrong_value_in_a_secret_is_named_by_its_variable(vault: Vault) -> None:
    """As anywhere else."""
    vault.hold({"MQTT_URL": f"http://{CANARY}", "WEBHOOK_TOKENS": CANARY})
    with pytest.raises(SettingsError) as caught:
        load(vault.environ)
    assert [variable for variable, _ in caught.value.problems] == ["MQTT_URL", "WEBHOOK_TOKENS"]
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_a_secret_that_is_not_there_is_named(vault: Vault) -> None:
    """Never made, deleted, or in another region."""
    assert "exists in us-east-1" in refusal(vault.environ)
    vault.hold({})
    assert load(vault.environ).settings.secret_id == vault.name
    assert "exists in eu-west-1" in refusal(vault.environ | {"AWS_REGION": "eu-west-1"})
    assert "exists in eu-west-2" in refusal(vault.environ | {"AWS_DEFAULT_REGION": "eu-west-2"})
    vault.lose()
    assert "exists in us-east-1" in refusal(vault.environ)


def test_who_may_not_read_a_secret_is_told_what_to_allow(
    vault: Vault, moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user without a policy, a key that nobody knows, and no credentials at all."""
    vault.hold({"MQTT_PASSWORD": CANARY})
    iam = moto.client("iam")
    iam.create_user(UserName="device")
    key = iam.create_access_key(UserName="device")["AccessKey"]
    poor = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    check_permissions_after(moto, requests=0)
    try:
        denied, unknown = refusal(vault.environ | poor), refusal(vault.environ)
    finally:
        check_permissions_after(moto, requests=10**9)
    for problem in (denied, unknown):
        assert "allow it secretsmanager:GetSecretValue" in problem
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    anonymous = {name: value for name, value in vault.environ.items() if "ACCESS_KEY" not in name}
    assert "no credentials" in refusal(anonymous)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("AccessDeniedException", "allow it secretsmanager:GetSecretValue"),
        ("UnrecognizedClientException", "allow it secretsmanager:GetSecretValue"),
        ("DecryptionFailure", "refuses (DecryptionFailure)"),
        ("ThrottlingException", "refuses (ThrottlingException)"),
    ],
)
def test_what_aws_answers_is_told_by_its_code(vault: Vault, code: str, said: str) -> None:
    """In the form that AWS has and moto has not: status 400, the code as `__type`; asked once, its message left out."""
    asked: list[str] = []

    class Aws(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers["X-Amz-Target"])
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"__type": code, "Message": CANARY}).encode()
            self.send_response(400)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer(("127.0.0.1", 0), Aws) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        endpoint = {"AWS_ENDPOINT_URL_SECRETS_MANAGER": f"http://127.0.0.1:{server.server_port}"}
        assert said in refusal(vault.environ | endpoint)
        thread.join(PATIENCE_SECONDS)
    assert asked == ["secretsmanager.GetSecretValue"]


def check_permissions_after(moto: MotoServer, requests: int) -> None:
    """Have moto look at IAM policies from then on (moto, "IAM-like Access Control")."""
    with closing(http.client.HTTPConnection("127.0.0.1", moto.port, timeout=PATIENCE_SECONDS)) as connection:
        connection.request("POST", "/moto-api/reset-auth", str(requests), {"Content-Type": "text/plain"})
        assert connection.getresponse().status == http.HTTPStatus.OK


def test_silence_is_reported_within_the_deadline(vault: Vault) -> None:
    """Nobody there, or somebody who says nothing."""
    begun_at = time.monotonic()
    nobody = f"http://127.0.0.1:{free_port()}"
    assert "does not answer" in refusal(vault.environ | {"AWS_ENDPOINT_URL_SECRETS_MANAGER": nobody})
    assert time.monotonic() - begun_at < secret.DEADLINE_SECONDS + 3 * SLACK_SECONDS, "botocore's own are of a minute"
    with FakeBroker(script=[Behaviour(silent=True)]) as silent:
        begun_at = time.monotonic()
        mute = f"http://127.0.0.1:{silent.port}"
        assert "does not answer" in refusal(vault.environ | {"AWS_ENDPOINT_URL_SECRETS_MANAGER": mute})
        assert time.monotonic() - begun_at < secret.DEADLINE_SECONDS + 3 * SLACK_SECONDS
    assert "cannot be asked" in refusal(vault.environ | {"AWS_ENDPOINT_URL_SECRETS_MANAGER": "nonsense"})


def test_no_secret_is_logged_at_the_most_talkative_level(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    """Neither by us nor by botocore, which logs whole answers at DEBUG; Lambda can set that level for all."""
    vault.hold({"MQTT_URL": "mqtt://b", "MQTT_USERNAME": "u", "MQTT_PASSWORD": CANARY})
    with caplog.at_level(logging.DEBUG):
        load(vault.environ)
    assert "GetSecretValue" in caplog.text, "it listens"
    assert CANARY not in caplog.text


# When it is read again.


def renewal(vault: Vault, after_seconds: float = 0.0) -> Renewal:
    """Of the secret in `vault`."""
    return Renewal(after_seconds=after_seconds, read=lambda: load(vault.environ).settings)


def test_settings_are_read_again_no_more_often_than_asked(vault: Vault) -> None:
    """What has not changed is told as such; without a secret nothing is ever read again."""
    vault.hold({"BUCKET": "one"})
    patient, eager = renewal(vault, 3600), renewal(vault)
    assert not eager.renew()
    vault.hold({"BUCKET": "two"})
    assert eager.renew()
    assert eager.settings.bucket == "two"
    assert not eager.renew()
    assert not patient.renew()
    assert patient.settings.bucket == "one"
    reads: list[Settings] = []

    def read() -> Settings:
        reads.append(Settings())
        return reads[-1]

    assert not Renewal(after_seconds=0, read=read).renew()
    assert len(reads) == 1


def test_a_clock_that_was_set_back_does_not_stop_it(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does a restored process, whose clock jumps."""
    vault.hold({"BUCKET": "one"})
    patient = renewal(vault, 3600)
    vault.hold({"BUCKET": "two"})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 7200)
    assert patient.renew()


def test_the_last_good_settings_go_on(vault: Vault) -> None:
    """When the secret is broken or lost; and the next good one is taken."""
    vault.hold({"BUCKET": "one"})
    eager = renewal(vault)
    vault.hold(CANARY)
    with pytest.raises(SettingsError):
        eager.renew()
    assert eager.settings.bucket == "one"
    vault.lose()
    with pytest.raises(SettingsError):
        eager.renew()
    assert eager.settings.bucket == "one"
    vault.hold({"BUCKET": "three"})
    assert eager.renew()
    assert eager.settings.bucket == "three"


# Notify.


def s3_event(*keys: str) -> dict[str, Any]:
    """S3's own event of these uploads."""
    return {
        "Records": [
            {
                "eventSource": "aws:s3",
                "eventName": "ObjectCreated:Put",
                "eventTime": "2026-11-20T00:00:00.000Z",
                "s3": {
                    "bucket": {"name": "devices"},
                    "object": {"key": key, "eTag": "e", "size": 1, "sequencer": "01"},
                },
            }
            for key in keys
        ]
    }


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_rotated_password_is_found_when_the_broker_refuses_the_old_one(
    vault: Vault, tmp_path: Path, mosquitto_binary: Path, log: list[str], protocol: str
) -> None:
    """In the same invocation, without a deployment: what was refused rings once."""
    del mosquitto_binary
    with Mosquitto(tmp_path, users={"bell": "old", "ear": "ear"}) as mosquitto:
        content = {"MQTT_URL": mosquitto.url, "MQTT_USERNAME": "bell", "MQTT_PROTOCOL": protocol}
        vault.hold({**content, "MQTT_PASSWORD": "old"})
        source = renewal(vault)
        notifier = Notifier(source.settings, source)
        assert notifier.handle(s3_event(CONFIG), PLENTY_SECONDS)["published"] == 1
        mosquitto.set_users({"bell": CANARY, "ear": "ear"})
        mosquitto.reload()
        with Subscriber(mosquitto.url, ["#"], username="ear", password="ear") as subscriber:
            notifier.publisher.close()  # as the broker does sooner or later, a restart of its own for one
            notifier.publisher = type(notifier.publisher)(BrokerConfig.of(source.settings), notifier.telemetry)
            with pytest.raises(PublishFailed, match="refused"):  # the secret is still the old one
                notifier.handle(s3_event(CONFIG), PLENTY_SECONDS)
            vault.hold({**content, "MQTT_PASSWORD": CANARY})
            assert notifier.handle(s3_event(CONFIG, "assets/fw"), PLENTY_SECONDS)["published"] == 2
            assert {subscriber.next().payload, subscriber.next().payload} == {
                b'{"filename": "aa-bb-cc-dd-ee-ff.json"}',
                b'{"filename": "fw"}',
            }
            assert subscriber.silence(0.2) == []
        notifier.close()
    assert any("settings have changed" in line for line in log)
    assert not any(CANARY in line for line in log)


def test_a_broker_that_moved_is_found(vault: Vault) -> None:
    """Whatever it is about the old one that fails."""
    with FakeBroker() as fake:
        vault.hold({"MQTT_URL": f"mqtt://127.0.0.1:{free_port()}"})
        source = renewal(vault)
        notifier = Notifier(source.settings, source)
        vault.hold({"MQTT_URL": fake.url})
        assert notifier.handle(s3_event(CONFIG), PLENTY_SECONDS)["published"] == 1
        vault.hold({"BUCKET": "devices"})  # nothing fails: nobody looks
        assert notifier.handle(s3_event(CONFIG), PLENTY_SECONDS)["published"] == 1
        notifier.close()


def test_what_was_confirmed_is_not_sent_again(vault: Vault) -> None:
    """Only what the old broker left open goes to the new one."""
    with FakeBroker(script=[Behaviour(cut_at_publish=2)]) as old, FakeBroker() as new:
        vault.hold({"MQTT_URL": old.url, "MQTT_PUBLISH_TIMEOUT_SECONDS": "5"})
        source = renewal(vault)
        notifier = Notifier(source.settings, source)
        old_event = s3_event(*(f"assets/{n}" for n in range(5)))
        vault.hold({"MQTT_URL": new.url})
        assert notifier.handle(old_event, PLENTY_SECONDS)["published"] == 5
        assert len(new.publishes) < 5
        notifier.close()


def test_without_a_broker_in_the_new_secret_what_failed_has_failed(vault: Vault) -> None:
    """And MQTT is off from then on."""
    vault.hold({"MQTT_URL": f"mqtt://127.0.0.1:{free_port()}"})
    source = renewal(vault)
    notifier = Notifier(source.settings, source)
    vault.hold({"BUCKET": "devices"})
    with pytest.raises(PublishFailed, match="1 of 1"):
        notifier.handle(s3_event(CONFIG), PLENTY_SECONDS)
    assert notifier.handle(s3_event(CONFIG), PLENTY_SECONDS) == {"published": 0, "skipped": 0, "failed": 0}


def test_the_secret_is_left_alone_when_there_is_no_time_or_it_was_read_a_moment_ago(
    vault: Vault, log: list[str]
) -> None:
    """Within the invocation's time, and once a minute."""
    assert notify.RENEW_SECONDS == 60
    vault.hold({"MQTT_URL": f"mqtt://127.0.0.1:{free_port()}"})
    hurried, patient = renewal(vault), renewal(vault, notify.RENEW_SECONDS)
    vault.lose()
    for source, remaining_seconds in ((hurried, secret.DEADLINE_SECONDS), (patient, PLENTY_SECONDS)):
        with pytest.raises(PublishFailed, match="Connection refused"):
            Notifier(source.settings, source).handle(s3_event(CONFIG), remaining_seconds)
    assert not any("read again" in line for line in log)
    with pytest.raises(PublishFailed, match="Connection refused"):
        Notifier(hurried.settings, hurried).handle(s3_event(CONFIG), PLENTY_SECONDS)
    assert any("settings cannot be read again" in line for line in log)


@pytest.mark.parametrize(
    "content", [f"mqtt://{CANARY}", {"MQTT_URL": f"http://{CANARY}"}], ids=["no JSON", "no broker"]
)
def test_a_function_whose_secret_is_no_use_fails_its_start_and_says_why(vault: Vault, content: object) -> None:
    """So that Lambda tells of an error, and its queue keeps what came; the secret is not in the log."""
    vault.hold(content)
    answer = subprocess.run(
        [sys.executable, "-c", "import functions.notify"],
        cwd=Path(__file__).parents[2],
        env={**vault.environ, "PATH": os.environ["PATH"], "AWS_LAMBDA_FUNCTION_NAME": "notify"},
        capture_output=True,
        text=True,
        timeout=PLENTY_SECONDS,
        check=False,
    )
    assert answer.returncode == 1
    last = answer.stderr.splitlines()[-1]
    assert last.startswith(
        "functions.settings.model.SettingsError: " + ("MQTT_URL" if isinstance(content, dict) else "SECRET_ID")
    )
    assert CANARY not in answer.stderr + answer.stdout


# Download.

KEYS = [f"{kid}:{base64.b64encode(bytes([n]) * 32).decode()}" for n, kid in enumerate(("one", "two"))]


class Context:
    """Of an invocation."""

    aws_request_id = function_name = "x"
    memory_limit_in_mb = 128
    invoked_function_arn = "arn"

    def get_remaining_time_in_millis(self) -> int:
        """Plenty."""
        return 30_000


Ask = Callable[[str], dict[str, Any]]


@pytest.fixture
def ask(vault: Vault, moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask the download entry, in a process whose secret is in `vault`, for the config of MAC with this bearer token."""
    bucket = f"b{uuid.uuid4().hex}"
    s3 = moto.client()
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key=CONFIG, Body=b"{}")
    for name, value in {**vault.environ, "BUCKET": bucket, "AWS_ENDPOINT_URL_S3": moto.endpoint_url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(download, "_downloads", None)
    monkeypatch.setattr(download, "_renewal", None)

    def answer(bearer: str) -> dict[str, Any]:
        event = {
            "version": "2.0",
            "rawPath": f"/{CONFIG}",
            "rawQueryString": "",
            "headers": {"authorization": f"Bearer {bearer}"},
            "requestContext": {"http": {"method": "GET", "path": f"/{CONFIG}"}, "stage": "$default"},
        }
        return download.handler(event, Context())  # type: ignore[arg-type]  # as much of a context as is looked at

    return answer


def token(key: str) -> str:
    """A device token of MAC, signed with `key`."""
    return Keyring.parse([key]).mint(MAC, expires_seconds=3600)


def test_a_rotated_key_reaches_a_warm_process_within_minutes(
    vault: Vault, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New tokens are taken and, when its key is out, the old one is not; until then nobody asks Secrets Manager."""
    assert 2 * download.RENEW_SECONDS <= 300
    old, new = token(KEYS[0]), token(KEYS[1])
    vault.hold({"DEVICE_TOKEN_KEYS": KEYS[0]})
    assert (ask(old)["statusCode"], ask(new)["statusCode"]) == (307, 401)
    vault.hold({"DEVICE_TOKEN_KEYS": KEYS[1]})
    assert (ask(old)["statusCode"], ask(new)["statusCode"]) == (307, 401)
    later = time.time() + download.RENEW_SECONDS
    monkeypatch.setattr(time, "time", lambda: later)
    assert (ask(old)["statusCode"], ask(new)["statusCode"]) == (401, 307)


@pytest.mark.parametrize("trouble", ["lost", "no JSON", "no key", "away"])
def test_no_request_fails_for_a_secret_that_cannot_be_read_again(
    vault: Vault, ask: Ask, monkeypatch: pytest.MonkeyPatch, log: list[str], trouble: str
) -> None:
    """The last good keys go on, the log says why, and nobody waits longer than one read's deadline."""
    mine = token(KEYS[0])
    vault.hold({"DEVICE_TOKEN_KEYS": KEYS[0]})
    assert ask(mine)["statusCode"] == 307
    if trouble == "lost":
        vault.lose()
    elif trouble == "away":
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://127.0.0.1:{free_port()}")
    else:
        vault.hold(CANARY if trouble == "no JSON" else {"DEVICE_TOKEN_KEYS": f"one:{CANARY}"})
    later = time.time() + download.RENEW_SECONDS
    monkeypatch.setattr(time, "time", lambda: later)
    begun_at = time.monotonic()
    assert ask(mine)["statusCode"] == 307
    assert time.monotonic() - begun_at < secret.DEADLINE_SECONDS + SLACK_SECONDS
    said = [line for line in log if "settings cannot be read again" in line]
    assert len(said) == 1
    assert ask(mine)["statusCode"] == 307
    assert len([line for line in log if "settings cannot be read again" in line]) == 1
    assert not any(CANARY in line for line in log)
