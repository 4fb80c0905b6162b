"""The real process, `bucketbell host`, over real HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from infra.host.web.site import MAX_BODY_BYTES
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.subscriber import Subscriber
from tests.fakes.broker import Behaviour, FakeBroker
from tests.hosts import (
    MAC_KEY,
    NEXT_TOKEN,
    STOP_SECONDS,
    TOKEN,
    TOPICS,
    Host,
    environment,
    event,
    eventually,
    exactly,
    record,
    upload,
)
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

MEBIBYTE = 1 << 20
ACL = f"user anonymous\ntopic readwrite {TOPICS[0]}\ntopic read #"
SHORT = "from infra.host.web import protocol\nprotocol.BODY_SECONDS = protocol.HEADER_SECONDS = 0.6"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, broker: Mosquitto) -> Iterator[Host]:
    """A host with two tokens on that broker, and with short deadlines for what is slow to arrive."""
    with Host(tmp_path_factory.mktemp("host"), environment(broker.url), patch=SHORT) as running:
        yield running
        assert "never retrieved" not in running.log
        assert "Traceback" not in running.log


@pytest.fixture
def listener(broker: Mosquitto) -> Iterator[Subscriber]:
    """Hears both topics."""
    with Subscriber(broker.url, TOPICS) as subscriber:
        yield subscriber


@contextmanager
def in_background() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that wait."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


@contextmanager
def raw(host: Host, data: bytes = b"") -> Iterator[socket.socket]:
    """A socket to the host on which `data` was sent."""
    with socket.create_connection(("127.0.0.1", host.port), timeout=PATIENCE_SECONDS) as sock:
        sock.sendall(data)
        yield sock


def answer(sock: socket.socket, method: str = "POST") -> http.client.HTTPResponse:
    """The next response on that socket; http.client.HTTPException when it ends without one."""
    response = http.client.HTTPResponse(sock, method=method)
    response.begin()
    return response


def statuses(sock: socket.socket, count: int) -> list[int]:
    """The statuses of the next `count` responses on that socket, which may come in one piece."""
    found = []
    with sock.makefile("rb") as stream:
        for _ in range(count):
            found.append(int(stream.readline().split()[1]))
            stream.read(int(http.client.parse_headers(stream)["content-length"]))
    return found


def head(path: str = "/events", *lines: str, token: str | None = TOKEN) -> bytes:
    """The header of a POST, without its end."""
    login = [f"Authorization: Bearer {token}"] if token else []
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: bell", *login, *lines, ""]).encode()


# The doors.


def test_the_sure_door_answers_when_the_broker_has_confirmed(shared: Host, listener: Subscriber) -> None:
    """200, one message with exactly the filename, and the event's identity in its properties."""
    before = shared.metric("events_total", source="sure", outcome="delivered")
    response = shared.post(upload())
    assert (response.status_code, response.json()) == (200, {"outcomes": ["delivered"]})
    message = listener.next()
    assert (message.topic, json.loads(message.payload)) == (TOPICS[0], {"filename": "aa-bb-cc-dd-ee-ff.json"})
    assert (message.qos, message.retain, message.content_type) == (1, False, "application/json")
    assert len(dict(message.user_properties)["id"]) == 32
    assert shared.metric("events_total", source="sure", outcome="delivered") == before + 1


def test_the_fast_door_answers_202_and_the_message_follows(shared: Host, listener: Subscriber) -> None:
    """No body in the answer; the message arrives."""
    response = shared.post(upload("assets/a b+c.bin"), "/events/fast")
    assert (response.status_code, response.content) == (202, b"")
    assert json.loads(listener.next().payload) == {"filename": "a b+c.bin"}


def test_one_event_at_both_doors_rings_once(shared: Host, listener: Subscriber) -> None:
    """Whichever order and however often: one message; later ones hear `repeated`."""
    body = upload()
    shared.post(body, "/events/fast")
    assert shared.post(body).json() == {"outcomes": ["repeated"]}
    assert shared.post(body).status_code == 200
    assert shared.post(body, "/events/fast").status_code == 202
    exactly(1, listener)


def test_a_removal_is_silent_and_counted(shared: Host, listener: Subscriber) -> None:
    """200 for what needs nothing."""
    before = shared.metric("events_total", source="sure", outcome="removed")
    response = shared.post(event(record() | {"eventName": "s3:ObjectRemoved:Delete"}))
    assert (response.status_code, response.json()) == (200, {"outcomes": ["removed"]})
    assert listener.silence(0.1) == []
    assert shared.metric("events_total", source="sure", outcome="removed") == before + 1


