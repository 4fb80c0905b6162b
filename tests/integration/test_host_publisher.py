"""The host's publisher on its event loop (uvloop, as in production), against a real Mosquitto wherever it can serve."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from functions.backoff import backoff_seconds
from functions.events.envelopes import ObjectCreated
from functions.events.plan import Step
from functions.events.routes import Routes
from functions.mqtt import suspects as suspects_module
from functions.mqtt.audience import EARLY_SECONDS, NO_MATCHING_SUBSCRIBERS
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import Message
from functions.mqtt.outcome import Status
from functions.settings import load
from infra.host.bell import Bell
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt import link as link_module
from infra.host.mqtt import publisher as publisher_module
from infra.host.mqtt.link import LinkStatus
from infra.host.mqtt.publisher import HostPublisher, QueueFullError
from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber
from tests.fakes.broker import GARBAGE, Behaviour, FakeBroker, Packet
from tests.fakes.proxy import TcpProxy
from tests.hosts import TOPICS, on_uvloop, until
from tests.leftovers import threads
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

HEALTHY = Behaviour()


def notification(name: str = "firmware.bin", payload: bytes | None = None) -> Message:
    """One that no other equals."""
    body = json.dumps({"filename": name}).encode() if payload is None else payload
    return Message(TOPICS[1], body)


class Publishing:
    """A started publisher, what it counts, and every status it went through."""

    def __init__(self, url: str, on_change: Callable[[LinkStatus], None] | None, **settings: str) -> None:
        variables = {"MQTT_URL": url, "MQTT_PUBLISH_TIMEOUT_SECONDS": "20", **settings}
        self.telemetry = PrometheusTelemetry()
        self.changes: list[LinkStatus] = []
        self._limit = int(variables.pop("queue_limit", "10000"))
        self.publisher = HostPublisher(
            BrokerConfig.of(load(variables).settings),
            self.telemetry,
            on_change=on_change or self.changes.append,
            queue_limit=self._limit,
        )

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us."""
        return self.publisher.status.connected

    async def publish(self, *notifications: Message) -> list[Status]:
        """Submits all, and waits for every outcome."""
        flights = [self.publisher.submit(one) for one in notifications or (notification(),)]
        return [(await flight.done).status for flight in flights]

    def value(self, name: str, **labels: str) -> float:
        """One metric's value; 0 where it was never touched."""
        return self.telemetry.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def publishing(
    url: str, *, connected: bool = True, on_change: Callable[[LinkStatus], None] | None = None, **settings: str
) -> AsyncIterator[Publishing]:
    """A publisher with all the time in the world, connected unless told otherwise, and stopped at the end."""
    case = Publishing(url, on_change, **settings)
    await case.publisher.start()
    try:
        if connected:
            await until(lambda: case.connected)
        yield case
    finally:
        await case.publisher.stop()


@asynccontextmanager
async def subscribed(url: str, **options: Any) -> AsyncIterator[Subscriber]:  # noqa: ANN401 - passed through
    """A subscriber to both topics that does not block the loop."""
    subscriber = Subscriber(url, TOPICS, **options)
    await asyncio.to_thread(subscriber.start)
    try:
        yield subscriber
    finally:
        await asyncio.to_thread(subscriber.stop)


@pytest.mark.parametrize(
    ("qos", "heard", "deaf"),
    [("0", "sent", "sent"), ("1", "delivered", "no_subscribers"), ("2", "delivered", "delivered")],
)
@on_uvloop
async def test_each_outcome_is_counted_once(mosquitto: Mosquitto, qos: str, heard: str, deaf: str) -> None:
    """Without and with a subscriber, at every QoS; each attempt is one success and has one duration."""
    async with publishing(mosquitto.url, MQTT_QOS=qos) as case:
        assert await case.publish() == [deaf]
        async with subscribed(mosquitto.url) as subscriber:
            sent = notification()
            assert await case.publish(sent) == [heard]
            message = await asyncio.to_thread(subscriber.next)
        assert (message.topic, message.payload) == (TOPICS[1], sent.payload)
        assert (message.qos, message.retain) == (int(qos), False)
        assert case.value("mqtt_publish_total", topic=TOPICS[1], status="success") == 2
        assert case.value("mqtt_publish_total", topic=TOPICS[1], status="failure") == 0
        assert case.value("mqtt_messages_published_total") == 2
        assert case.value("mqtt_publish_errors_total") == 0
        assert case.value("mqtt_publish_duration_seconds_count", topic=TOPICS[1]) == 2
        assert case.value("mqtt_no_subscribers_total", topic=TOPICS[1]) == (deaf == "no_subscribers")


