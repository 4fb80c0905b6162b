"""Mosquitto, and mochi, which is built with Go."""

from __future__ import annotations

import json
import re
from pathlib import Path

from infra.bench.throughput import BROKER_LOG
from infra.local.install import find_mosquitto
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process
from tests.matrix.brokers import install
from tests.matrix.brokers.brand import BELL, FORBIDDEN, LIMITED, PASSWORD, USERS, Brand, Limits, listening

DENY, READ_WRITE = 0, 3  # mochi's words in a ledger
ACL = f"user {BELL}\ntopic readwrite #\nuser {LIMITED}\ntopic readwrite #\ntopic deny {FORBIDDEN}\n"


def _mosquitto(directory: Path, port: int, limits: Limits) -> Process:
    return Mosquitto(
        directory,
        port=port,
        users=dict.fromkeys(USERS, PASSWORD),
        acl=ACL,
        max_packet_size=limits.packet_bytes,
        receive_maximum=limits.receive_maximum,
        extra=BROKER_LOG,
    )


MOSQUITTO = Brand(
    "the system's package mosquitto",
    _mosquitto,
    re.compile(r"mosquitto version (\S+) running"),
    lambda: None if find_mosquitto() else "python -m infra.local.install mosquitto",
    frozenset({"packet_bytes", "receive_maximum"}),
)


def _mochi(directory: Path, port: int, limits: Limits) -> Process:
    users = [{"username": user, "password": PASSWORD, "allow": True} for user in USERS]
    rules = [
        {"username": BELL, "filters": {"#": READ_WRITE}},
        {"username": LIMITED, "filters": {FORBIDDEN: DENY}},
    ]
    settings: dict[str, object] = {
        "listeners": [{"type": "tcp", "id": "mqtt", "address": f"127.0.0.1:{port}"}],
        "hooks": {"auth": {"ledger": {"auth": users, "acl": rules}}},
    }
    if limits != Limits():
        # Named once, none of them has its default any more.
        settings["options"] = {
            "capabilities": {
                "maximum_clients": 10_000,
                "maximum_client_writes_pending": 8_192,
                "maximum_inflight": 8_192,
                "maximum_message_expiry_interval": 86_400,
                "maximum_session_expiry_interval": 86_400,
                "maximum_packet_size": limits.packet_bytes or 0,
                "receive_maximum": limits.receive_maximum or 1_024,
                "minimum_protocol_version": 3,
                "maximum_qos": 2,
                "retain_available": 1,
                "shared_sub_available": 1,
                "sub_id_available": 1,
                "wildcard_sub_available": 1,
            }
        }
    file = directory / "mochi.json"
    file.write_text(json.dumps(settings))
    program = str(install.mochi() / "docker")
    return Process("mochi", [program, "-config", str(file)], directory, ready=lambda: listening(port))


MOCHI = Brand(
    f"{install.MOCHI_MODULE}, with Go",
    _mochi,
    install.MOCHI,
    lambda: None if install.mochi().exists() else "make mochi",
    frozenset({"packet_bytes", "receive_maximum"}),
)