def test_a_forbidden_topic_answers_503_and_the_retry_rings_once_it_is_allowed(
    tmp_path: Path, mosquitto_binary: Path
) -> None:
    """ERROR with topic, filename and reason code, a failure counted for each try; then the same event is delivered."""
    del mosquitto_binary
    with (
        Mosquitto(tmp_path, acl=f"topic write {TOPICS[0]}") as broker,
        Host(tmp_path, environment(broker.url)) as host,
    ):
        body = upload("assets/a.bin")
        refused = host.post(body)
        assert (refused.status_code, refused.json()) == (503, {"outcomes": ["refused"]})
        (error,) = host.lines("ERROR")
        assert (error["outcome"], error["reason_code"]) == ("refused", 0x87)
        assert error["notification"]["topic"] == TOPICS[1]
        assert error["notification"]["filename"] == "a.bin"
        assert host.metric("mqtt_publish_total", topic=TOPICS[1], status="failure") == 1
        assert host.metric("events_total", source="sure", outcome="refused") == 1
        broker.set_acl(f"topic write {TOPICS[1]}")
        broker.reload()
        rung = host.post(body)
        assert (rung.status_code, rung.json()) == (200, {"outcomes": ["no_subscribers"]})
        assert host.post(body).json() == {"outcomes": ["repeated"]}


