"""`bucketbell doctor` on a whole installation: with MinIO's two doors, a broker with rules, and a host."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.local.mosquitto import Mosquitto
from infra.local.stack import OURS
from tests.e2e.world import BUCKET, TOKEN, World

ADMIN = "an-administrators-own-token-0123"
HOST_USER = {"bell": "a-bells-password", "ear": "an-ears-password"}
ACL = "user bell\ntopic write iotsupport/#\n\nuser ear\ntopic read #\n"


def examined(world: World, *options: str, **more: str) -> dict[str, Any]:
    """What the doctor says with the host's settings, and with `more` of its own."""
    ours = {name: None for name in os.environ if name.startswith(OURS)}
    variables: Mapping[str, str | None] = {**ours, **world.host.environment, **more}
    with contextlib.chdir(world.directory):  # not the developer's .env
        done = CliRunner().invoke(
            app, ["doctor", "--host-url", world.host.url, "--json", *options], env={**variables}
        )
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.exit_code == (0 if document["ok"] else 1), done.output
    for secret in (TOKEN, ADMIN, HOST_USER["bell"], world.store.secret_key):
        assert secret not in done.output
    return document


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, minio_binary: Path, mosquitto_binary: Path) -> Iterator[World]:
    """All is well in it, and a file was uploaded."""
    del minio_binary, mosquitto_binary
    directory = tmp_path_factory.mktemp("doctor")
    broker = Mosquitto(directory / "mosquitto", users=HOST_USER, acl=ACL)
    settings = {
        "MQTT_USERNAME": "bell",
        "MQTT_PASSWORD": HOST_USER["bell"],
        "ADMIN_TOKENS": ADMIN,
        "SWEEP_SECONDS": "600",
    }
    built = World(
        "minio", directory, broker=broker, mqtt=settings, ears={"username": "ear", "password": HOST_USER["ear"]}
    )
    try:
        built.start()
        built.put("assets/first.bin")
        built.hear("first.bin")
        yield built
    finally:
        built.stop()


def test_a_healthy_installation_is_ok_everywhere(world: World) -> None:
    """And the file that was named rang."""
    found = examined(world, "--ring", "assets/first.bin")
    assert [one for one in found["checks"] if one["health"] != "ok"] == []
    assert found["ok"] is True
    world.hear("first.bin")
