"""The publisher without threads, on a real Mosquitto; on a fake broker only for what that cannot be made to do."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import Message
from functions.mqtt.outcome import Outcome, Status
from functions.mqtt.publisher import CLOSE_SECONDS, WARM_UP_SECONDS, InlinePublisher
from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.subscriber import Subscriber
from tests.fakes.broker import Behaviour, FakeBroker, Packet
from tests.fakes.proxy import TcpProxy
from tests.leftovers import descriptors, threads
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

TOPIC = "iotsupport/updates/configs"
REFUSED_TOPIC = "forbidden"
SILENCE_SECONDS = 0.3
ROOT = Path(__file__).parent.parent.parent


@dataclass
class _Seen:
    """A telemetry that remembers."""

    state: list[bool] = field(default_factory=list)
    reconnects: int = 0
    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    unheard: int = 0
    is_enabled: bool | None = None

    def enabled(self, *, enabled: bool) -> None:
        self.is_enabled = enabled

    def connection(self, *, connected: bool) -> None:
        if not self.state or self.state[-1] is not connected:
            self.state.append(connected)

    def reconnect_attempt(self) -> None:
        self.reconnects += 1

    def published(self, topic: str, *, success: bool, no_subscribers: bool, duration_seconds: float) -> None:
        assert 0 <= duration_seconds < 60
        self.attempts[topic, "success" if success else "failure"] += 1
        self.unheard += no_subscribers

    def event(self, source: str, outcome: str) -> None:
        raise AssertionError(f"the publisher counts no events: {source} {outcome}")


class _Bell:
    """A publisher, what it counted, and how long its last call took."""

    def __init__(self, part: Mosquitto | FakeBroker | TcpProxy, **changes: Any) -> None:  # noqa: ANN401 - any field of BrokerConfig
        self.seen = _Seen()
        self.publisher = InlinePublisher(replace(BrokerConfig("127.0.0.1", part.port), **changes), self.seen)
        self.took_seconds = 0.0
        self.cpu_seconds = 0.0

    def ring(self, *notifications: Message, seconds: float = PATIENCE_SECONDS) -> list[Outcome]:
        begun_at, cpu_at = time.monotonic(), time.thread_time()
        try:
            return self.publisher.publish(notifications, begun_at + seconds)
        finally:
            self.took_seconds = time.monotonic() - begun_at
            self.cpu_seconds = time.thread_time() - cpu_at


@pytest.fixture
def bells() -> Iterator[Callable[..., _Bell]]:
    """Makes publishers, and closes them."""
    made: list[_Bell] = []

    def make(part: Mosquitto | FakeBroker | TcpProxy, **changes: Any) -> _Bell:  # noqa: ANN401 - any field of BrokerConfig
        made.append(_Bell(part, **changes))
        return made[-1]

    yield make
    for bell in made:
        bell.publisher.close()


Bells = Callable[..., _Bell]


def _note(number: int = 0, topic: str = TOPIC, padding: int = 0, at: str = "") -> Message:
    payload = json.dumps({"filename": f"{number}"}).encode() + b" " * padding
    return Message(topic, payload, (("id", f"{number}{at}"), ("time", at)))


def _statuses(outcomes: list[Outcome]) -> list[Status]:
    return [outcome.status for outcome in outcomes]


def _until(truth: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def _connects(mosquitto: Mosquitto) -> int:
    return mosquitto.log_text().count("as bucketbell-")


def _ids(messages: list[Received]) -> list[str]:
    return [dict(message.user_properties)["id"] for message in messages]


# One connection, kept.


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_one_connection_serves_every_call_without_a_thread(mosquitto: Mosquitto, bells: Bells, qos: int) -> None:
    """Pipelined batches, in order, at each QoS; one CONNECT; no thread is ever started."""
    with Subscriber(mosquitto.url, ["#"]) as subscriber:
        before = threads()
        bell = bells(mosquitto, qos=qos)
        bell.publisher.warm_up()
        for start in (0, 50):
            outcomes = bell.ring(*(_note(number) for number in range(start, start + 50)))
            assert _statuses(outcomes) == [Status.DELIVERED if qos else Status.SENT] * 50
        messages = subscriber.wait_for(100)
        assert [json.loads(message.payload)["filename"] for message in messages] == [str(n) for n in range(100)]
        assert {message.qos for message in messages} == {qos}
        assert threads() <= before
    assert _connects(mosquitto) == 1
    assert bell.seen.attempts == {(TOPIC, "success"): 100}
    assert (bell.seen.state, bell.seen.is_enabled, bell.seen.reconnects) == ([True], True, 0)


def test_the_broker_restarting_between_two_calls_costs_nothing(mosquitto: Mosquitto, bells: Bells) -> None:
    """The end of the old connection is read before anything is sent on it."""
    bell = bells(mosquitto)
    assert bell.ring(_note())[0].success
    mosquitto.restart()
    with Subscriber(mosquitto.url, ["#"]) as subscriber:
        assert bell.ring(_note())[0].success
        subscriber.next()
        assert subscriber.silence(SILENCE_SECONDS) == []
    assert bell.seen.reconnects == 1
    assert bell.took_seconds < SLACK_SECONDS, "nothing to wait for"


def test_nobody_listening_is_success_and_counted(mosquitto: Mosquitto, bells: Bells) -> None:
    """Mosquitto's 0x10 is a free sign that a topic has no device."""
    bell = bells(mosquitto)
    assert _statuses(bell.ring(_note())) == [Status.NO_SUBSCRIBERS]
    assert (bell.seen.unheard, bell.seen.attempts) == (1, {(TOPIC, "success"): 1})


