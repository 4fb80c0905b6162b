"""What an administrator of the broker does to us: takes a right away, changes a password, forgets a certificate."""

from __future__ import annotations

import base64
import datetime as dt
import json
import secrets
import time
import urllib.request
from pathlib import Path

from functions.admin.openapi import BASE
from infra.local.certificates import make_certificates, renew_server
from infra.local.mosquitto import Mosquitto
from infra.local.process import PartError, free_port
from tests.chaos.verdict import Verdict
from tests.chaos.world import KEEP_ALL, Profile, World, eventually

USER, EAR = "bucketbell", "ear"
EAR_PASSWORD = "password-of-the-ear"
ADMIN_TOKEN = "the-admin-of-the-chaos-rig-0123"
MAY_LISTEN = f"user {EAR}\ntopic read iotsupport/#\n"
MAY_PUBLISH = f"user {USER}\ntopic write iotsupport/#\n"
REQUEST_SECONDS = 15.0
SHORTEST_OUTAGE_SECONDS = 3.0
POISON = [f"configs/66-6f-72-62-69-{number:02x}.json" for number in range(3)]
LEFT_OUT = "what tells Home Assistant of cameras: left out"
LEFT_OUT_SECONDS = 120.0  # three strikes, ten seconds apart, and the back-off between them
EXPIRED = dt.timedelta(minutes=-1)