@on_uvloop
async def test_a_forbidden_topic_is_refused_and_costs_nobody_the_connection(
    tmp_path: Path, mosquitto_binary: Path
) -> None:
    """The broker's reason code comes back, the failure is counted, and the next topic works."""
    del mosquitto_binary
    with Mosquitto(tmp_path, acl=f"topic write {TOPICS[0]}") as broker:
        async with publishing(broker.url) as case:
            flight = case.publisher.submit(notification())
            outcome = await flight.done
            assert (outcome.status, outcome.reason_code, outcome.retriable) == (Status.REFUSED, 0x87, False)
            allowed = Message(TOPICS[0], b"{}")
            assert await case.publish(allowed) == [Status.NO_SUBSCRIBERS]
            assert case.value("mqtt_publish_total", topic=TOPICS[1], status="failure") == 1
            assert case.value("mqtt_publish_errors_total") == 1
            assert len(case.changes) == 1


@on_uvloop
async def test_a_message_that_waits_for_its_broker_goes_out_when_it_appears(mosquitto: Mosquitto) -> None:
    """The broker may start after the host; the attempts until then are counted, and `enabled` waits for CONNACK."""
    mosquitto.stop()
    async with publishing(mosquitto.url, connected=False) as case:
        await until(lambda: case.changes)
        assert not case.connected
        assert "refused" in case.publisher.status.reason
        assert (case.value("mqtt_enabled"), case.value("mqtt_connection_state")) == (0, 0)
        flight = case.publisher.submit(notification())
        await asyncio.to_thread(mosquitto.start)
        assert (await flight.done).status is Status.NO_SUBSCRIBERS
        assert case.value("mqtt_reconnect_attempts_total") >= 1
        assert (case.value("mqtt_enabled"), case.value("mqtt_connection_status")) == (1, 1)


@on_uvloop
async def test_a_broker_restart_is_survived(mosquitto: Mosquitto) -> None:
    """The state goes 1, 0, 1; `since` moves with it; and messages flow again, on the same client id."""
    async with publishing(mosquitto.url) as case:
        first = case.publisher.status
        await asyncio.to_thread(mosquitto.stop)
        await until(lambda: not case.connected)
        assert (case.value("mqtt_enabled"), case.value("mqtt_connection_state")) == (0, 0)
        assert not case.publisher.ready
        assert case.publisher.status.since > first.since
        assert case.publisher.status.reason
        await asyncio.to_thread(mosquitto.start)
        assert await case.publish() == [Status.NO_SUBSCRIBERS]
        assert [change.connected for change in case.changes if change.connected] == [True, True]
        assert case.publisher.status.reason == ""
        assert case.value("mqtt_connection_state") == 1
    names = re.findall(r" as (bucketbell-\w+)", mosquitto.log_text())
    assert len(names) == 2
    assert len(set(names)) == 1


@on_uvloop
async def test_a_wrong_password_is_told_not_tried_hot_and_forgiven(tmp_path: Path, mosquitto_binary: Path) -> None:
    """The refusal has its reason code; demand does not hasten the next attempt; the right password ends it."""
    del mosquitto_binary
    with Mosquitto(tmp_path, users={"bell": "another-one"}) as broker:
        async with publishing(broker.url, connected=False, MQTT_USERNAME="bell", MQTT_PASSWORD="the-right-one") as case:
            await until(lambda: case.changes)
            status = case.publisher.status
            assert (status.connected, status.reason_code) == (False, 0x87)
            assert "MQTT_PASSWORD" in status.reason
            assert "the-right-one" not in str(status)
            begun_at = time.monotonic()
            for _ in range(10):
                case.publisher.submit(notification())
                await asyncio.sleep(0.12)
            assert len(case.changes) <= 1 + (time.monotonic() - begun_at) / 0.5  # the first after 0.5 s at least
            assert {change.since for change in case.changes} == {status.since}
            broker.set_users({"bell": "the-right-one"})
            await asyncio.to_thread(broker.reload)
            await until(lambda: case.connected)
            assert await case.publish() == [Status.NO_SUBSCRIBERS]


@on_uvloop
async def test_authorisation_revoked_at_run_time_disables_publishing(tmp_path: Path, mosquitto_binary: Path) -> None:
    """The broker drops a user who is gone; `enabled` falls, and the refusal's code is there to see."""
    del mosquitto_binary
    with Mosquitto(tmp_path, users={"bell": "right", "other": "right"}) as broker:
        async with publishing(broker.url, MQTT_USERNAME="bell", MQTT_PASSWORD="right") as case:
            assert case.value("mqtt_enabled") == 1
            broker.set_users({"other": "right"})
            await asyncio.to_thread(broker.reload)
            await until(lambda: case.publisher.status.reason_code == 0x87)
            assert (case.value("mqtt_enabled"), case.value("mqtt_connection_state")) == (0, 0)