def test_a_broker_that_is_away_gets_503_in_time_and_its_return_heals(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """503 with Retry-After within the publish time-out; ready is 503 meanwhile; the retry is delivered."""
    with Host(tmp_path, environment(mosquitto.url, MQTT_PUBLISH_TIMEOUT_SECONDS="2")) as host:
        assert host.metric("mqtt_connection_state") == host.metric("mqtt_enabled") == 1
        mosquitto.stop()
        body = upload()
        begun_at = time.monotonic()
        response = host.post(body)
        assert time.monotonic() - begun_at < 2 + SLACK_SECONDS
        assert (response.status_code, response.json()) == (503, {"outcomes": ["unconfirmed"]})
        assert response.headers["retry-after"] == "3"
        not_ready = host.http.get("/readyz")
        assert not_ready.status_code == 503
        mqtt = not_ready.json()["mqtt"]
        assert (mqtt["broker"], mqtt["connected"]) == (mosquitto.url, False)
        assert "refused" in mqtt["reason"]
        assert mqtt["since"].startswith("20")
        assert host.http.get("/healthz").status_code == 200
        assert host.metric("mqtt_connection_state") == host.metric("mqtt_enabled") == 0
        eventually(lambda: host.metric("mqtt_publish_errors_total") == 1)
        mosquitto.start()
        eventually(lambda: host.http.get("/readyz").status_code == 200)
        with Subscriber(mosquitto.url, TOPICS) as listener:
            assert host.post(body).json() == {"outcomes": ["delivered"]}
            listener.next()
        assert host.metric("mqtt_connection_state") == host.metric("mqtt_enabled") == 1
        assert host.metric("mqtt_reconnect_attempts_total") >= 1
        assert [line["message"] for line in host.lines("INFO")].count("mqtt connected") == 2
        causes = [line["reason"] for line in host.lines("WARNING") if "mqtt" in line["message"]]
        assert len(causes) == len(set(causes))
        assert causes


def test_a_hung_broker_is_503_at_the_sure_door_and_nothing_to_the_fast_one(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """Fast answers before any wait: all of 50 while the sure door's one request waits."""
    known = environment(mosquitto.url, MQTT_PUBLISH_TIMEOUT_SECONDS="4")
    with Host(tmp_path, known) as host, in_background() as pool:
        mosquitto.freeze()
        begun_at = time.monotonic()
        sure = pool.submit(host.post, upload())
        for _ in range(50):
            assert host.post(upload(), "/events/fast").status_code == 202
        assert not sure.done()
        assert sure.result(PATIENCE_SECONDS).status_code == 503
        assert time.monotonic() - begun_at < 4 + SLACK_SECONDS
        mosquitto.thaw()
        eventually(lambda: host.post(upload()).status_code == 200)


def test_two_posts_of_one_event_at_once_are_one_message(tmp_path: Path) -> None:
    """Both wait for the one flight, and both hear 200."""
    with (
        FakeBroker(script=[Behaviour(acknowledge_delay_seconds=0.4)]) as broker,
        Host(tmp_path, environment(broker.url)) as host,
        in_background() as pool,
    ):
        body = upload()
        responses = [post.result(PATIENCE_SECONDS) for post in [pool.submit(host.post, body) for _ in range(5)]]
        assert [response.status_code for response in responses] == [200] * 5
        labels = sorted(response.json()["outcomes"][0] for response in responses)
        assert labels == ["delivered"] + ["repeated"] * 4
        assert len(broker.publishes) == 1


def test_a_store_that_retries_hears_200_once_the_late_acknowledgement_came(tmp_path: Path) -> None:
    """503 at the deadline, then 200 without a second message."""
    # 2 s each, one at a time: the second is sent after 2 s and confirmed after 4 s, past its 3 s.
    slow = Behaviour(receive_maximum=1, acknowledge_delay_seconds=2.0)
    with (
        FakeBroker(script=[slow]) as broker,
        Host(tmp_path, environment(broker.url, MQTT_PUBLISH_TIMEOUT_SECONDS="3")) as host,
        in_background() as pool,
    ):
        first = pool.submit(host.post, upload())
        broker.wait_for("PUBLISH")
        body = upload("assets/late")
        assert host.post(body).status_code == 503
        assert first.result(PATIENCE_SECONDS).status_code == 200
        eventually(lambda: host.metric("mqtt_messages_published_total") == 2)
        assert host.post(body).json() == {"outcomes": ["repeated"]}
        assert len(broker.publishes) == 2


def test_a_full_queue_drops_at_the_fast_door_and_is_503_at_the_sure_one(tmp_path: Path) -> None:
    """The queue is bounded; what is dropped is counted and logged, and never blocks the door."""
    patch = "import infra.host.mqtt.publisher as p\np.HostPublisher.__init__.__kwdefaults__['queue_limit'] = 3"
    known = environment(f"mqtt://127.0.0.1:{free_port()}", MQTT_PUBLISH_TIMEOUT_SECONDS="4")
    with Host(tmp_path, known, patch=patch, ready=False) as host:
        for number in range(5):
            assert host.post(upload(f"assets/{number}"), "/events/fast").status_code == 202
        assert host.metric("events_total", source="fast", outcome="dropped") == 2
        begun_at = time.monotonic()
        assert host.post(upload()).status_code == 503
        assert time.monotonic() - begun_at < 3, "at once, where others wait for 4 s"
        dropped = [line for line in host.lines("ERROR") if line["outcome"] == "dropped"]
        assert len(dropped) == 2
        eventually(lambda: host.metric("events_total", source="fast", outcome="unconfirmed") == 3)


def test_after_a_restart_a_repeat_rings_again_with_the_same_id(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The memory is the process's own; devices drop the repeat by its id."""
    body = upload()
    with Subscriber(mosquitto.url, TOPICS) as listener:
        for _ in range(2):
            with Host(tmp_path, environment(mosquitto.url)) as host:
                assert host.post(body).json() == {"outcomes": ["delivered"]}
        first, second = listener.wait_for(2)
    assert dict(first.user_properties)["id"] == dict(second.user_properties)["id"]


# Tokens.


@pytest.mark.parametrize("door", ["/events", "/events/fast"])
def test_either_token_opens_a_door_and_nothing_else_does(shared: Host, door: str) -> None:
    """Both tokens of a rotation are valid; any other way to ask is 401, before the body is looked at."""
    for token in (TOKEN, NEXT_TOKEN):
        assert shared.post(b"", door, token).status_code in {200, 202}
    assert shared.http.post(door, headers={"Authorization": f"bearer  {TOKEN}"}).status_code in {200, 202}
    refused = ["", "Bearer", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"]
    refused += [f"Bearer {TOKEN},{NEXT_TOKEN}", "Bearer é", f"Bearer {TOKEN} {NEXT_TOKEN}"]
    for value in refused:
        response = shared.http.post(door, content=upload(), headers=[(b"Authorization", value.encode())])
        assert response.status_code == 401, value
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"
    assert shared.post(upload(), door, token=None).status_code == 401
    twice = [("Authorization", f"Bearer {TOKEN}")] * 2
    assert shared.http.post(door, headers=twice).status_code == 401


def test_watching_needs_no_token(shared: Host) -> None:
    """Health, readiness and metrics are for probes."""
    for path in ("/healthz", "/readyz", "/metrics"):
        assert shared.http.get(path).status_code == 200


def test_no_secret_is_ever_logged(tmp_path: Path, mosquitto_binary: Path) -> None:
    """Neither tokens nor the broker's password, at the most talkative level, through refusals and failures."""
    del mosquitto_binary
    with Mosquitto(tmp_path, users={"bell": "s3cret-of-the-broker"}) as broker:
        login = {"MQTT_USERNAME": "bell", "MQTT_PASSWORD": "s3cret-but-wrong", "LOG_LEVEL": "DEBUG"}
        login["MQTT_PUBLISH_TIMEOUT_SECONDS"] = "1"
        with Host(tmp_path, environment(broker.url, **login), ready=False) as host:
            for token in (TOKEN, NEXT_TOKEN, "a-token-that-is-wrong"):
                host.post(upload(), token=token)
            host.post(b"{", token=TOKEN)
            eventually(lambda: "Not authorized" in host.log)
            host.stop()
            for secret in (TOKEN, NEXT_TOKEN, "a-token-that-is-wrong", "s3cret-but-wrong"):
                assert secret not in host.log


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])  # noqa: S104 - that it refuses is the point
def test_without_tokens_it_refuses_to_listen_beyond_loopback(tmp_path: Path, address: str) -> None:
    """Exit 1, naming WEBHOOK_TOKENS and what would be right."""
    known = {**os.environ, "WEBHOOK_TOKENS": "", "MQTT_URL": ""}
    command = [str(Path(sys.executable).with_name("bucketbell")), "host", "--host", address, "--port", str(free_port())]
    ended = subprocess.run(
        command, env=known, cwd=tmp_path, capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False
    )
    assert ended.returncode == 1
    assert "WEBHOOK_TOKENS" in ended.stderr
    assert "127.0.0.1" in ended.stderr


def test_without_tokens_loopback_is_open_and_mqtt_is_optional(tmp_path: Path) -> None:
    """Nothing configured at all: ready, every event acknowledged, nothing counted, no warning."""
    with Host(tmp_path, {}) as host:
        assert host.http.get("/readyz").json() == {"ready": True, "mqtt": {"configured": False}}
        assert host.post(upload(), token=None).status_code == 200
        assert host.post(b"nonsense", "/events/fast", token=None).status_code == 202
        metrics = host.http.get("/metrics").text
        assert "mqtt_enabled 0.0" in metrics
        assert "events_total{" not in metrics
        assert "mqtt_publish_total{" not in metrics
        assert not host.lines("WARNING")
        assert not host.lines("ERROR")
        assert host.stop() < STOP_SECONDS


# Limits.


@pytest.mark.parametrize(("door", "good"), [("/events", 200), ("/events/fast", 202)])
def test_a_body_of_four_mebibytes_is_read_and_a_larger_one_is_413(shared: Host, door: str, good: int) -> None:
    """Announced or chunked; and the sender reads the answer although it is still sending."""
    exact = upload()
    exact += b" " * (MAX_BODY_BYTES - len(exact))
    assert shared.post(exact, door).status_code == good

    def chunks(body: bytes) -> Iterator[bytes]:
        yield from (body[at : at + 50_000] for at in range(0, len(body), 50_000))

    login = {"Authorization": f"Bearer {TOKEN}"}
    again = upload()
    again += b" " * (MAX_BODY_BYTES - len(again))
    assert shared.http.post(door, content=chunks(again), headers=login).status_code == good
    for size in (MAX_BODY_BYTES + 1, MAX_BODY_BYTES + 2 * MEBIBYTE):
        assert shared.post(b" " * size, door).status_code == 413
        response = shared.http.post(door, content=chunks(b" " * size), headers=login)
        assert response.status_code == 413
        assert response.json()["detail"] == f"The body is larger than {MAX_BODY_BYTES} bytes."
    assert shared.post(b"x" * (2 * MEBIBYTE), door, token="nobody's").status_code == 401


def test_an_announced_length_beyond_the_limit_is_refused_without_the_body(shared: Host) -> None:
    """413 comes although not a byte of the body was sent."""
    with raw(shared, head("/events", f"Content-Length: {MAX_BODY_BYTES + 1}") + b"\r\n") as sock:
        assert answer(sock).status == 413
    waits = head("/events", f"Content-Length: {MAX_BODY_BYTES + 1}", "Expect: 100-continue") + b"\r\n"
    begun_at = time.monotonic()
    with raw(shared, waits) as sock:
        assert answer(sock).status == 413
    assert time.monotonic() - begun_at < SLACK_SECONDS, "who waits for the body waits for PATIENCE_SECONDS"


def test_a_slow_body_is_408_within_the_deadline(shared: Host) -> None:
    """A sender that trickles is told so, and its connection closed."""
    with raw(shared, head("/events", "Content-Length: 100") + b"\r\n{") as sock:
        begun_at = time.monotonic()
        response = answer(sock)
        assert (response.status, response.headers["connection"]) == (408, "close")
        assert 0.4 < time.monotonic() - begun_at < 0.6 + SLACK_SECONDS
        response.read()
        assert sock.recv(1) == b""


@pytest.mark.parametrize(
    "said", [b"", b"POST /eve", b"\r\n", head("/events")], ids=["nothing", "half-a-line", "a-blank-line", "no-end"]
)
def test_a_slow_header_is_closed(shared: Host, said: bytes) -> None:
    """Also when its sender keeps trickling: the deadline is for the whole header."""
    begun_at = time.monotonic()
    with raw(shared, said) as sock:
        sock.settimeout(0.2)
        received: bytes | None = None
        while received is None and time.monotonic() - begun_at < PATIENCE_SECONDS:
            try:
                received = sock.recv(1)
            except TimeoutError:
                sock.sendall(b"\r\n" if said in {b"", b"\r\n"} else b"x")
            except ConnectionError:
                received = b""
    assert received == b""
    assert 0.4 < time.monotonic() - begun_at < 0.6 + SLACK_SECONDS


def test_a_kept_connection_that_sends_bytes_of_no_request_is_closed(shared: Host) -> None:
    """Blank lines after an answer would hold a connection for ever."""
    with raw(shared, b"GET /healthz HTTP/1.1\r\nHost: bell\r\n\r\n") as sock:
        assert answer(sock).status == 200
        time.sleep(0.05)
        begun_at = time.monotonic()
        sock.sendall(b"\r\n")
        while sock.recv(1024):
            pass
        assert time.monotonic() - begun_at < 0.6 + SLACK_SECONDS


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: ten",),
        ("Content-Length: -1",),
        ("Content-Length: 99999999999999999999999",),
        ("Content-Length: 2", "Content-Length: 3"),
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
    ],
)
def test_a_nonsensical_length_is_400(shared: Host, lines: tuple[str, ...]) -> None:
    """The request ends there, and the host goes on."""
    with raw(shared, head("/events", *lines) + b"\r\n{}") as sock:
        assert answer(sock).status == 400
    assert shared.http.get("/healthz").status_code == 200


