"""What the host says on the cameras' behalf, at brokers that do not want it: devices' messages go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from functions.mqtt.message import Message
from functions.mqtt.outcome import Status
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt import birth_messages
from infra.host.mqtt.birth_messages import RETRY_SECONDS, STRIKES, WILL
from infra.host.mqtt.publisher import HostPublisher
from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber
from tests.fakes.broker import Behaviour, FakeBroker, Packet
from tests.hosts import on_uvloop, until
from tests.integration.test_host_publisher_switch import AVAILABILITY, broker_of, message

CONFIG = "homeassistant/device/front/config"


def birth(topic: str = CONFIG, *, qos: int = 1) -> Message:
    """One retained message for Home Assistant."""
    return Message(topic, b"{}", qos=qos, retain=True)


def forbids(topic: str) -> Behaviour:
    """A broker that ends the connection over a message to this topic, without a word (MQTT 3.1.1 §3.3.5)."""

    def is_forbidden(publish: Packet) -> bool:
        return publish.topic == topic

    return Behaviour(closes_on=is_forbidden)


@asynccontextmanager
async def saying(
    broker: FakeBroker | Mosquitto, *notifications: Message, **changes: object
) -> AsyncIterator[HostPublisher]:
    """A publisher that says these on each connect."""
    publisher = HostPublisher(
        broker_of(broker.url, **changes), PrometheusTelemetry(), birth_messages=lambda: notifications
    )
    await publisher.start()
    try:
        yield publisher
    finally:
        await publisher.stop()


async def told(publisher: HostPublisher, topic: str) -> str:
    """Why the broker does not want this topic, once it has said so."""

    def refusal() -> str:
        return next((one.reason for one in publisher.births.verdicts() if one.topic == topic and not one.accepted), "")

    await until(refusal)
    return refusal()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection need not live for ten seconds to show that it lives without a birth message."""
    monkeypatch.setattr(birth_messages, "CONTRAST_SECONDS", 0.5)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1])
@on_uvloop
async def test_a_greeting_that_closes_the_connection_is_left_out_after_three_strikes(protocol: str, qos: int) -> None:
    """What devices wait for goes on before, between and after them; the other birth messages are said."""
    with FakeBroker(script=[forbids(CONFIG)]) as broker:
        async with saying(broker, birth(qos=qos), birth("homeassistant/other"), protocol=protocol) as publisher:
            count = 0
            while not publisher.births.leaves_out(CONFIG) or count < 40:
                count += 1
                assert (await publisher.submit(message(count)).done).success
                await asyncio.sleep(0.05)
            assert "the connection ends over it" in await told(publisher, CONFIG)
            tries = [packet for packet in broker.publishes if packet.topic == CONFIG]
            assert len(tries) == STRIKES
            assert len({packet.connection for packet in tries}) == STRIKES
            await until(lambda: any(packet.topic == "homeassistant/other" for packet in broker.publishes))
            news = [packet.payload for packet in broker.publishes if packet.topic == "news"]
            assert len(news) == len(set(news)), "nothing was taken along"