@on_uvloop
async def test_a_half_open_link_is_discarded_after_one_ack_deadline(mosquitto: Mosquitto) -> None:
    """What is too late is unconfirmed; what is still in time goes out on the next connection, at once."""
    with TcpProxy("127.0.0.1", mosquitto.port) as proxy:
        async with publishing(proxy.url, MQTT_PUBLISH_TIMEOUT_SECONDS="3") as case:
            proxy.blackhole()
            begun_at = time.monotonic()
            lost = case.publisher.submit(notification("lost"))
            await until(lambda: time.monotonic() - begun_at > 0.2)
            proxy.heal()  # for new connections: this one has lost bytes and stays deaf
            await until(lambda: time.monotonic() - begun_at > 2.0)
            resent = case.publisher.submit(notification("resent"))
            assert (await lost.done).status is Status.UNCONFIRMED
            assert 2.9 <= time.monotonic() - begun_at <= 3.0 + SLACK_SECONDS
            assert (await resent.done).status is Status.NO_SUBSCRIBERS
            assert proxy.connections == 2


@on_uvloop
async def test_a_hung_broker_costs_one_deadline_and_heals(mosquitto: Mosquitto) -> None:
    """While it is frozen every message is unconfirmed in time; thawed, it serves again."""
    async with publishing(mosquitto.url, MQTT_PUBLISH_TIMEOUT_SECONDS="1", MQTT_CONNECT_TIMEOUT_SECONDS="1") as case:
        mosquitto.freeze()
        try:
            begun_at = time.monotonic()
            statuses = await case.publish(*[notification(str(n)) for n in range(50)])
            assert time.monotonic() - begun_at < 1.0 + SLACK_SECONDS
            assert set(statuses) == {Status.UNCONFIRMED}
            assert case.value("mqtt_publish_total", topic=TOPICS[1], status="failure") == 50
            assert case.value("mqtt_publish_total", topic=TOPICS[1], status="success") == 0
        finally:
            mosquitto.thaw()
        while await case.publish() != [Status.NO_SUBSCRIBERS]:
            pass


@on_uvloop
async def test_a_broker_that_never_acknowledges_is_left_and_what_is_late_is_not_sent_again() -> None:
    """The connection is discarded after one deadline, and the new one begins with what is still wanted."""
    with FakeBroker(script=[Behaviour(acknowledge=False), HEALTHY]) as broker:
        async with publishing(broker.url, MQTT_PUBLISH_TIMEOUT_SECONDS="2") as case:
            assert await case.publish(notification("late")) == [Status.UNCONFIRMED]
            await until(lambda: case.connected and broker.connects == 2)
            assert await case.publish(notification("next")) == [Status.DELIVERED]
            assert [packet.connection for packet in broker.publishes] == [1, 2]


@on_uvloop
async def test_an_acknowledgement_that_others_overtook_is_not_waited_for_for_ever() -> None:
    """A message that the broker alone forgets ends unconfirmed, so that its retry is a message again."""
    with FakeBroker() as broker:
        async with publishing(broker.url, MQTT_PUBLISH_TIMEOUT_SECONDS="1") as case:
            broker.script = [Behaviour(acknowledge=False)]
            forgotten = case.publisher.submit(notification("forgotten"))
            await asyncio.to_thread(broker.wait_for, "PUBLISH")
            broker.script = [HEALTHY]
            while not forgotten.done.done():
                assert await case.publish() == [Status.DELIVERED]
                await asyncio.sleep(0.1)
            assert forgotten.done.result().status is Status.UNCONFIRMED
            assert time.monotonic() - forgotten.begun_at < publisher_module.MAX_ACK_AGE + SLACK_SECONDS


@on_uvloop
async def test_a_late_acknowledgement_settles_what_its_caller_gave_up() -> None:
    """The caller hears `unconfirmed` at the deadline, and its retry succeeds without a second message."""
    # One at a time, each acknowledged after 1.5 s: the second is sent in time, and acknowledged too late.
    with FakeBroker(script=[Behaviour(receive_maximum=1, acknowledge_delay_seconds=1.5)]) as broker:
        async with publishing(broker.url, MQTT_PUBLISH_TIMEOUT_SECONDS="2.5") as case:
            bell = Bell(case.publisher, Routes(), case.telemetry, patience_seconds=2.5)
            steps = [step(f"assets/{name}") for name in "abc"]
            labels = [settled.label for settled in await bell.ring(steps, "sure")]
            assert labels == ["delivered", "unconfirmed", "unconfirmed"]
            await until(lambda: case.value("mqtt_messages_published_total") == 2)
            await asyncio.sleep(0)
            assert [settled.label for settled in await bell.ring(steps[:2], "sure")] == ["repeated", "repeated"]
            assert broker.max_in_flight == 1
            assert len(broker.publishes) == 2  # the third was withdrawn
            assert len(case.changes) == 1


def step(key: str) -> Step:
    """An upload to `key` and its route."""
    created = ObjectCreated("devices", key, "ObjectCreated:Put", sequencer=os.urandom(4).hex())
    return Step(created, Routes().route(created))