def with_password(directory: Path, profile: Profile) -> World:
    """A broker with a password and an ACL for the host and for the subscriber; the host can be given settings too."""
    password = secrets.token_hex(12)
    broker = Mosquitto(
        directory / "mosquitto",
        users={USER: password, EAR: EAR_PASSWORD},
        acl=MAY_LISTEN + MAY_PUBLISH,
        persistent=True,
        extra=KEEP_ALL,
    )
    variables = {
        "MQTT_USERNAME": USER,
        "MQTT_PASSWORD": password,
        "ADMIN_TOKENS": ADMIN_TOKEN,
        "DATABASE_URL": f"sqlite:///{directory / 'settings.db'}",
        "ENCRYPTION_KEYS": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    ear = {"username": EAR, "password": EAR_PASSWORD}
    return World(directory, profile, broker=broker, variables=variables, ear=ear)


def with_password_on_sqs(directory: Path, profile: Profile) -> World:
    """The same, with events that wait in SQS."""
    password = secrets.token_hex(12)
    broker = Mosquitto(
        directory / "mosquitto",
        users={USER: password, EAR: EAR_PASSWORD},
        acl=MAY_LISTEN + MAY_PUBLISH,
        persistent=True,
        extra=KEEP_ALL,
    )
    return World(
        directory,
        profile,
        source="sqs",
        broker=broker,
        variables={"MQTT_USERNAME": USER, "MQTT_PASSWORD": password},
        ear={"username": EAR, "password": EAR_PASSWORD},
        queue={"VisibilityTimeout": "2"},
    )


def revoke_acl(world: World, profile: Profile) -> None:
    """The host may not write its topics any more, while connected; after the outage it may again.

    The broker answers each PUBLISH with a PUBACK that says 0x87, not authorised (MQTT 5 §3.4.2.1).
    """
    world.broker.set_acl(MAY_LISTEN)
    world.broker.reload()
    time.sleep(profile.outage_seconds)
    world.broker.set_acl(MAY_LISTEN + MAY_PUBLISH)
    world.broker.reload()
    world.healed()
    if "Denied PUBLISH" not in world.broker.log_text():
        raise PartError("the fault did not bite: the broker has denied nothing")


def closing(directory: Path, profile: Profile) -> World:
    """As `with_password`, but the broker closes the connection of whoever publishes what is forbidden.

    Mosquitto 2.0.11 does so without a limit of queued messages; RabbitMQ 4, HiveMQ and most brokers with MQTT 3.1.1 do.
    """
    world = with_password(directory, profile)
    world.broker.extra = ("max_queued_messages 0",)
    return world


def poison_link(world: World, profile: Profile) -> None:
    """Some uploads belong to a topic that the broker forbids: MinIO brings them again and again, beside all others."""
    world.broker.set_acl(f"{MAY_LISTEN}user {USER}\ntopic write iotsupport/updates/assets\n")
    world.broker.reload()
    before = world.proxy.connections
    for key in POISON:
        world.put(key)
    time.sleep(profile.outage_seconds)
    world.broker.set_acl(MAY_LISTEN + MAY_PUBLISH)
    world.broker.reload()
    world.healed()
    if world.proxy.connections == before:
        raise PartError("the fault did not bite: the broker has closed no connection")


def others_went_on(world: World, verdict: Verdict) -> str:
    """Whether what was allowed had to wait for the end of the fault."""
    del world
    waited = verdict.longest_wait_seconds
    return "" if waited < SHORTEST_OUTAGE_SECONDS else f"an allowed message waited for {waited:.1f} s"


def _change_password(world: World, profile: Profile) -> str:
    """Change the host's password at the broker, and return it after the outage.

    The link is cut, or the host would not notice until it next connects.
    """
    password = secrets.token_hex(12)
    world.broker.set_users({USER: password, EAR: EAR_PASSWORD})
    world.broker.reload()
    world.proxy.cut()
    world.suffer(profile.outage_seconds)
    return password


def change_password_and_restart(world: World, profile: Profile) -> None:
    """The host is refused, until somebody puts the new password into its environment and restarts it (SIGTERM)."""
    world.host.environment["MQTT_PASSWORD"] = _change_password(world, profile)
    world.host.restart()
    world.healed()


def change_password_and_store_it(world: World, profile: Profile) -> None:
    """The host is refused, until somebody stores the new password: `PUT …/config`, as `bucketbell mqtt set` does."""
    _store(world, password=_change_password(world, profile))
    world.healed()


def _store(world: World, **changes: object) -> None:
    settings = {
        "broker_host": "127.0.0.1",
        "broker_port": world.proxy.port,
        "username": USER,
        "topic_prefix": "chaos",
    }
    request = urllib.request.Request(  # noqa: S310 - our own http URL
        f"{world.host.url}{BASE}/config",
        data=json.dumps(settings | changes).encode(),
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS):  # noqa: S310 - as above
        pass


def with_password_and_a_broker_that_hangs_up(directory: Path, profile: Profile) -> World:
    """As `with_password`, with a broker that closes the connection over a message that its rules forbid.

    Mosquitto 2.0 does so, in either protocol, where `max_queued_messages` is 0: MQTT 3.1.1 §3.3.5 allows it.
    """
    world = with_password(directory, profile)
    world.broker.extra = ("max_queued_messages 0",)
    return world


def switch_home_assistant_on(world: World, profile: Profile) -> None:
    """Somebody stores settings with discovery, and the broker's rules know the devices' topics only.

    So `online` is forbidden, and the broker hangs up over it; until the host leaves it out, and says so.
    """
    del profile
    _store(world, password=world.host.environment["MQTT_PASSWORD"], discovery_enabled=True)
    eventually(lambda: LEFT_OUT in world.host.log_text(), "the host does not leave it out", LEFT_OUT_SECONDS)
    world.healed()
    if "Denied PUBLISH" not in world.broker.log_text():
        raise PartError("the fault did not bite: the broker has denied nothing")


def with_tls(directory: Path, profile: Profile) -> World:
    """A broker that speaks TLS to the host, and plainly on a second port to the subscriber."""
    certificates = make_certificates(directory / "certificates")
    port = free_port()
    extra = (*KEEP_ALL, f"listener {port} 127.0.0.1")
    broker = Mosquitto(directory / "mosquitto", certificates=certificates, persistent=True, extra=extra)
    variables = {"MQTT_CA_FILE": str(certificates.ca_file)}
    return World(directory, profile, broker=broker, variables=variables, ear={"url": f"mqtt://127.0.0.1:{port}"})


def expire_certificate(world: World, profile: Profile) -> None:
    """The broker's certificate has expired a minute ago, and the link is lost; then it is renewed (SIGHUP).

    A certificate is looked at once for each connection: so nothing happens at the moment it expires, and everything
    at the next reconnection.
    """
    assert world.broker.certificates is not None
    renew_server(world.broker.certificates, valid_for=EXPIRED)
    world.broker.reload()
    world.proxy.cut()
    world.suffer(profile.outage_seconds)
    renew_server(world.broker.certificates)
    world.broker.reload()
    world.healed()