@on_uvloop
async def test_what_the_broker_refuses_is_left_out_said_and_tried_again(
    tmp_path: Path, mosquitto_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real Mosquitto with an ACL: PUBACK 0x87, one try until the time has come, and then the right is there."""
    del mosquitto_binary
    assert RETRY_SECONDS >= 300
    monkeypatch.setattr(birth_messages, "RETRY_SECONDS", 2.0)
    with Mosquitto(tmp_path, acl="topic write news\ntopic read #") as broker:
        async with saying(broker, birth(), birth("homeassistant/x")) as publisher:
            assert "0x87" in await told(publisher, CONFIG)
            assert (await publisher.submit(message()).done).success
            assert broker.log_text().count("Denied PUBLISH") == 2, "one for each topic"
            verdicts = {one.topic: one.accepted for one in publisher.births.verdicts()}
            assert verdicts == {CONFIG: False, "homeassistant/x": False, "news": True}
            broker.set_acl("topic readwrite #")
            broker.reload()
            await until(lambda: all(one.accepted for one in publisher.births.verdicts()))
        with Subscriber(broker.url, ("homeassistant/#",)) as late:
            kept = await asyncio.to_thread(late.wait_for, 2)
            assert {one.topic for one in kept} == {CONFIG, "homeassistant/x"}


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(will_reason=0x87, reason_string="will topic not allowed"),
        Behaviour(will_reason=0x83),
        Behaviour(retain_available=False),
    ],
    ids=["forbidden", "unspecified", "no retained messages"],
)
@on_uvloop
async def test_a_last_will_that_is_refused_is_left_out_and_said(behaviour: Behaviour) -> None:
    """The link is made without it, and the broker's own words are kept."""
    with FakeBroker(script=[behaviour]) as broker:
        async with saying(broker, birth(), availability_topic=AVAILABILITY) as publisher:
            assert (await publisher.submit(message()).done).success
            assert publisher.births.leaves_out(WILL)
            assert behaviour.reason_string in await told(publisher, WILL)
            assert publisher.status.connected
            assert publisher.status.reason == ""
            (config,) = [packet for packet in broker.publishes if packet.topic == CONFIG]
            assert config.retain is (behaviour.retain_available is None)


@on_uvloop
async def test_a_broker_of_qos_0_takes_the_last_will() -> None:
    """It would refuse a better one with 0x9B, and with it all of CONNECT."""
    with FakeBroker(script=[Behaviour(maximum_qos=0)]) as broker:
        async with saying(broker, birth(), availability_topic=AVAILABILITY) as publisher:
            assert (await publisher.submit(message()).done).status is Status.SENT
            await until(lambda: CONFIG in [packet.topic for packet in broker.publishes])
            assert [connect.will_topic for connect in broker.connect_packets] == [AVAILABILITY]


@on_uvloop
async def test_the_last_will_comes_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for on a connection beside ours; ours is made anew only once the broker takes it."""
    monkeypatch.setattr(birth_messages, "RETRY_SECONDS", 1.0)
    with FakeBroker(script=[Behaviour(will_reason=0x87)]) as broker:
        async with saying(broker, birth(), availability_topic=AVAILABILITY) as publisher:
            await told(publisher, WILL)
            ours = next(one.client_id for one in broker.connect_packets if one.will_topic is None)
            await until(lambda: len(broker.connect_packets) >= 6)  # two more tries
            assert [one.client_id for one in broker.connect_packets].count(ours) == 2
            assert publisher.status.connected
            broker.script = [Behaviour()]
            await until(lambda: not publisher.births.leaves_out(WILL) and publisher.status.connected)
            assert broker.connect_packets[-1].will_topic == AVAILABILITY
            assert (await publisher.submit(message()).done).success


@on_uvloop
async def test_the_last_will_is_not_blamed_for_an_outage_that_closes_connections() -> None:
    """A proxy that closes while the broker behind it is away: with the broker back, so is the last will."""
    away = Behaviour(raw_answer=b"")
    with FakeBroker(script=[away, away, Behaviour()]) as broker:
        async with saying(broker, availability_topic=AVAILABILITY) as publisher:
            await until(lambda: publisher.status.connected)
            broker.disconnect_all()
            broker.script = [away] * broker.connections + [away, Behaviour()]
            await until(
                lambda: (
                    publisher.status.connected
                    and broker.connect_packets[-1].will_topic == AVAILABILITY
                    and not publisher.births.leaves_out(WILL)
                )
            )


@on_uvloop
async def test_greetings_get_their_turn_although_messages_never_stop(tmp_path: Path, mosquitto_binary: Path) -> None:
    """Devices go first, but not for ever."""
    del mosquitto_binary
    with Mosquitto(tmp_path) as broker:
        async with saying(broker) as publisher:
            await until(lambda: publisher.status.connected)
            flights = [publisher.submit(message(number)) for number in range(200)]
            publisher.say([birth()])
            while not publisher.births.verdicts() or CONFIG not in {one.topic for one in publisher.births.verdicts()}:
                flights = [one for one in flights if not one.done.done()]
                flights += [publisher.submit(message(number)) for number in range(200 - len(flights))]
                await asyncio.sleep(0)
            assert {(await one.done).success for one in flights} == {True}


@on_uvloop
async def test_a_greeting_that_is_never_acknowledged_holds_up_nobody_for_long() -> None:
    """Others wait for a moment only, and go on at the same connection."""
    with FakeBroker(script=[Behaviour(acknowledge=False)]) as broker:
        async with saying(broker, birth()) as publisher:
            await until(lambda: broker.publishes)
            broker.script = [Behaviour()]
            assert (await publisher.submit(message()).done).success
            assert broker.connections == 1