@on_uvloop
async def test_the_window_is_the_brokers_receive_maximum_or_twenty() -> None:
    """However many wait, no more are in flight than the broker takes; all arrive."""
    for maximum, expected in ((3, 3), (None, 20)):
        with FakeBroker(script=[Behaviour(receive_maximum=maximum, acknowledge_delay_seconds=0.02)]) as broker:
            async with publishing(broker.url) as case:
                statuses = await case.publish(*[notification(str(n)) for n in range(40)])
                assert set(statuses) == {Status.DELIVERED}
                assert broker.max_in_flight == expected
                assert len(broker.publishes) == 40


@pytest.mark.parametrize(
    "first",
    [
        Behaviour(cut_at_publish=2),
        Behaviour(cut_within_publish=2),
        Behaviour(raw_on_publish=GARBAGE),
        Behaviour(half_puback=True),
        Behaviour(cut_at_publish=1, disconnect_reason=0x8B),
    ],
    ids=["cut", "cut-in-a-packet", "garbage", "half-an-answer", "told-to-go"],
)
@on_uvloop
async def test_a_connection_that_ends_badly_is_replaced_and_nothing_in_time_is_lost(first: Behaviour) -> None:
    """Whatever the broker does to the first connection, the second delivers, each message at most twice."""
    with FakeBroker(script=[first, HEALTHY]) as broker:
        async with publishing(broker.url) as case:
            sent = [notification(str(n)) for n in range(5)]
            assert set(await case.publish(*sent)) == {Status.DELIVERED}
            assert broker.connects == 2
            assert {packet.payload for packet in broker.publishes} == {one.payload for one in sent}
            assert len(broker.publishes) <= 10
            assert case.value("mqtt_publish_total", topic=TOPICS[1], status="success") == 5


@on_uvloop
async def test_a_server_disconnect_is_reported_with_its_reason() -> None:
    """`server shutting down` arrives with its code."""
    with FakeBroker() as broker:
        async with publishing(broker.url) as case:
            broker.disconnect_all(0x8B)
            await until(lambda: len(case.changes) >= 2)
            assert (case.changes[1].connected, case.changes[1].reason_code) == (False, 0x8B)


@on_uvloop
async def test_a_port_that_refuses_is_not_dialled_hot() -> None:
    """Idle, a broker that says `server busy` sees the delays grow; each attempt after the first is counted."""
    with FakeBroker(script=[Behaviour(connack_reason=0x89)]) as broker:
        async with publishing(broker.url, connected=False) as case:
            await until(lambda: broker.connects == 3)
            await until(lambda: case.value("mqtt_reconnect_attempts_total") == 2)
            times = [packet.received_at for packet in broker.of_kind("CONNECT")]
            assert times[1] - times[0] >= 0.45
            assert times[2] - times[1] >= 0.95
            assert case.publisher.status.reason_code == 0x89


@on_uvloop
async def test_demand_shortens_the_back_off_to_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The link would sleep for 10 s at least; a message that waits wakes it."""
    with FakeBroker(script=[Behaviour(cut_at_publish=0)]) as broker:
        monkeypatch.setattr(link_module, "backoff_seconds", partial(backoff_seconds, first_seconds=20.0))
        async with publishing(broker.url, connected=False) as case:
            await until(lambda: broker.connects == 1 and len(case.changes) >= 2)
            broker.script = [HEALTHY]
            begun_at = time.monotonic()
            assert await case.publish() == [Status.DELIVERED]
            assert time.monotonic() - begun_at < link_module.DEMAND_SECONDS + SLACK_SECONDS


@on_uvloop
async def test_at_rest_nothing_is_looked_after(mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until something is sent, or the keep alive is due; also while there is no broker."""
    looks: list[float] = []
    tick = link_module.Link.tick

    def counted(link: link_module.Link) -> None:
        looks.append(time.monotonic())
        tick(link)

    monkeypatch.setattr(link_module.Link, "tick", counted)
    monkeypatch.setattr(publisher_module, "HOUSEKEEPING_SECONDS", 0.02)
    for url, connected in ((mosquitto.url, True), ("mqtt://127.0.0.1:1", False)):
        async with publishing(url, connected=connected) as case:
            await asyncio.sleep(0.2)
            looks.clear()
            await asyncio.sleep(0.4)
            assert len(looks) <= (0 if connected else 1), "a failed attempt is a reason to look"
            case.publisher.submit(notification())
            await until(lambda: len(looks) > 0)


@on_uvloop
async def test_an_idle_link_is_kept_alive_and_found_dead() -> None:
    """PINGREQ goes out while idle; a broker that stops answering is left."""
    with FakeBroker() as broker:
        async with publishing(broker.url, MQTT_KEEPALIVE_SECONDS="1") as case:
            await asyncio.to_thread(broker.wait_for, "PINGREQ", 2)
            assert (case.connected, broker.connects) == (True, 1)
            broker.script = [Behaviour(answer_pings=False)]
            await until(lambda: not case.connected)


