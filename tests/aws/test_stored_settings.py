"""Stored settings on MiniStack: the administrators' API by the stack's HTTP API, its layer, and a real PostgreSQL."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from functions.admin.openapi import BASE
from infra.migrations.runner import upgrade
from tests.aws.cloud import BELL
from tests.aws.ministack_cloud import MiniStackCloud
from tests.databases import execute, new_key, new_postgresql
from tests.stored import settings_of

if TYPE_CHECKING:
    from infra.local.postgres import Postgres

SECRET = "stored/broker"


def test_an_administrator_changes_the_broker_by_the_api_and_uploads_ring_there(
    ministack: MiniStackCloud, request: pytest.FixtureRequest
) -> None:
    """Nobody else may; the password goes in and never out; NotifyFunction publishes as the database says."""
    server: Postgres = request.getfixturevalue("postgres_server")  # only now, or it would be in another network
    url = new_postgresql(server)
    upgrade(url)
    admin, given = ministack.credentials.admin_token, ministack.credentials.password
    ministack.put_secret(
        SECRET, {"DATABASE_URL": url, "ENCRYPTION_KEYS": new_key().get_secret_value(), "ADMIN_TOKENS": admin}
    )
    parameters = ministack.parameters | {"BucketPrefix": "stored", "BrokerSecret": SECRET, "StoredSettings": "true"}
    del parameters["MqttUrl"]  # the database alone names the broker
    stack = ministack.deploy("stored", parameters)

    asked = [ministack.ask_stack(stack, f"{BASE}/config", token).status for token in ("", "nonsense", admin)]
    assert asked == [401, 401, 200]
    assert ministack.ask_stack(stack, "/openapi.json", admin).document["openapi"].startswith("3.")
    port = int(ministack.broker.url.rpartition(":")[2])
    body = json.dumps(settings_of(port, username=BELL, password=given))
    headers = {"content-type": "application/json"}
    stored = ministack.ask_stack(stack, f"{BASE}/config", admin, "PUT", body, **headers)
    assert (stored.status, stored.document["topic_prefix"]) == (200, "home"), stored
    assert given not in stored.body
    assert given not in str(execute(url, "SELECT * FROM mqtt_config"))

    ministack.restart(stack)  # or it would look only after half a minute
    ministack.s3.put_object(Bucket=stack.outputs["BucketName"], Key="assets/stored", Body=b"")
    (message,) = ministack.hear()
    assert json.loads(message.payload) == {"filename": "stored"}
    status = ministack.ask_stack(stack, f"{BASE}/status", admin)
    assert status.status == 200, status
    assert given not in ministack.log_of("notify", "stored") + ministack.log_of("integration", "stored")
