"""`bucketbell doctor` where devices report: whether the host hears them, and what the broker does not tell."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.local.mosquitto import Mosquitto
from infra.local.stack import OURS
from infra.local.stores import MotoServer
from tests.fakes.broker import Behaviour, FakeBroker
from tests.fleet import FleetRig, hears
from tests.hosts import Host, eventually

pytestmark = pytest.mark.usefixtures("mosquitto_binary")


def findings(rig: FleetRig, host: Host) -> dict[str, dict[str, Any]]:
    """What the doctor found, by the check's name."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith(OURS)}
    options = ["doctor", "--host-url", host.url, "--json"]
    with contextlib.chdir(rig.directory):  # not the developer's .env
        done = CliRunner().invoke(app, options, env={**ours, **rig.environment})
    return {one["name"]: one for one in json.loads(done.stdout)["checks"]}


def test_a_host_that_hears_is_well_and_the_brokers_own_limits_are_named(
    tmp_path: Path, moto: MotoServer, mosquitto: Mosquitto
) -> None:
    """What cannot be asked is not called well."""
    rig = FleetRig(tmp_path, moto, mosquitto)
    with rig.host() as host:
        eventually(lambda: hears(host))
        found = findings(rig, host)
    assert (found["reports"]["health"], found["reports"]["detail"]) == (
        "ok",
        "the broker has taken the host's subscription; what an ACL then withholds, Mosquitto does not say",
    )
    room = found["room for reports"]
    assert room["health"] == "not checked"
    assert "beyond 1,000 it drops" in room["detail"]
    assert "max_queued_messages" in room["detail"]


def test_a_broker_with_room_is_asked_nothing_that_it_cannot_answer(tmp_path: Path, moto: MotoServer) -> None:
    """Another limit than Mosquitto's own is no reason to suspect the rest."""
    with Mosquitto(tmp_path / "mosquitto", receive_maximum=1000) as broker:
        rig = FleetRig(tmp_path, moto, broker)
        with rig.host() as host:
            detail = findings(rig, host)["room for reports"]["detail"]
    assert "where it is not set" in detail, detail


def test_a_broker_that_lets_the_host_hear_nothing_is_named(tmp_path: Path, moto: MotoServer) -> None:
    """With the rule that helps."""
    with Mosquitto(tmp_path / "mosquitto") as unused, FakeBroker(script=[Behaviour(suback_reason=0x87)]) as broker:
        rig = FleetRig(tmp_path, moto, unused)
        rig.environment |= {"MQTT_URL": broker.url}
        with rig.host() as host:
            eventually(lambda: "reports are not heard" in host.log)
            found = findings(rig, host)["reports"]
    assert found["health"] == "wrong", found
    assert "refused the subscription" in found["detail"]
    assert "topic read iotsupport/devices/#" in found["remedy"]


def test_a_host_without_the_database_is_named(tmp_path: Path, moto: MotoServer, mosquitto: Mosquitto) -> None:
    """The settings here are not those that it runs with."""
    rig = FleetRig(tmp_path, moto, mosquitto)
    with rig.host():  # which makes the tables
        pass
    with Host(tmp_path, {name: value for name, value in rig.environment.items() if name != "DATABASE_URL"}) as host:
        found = findings(rig, host)["reports"]
    assert found["health"] == "wrong", found
    assert "without DATABASE_URL" in found["detail"]