@on_uvloop
async def test_a_name_that_does_not_resolve_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's own words are in the status."""

    def fails(*_: object, **__: object) -> Any:  # noqa: ANN401 - never returns
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    async with publishing("mqtt://broker.invalid", connected=False, MQTT_PUBLISH_TIMEOUT_SECONDS="0.2") as case:
        await until(lambda: case.changes)
        assert case.publisher.status.reason == "mqtt://broker.invalid:1883: Name or service not known"
        assert await case.publish() == [Status.UNCONFIRMED]


@on_uvloop
async def test_a_resolver_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch, mosquitto: Mosquitto) -> None:
    """One thread waits for it, the loop and the end do not; and what it opens at last is closed at once."""
    released, resolve = threading.Event(), socket.getaddrinfo

    def hangs(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - socket's own
        released.wait(PATIENCE_SECONDS)
        return resolve(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    before = threads()
    async with publishing(mosquitto.url, connected=False, MQTT_CONNECT_TIMEOUT_SECONDS="0.2") as case:
        await until(lambda: len(case.changes) >= 2)
        assert "not resolved in time" in case.publisher.status.reason
        assert [thread.name for thread in threads() - before] == ["mqtt-open-1"]
        released.set()
        await until(lambda: case.connected)
        assert await case.publish() == [Status.NO_SUBSCRIBERS]
        # Of the two connections the abandoned one is gone.
        await until(lambda: len(connections_to(mosquitto.port)) == 1)
        monkeypatch.setattr(socket, "getaddrinfo", hangs)
        released.clear()
        begun_at = time.monotonic()
    assert time.monotonic() - begun_at < SLACK_SECONDS


def connections_to(port: int) -> list[str]:
    """The established connections of this machine to that port of loopback (Linux)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"]


@on_uvloop
async def test_a_connect_that_hangs_leaves_the_loop_free_and_ends_with_it() -> None:
    """A server that never answers the TLS handshake blocks a thread; stopping does not wait for that thread."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"mqtts://127.0.0.1:{server.getsockname()[1]}"
        async with publishing(url, connected=False, MQTT_CONNECT_TIMEOUT_SECONDS="20") as case:
            longest_seconds = 0.0
            for _ in range(50):
                begun_at = time.monotonic()
                await asyncio.sleep(0.01)
                longest_seconds = max(longest_seconds, time.monotonic() - begun_at)
            flight = case.publisher.submit(notification())
            stopping_at = time.monotonic()
        # Either would wait for the connect time-out.
        assert longest_seconds < SLACK_SECONDS
        assert time.monotonic() - stopping_at < SLACK_SECONDS
        assert flight.done.result().status is Status.UNCONFIRMED


@on_uvloop
async def test_an_answer_to_connect_is_waited_for_within_the_one_deadline() -> None:
    """TCP, TLS and CONNACK share MQTT_CONNECT_TIMEOUT_SECONDS."""
    with FakeBroker(script=[Behaviour(silent=True), HEALTHY]) as broker:
        begun_at = time.monotonic()
        async with publishing(broker.url, connected=False, MQTT_CONNECT_TIMEOUT_SECONDS="0.5") as case:
            await until(lambda: case.changes)
            assert 0.4 < time.monotonic() - begun_at < 0.5 + SLACK_SECONDS
            assert "no answer to CONNECT" in case.publisher.status.reason
            await until(lambda: case.connected)


@on_uvloop
async def test_a_slow_link_confirms_everything_without_copies(mosquitto: Mosquitto) -> None:
    """200 messages at once into 400 ms with a 2 s deadline, retried as a store does: one copy each, one connection."""
    with TcpProxy("127.0.0.1", mosquitto.port, delay_seconds=0.2) as proxy:
        async with (
            publishing(proxy.url, MQTT_PUBLISH_TIMEOUT_SECONDS="2") as case,
            subscribed(mosquitto.url) as subscriber,
        ):
            bell = Bell(case.publisher, Routes(), case.telemetry, patience_seconds=2.0)
            tries = 0

            async def until_settled(one: Step) -> None:
                nonlocal tries
                while (await bell.ring([one], "sure"))[0].retriable:
                    tries += 1
                    await asyncio.sleep(0.5)

            steps = [step(f"assets/{number}") for number in range(200)]
            await asyncio.gather(*map(until_settled, steps))
            await until(lambda: len({message.payload for message in subscriber.messages}) == 200)
            payloads = [message.payload for message in subscriber.messages]
            assert tries > 0  # the deadline did strike
            assert len(payloads) <= 202
            assert proxy.connections == 1


@on_uvloop
async def test_a_message_too_large_for_the_broker_is_refused_before_it_costs_the_connection() -> None:
    """0x95 without a byte sent; its neighbours are delivered."""
    with FakeBroker(script=[Behaviour(maximum_packet_size=200)]) as broker:
        async with publishing(broker.url) as case:
            large = notification("large", b"x" * 500)
            assert await case.publish(notification(), large, notification()) == ["delivered", "refused", "delivered"]
            assert broker.connects == 1


@on_uvloop
async def test_the_queue_is_bounded_and_withdraws_what_was_not_sent_in_time(mosquitto: Mosquitto) -> None:
    """Beyond the limit `QueueFullError`; what waited too long is unconfirmed with the link's reason, and never sent."""
    mosquitto.stop()
    async with publishing(mosquitto.url, connected=False, queue_limit="2", MQTT_PUBLISH_TIMEOUT_SECONDS="1") as case:
        flights = [case.publisher.submit(notification()) for _ in range(2)]
        with pytest.raises(QueueFullError):
            case.publisher.submit(notification())
        outcomes = [await flight.done for flight in flights]
        assert {outcome.status for outcome in outcomes} == {Status.UNCONFIRMED}
        assert all("refused" in outcome.reason for outcome in outcomes)
        await asyncio.to_thread(mosquitto.start)
        async with subscribed(mosquitto.url) as subscriber:
            await until(lambda: case.connected)
            assert await asyncio.to_thread(subscriber.silence, 0.3) == []
        assert case.value("mqtt_publish_total", topic=TOPICS[1], status="failure") == 2


@on_uvloop
async def test_stopping_flushes_says_good_bye_and_is_done_once() -> None:
    """What is in flight is confirmed first; DISCONNECT is the last packet; a second stop does nothing."""
    with FakeBroker(script=[Behaviour(acknowledge_delay_seconds=0.3)]) as broker:
        async with publishing(broker.url) as case:
            flight = case.publisher.submit(notification())
            await case.publisher.stop()
            await case.publisher.stop()
            assert flight.done.result().status is Status.DELIVERED
            assert await case.publish() == [Status.UNCONFIRMED]
            await asyncio.to_thread(broker.wait_for, "DISCONNECT")
            assert broker.packets[-1].kind == "DISCONNECT"
            assert (case.value("mqtt_enabled"), case.value("mqtt_connection_state")) == (0, 0)
            assert not case.publisher.ready


@on_uvloop
async def test_the_broker_sees_a_clean_end(mosquitto: Mosquitto) -> None:
    """Mosquitto logs a disconnect, not a broken connection."""
    async with publishing(mosquitto.url):
        pass
    await until(lambda: "disconnected" in mosquitto.log_text())
    assert "disconnected." in [line for line in mosquitto.log_text().splitlines() if "isconnect" in line][-1]


@on_uvloop
async def test_stopping_does_not_wait_for_a_broker_that_is_silent(mosquitto: Mosquitto) -> None:
    """Everybody who waits has an answer within the flush time."""
    async with publishing(mosquitto.url, MQTT_PUBLISH_TIMEOUT_SECONDS="30") as case:
        mosquitto.freeze()
        flights = [case.publisher.submit(notification()) for _ in range(30)]
        begun_at = time.monotonic()
        case.publisher.hurry()
        outcomes = await asyncio.gather(*[flight.done for flight in flights])
        assert {(outcome.status, outcome.reason) for outcome in outcomes} == {(Status.UNCONFIRMED, "shutting down")}
        assert time.monotonic() - begun_at < publisher_module.FLUSH_SECONDS + SLACK_SECONDS
        await case.publisher.stop()
        assert time.monotonic() - begun_at < publisher_module.FLUSH_SECONDS + SLACK_SECONDS
        mosquitto.thaw()


@on_uvloop
async def test_a_listener_that_raises_does_not_end_the_link(mosquitto: Mosquitto) -> None:
    """Nobody would ever connect again if an unforeseen error ended the task that does."""
    calls: list[LinkStatus] = []

    def raises_first(status: LinkStatus) -> None:
        calls.append(status)
        if len(calls) == 1:
            raise RuntimeError("unforeseen")

    async with publishing(mosquitto.url, on_change=raises_first) as case:
        await until(lambda: len(calls) >= 3 and case.connected)
        assert await case.publish() == [Status.NO_SUBSCRIBERS]


@on_uvloop
async def test_without_a_broker_nothing_happens() -> None:
    """Not configured: no task, no metric but `mqtt_enabled 0`, and stopping is a no-op."""
    telemetry = PrometheusTelemetry()
    publisher = HostPublisher(None, telemetry)
    await publisher.start()
    assert len(asyncio.all_tasks()) == 1
    assert telemetry.registry.get_sample_value("mqtt_enabled") == 0
    assert not publisher.configured
    await publisher.stop()


@on_uvloop
async def test_messages_flow_through_reconnects_without_a_lost_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty connections cut in a row under traffic: each message still gets exactly one outcome."""
    monkeypatch.setattr(link_module, "DEMAND_SECONDS", 0.02)
    with FakeBroker() as broker:
        async with publishing(broker.url) as case:
            flights = []
            for round_ in range(20):
                flights += [case.publisher.submit(notification(f"{round_}-{n}")) for n in range(5)]
                broker.disconnect_all()
                await asyncio.sleep(0.04)
            assert {(await flight.done).status for flight in flights} == {Status.DELIVERED}
            assert case.value("mqtt_publish_total", topic=TOPICS[1], status="success") == 100
            assert broker.connects >= 10


@on_uvloop
async def test_a_process_with_a_thousand_open_files_still_publishes(mosquitto: Mosquitto) -> None:
    """From descriptor 1,024 on select() fails; the loop does not use it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        async with publishing(mosquitto.url) as case:
            assert await case.publish() == [Status.NO_SUBSCRIBERS]
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _forbids_configs(packet: Packet) -> bool:
    return packet.topic == TOPICS[0]


def _forbidden(name: str = "forbidden") -> Message:
    return Message(TOPICS[0], name.encode())


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(forbid=_forbids_configs),
        Behaviour(
            forbid=_forbids_configs,
            puback_reason=lambda packet: 0x87 if _forbids_configs(packet) else 0,
            disconnect_reason=0x87,
        ),
    ],
    ids=["closes without a word", "refuses and disconnects"],
)
@on_uvloop
async def test_a_message_that_the_broker_closes_over_is_found_and_costs_the_others_nothing_more(
    behaviour: Behaviour,
) -> None:
    """It ends refused; from then on the others have the connection to themselves."""
    with FakeBroker(script=[behaviour]) as broker:
        async with publishing(broker.url) as case:
            bad = case.publisher.submit(_forbidden())
            others = [case.publisher.submit(notification(str(number))) for number in range(10)]
            while not bad.done.done():
                assert await case.publish(notification(os.urandom(8).hex())) == [Status.DELIVERED]
                await asyncio.sleep(0.05)
            assert (bad.done.result().status, bad.done.result().forbidden) == (Status.REFUSED, True)
            assert {(await flight.done).status for flight in others} == {Status.DELIVERED}
            connects, tries = broker.connects, len([one for one in broker.publishes if _forbids_configs(one)])
            again = [case.publisher.submit(_forbidden()) for _ in range(3)]
            assert await case.publish() == [Status.DELIVERED]
            assert [(await flight.done).forbidden for flight in again] == [True] * 3
            assert len([one for one in broker.publishes if _forbids_configs(one)]) == tries
            assert broker.connects <= connects + 1  # the last close may still be to come
            copies = Counter(packet.payload for packet in broker.publishes if packet.topic == TOPICS[1])
            assert max(copies.values()) <= 2, "only what was on its way at the first close went out twice"