def test_methods_and_paths(shared: Host) -> None:
    """HEAD works where GET does, and has no body; 405 names what is allowed; the rest is 404."""
    for path in ("/healthz", "/readyz", "/metrics"):
        get, head_ = shared.http.get(path), shared.http.head(path)
        assert (head_.status_code, head_.content) == (get.status_code, b"")
        assert int(head_.headers["content-length"]) > 0
        assert shared.http.post(path).headers["allow"] == "GET, HEAD"
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        response = shared.http.request(method, "/events")
        assert (response.status_code, response.headers["allow"]) == (405, "POST, HEAD, OPTIONS")
    for path in ("/", "/events/", "/events/fast/", "/Events", "/events/sure", "/%00", "/healthz/x"):
        assert shared.http.get(path).status_code == 404, path
    assert shared.http.get("/healthz?full=1").json()["alive"] is True


def test_a_connection_survives_refusals_and_pipelining(shared: Host) -> None:
    """404 and 405 leave it usable, with the body of the refused request skipped; answers keep their order."""
    body = upload()
    good = head("/events", f"Content-Length: {len(body)}") + b"\r\n" + body
    lost = head("/nowhere", "Content-Length: 5") + b"\r\nhello"
    wrong = b"DELETE /metrics HTTP/1.1\r\nHost: bell\r\n\r\n"
    with raw(shared, lost + wrong + good + good) as sock:
        assert statuses(sock, 4) == [404, 405, 200, 200]