def test_identical_messages_of_a_batch_go_out_once(mosquitto: Mosquitto, bells: Bells) -> None:
    """With the newest event's properties; every record behind them gets the outcome; one attempt is counted."""
    bell = bells(mosquitto)
    with Subscriber(mosquitto.url, ["#"]) as subscriber:
        outcomes = bell.ring(_note(1, at="T2"), _note(2, at="T1"), _note(1, at="T3"), _note(1, at="T1"))
        assert _statuses(outcomes) == [Status.DELIVERED] * 4
        assert sorted(_ids(subscriber.wait_for(2))) == ["1T3", "2T1"]
        assert subscriber.silence(SILENCE_SECONDS) == []
    assert bell.seen.attempts == {(TOPIC, "success"): 2}


def test_two_publishers_never_share_a_client_id(mosquitto: Mosquitto, bells: Bells) -> None:
    """Nor does one kick the other out."""
    one, other = bells(mosquitto), bells(mosquitto)
    for _ in range(3):
        assert one.ring(_note())[0].success
        assert other.ring(_note())[0].success
    assert _connects(mosquitto) == 2


# Refusals.


@pytest.mark.parametrize("qos", [1, 2])
def test_a_message_refused_by_the_acl_is_refused_not_delivered(
    tmp_path: Path, mosquitto_binary: Path, bells: Bells, qos: int
) -> None:
    """With Mosquitto's 0x87, in PUBACK or PUBREC; its neighbours in the batch arrive, and the connection stays."""
    del mosquitto_binary
    with Mosquitto(tmp_path, acl=f"topic readwrite {TOPIC}\ntopic read #") as mosquitto:
        bell = bells(mosquitto, qos=qos)
        with Subscriber(mosquitto.url, ["#"]) as subscriber:
            for _ in range(2):
                outcomes = bell.ring(_note(1), _note(2, REFUSED_TOPIC), _note(3))
                assert _statuses(outcomes) == [Status.DELIVERED, Status.REFUSED, Status.DELIVERED]
                assert outcomes[1].reason_code == 0x87
                assert not outcomes[1].retriable
            assert {message.topic for message in subscriber.wait_for(4)} == {TOPIC}
            assert subscriber.silence(SILENCE_SECONDS) == []
        assert _connects(mosquitto) == 1
        assert bell.seen.attempts == {(TOPIC, "success"): 4, (REFUSED_TOPIC, "failure"): 2}


def test_qos_0_is_sent_and_never_called_delivered(tmp_path: Path, mosquitto_binary: Path, bells: Bells) -> None:
    """Even the refused: nobody can know."""
    del mosquitto_binary
    with Mosquitto(tmp_path, acl=f"topic readwrite {TOPIC}") as mosquitto:
        assert _statuses(bells(mosquitto, qos=0).ring(_note(), _note(1, REFUSED_TOPIC))) == [Status.SENT] * 2


@pytest.mark.parametrize("qos", [1, 2])
def test_an_exceeded_quota_is_refused_and_may_be_tried_again(bells: Bells, qos: int) -> None:
    """0x97 passes with time."""

    def quota(publish: Packet) -> int:
        return 0x97 if b'"7"' in publish.payload else 0

    with FakeBroker(script=[Behaviour(puback_reason=quota, pubrec_reason=quota)]) as fake:
        bell = bells(fake, qos=qos)
        outcomes = bell.ring(*(_note(number) for number in range(10)))
        assert [outcome.reason_code for outcome in outcomes] == [0] * 7 + [0x97] + [0] * 2
        assert outcomes[7].retriable
        assert len(fake.of_kind("PUBREL")) == (9 if qos == 2 else 0)


