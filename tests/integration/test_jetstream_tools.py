"""`bucketbell connect --nats-url`, followed to the letter, and what `bucketbell doctor` says of JetStream."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy
from typer.testing import CliRunner

from infra.cli import app
from infra.local.mosquitto import Mosquitto
from infra.local.nats_server import NatsServer
from infra.local.stores import Minio
from infra.subscriber import Subscriber
from tests.hosts import MAC_KEY, TOPICS, Host, eventually, exactly, upload
from tests.integration.jetstream_rig import BUCKET, NAMES, ask, host_environment, publish, set_up, waiting

VARIABLE = re.compile(r"^([A-Z_]+)=(.*)$", re.MULTILINE)
OURS = ("AWS_", "BUCKET", "WEBHOOK_", "NATS_", "MQTT_", "S3_", "SWEEP_")


@pytest.fixture
def minio(tmp_path: Path, minio_binary: Path) -> Minio:
    """A MinIO of this test alone, not started, and without targets."""
    del minio_binary
    return Minio(tmp_path / "minio")


def typed(minio: Minio, *words: str, expect: int = 0, **variables: str) -> str:
    """What a command says with the store's credentials, and with these variables."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith(OURS)}
    known = {
        "AWS_ENDPOINT_URL_S3": minio.endpoint_url,
        "AWS_ACCESS_KEY_ID": minio.access_key,
        "AWS_SECRET_ACCESS_KEY": minio.secret_key,
        "BUCKET": BUCKET,
    }
    done = CliRunner().invoke(app, list(words), env={**ours, **known, **variables})
    assert done.exit_code == expect, done.output
    return done.output


def test_what_connect_says_can_be_followed_to_the_letter(
    nats_server: NatsServer, minio: Minio, tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the stream, prints MinIO's lines and the host's; with those an upload rings once, also a second time."""
    monkeypatch.chdir(tmp_path)
    words = ["connect", "--create", "--nats-url", nats_server.url, "--queue-dir", str(tmp_path / "queue")]
    with minio:
        first = typed(minio, *words, expect=1)
        lines = {name: shlex.split(value)[0] for name, value in VARIABLE.findall(first)}
        minio.environment = {name: value for name, value in lines.items() if not name.startswith("NATS_")}
        minio.restart()
        second = typed(minio, *words)
        host_lines = {name: value for name, value in VARIABLE.findall(second) if name.startswith("NATS_")}
        assert host_lines == {"NATS_URL": nats_server.url}
        assert "Nothing to change" in typed(minio, *words)
        with (
            Subscriber(mosquitto.url, TOPICS) as listener,
            Host(tmp_path, host_environment(nats_server, mosquitto.url, **host_lines)),
        ):
            s3 = minio.client()
            for _ in range(2):
                s3.put_object(Bucket=BUCKET, Key=MAC_KEY, Body=b"{}")
                exactly(1, listener)
            eventually(lambda: waiting(nats_server) == 0)
            assert listener.drain() == []


def test_connect_makes_what_loses_nothing(nats_server: NatsServer) -> None:
    """A full stream refuses, what is announced makes room, all is on disk; and a second time it changes nothing."""
    said = set_up(nats_server)
    assert len(said) == 4
    assert set_up(nats_server) == []

    async def look(js: JetStreamContext) -> tuple[Any, Any, Any]:
        names = (NAMES.stream, NAMES.dead_stream, f"KV_{NAMES.bucket}")
        return tuple([(await js.stream_info(name)).config for name in names])  # type: ignore[return-value]  # three

    stream, dead, bucket = ask(nats_server, look)
    assert (stream.discard, stream.retention, stream.storage) == (DiscardPolicy.NEW, RetentionPolicy.WORK_QUEUE, "file")
    assert dead.discard == DiscardPolicy.OLD
    assert bucket.max_age == 24 * 3600.0


def test_a_dry_run_makes_nothing(nats_server: NatsServer, minio: Minio) -> None:
    """It says what it would make."""
    with minio:
        minio.client().create_bucket(Bucket=BUCKET)
        said = typed(minio, "connect", "--dry-run", "--nats-url", nats_server.url)
        assert "the stream bucketbell" in said
        assert ask(nats_server, lambda js: js.streams_info()) == []


def examined(minio: Minio, server: NatsServer, check: str) -> dict[str, Any]:
    """What the doctor says of one part."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith(OURS)}
    known = {
        "AWS_ENDPOINT_URL_S3": minio.endpoint_url,
        "AWS_ACCESS_KEY_ID": minio.access_key,
        "AWS_SECRET_ACCESS_KEY": minio.secret_key,
        "BUCKET": BUCKET,
        "NATS_URL": server.url,
    }
    done = CliRunner().invoke(app, ["doctor", "--json"], env={**ours, **known})
    found: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
    return next(one for one in found if one["name"] == check)


def test_the_doctor_names_what_is_wrong_with_jetstream(
    nats_server: NatsServer, minio: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server, no stream, limits that lose events, a stream that is nearly full; and figures if all is well."""
    monkeypatch.chdir(tmp_path)

    def edit(**changes: Any) -> None:  # noqa: ANN401 - NATS' own
        async def change(js: JetStreamContext) -> None:
            config = (await js.stream_info(NAMES.stream)).config
            await js.update_stream(config.evolve(**changes))

        ask(nats_server, change)

    with minio:
        assert "There is no stream bucketbell" in examined(minio, nats_server, "JetStream")["detail"]
        set_up(nats_server)
        found = examined(minio, nats_server, "JetStream")
        assert found["health"] == "ok"
        assert "0 events in the stream bucketbell, 0.0 of 256 MB" in found["detail"]
        edit(max_msgs=2)
        publish(nats_server, upload(), upload())
        assert "nearly full" in examined(minio, nats_server, "JetStream")["detail"]
        edit(discard=DiscardPolicy.OLD)
        assert "drops its oldest events" in examined(minio, nats_server, "JetStream")["detail"]
        nats_server.stop()
        assert "connection refused" in examined(minio, nats_server, "JetStream")["detail"]


def test_the_doctor_knows_the_rules_for_jetstream(
    nats_server: NatsServer, minio: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules that `connect --nats-url` made are right, and MinIO's targets are named."""
    monkeypatch.chdir(tmp_path)
    words = ["connect", "--create", "--nats-url", nats_server.url, "--queue-dir", str(tmp_path / "queue")]
    with minio:
        lines = {name: shlex.split(value)[0] for name, value in VARIABLE.findall(typed(minio, *words, expect=1))}
        minio.environment = {name: value for name, value in lines.items() if not name.startswith("NATS_")}
        minio.restart()
        typed(minio, *words)
        assert examined(minio, nats_server, "notification rules")["health"] == "ok"
        found = examined(minio, nats_server, "store reaches JetStream")
        assert (found["health"], found["detail"]) == ("ok", "BUCKETBELLFAST, BUCKETBELLSURE")