# A field, and the body behind it: {0} is its length, {1} itself.
_ANNOUNCED = "Content-Length: {0}", "{1}"
_CHUNKED = "Transfer-Encoding: chunked", "{0:x}\r\n{1}\r\n0\r\n\r\n"


@pytest.mark.parametrize("pieces", [1, 2, 7], ids=["whole", "halves", "sevenths"])
@pytest.mark.parametrize("framing", [_ANNOUNCED, _CHUNKED], ids=["announced", "chunked"])
@pytest.mark.parametrize("field_too", ["", "Expect: 100-continue", "Connection: close", "Upgrade: h2c"])
def test_the_fast_door_takes_an_event_however_it_arrives(
    shared: Host, listener: Subscriber, framing: tuple[str, str], field_too: str, pieces: int
) -> None:
    """In one read or several, announced or chunked, with fields that ask for more: 202 and one message."""
    field, framed = framing
    name = f"{len(field)}-{len(field_too)}-{pieces}.bin"
    body = upload(f"assets/{name}").decode()
    fields = [line for line in (field.format(len(body)), field_too) if line]
    said = head("/events/fast", *fields) + b"\r\n" + framed.format(len(body), body).encode()
    size = -(-len(said) // pieces)
    with raw(shared) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(said), size):
            sock.sendall(said[at : at + size])
            time.sleep(0.005 if pieces > 1 else 0)
        assert answer(sock).status == 202
    message = listener.next()
    assert json.loads(message.payload) == {"filename": name}
    assert shared.metric("events_total", source="fast", outcome="malformed") == 0