def test_a_message_over_the_maximum_packet_size_is_refused_here(
    tmp_path: Path, mosquitto_binary: Path, bells: Bells
) -> None:
    """With 0x95; Mosquitto never sees it, the healthy ones of the batch are delivered, the connection stays."""
    del mosquitto_binary
    with Mosquitto(tmp_path, max_packet_size=300) as mosquitto, Subscriber(mosquitto.url, ["#"]) as subscriber:
        bell = bells(mosquitto)
        outcomes = bell.ring(_note(1), _note(2, padding=300), _note(3))
        assert _statuses(outcomes) == [Status.DELIVERED, Status.REFUSED, Status.DELIVERED]
        assert outcomes[1].reason_code == 0x95
        assert "300 bytes" in outcomes[1].reason
        assert _statuses(bell.ring(_note(4, padding=300))) == [Status.REFUSED]
        assert bell.took_seconds < SLACK_SECONDS, "nothing to wait for"
        assert _ids(subscriber.wait_for(2)) == ["1", "3"]
        assert _connects(mosquitto) == 1


@pytest.mark.parametrize(("granted", "expected"), [(None, 20), (5, 5), (1, 1), (1000, 20)])
@pytest.mark.parametrize("qos", [1, 2])
def test_no_more_is_in_flight_than_the_broker_takes(bells: Bells, granted: int | None, expected: int, qos: int) -> None:
    """Twenty at the most, fewer where Receive Maximum says so."""
    slow = Behaviour(receive_maximum=granted, acknowledge_delay_seconds=0.005)
    with FakeBroker(script=[slow]) as fake:
        outcomes = bells(fake, qos=qos).ring(*(_note(number) for number in range(45)))
        assert _statuses(outcomes) == [Status.DELIVERED] * 45
        assert fake.max_in_flight == expected
        assert [packet.payload for packet in fake.publishes] == [_note(number).payload for number in range(45)]


def test_maximum_qos_lowers_ours(bells: Bells) -> None:
    """MQTT_QOS=2 at a broker that takes 1 at the most."""
    with FakeBroker(script=[Behaviour(maximum_qos=1)]) as fake:
        assert _statuses(bells(fake, qos=2).ring(_note())) == [Status.DELIVERED]
        assert [packet.qos for packet in fake.publishes] == [1]


# A connection lost inside a call.


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize(
    "fault",
    [
        Behaviour(cut_at_publish=3),
        Behaviour(cut_at_publish=3, disconnect_reason=0x8B),
        Behaviour(cut_within_publish=3),
        Behaviour(half_puback=True),
        Behaviour(raw_on_publish=b"\xf0\x00"),
    ],
    ids=["cut", "disconnect", "cut within", "half an acknowledgement", "garbage"],
)
def test_a_connection_lost_inside_a_call_is_replaced_once_and_all_is_delivered(
    bells: Bells, fault: Behaviour, qos: int
) -> None:
    """Within the same call; what was acknowledged before does not go out again."""
    with FakeBroker(script=[fault, Behaviour()]) as fake:
        bell = bells(fake, qos=qos)
        assert _statuses(bell.ring(*(_note(number) for number in range(30)))) == [Status.DELIVERED] * 30
        assert fake.connects == 2
        again = [packet.payload for packet in fake.publishes if packet.connection == 2]
        assert len(set(again)) == len(again) >= 28
        assert not any(packet.dup for packet in fake.publishes), "a new session: published afresh"
        assert (bell.seen.reconnects, bell.seen.state, bell.publisher.enabled) == (1, [True, False, True], True)
        assert bell.seen.attempts == {(TOPIC, "success"): 30}


def test_what_was_acknowledged_before_the_cut_does_not_go_out_again(bells: Bells) -> None:
    """A full window of acknowledgements, then the end: they count."""
    with FakeBroker(script=[Behaviour(cut_at_publish=21), Behaviour()]) as fake:
        assert _statuses(bells(fake).ring(*(_note(number) for number in range(40)))) == [Status.DELIVERED] * 40
        copies = Counter(packet.payload for packet in fake.publishes)
        acknowledged = [copies[_note(number).payload] for number in range(20)]
        assert acknowledged == [1] * 20


def test_a_connection_lost_twice_is_a_failure_with_its_reason(bells: Bells) -> None:
    """One replacement for each call: the source tries again, not we for ever."""
    with FakeBroker(script=[Behaviour(cut_at_publish=1, disconnect_reason=0x8B)]) as fake:
        bell = bells(fake)
        (outcome,) = bell.ring(_note())
        assert (outcome.status, outcome.reason_code) == (Status.UNCONFIRMED, 0x8B)
        assert "Server shutting down" in outcome.reason
        assert fake.connects == 2
        assert not bell.publisher.enabled
        assert bell.seen.attempts == {(TOPIC, "failure"): 1}