@on_uvloop
async def test_a_size_that_the_broker_enforces_and_does_not_announce_is_a_refusal_for_good() -> None:
    """As ejabberd does: DISCONNECT says "packet too large". Tried again for ever, it would hold up a store's queue."""
    enforcing = Behaviour(closes_on=lambda publish: len(publish.payload) > 1000, disconnect_reason=0x95)
    with FakeBroker(script=[enforcing]) as broker:
        async with publishing(broker.url) as case:
            big = case.publisher.submit(notification("x" * 2000))
            others = [case.publisher.submit(notification(str(number))) for number in range(10)]
            outcome = await big.done
            assert (outcome.status, outcome.reason_code, outcome.is_transient) == (Status.REFUSED, 0x95, False)
            assert {(await flight.done).status for flight in others} == {Status.DELIVERED}
            assert await case.publish() == [Status.DELIVERED]
            assert broker.connects <= 3, "once with the others, once alone"


@on_uvloop
async def test_alone_it_is_convicted_because_the_connection_lives_without_it() -> None:
    """Where nothing else is to be sent, the pause before each try is the contrast."""
    with FakeBroker(script=[Behaviour(forbid=_forbids_configs)]) as broker:
        async with publishing(broker.url) as case:
            assert await case.publish(_forbidden()) == [Status.REFUSED]
            assert len(broker.publishes) >= suspects_module.CLOSES