def test_answers_of_both_doors_keep_the_order_of_their_requests(shared: Host) -> None:
    """A quick answer does not overtake a slow one on the same connection."""

    def said(path: str) -> bytes:
        body = upload()
        return head(path, f"Content-Length: {len(body)}") + b"\r\n" + body

    doors = ("/events/fast", "/events", "/events/fast", "/events/fast", "/events")
    with raw(shared, b"".join(map(said, doors))) as sock:
        assert statuses(sock, len(doors)) == [202, 200, 202, 202, 200]


def test_a_sender_that_vanishes_leaves_nothing_behind(shared: Host) -> None:
    """In the middle of a header, of a body, or while it waits: no error, and the host goes on."""
    eventually(lambda: shared.descriptors() <= 40)
    before = shared.descriptors_at_rest()
    for said in (b"POST /ev", head("/events", "Content-Length: 50") + b"\r\n{", head("/events", "Content-Length: 0")):
        for _ in range(5):
            with raw(shared, said):
                pass
    eventually(lambda: shared.descriptors() <= before)
    assert shared.post(upload()).status_code == 200


def test_an_unforeseen_error_is_500_and_logged_once(tmp_path: Path) -> None:
    """The host goes on."""
    patch = "from infra.host.web import site\ndef fail(*_): raise RuntimeError('unforeseen')\nsite.plan_body = fail"
    with Host(tmp_path, environment(f"mqtt://127.0.0.1:{free_port()}"), patch=patch, ready=False) as host:
        for number, door in enumerate(("/events", "/events/fast"), 1):
            assert host.post(upload(), door).status_code == 500
            assert host.http.get("/healthz").status_code == 200
            assert len([line for line in host.lines("ERROR") if "unforeseen" in line.get("exception", "")]) == number


# Bad input.


def sent(key: object) -> bytes:
    """An event whose key is exactly this, however a sender would have escaped it."""
    made = record()
    made["s3"]["object"]["key"] = key
    return event(made)


_NAME = "aa-bb-cc-dd-ee-ff.json"
_BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "blank": (b" \r\n ", "empty"),
    "not JSON": (b"hello", "malformed"),
    "half of JSON": (upload()[:-7], "malformed"),
    "list": (b"[]", "malformed"),
    "null": (b"null", "malformed"),
    "number": (b"17", "malformed"),
    "NaN": (b"NaN", "malformed"),
    "huge number": (b"9" * 5000, "malformed"),
    "object": (b"{}", "malformed"),
    "no records": (b'{"Records": []}', "empty"),
    "records no list": (b'{"Records": {}}', "malformed"),
    "records of nothing": (event(None), "malformed"),
    "deep": (b"[" * 200_000, "malformed"),
    "deep objects": (b'{"Records":' * 90_000, "malformed"),
    "not UTF-8": (b'{"Records": ["\xff\xfe"]}', "malformed"),
    "UTF-16": (upload().decode().encode("utf-16"), "malformed"),
    "no s3": (event({"eventName": "ObjectCreated:Put"}), "malformed"),
    "s3 a string": (event(record() | {"s3": "x"}), "malformed"),
    "no bucket": (event(record() | {"s3": {"object": {"key": MAC_KEY}}}), "malformed"),
    "no key": (sent(None), "malformed"),
    "empty key": (sent(""), "malformed"),
    "number for a key": (sent(5), "malformed"),
    "no name": (event(record() | {"eventName": None}), "malformed"),
    "unknown name": (event(record() | {"eventName": "s3:ObjectEaten:Whole"}), "unknown_event"),
    "NUL": (sent("configs%2F%00" + _NAME), "malformed"),
    "newline": (sent("assets%2Fa%0Ab"), "bad_asset_name"),
    "twice escaped": (sent("configs%252F" + _NAME), "unmapped"),
    "surrogate": (sent("assets/\ud800"), "malformed"),
    "escaped surrogate": (sent("assets/%ED%A0%80"), "malformed"),
    "parent": (sent("assets/../configs/" + _NAME), "bad_asset_name"),
    "escaped parent": (sent("assets%2F%2E%2E%2Fx"), "bad_asset_name"),
    "parent of a config": (sent("configs/../" + _NAME), "bad_config_name"),
    "1,100 bytes": (sent("assets/" + "a" * 1100), "malformed"),
    "folder": (sent("assets/folder/"), "folder_marker"),
    "config in a folder": (sent("configs/x/" + _NAME), "bad_config_name"),
    "no MAC": (sent("configs/kitchen.json"), "bad_config_name"),
    "elsewhere": (sent("photos/x.jpg"), "unmapped"),
    "test event": (b'{"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}', "test_event"),
}