@pytest.mark.parametrize("fault", [Behaviour(cut_after_pubrec=True), Behaviour(cut_at_pubrel=True)])
def test_qos_2_cut_between_pubrec_and_pubrel_is_published_afresh(bells: Bells, fault: Behaviour) -> None:
    """A PUBREL for a session that is gone would "succeed" and deliver nothing."""
    with FakeBroker(script=[fault, Behaviour()]) as fake:
        assert _statuses(bells(fake, qos=2).ring(_note())) == [Status.DELIVERED]
        kinds = [packet.kind for packet in fake.packets if packet.connection == 2]
        assert kinds == ["CONNECT", "PUBLISH", "PUBREL"]


def test_qos_2_cut_at_any_byte_really_arrives(mosquitto: Mosquitto, bells: Bells) -> None:
    """On a real broker, cut after every few bytes on their way up, PUBREL's included: the subscriber has it."""
    with TcpProxy("127.0.0.1", mosquitto.port) as proxy, Subscriber(mosquitto.url, ["#"]) as subscriber:
        whole = bells(proxy, qos=2)
        assert whole.ring(_note(0))[0].success
        sent_bytes = proxy.bytes_up
        subscriber.next()
        for number, cut in enumerate(range(sent_bytes - 12, sent_bytes + 1), 1):
            bell = bells(proxy, qos=2)
            bell.publisher.warm_up()
            proxy.cut_after_bytes = cut
            timer = threading.Timer(0.02, lambda: setattr(proxy, "cut_after_bytes", None))
            _until(lambda: proxy.open_connections > 1)
            timer.start()
            outcomes = bell.ring(_note(number))
            timer.join()
            if not outcomes[0].success:  # both connections were cut
                outcomes = bell.ring(_note(number))
            assert outcomes[0].success
            _until(lambda expected=str(number): expected in _ids(subscriber.messages))  # type: ignore[misc]  # the default binds this round's
            bell.publisher.close()


# Deadlines, and what must not happen after them.


def test_a_broker_that_never_acknowledges_costs_the_deadline_and_gets_nothing_later(bells: Bells) -> None:
    """The connection is discarded: whoever tries again does so alone."""
    with FakeBroker(script=[Behaviour(acknowledge=False)]) as fake:
        bell = bells(fake)
        outcomes = bell.ring(*(_note(number) for number in range(30)), seconds=0.3)
        assert _statuses(outcomes) == [Status.UNCONFIRMED] * 30
        assert {outcome.reason for outcome in outcomes} == {"not acknowledged in time"}
        assert 0.3 <= bell.took_seconds < 0.3 + SLACK_SECONDS
        assert bell.cpu_seconds < 0.3 / 2, "it waits, it does not spin"
        assert not bell.publisher.enabled
        assert bell.seen.attempts == {(TOPIC, "failure"): 30}
        fake.script = [Behaviour()]
        time.sleep(SILENCE_SECONDS)
        assert (fake.connects, len(fake.publishes)) == (1, 20), "the window, and nothing after it"
        assert bell.ring(_note(99))[0].success
        assert [packet.payload for packet in fake.publishes if packet.connection == 2] == [_note(99).payload]


def test_what_a_blackhole_swallowed_does_not_arrive_behind_its_retry(mosquitto: Mosquitto, bells: Bells) -> None:
    """The line heals after the deadline; only the retry arrives."""
    with TcpProxy("127.0.0.1", mosquitto.port) as proxy, Subscriber(mosquitto.url, ["#"]) as subscriber:
        bell = bells(proxy)
        assert bell.ring(_note(0))[0].success
        proxy.blackhole()
        assert _statuses(bell.ring(_note(1, at="lost"), seconds=0.3)) == [Status.UNCONFIRMED]
        proxy.heal()
        assert bell.ring(_note(1, at="retry"))[0].success
        assert _ids(subscriber.wait_for(2)) == ["0", "1retry"]
        assert subscriber.silence(SILENCE_SECONDS) == []


def test_a_deadline_that_has_passed_sends_nothing(bells: Bells) -> None:
    """It would only be sent again by the retry."""
    with FakeBroker() as fake:
        bell = bells(fake)
        assert bell.ring(_note(0))[0].success
        assert _statuses(bell.ring(_note(1), seconds=-1)) == [Status.UNCONFIRMED]
        assert bell.ring(_note(2))[0].success
        assert [packet.payload for packet in fake.publishes] == [_note(0).payload, _note(2).payload]