@on_uvloop
async def test_a_right_that_is_given_back_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convicted message is tried again after a while, and one acknowledgement clears its whole topic."""
    monkeypatch.setattr(suspects_module, "RETRY_SECONDS", 1.0)
    with FakeBroker(script=[Behaviour(forbid=_forbids_configs)]) as broker:
        async with publishing(broker.url) as case:
            assert await case.publish(*(_forbidden(name) for name in "abcd")) == [Status.REFUSED] * 4
            broker.script = [HEALTHY]
            while await case.publish(_forbidden("a")) != [Status.DELIVERED]:
                pass
            assert await case.publish(*(_forbidden(name) for name in "efgh")) == [Status.DELIVERED] * 4


@on_uvloop
async def test_a_suspect_that_has_no_answer_holds_nobody_up_for_long() -> None:
    """Suspects travel alone, but not for ever: the others follow after a second."""
    with FakeBroker(script=[Behaviour(cut_at_publish=1), Behaviour(acknowledge=False)]) as broker:
        async with publishing(broker.url) as case:
            suspect = case.publisher.submit(notification("suspect"))
            await asyncio.to_thread(broker.wait_for, "PUBLISH", 2)
            broker.script = [HEALTHY]
            assert await case.publish() == [Status.DELIVERED]
            assert not suspect.done.done()


@on_uvloop
async def test_a_link_that_ends_again_and_again_convicts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that end whatever is sent say nothing of a message: it stays unconfirmed, and may be tried again."""
    monkeypatch.setattr(link_module, "DEMAND_SECONDS", 0.02)
    with FakeBroker(script=[Behaviour(cut_at_publish=1)]) as broker:
        async with publishing(broker.url, MQTT_PUBLISH_TIMEOUT_SECONDS="2") as case:
            flights = [case.publisher.submit(notification(str(number))) for number in range(10)]
            assert {(await flight.done).status for flight in flights} == {Status.UNCONFIRMED}
            assert broker.connects > suspects_module.CLOSES
            broker.script = [HEALTHY]
            assert await case.publish(notification("0")) == [Status.DELIVERED]


