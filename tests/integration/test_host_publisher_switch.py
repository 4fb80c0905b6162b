"""The host's publisher goes from one broker to another while it runs, on real Mosquittos."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import Message
from functions.mqtt.outcome import Status
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.link import CHANGED
from infra.host.mqtt.publisher import HostPublisher
from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber
from tests.fakes.broker import Behaviour, FakeBroker
from tests.hosts import on_uvloop, until
from tests.timing import SLACK_SECONDS

pytestmark = pytest.mark.usefixtures("mosquitto_binary")
AVAILABILITY = "bucketbell/one/status"


def broker_of(url: str, **changes: object) -> BrokerConfig:
    """The broker at this URL."""
    host, _, port = url.removeprefix("mqtt://").rpartition(":")
    made = BrokerConfig(host=host, port=int(port), publish_timeout_seconds=20.0, connect_timeout_seconds=20.0)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # each test names real fields


def message(number: int = 0, topic: str = "news") -> Message:
    """One of many."""
    return Message(topic, b"%d" % number)


@on_uvloop
async def test_nothing_is_lost_and_nothing_goes_to_the_old_broker_after_a_switch(tmp_path: Path) -> None:
    """Messages flow all the while: each is heard at one of the two, and the old one hears none after the switch."""
    with (
        Mosquitto(tmp_path / "old") as old,
        Mosquitto(tmp_path / "new") as new,
        Subscriber(old.url, ("news",)) as at_old,
        Subscriber(new.url, ("news",)) as at_new,
    ):
        publisher = HostPublisher(broker_of(old.url), PrometheusTelemetry())
        await publisher.start()
        await until(lambda: publisher.status.connected)
        flights = []
        switched_at = 0
        for number in range(400):
            flights.append(publisher.submit(message(number)))
            if number == 200:
                publisher.use(broker_of(new.url))
                switched_at = number
            await asyncio.sleep(0.002)
        outcomes = [await flight.done for flight in flights]
        assert {one.status for one in outcomes} == {Status.DELIVERED}
        assert publisher.status.broker == new.url
        assert publisher.status.last_error is None, "a wanted change is no error"
        await publisher.stop()
        await until(lambda: len(at_old.messages) + len(at_new.messages) >= 400)
        heard_old = {int(one.payload) for one in await asyncio.to_thread(at_old.silence, 0.3)}
        heard_new = {int(one.payload) for one in await asyncio.to_thread(at_new.silence, 0.3)}
        assert heard_old | heard_new == set(range(400))
        assert max(heard_old) <= switched_at
        assert set(range(switched_at + 1, 400)) <= heard_new


@on_uvloop
async def test_what_the_old_broker_left_unanswered_goes_to_the_new_one(tmp_path: Path) -> None:
    """In flight at the switch: it is confirmed by the next broker, within its own time."""
    silent = (Behaviour(acknowledge=False),)
    with Mosquitto(tmp_path) as new, FakeBroker(script=silent) as old, Subscriber(new.url, ("news",)) as listener:
        publisher = HostPublisher(broker_of(old.url), PrometheusTelemetry())
        await publisher.start()
        await until(lambda: publisher.status.connected)
        flight = publisher.submit(message(7))
        await until(lambda: len(old.publishes) == 1)
        publisher.use(broker_of(new.url))
        assert publisher.status.reason == CHANGED
        assert (await flight.done).status is Status.DELIVERED
        assert (await asyncio.to_thread(listener.next)).payload == b"7"
        await publisher.stop()


@on_uvloop
async def test_switched_off_it_confirms_nothing_and_switched_on_it_goes_on(tmp_path: Path) -> None:
    """Also from a start without any broker."""
    with Mosquitto(tmp_path) as broker:
        publisher = HostPublisher(None, PrometheusTelemetry())
        await publisher.start()
        assert not publisher.configured
        publisher.use(broker_of(broker.url))
        await until(lambda: publisher.status.connected)
        assert (await publisher.submit(message()).done).success
        publisher.use(None)
        assert (publisher.configured, publisher.status.connected, publisher.status.broker) == (False, False, None)
        publisher.use(broker_of(broker.url))
        assert (await publisher.submit(message()).done).success
        assert publisher.messages_published == 2
        await publisher.stop()


@on_uvloop
async def test_held_back_it_confirms_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """While nobody knows the broker, messages wait for as long as they may; the reason is in the status."""
    with Mosquitto(tmp_path) as broker:
        settings = broker_of(broker.url, publish_timeout_seconds=2.0)
        publisher = HostPublisher(settings, PrometheusTelemetry())
        publisher.hold("credentials_unreadable")
        await publisher.start()
        assert (publisher.configured, publisher.ready, publisher.status.reason) == (
            True,
            False,
            "credentials_unreadable",
        )
        late = publisher.submit(message(1))
        outcome = await late.done
        assert (outcome.status, outcome.reason) == (Status.UNCONFIRMED, "credentials_unreadable")
        in_time = publisher.submit(message(2))
        publisher.use(settings)
        assert (await in_time.done).success
        await publisher.stop()


@on_uvloop
async def test_a_switch_does_not_wait_for_a_connect_that_hangs(tmp_path: Path) -> None:
    """The old broker never answers: the new one is connected to at once."""
    with Mosquitto(tmp_path) as new, FakeBroker(script=(Behaviour(silent=True),)) as old:
        publisher = HostPublisher(broker_of(old.url), PrometheusTelemetry())
        await publisher.start()
        await until(lambda: old.connections)
        publisher.use(broker_of(new.url))
        await until(lambda: publisher.status.connected, SLACK_SECONDS)
        await publisher.stop()


@on_uvloop
async def test_greetings_follow_what_waits_on_each_connect_and_farewells_go_before_each_goodbye(tmp_path: Path) -> None:
    """Retained `online` on connect, `offline` before DISCONNECT, and by the broker itself when the link is cut."""
    with Mosquitto(tmp_path) as broker, Subscriber(broker.url, (AVAILABILITY, "news")) as listener:

        def said(payload: bytes) -> tuple[Message, ...]:
            return (Message(AVAILABILITY, payload, qos=1, retain=True),)

        publisher = HostPublisher(
            broker_of(broker.url, availability_topic=AVAILABILITY),
            PrometheusTelemetry(),
            birth_messages=lambda: said(b"online"),
            goodbye_messages=lambda: said(b"offline"),
        )
        await publisher.start()
        flight = publisher.submit(message())
        assert (await flight.done).success
        first, second = [await asyncio.to_thread(listener.next) for _ in range(2)]
        assert (first.topic, second.topic, second.payload) == ("news", AVAILABILITY, b"online")
        publisher.use(broker_of(broker.url, availability_topic=AVAILABILITY))
        assert [(await asyncio.to_thread(listener.next)).payload for _ in range(2)] == [b"offline", b"online"]
        await publisher.stop()
        assert (await asyncio.to_thread(listener.next)).payload == b"offline"
        with Subscriber(broker.url, (AVAILABILITY,)) as late:
            kept = await asyncio.to_thread(late.next)
            assert (kept.payload, kept.retain) == (b"offline", True)


@on_uvloop
async def test_the_broker_says_offline_for_a_process_that_is_gone(tmp_path: Path) -> None:
    """The last will is retained."""
    with Mosquitto(tmp_path) as broker, Subscriber(broker.url, (AVAILABILITY,)) as listener:
        publisher = HostPublisher(broker_of(broker.url, availability_topic=AVAILABILITY), PrometheusTelemetry())
        await publisher.start()
        await until(lambda: publisher.status.connected)
        connection = publisher._link.connection  # noqa: SLF001 - no public way cuts a link without a good-bye
        assert connection is not None
        connection.discard()
        assert (await asyncio.to_thread(listener.next)).payload == b"offline"
        await publisher.stop()


@pytest.mark.parametrize("own", [0, 1, 2])
@on_uvloop
async def test_a_message_has_its_own_qos_retain_flag_and_label(tmp_path: Path, own: int) -> None:
    """Whatever the broker settings say of the others; metrics know it by its label."""
    telemetry = PrometheusTelemetry()
    with Mosquitto(tmp_path) as broker, Subscriber(broker.url, ("home/#",), qos=2) as listener:
        publisher = HostPublisher(broker_of(broker.url, qos=1), telemetry)
        await publisher.start()
        plain = message(1, "home/plain")
        special = Message("home/camera/7/event", b"{}", qos=own, retain=True, label="camera/+/event")
        outcomes = [await publisher.submit(one).done for one in (plain, special)]
        assert [one.status for one in outcomes] == [Status.DELIVERED, Status.SENT if own == 0 else Status.DELIVERED]
        heard = [await asyncio.to_thread(listener.next) for _ in range(2)]
        assert [(one.topic, one.qos) for one in heard] == [("home/plain", 1), ("home/camera/7/event", own)]
        with Subscriber(broker.url, ("home/#",)) as late:
            kept = await asyncio.to_thread(late.next)
            assert (kept.topic, kept.retain) == ("home/camera/7/event", True)
        labels = {"topic": "camera/+/event", "status": "success"}
        assert telemetry.registry.get_sample_value("mqtt_publish_total", labels) == 1
        await publisher.stop()