def test_a_full_pipe_keeps_the_deadline_without_spinning() -> None:
    """A peer that accepts and reads nothing: bytes wait for the socket, we wait for the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        port = listener.getsockname()[1]
        taken: list[socket.socket] = []

        def serve() -> None:
            for _ in range(2):
                sock, _ = listener.accept()
                sock.sendall(b"\x20\x03\x00\x00\x00")
                taken.append(sock)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        seen = _Seen()
        publisher = InlinePublisher(BrokerConfig("127.0.0.1", port, qos=0), seen)
        begun_at, cpu_at = time.monotonic(), time.thread_time()
        batch = [_note(number, padding=1_000_000) for number in range(20)]
        outcomes = publisher.publish(batch, begun_at + 0.5)
        assert time.monotonic() - begun_at < 0.5 + SLACK_SECONDS
        assert time.thread_time() - cpu_at < 0.25
        assert outcomes[-1].status is Status.UNCONFIRMED
        publisher.close()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join(PATIENCE_SECONDS)
        for sock in taken:
            sock.close()


def test_a_broker_that_never_answers_connect_keeps_the_deadline(bells: Bells) -> None:
    """Whichever is shorter: the connect timeout, or what is left of the call."""
    with FakeBroker(script=[Behaviour(silent=True)]) as fake:
        for bell, seconds in ((bells(fake), 0.3), (bells(fake, connect_timeout_seconds=0.3), 5.0)):
            (outcome,) = bell.ring(_note(), seconds=seconds)
            assert outcome.status is Status.UNCONFIRMED
            assert outcome.reason.startswith(f"{fake.url}: no answer to CONNECT in time")
            assert bell.took_seconds < 0.3 + SLACK_SECONDS
            assert bell.cpu_seconds < 0.3 / 2


# Links that died in silence.


def test_a_half_open_link_is_found_by_a_ping_within_half_the_deadline(mosquitto: Mosquitto, bells: Bells) -> None:
    """After an idle spell, at QoS 0 too, where nothing else would tell; a new connection then delivers."""
    with TcpProxy("127.0.0.1", mosquitto.port) as proxy, Subscriber(mosquitto.url, ["#"]) as subscriber:
        bell = bells(proxy, qos=0, keepalive_seconds=1)
        assert bell.ring(_note(0))[0].success
        assert _ids([subscriber.next()]) == ["0"]
        proxy.blackhole()
        time.sleep(0.6)
        healing = threading.Timer(0.2, proxy.heal)
        healing.start()
        # The other half is for a new connection, on a busy machine too.
        (outcome,) = bell.ring(_note(1), seconds=4.0)
        healing.join()
        assert outcome.status is Status.SENT
        assert 2.0 <= bell.took_seconds < 4.0
        assert _ids([subscriber.next()]) == ["1"]
        assert subscriber.silence(SILENCE_SECONDS) == []


def test_a_half_open_link_is_not_mistaken_for_alive_by_what_came_before(bells: Bells) -> None:
    """A CONNACK that waited in the socket while the process was frozen is no news of the link."""
    with FakeBroker() as fake, TcpProxy("127.0.0.1", fake.port) as proxy:
        bell = bells(proxy, qos=0, keepalive_seconds=1)
        bell.publisher.warm_up()
        fake.wait_for("CONNECT")
        _until(lambda: proxy.bytes_down > 0)
        proxy.blackhole()
        time.sleep(0.6)
        healing = threading.Timer(0.1, proxy.heal)
        healing.start()
        assert _statuses(bell.ring(_note(), seconds=4.0)) == [Status.SENT]
        healing.join()
        assert len(fake.wait_for("PUBLISH")) == 1


def test_an_idle_link_that_lives_is_asked_once_and_kept(bells: Bells) -> None:
    """At the broker's Server Keep Alive, where it names one."""
    with FakeBroker(script=[Behaviour(server_keep_alive_seconds=4)]) as fake:
        bell = bells(fake)
        bell.ring(_note(0))
        bell.ring(_note(1))
        assert fake.of_kind("PINGREQ") == []
        time.sleep(2.1)
        assert bell.ring(_note(2))[0].success
        assert (len(fake.of_kind("PINGREQ")), fake.connects) == (1, 1)