@on_uvloop
async def test_what_nobody_was_back_to_hear_goes_out_again_by_itself() -> None:
    """In the first seconds after a reconnect `nobody listens` settles nothing; the message goes out again."""
    with FakeBroker() as broker:
        async with publishing(broker.url) as case:
            assert await case.publish() == [Status.DELIVERED]
            broker.script = [Behaviour(puback_reason=NO_MATCHING_SUBSCRIBERS)]
            broker.disconnect_all()
            await until(lambda: not case.connected)
            flights = [case.publisher.submit(notification(str(number))) for number in range(5)]
            await until(lambda: {packet.payload for packet in broker.publishes} >= {f.message.payload for f in flights})
            assert not any(flight.done.done() for flight in flights)
            broker.script = [HEALTHY]
            assert {(await flight.done).status for flight in flights} == {Status.DELIVERED}
            assert case.value("mqtt_no_subscribers_total", topic=TOPICS[1]) == 0


@on_uvloop
async def test_that_nobody_listens_is_believed_after_a_while() -> None:
    """Whoever is not back by then is away; and where nobody ever listened it is believed at once."""
    with FakeBroker(script=[Behaviour(), Behaviour(puback_reason=NO_MATCHING_SUBSCRIBERS)]) as broker:
        async with publishing(broker.url) as case:
            assert await case.publish() == [Status.DELIVERED]
            broker.disconnect_all()
            await until(lambda: not case.connected)
            begun_at = time.monotonic()
            heard_before, never_heard = case.publisher.submit(notification()), case.publisher.submit(_forbidden("x"))
            assert (await never_heard.done).status is Status.NO_SUBSCRIBERS
            assert not heard_before.done.done()
            assert (await heard_before.done).status is Status.NO_SUBSCRIBERS
            assert time.monotonic() - begun_at >= EARLY_SECONDS - 0.5


@pytest.mark.parametrize("source", ["sure", "fast", "sqs"])
@on_uvloop
async def test_no_door_forgets_what_nobody_was_back_to_hear(mosquitto: Mosquitto, source: str) -> None:
    """A real broker restarts without its sessions, we are back before the subscriber, and yet it hears the upload."""
    async with publishing(mosquitto.url, MQTT_PUBLISH_TIMEOUT_SECONDS="1") as case:
        bell = Bell(case.publisher, Routes(), case.telemetry, patience_seconds=1.0)
        async with subscribed(mosquitto.url):
            assert [one.label for one in await bell.ring([step("assets/before")], source)] == ["delivered"]
        await asyncio.to_thread(mosquitto.stop)
        await until(lambda: not case.connected)
        await asyncio.to_thread(mosquitto.start)
        await until(lambda: case.connected)
        again = step("assets/after")
        if source == "fast":
            bell.ring_soon([again], source)
        else:
            assert (await bell.ring([again], source))[0].retriable
        async with subscribed(mosquitto.url) as subscriber:
            message = await asyncio.to_thread(subscriber.next)
            assert json.loads(message.payload) == {"filename": "after"}
            await until(lambda: case.value("mqtt_messages_published_total") == 2)
            assert [one.label for one in await bell.ring([again], source)] == ["repeated"]