@pytest.mark.parametrize(("body", "label"), _BAD.values(), ids=_BAD.keys())
def test_bad_input_is_acknowledged_counted_and_harmless(
    shared: Host, listener: Subscriber, body: bytes, label: str
) -> None:
    """200 and 202, counted by outcome at each door, silent, and no obstacle to the good event right behind it."""
    before = {door: shared.metric("events_total", source=door, outcome=label) for door in ("sure", "fast")}
    response = shared.post(body)
    assert (response.status_code, response.json()) == (200, {"outcomes": [label]})
    assert shared.metric("events_total", source="sure", outcome=label) == before["sure"] + 1
    assert shared.post(body, "/events/fast").status_code == 202
    remembered = label in {"bad_asset_name", "bad_config_name", "unmapped", "folder_marker"}
    expected = before["fast"] + (0 if remembered else 1)
    assert shared.metric("events_total", source="fast", outcome=label) == expected
    assert shared.post(upload()).json() == {"outcomes": ["delivered"]}
    assert json.loads(listener.next().payload) == {"filename": _NAME}
    assert listener.drain() == []


@pytest.mark.parametrize("size", ["17", "-1", -1, "many", 1.5, None, [], True, 10**30])
def test_an_odd_size_does_not_silence_an_upload(shared: Host, listener: Subscriber, size: object) -> None:
    """The upload happened; its size only decorates the message."""
    assert shared.post(event(record(size=size))).json() == {"outcomes": ["delivered"]}
    sizes = [value for name, value in listener.next().user_properties if name == "size"]
    assert sizes == (["17"] if size == "17" else [])


def test_a_foreign_bucket_is_skipped_where_one_is_named(tmp_path: Path, broker: Mosquitto) -> None:
    """With BUCKET set, others' events are counted and silent; without a bad word in the log."""
    with Host(tmp_path, environment(broker.url, BUCKET="mine")) as host:
        assert host.post(upload()).json() == {"outcomes": ["foreign_bucket"]}
        assert not host.lines("WARNING")


def test_bad_input_is_logged_once_for_each_kind_and_briefly(tmp_path: Path, broker: Mosquitto) -> None:
    """However often and however large: one line a kind, with a bounded, printable excerpt."""
    with Host(tmp_path, environment(broker.url)) as host:
        for _ in range(20):
            host.post(b"\x1b[31m\n" + b"A" * 500_000)
            host.post(b"[]")
        lines = host.lines("ERROR")
        assert [line["reason"] for line in lines] == ["not_json", "not_an_event"]
        assert all(len(line["excerpt"]) <= 200 for line in lines)
        assert len(host.log) < 5_000
        assert "\x1b" not in host.log
        assert host.metric("events_total", outcome="malformed") == 40


# Watching.


def test_a_wrong_password_shows_in_readyz(tmp_path: Path, mosquitto_binary: Path) -> None:
    """503 with the broker's reason code, what to check, and since when; alive all the same."""
    del mosquitto_binary
    with Mosquitto(tmp_path, users={"bell": "right"}) as broker:
        login = {"MQTT_USERNAME": "bell", "MQTT_PASSWORD": "wrong"}
        with Host(tmp_path, environment(broker.url, **login), ready=False) as host:
            eventually(lambda: host.http.get("/readyz").json()["mqtt"]["reason_code"])
            response = host.http.get("/readyz")
            mqtt = response.json()["mqtt"]
            assert (response.status_code, response.json()["ready"], mqtt["connected"]) == (503, False, False)
            assert mqtt["reason_code"] == 0x87
            assert "MQTT_PASSWORD" in mqtt["reason"]
            assert (host.metric("mqtt_enabled"), host.metric("mqtt_connection_status")) == (0, 0)
            assert host.http.get("/healthz").json()["alive"] is True
            warnings = [line for line in host.lines("WARNING") if line.get("reason_code") == 0x87]
            assert len(warnings) == 1