def test_a_process_frozen_past_its_keepalive_delivers_once_and_fast(mosquitto: Mosquitto) -> None:
    """SIGSTOP imitates what Lambda does between invocations."""
    program = """
import sys, time
from functions.mqtt.publisher import InlinePublisher
from functions.mqtt.broker import BrokerConfig
from tests.integration.test_inline_publisher import _Seen, _note
publisher = InlinePublisher(BrokerConfig("127.0.0.1", int(sys.argv[1]), keepalive_seconds=1), _Seen())
for number in range(2):
    sys.stdin.readline()
    begun_at = time.monotonic()
    outcome = publisher.publish([_note(number)], begun_at + 20)[0]
    print(outcome.status, time.monotonic() - begun_at, flush=True)
"""
    with (
        Subscriber(mosquitto.url, ["#"]) as subscriber,
        subprocess.Popen(
            [sys.executable, "-c", program, str(mosquitto.port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        print(file=child.stdin, flush=True)
        assert child.stdout.readline().startswith("delivered")
        os.kill(child.pid, signal.SIGSTOP)
        _until(lambda: "has exceeded timeout" in mosquitto.log_text())
        os.kill(child.pid, signal.SIGCONT)
        print(file=child.stdin, flush=True)
        status, seconds = child.stdout.readline().split()
        assert status == "delivered"
        assert float(seconds) < SLACK_SECONDS, "whoever asked the dead link would wait for half of the 20 s"
        assert _ids(subscriber.wait_for(2)) == ["0", "1"]
        assert subscriber.silence(SILENCE_SECONDS) == []


def test_a_forked_child_gets_a_connection_and_an_id_of_its_own(mosquitto: Mosquitto) -> None:
    """The parent's stays usable, also after the child has closed and ended."""
    program = """
import os, sys, time
from functions.mqtt.publisher import InlinePublisher
from functions.mqtt.broker import BrokerConfig
from tests.integration.test_inline_publisher import _Seen, _note
publisher = InlinePublisher(BrokerConfig("127.0.0.1", int(sys.argv[1])), _Seen())
def ring(number):
    assert publisher.publish([_note(number)], time.monotonic() + 30)[0].success
ring(0)
child = os.fork()
if not child:
    if sys.argv[2] == "rings":
        ring(1)
    publisher.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
ring(2)
publisher.close()
"""
    with Subscriber(mosquitto.url, ["#"]) as subscriber:
        for what, ids, connects in (("rings", ["0", "1", "2"], 2), ("only closes", ["0", "2"], 3)):
            command = [sys.executable, "-W", "error", "-c", program, str(mosquitto.port), what]
            subprocess.run(command, cwd=ROOT, check=True, timeout=2 * PATIENCE_SECONDS)
            assert _ids(subscriber.wait_for(len(ids))) == ids
            assert _connects(mosquitto) == connects
    named = [line.split(" as ")[1].split()[0] for line in mosquitto.log_text().splitlines() if "as bucketbell-" in line]
    assert len(set(named)) == 3


def test_descriptors_beyond_1023_work(mosquitto: Mosquitto, bells: Bells) -> None:
    """Where paho's own loop, which uses select, says that the connection is lost."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    filler = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        bell = bells(mosquitto)
        assert bell.ring(_note())[0].success
        assert bell.ring(_note())[0].success
        bell.publisher.close()
    finally:
        for descriptor in filler:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Enabled, refused, and back.


def test_bad_credentials_disable_are_reported_and_are_not_tried_hot(
    tmp_path: Path, mosquitto_binary: Path, bells: Bells
) -> None:
    """A real Mosquitto: one attempt, then silence for the back-off; once the password is right, it recovers."""
    del mosquitto_binary
    with Mosquitto(tmp_path, users={"bell": "another"}) as mosquitto:
        bell = bells(mosquitto, username="bell", password=SecretStr("our-password"))
        begun_at = time.monotonic()
        for _ in range(20):
            (outcome,) = bell.ring(_note())
            assert (outcome.status, outcome.reason_code) == (Status.UNCONFIRMED, 0x87)
            assert "check MQTT_USERNAME and MQTT_PASSWORD" in outcome.reason
            assert "our-password" not in repr(outcome)
        # The first back-off is 0.5 s at least: calls that took longer than that, on a busy machine, may try again.
        assert mosquitto.log_text().count("New connection from") <= 1 + (time.monotonic() - begun_at) / 0.5
        assert (bell.publisher.enabled, bell.seen.is_enabled, bell.seen.state) == (False, False, [False])
        assert bell.seen.attempts == {(TOPIC, "failure"): 20}
        mosquitto.set_users({"bell": "our-password"})
        mosquitto.reload()
        _until(lambda: bell.ring(_note())[0].success)
        assert mosquitto.log_text().count("New connection from") <= 2 + (time.monotonic() - begun_at) / 0.5
        assert (bell.publisher.enabled, bell.seen.is_enabled, bell.seen.state) == (True, True, [False, True])


def test_enabled_only_after_connack_and_a_delayed_refusal_is_reported(bells: Bells) -> None:
    """TCP is up at once; the refusal comes later, and the call that meets it says why."""
    with FakeBroker(script=[Behaviour(connack_delay_seconds=0.2, connack_reason=0x86)]) as fake:
        bell = bells(fake)
        bell.publisher.warm_up()
        assert not bell.publisher.enabled
        assert bell.seen.is_enabled is not True
        (outcome,) = bell.ring(_note())
        assert outcome.reason_code == 0x86
        assert not bell.publisher.enabled
        assert fake.connects == 1


def test_authorisation_revoked_after_start_disables_again(bells: Bells) -> None:
    """The broker hangs up between two calls, and refuses the next connection."""
    with FakeBroker(script=[Behaviour(), Behaviour(connack_reason=0x87)]) as fake:
        bell = bells(fake)
        assert bell.ring(_note())[0].success
        assert bell.publisher.enabled
        fake.disconnect_all(0x87)
        (outcome,) = bell.ring(_note(1))
        assert (outcome.status, outcome.reason_code) == (Status.UNCONFIRMED, 0x87)
        assert (bell.publisher.enabled, bell.seen.is_enabled, bell.seen.state) == (False, False, [True, False])
        assert len(fake.publishes) == 1


def test_a_server_disconnect_between_calls_costs_nothing(bells: Bells) -> None:
    """The next call connects anew."""
    with FakeBroker() as fake:
        bell = bells(fake)
        assert bell.ring(_note())[0].success
        fake.disconnect_all(0x8B)
        assert bell.ring(_note(1))[0].success
        assert (fake.connects, len(fake.publishes)) == (2, 2)


def test_the_wall_clock_set_back_does_not_prolong_a_refusal(bells: Bells, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does a monotonic clock that stands still while Lambda freezes us."""
    with FakeBroker(script=[Behaviour(connack_reason=0x87), Behaviour()]) as fake:
        bell = bells(fake)
        assert not bell.ring(_note())[0].success
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now - 3600)
        assert bell.ring(_note())[0].success


# Warm-up and close.


def test_warm_up_does_not_wait_for_connack(bells: Bells) -> None:
    """It travels while the process finishes its start; the first call uses the same connection."""
    with FakeBroker(script=[Behaviour(connack_delay_seconds=0.3)]) as fake:
        quickest_seconds = PATIENCE_SECONDS
        for number in range(1, 6):
            bell = bells(fake)
            begun_at = time.monotonic()
            bell.publisher.warm_up()
            bell.publisher.warm_up()
            # The best of a few: a busy machine may hold up any of them.
            quickest_seconds = min(quickest_seconds, time.monotonic() - begun_at)
            assert bell.ring(_note())[0].success
            assert fake.connects == number
        assert quickest_seconds < 0.15


def test_warm_up_without_a_broker_costs_at_most_a_second_and_raises_nothing() -> None:
    """A port that refuses, and a host that answers no SYN; the next call tries again and says what is wrong."""
    nowhere = BrokerConfig("127.0.0.1", free_port())
    for broker in (nowhere, BrokerConfig("no-such-host.invalid", 1883)):
        publisher = InlinePublisher(broker, _Seen())
        publisher.warm_up()
        assert publisher.publish([_note()], time.monotonic() + 1)[0].status is Status.UNCONFIRMED
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.settimeout(0)
            filler.connect_ex(listener.getsockname())
        publisher = InlinePublisher(replace(nowhere, port=listener.getsockname()[1]), _Seen())
        begun_at = time.monotonic()
        publisher.warm_up()
        assert 0.9 < time.monotonic() - begun_at < WARM_UP_SECONDS + SLACK_SECONDS
        for filler in fillers:
            filler.close()


def test_close_says_disconnect_twice_is_once_and_nothing_goes_out_after(mosquitto: Mosquitto, bells: Bells) -> None:
    """And the state says so."""
    bell = bells(mosquitto)
    assert bell.ring(_note())[0].success
    bell.publisher.close()
    bell.publisher.close()
    _until(lambda: "Received DISCONNECT from bucketbell-" in mosquitto.log_text())
    assert bell.seen.state == [True, False]
    assert bell.ring(_note())[0].reason == "shut down"
    assert _connects(mosquitto) == 1


def test_close_with_the_broker_gone_is_fast(mosquitto: Mosquitto, bells: Bells) -> None:
    """Killed, and frozen."""
    killed, frozen = bells(mosquitto), bells(mosquitto)
    assert killed.ring(_note())[0].success
    assert frozen.ring(_note())[0].success
    mosquitto.freeze()
    begun_at = time.monotonic()
    frozen.publisher.close()
    mosquitto.kill()
    killed.publisher.close()
    assert time.monotonic() - begun_at < CLOSE_SECONDS + SLACK_SECONDS


def test_an_end_in_the_middle_of_a_call_leaves_nothing_to_send(bells: Bells) -> None:
    """A signal's exception passes through `publish`; `close`, which atexit then calls, is fast and sends nothing."""

    class _EndError(BaseException):
        pass

    def end(*_: object) -> None:
        raise _EndError

    with FakeBroker(script=[Behaviour(acknowledge=False)]) as fake:
        bell = bells(fake)
        caller = threading.get_ident()

        def end_the_call() -> None:
            fake.wait_for("PUBLISH")
            signal.pthread_kill(caller, signal.SIGALRM)

        before = signal.signal(signal.SIGALRM, end)
        ending = threading.Thread(target=end_the_call)
        try:
            ending.start()
            with pytest.raises(_EndError):
                bell.ring(_note())
        finally:
            ending.join()
            signal.signal(signal.SIGALRM, before)
        assert not bell.publisher.enabled
        begun_at = time.monotonic()
        bell.publisher.close()
        assert time.monotonic() - begun_at < SLACK_SECONDS
        assert len(fake.publishes) == 1


def test_many_failures_leave_no_descriptor_behind(bells: Bells) -> None:
    """Discarded connections close their sockets at once, not when memory is next tidied up."""
    with FakeBroker(script=[Behaviour(cut_at_publish=1)]) as fake:
        bell = bells(fake)
        bell.ring(_note())
        before = descriptors()
        for _ in range(20):
            bell.ring(_note())
        _until(lambda: len(descriptors() - before) <= 2)
        assert fake.connects == 42


def _is_forbidden(packet: Packet) -> bool:
    return packet.topic == REFUSED_TOPIC


CLOSES_OVER_ONE = {
    "closes": Behaviour(forbid=_is_forbidden),
    "refuses and disconnects": Behaviour(
        forbid=_is_forbidden, puback_reason=lambda packet: 0x87 * _is_forbidden(packet), disconnect_reason=0x87
    ),
}


@pytest.mark.parametrize("forbidden", [{0}, {4}, {9}, {0, 1, 2}, {0, 5, 9}], ids=str)
@pytest.mark.parametrize("behaviour", CLOSES_OVER_ONE.values(), ids=CLOSES_OVER_ONE)
def test_one_message_that_the_broker_closes_over_does_not_take_its_batch_along(
    bells: Bells, behaviour: Behaviour, forbidden: set[int]
) -> None:
    """All the others of the batch are delivered in the same call, and only the forbidden ones are not."""
    with FakeBroker(script=[behaviour]) as fake:
        bell = bells(fake)
        notes = [_note(number, REFUSED_TOPIC if number in forbidden else TOPIC) for number in range(10)]
        for _ in range(2):
            outcomes = bell.ring(*notes)
            assert {number for number, outcome in enumerate(outcomes) if not outcome.success} == forbidden
        assert max(Counter(one.payload for one in fake.publishes if one.topic == TOPIC).values()) <= 2 + 2


def test_what_the_broker_calls_too_large_is_a_refusal_for_good_in_its_first_batch(bells: Bells) -> None:
    """It says so in DISCONNECT, and announces nothing: a queue would bring that message again for days."""
    enforcing = Behaviour(closes_on=lambda publish: len(publish.payload) > 1000, disconnect_reason=0x95)
    with FakeBroker(script=[enforcing]) as fake:
        outcome, *others = bells(fake).ring(_note(0, padding=2000), _note(1), _note(2))
    assert (outcome.status, outcome.reason_code, outcome.is_transient) == (Status.REFUSED, 0x95, False)
    assert _statuses(others) == [Status.DELIVERED] * 2


def test_what_the_broker_closes_over_is_convicted_and_then_costs_no_connection(bells: Bells) -> None:
    """After some batches it is refused unsent: it is forbidden, and the connection stays."""
    with FakeBroker(script=[CLOSES_OVER_ONE["closes"]]) as fake:
        bell = bells(fake)
        for number in range(3):
            outcome, *others = bell.ring(_note(0, REFUSED_TOPIC), _note(1 + number))
            assert _statuses(others) == [Status.DELIVERED]
        assert (outcome.status, outcome.forbidden) == (Status.REFUSED, True)
        connects = fake.connects
        for number in range(5):
            outcome, *others = bell.ring(_note(0, REFUSED_TOPIC), _note(number))
            assert (outcome.forbidden, _statuses(others)) == (True, [Status.DELIVERED])
        assert fake.connects <= connects + 1  # the conviction itself cost one


def test_nobody_listens_moments_after_the_broker_came_back_is_not_believed(bells: Bells) -> None:
    """Where somebody listened before: the source shall bring it again, when the subscribers may be back."""
    with FakeBroker() as fake:
        bell = bells(fake)
        assert _statuses(bell.ring(_note(0))) == [Status.DELIVERED]
        fake.script = [Behaviour(puback_reason=0x10)]
        assert _statuses(bell.ring(_note(1))) == [Status.NO_SUBSCRIBERS], "the connection has not been lost"
        fake.disconnect_all()
        known, other = bell.ring(_note(2), _note(3, "another/topic"))
        assert (known.status, known.reason_code, known.retriable) == (Status.UNCONFIRMED, 0x10, True)
        assert other.status is Status.NO_SUBSCRIBERS


def test_nobody_listens_is_believed_after_a_freeze(bells: Bells, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our silence cost us the connection, not the broker's restart: else each thaw would ask for a retry, for ever."""
    with FakeBroker() as fake:
        bell = bells(fake)
        assert _statuses(bell.ring(_note(0))) == [Status.DELIVERED]
        fake.script = [Behaviour(puback_reason=0x10)]
        fake.disconnect_all()
        thawed_at = time.time() + 3600
        monkeypatch.setattr(time, "time", lambda: thawed_at)
        assert _statuses(bell.ring(_note(1))) == [Status.NO_SUBSCRIBERS]
