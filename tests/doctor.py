"""`bucketbell doctor` as tests run it on a whole installation, and what holds for all that it says."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from typer.testing import CliRunner

from functions.events.names import CANARY_KEY
from functions.web.tokens import Keyring
from infra.cli import app
from infra.connect import documents
from infra.local.stack import OURS
from infra.local.stores import Minio
from tests.e2e.world import ASK_SECONDS, BUCKET, TOKEN, World

ADMIN = "an-administrators-own-token-0123"
USERS = {"bell": "a-bells-password", "ear": "an-ears-password"}
OTHER_TOKEN = "another-token-than-the-hosts-0123"
SECRETS = (TOKEN, OTHER_TOKEN, ADMIN, USERS["bell"])

Found = dict[str, Any]


def variables(world: World, more: Mapping[str, str]) -> dict[str, str]:
    """The host's own environment, with `more`, and nothing of the developer's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, **world.host.environment, **more}


def examined(world: World, *options: str, **more: str) -> Found:
    """What the doctor says with the host's settings, and with `more` of its own."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith(OURS)}
    with contextlib.chdir(world.directory):  # not the developer's .env
        options = ("doctor", "--host-url", world.host.url, "--json", *options)
        done = CliRunner().invoke(app, options, env={**ours, **variables(world, more)})
    return told(done.stdout, done.exit_code, world)


def told(output: str, exit_code: int, world: World) -> Found:
    """The document, after what holds for each: its exit code, remedies where something is wrong only, no secret."""
    found: Found = json.loads(output)
    assert exit_code == (0 if found["ok"] else 1), output
    assert all(bool(one["remedy"]) == (one["health"] == "wrong") for one in found["checks"])
    assert "X-Amz-" not in output  # a link is as good as a password
    for secret in (*SECRETS, world.store.secret_key):
        assert secret not in output
    return found


def first(found: Found) -> tuple[str, str, str]:
    """The first wrong thing: its name, what was found, and the remedy."""
    wrong = next(one for one in found["checks"] if one["health"] == "wrong")
    assert found["first"] == wrong["name"]
    return wrong["name"], wrong["detail"], wrong["remedy"]


def health(found: Found) -> dict[str, str]:
    """By name."""
    return {one["name"]: one["health"] for one in found["checks"]}


def detail(found: Found, name: str) -> str:
    """What was found by the check of this name."""
    return next(str(one["detail"]) for one in found["checks"] if one["name"] == name)


def rules_of(world: World) -> list[dict[str, Any]]:
    """The bucket's rules: those for uploads first, then those for the canary."""
    found = world.s3.get_bucket_notification_configuration(Bucket=BUCKET)["QueueConfigurations"]
    return sorted(found, key=lambda rule: CANARY_KEY in str(rule))


def let_the_canary_fly(world: World) -> None:
    """Have rules for it in the bucket, as `connect` makes them."""
    rules = rules_of(world)
    if not documents.doors_of({"QueueConfigurations": rules}, CANARY_KEY):
        targets = world.doors.targets if isinstance(world.store, Minio) else {"queue": rules[0]["QueueArn"]}
        put_rules(world, [*rules, *documents.wanted_rules(targets, {"canary": CANARY_KEY})])


def put_rules(world: World, rules: list[dict[str, Any]]) -> None:
    """The bucket has these rules now, and no others."""
    put = world.s3.put_bucket_notification_configuration
    put(Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": rules})


@contextlib.contextmanager
def other_rules(world: World, rules: list[dict[str, Any]]) -> Iterator[None]:
    """The bucket with these rules, for a while."""
    before = rules_of(world)
    put_rules(world, rules)
    try:
        yield
    finally:
        put_rules(world, before)


@contextlib.contextmanager
def other_minio(world: World, **changes: str | None) -> Iterator[None]:
    """MinIO with another environment, for a while; the host's sweep and doors go on."""
    assert isinstance(world.store, Minio)
    before = world.store.environment
    changed = {**before, **changes}
    world.store.environment = {name: value for name, value in changed.items() if value is not None}
    world.store.restart()
    try:
        yield
    finally:
        world.store.environment = before
        world.store.restart()


def show_token(world: World, mac: str, *, days: float = 365.0) -> None:
    """A device asks the host for its manifest, with a token that ends in so many days."""
    keyring = Keyring.parse([world.host.environment["DEVICE_TOKEN_KEYS"]])
    token = keyring.mint(mac, expires_seconds=days * 24 * 3600)
    asked = urllib.request.Request(f"{world.host.url}/manifest", headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - our own http URL
    with urllib.request.urlopen(asked, timeout=ASK_SECONDS) as answer:  # noqa: S310 - as above
        assert answer.status == http.client.OK