def test_health_answers_while_a_connect_hangs(tmp_path: Path) -> None:
    """A silent TLS server holds a thread, not the loop; and the end does not wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mqtts://127.0.0.1:{silent.getsockname()[1]}"
        with Host(tmp_path, environment(url, MQTT_CONNECT_TIMEOUT_SECONDS="20"), ready=False) as host:
            slowest = 0.0
            for _ in range(20):
                begun_at = time.monotonic()
                assert host.http.get("/healthz").status_code == 200
                slowest = max(slowest, time.monotonic() - begun_at)
            assert slowest < SLACK_SECONDS
            assert host.http.get("/readyz").status_code == 503
            assert host.stop() < STOP_SECONDS


def test_the_end_frees_nothing_that_a_thread_may_still_use(tmp_path: Path) -> None:
    """A connect that hangs in OpenSSL made the process crash when that was cleaned up: nothing runs after the end."""
    farewell = 'import atexit\natexit.register(print, "freed", flush=True)'
    with Host(tmp_path, environment(None), patch=farewell) as host:
        host.stop()
        assert "freed" not in host.log


# The end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_host_ends_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """Exit 0, DISCONNECT at the broker, the port closed, kept connections ended, nothing left."""
    with FakeBroker() as broker, Host(tmp_path, environment(broker.url)) as host:
        with raw(host, b"GET /healthz HTTP/1.1\r\nHost: bell\r\n\r\n") as kept:
            assert answer(kept).status == 200
            assert host.stop(number) < STOP_SECONDS
        broker.wait_for("DISCONNECT")
        assert broker.packets[-1].kind == "DISCONNECT"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", host.port))
        assert "Traceback" not in host.log
        assert not host.lines("ERROR")


def test_a_signal_ends_it_before_it_serves(tmp_path: Path) -> None:
    """Also as process 1 of a container, which no signal ends that it does not handle."""
    serves = "infra.host.server.serve = lambda *_: (os.kill(os.getpid(), signal.SIGTERM), sys.exit('it goes on'))"
    imports = "import os, signal, sys, infra.cli, infra.host.server"
    code = f"{imports}; {serves}; infra.cli.app(['host', '--port', '{free_port()}'])"
    # The first process of a namespace of its own.
    first = ["/usr/bin/unshare", "--pid", "--fork"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*first, sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_request_in_flight_is_answered_at_the_end(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The broker hangs and the deadline is far: all hear 503 and it is over within 3 s; twice SIGTERM is once."""
    known = environment(mosquitto.url, MQTT_PUBLISH_TIMEOUT_SECONDS="60")
    with Host(tmp_path, known) as host, in_background() as pool:
        before = host.descriptors_at_rest()
        mosquitto.freeze()
        posts: list[Future[httpx.Response]] = [pool.submit(host.post, upload(f"assets/{n}")) for n in range(10)]
        eventually(lambda: host.descriptors() >= before + len(posts) - 1)  # one has the connection that was there
        with raw(host, head("/events", "Content-Length: 100") + b"\r\n{") as slow:
            for _ in range(3):  # what came before them has been read
                assert host.http.get("/healthz").status_code == 200
            time.sleep(0.3)
            threading.Timer(0.3, host.child.send_signal, [signal.SIGTERM]).start()
            assert host.stop() < STOP_SECONDS
            assert [post.result(PATIENCE_SECONDS).status_code for post in posts] == [503] * 10
            assert answer(slow).status == 503
        mosquitto.thaw()
        assert "Traceback" not in host.log


def test_what_is_in_flight_is_delivered_before_the_end(tmp_path: Path) -> None:
    """A broker that answers within the flush time loses nothing: 200 for the one, and the fast door's queue is sent."""
    patient = "from infra.host.mqtt import publisher\nfrom infra.host import server\n"
    patient += "publisher.FLUSH_SECONDS = server.GRACE_SECONDS = 15"
    with (
        FakeBroker(script=[Behaviour(acknowledge_delay_seconds=0.4)]) as broker,
        Host(tmp_path, environment(broker.url), patch=patient) as host,
        in_background() as pool,
    ):
        sure = pool.submit(host.post, upload())
        broker.wait_for("PUBLISH")
        for number in range(30):
            assert host.post(upload(f"assets/{number}"), "/events/fast").status_code == 202
        assert host.stop() < STOP_SECONDS
        assert sure.result(PATIENCE_SECONDS).status_code == 200
        assert len(broker.publishes) == 31
        assert broker.packets[-1].kind == "DISCONNECT"


def test_a_taken_port_is_a_clear_failure(tmp_path: Path, shared: Host) -> None:
    """It says which address, and exits with a failure."""
    command = [str(Path(sys.executable).with_name("bucketbell")), "host", "--port", str(shared.port)]
    known = {**os.environ, "MQTT_URL": "", "WEBHOOK_TOKENS": ""}
    ended = subprocess.run(
        command, env=known, cwd=tmp_path, capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False
    )
    assert ended.returncode != 0
    assert str(shared.port) in ended.stdout + ended.stderr
    assert '"message":"listening"' not in ended.stdout
