"""Many who want nothing but to keep the host busy: real events ring meanwhile, and what was taken is given back.

How much memory is held is measured on the real process. With FUZZ=1 there are as many as a real attacker would bring.
"""

from __future__ import annotations

import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber
from tests.hostile.searching import FUZZ
from tests.hostile.wire import (
    AUTHORIZATION,
    MEBIBYTE,
    connected,
    next_answer,
    post,
    request,
    resident_bytes,
)
from tests.hosts import TOKEN, TOPICS, Host, environment, eventually, upload
from tests.timing import PATIENCE_SECONDS

HEADER_SECONDS, BODY_SECONDS, WRITE_SECONDS = 1.5, 1.5, 1.0
SHORT = f"""
from infra.host.web import protocol
protocol.BODY_SECONDS, protocol.HEADER_SECONDS = {BODY_SECONDS}, {HEADER_SECONDS}
protocol.WRITE_SECONDS = {WRITE_SECONDS}
"""
IDLE = 10_000 if FUZZ else 1_000
ALIVE = request(b"GET /healthz HTTP/1.1")
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module", autouse=True)
def descriptors_enough() -> Iterator[None]:
    """Both ends of every connection are on this machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < IDLE + 1_000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (IDLE + 1_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, broker: Mosquitto) -> Iterator[Host]:
    """A host with short deadlines, that has done each kind of work before anything is measured."""
    known = environment(broker.url, DEVICE_REQUESTS_PER_MINUTE="0", ADMIN_TOKENS=TOKEN)
    with Host(tmp_path_factory.mktemp("host"), known, patch=SHORT) as running:
        for _ in range(100):
            running.post(upload())
            running.post(upload(), "/events/fast")
            assert running.http.get("/docs/swagger-ui-bundle.min.js").status_code == 200
        yield running
        assert running.http.get("/healthz").status_code == 200
        assert not [line for line in running.lines("ERROR") if line.get("outcome") != "malformed"]  # `{` is no event
        assert "Traceback" not in running.log


@contextmanager
def crowd(host: Host, size: int, said: bytes = b"", *, receive_bytes: int = 0) -> Iterator[list[socket.socket]]:
    """So many connections, on each of which that was said."""
    with ExitStack() as stack:
        yield [stack.enter_context(connected(host, said, receive_bytes=receive_bytes)) for _ in range(size)]


def rings(host: Host, broker: Mosquitto, count: int = 10) -> None:
    """Both doors are open, and what is posted is heard."""
    with Subscriber(broker.url, TOPICS) as listener:
        rings_for(listener, host, count)


def rings_for(listener: Subscriber, host: Host, count: int = 10) -> None:
    """As `rings`, heard by one who listens already: from descriptor 1024 on, paho's own loop cannot."""
    for _ in range(count):
        assert host.post(upload()).json() == {"outcomes": ["delivered"]}
        assert host.post(upload(), "/events/fast").status_code == 202
    listener.wait_for(2 * count, PATIENCE_SECONDS)


def still_open(sockets: list[socket.socket]) -> int:
    """On how many the host has not hung up; what it says is thrown away."""
    count = 0
    for sock in sockets:
        sock.settimeout(0)
        try:
            while sock.recv(65536):
                pass
        except BlockingIOError:
            count += 1
        except ConnectionError:
            pass
    return count


@contextmanager
def memory_bounded(host: Host, limit_bytes: int) -> Iterator[Callable[[], int]]:
    """What the process takes stays below the limit, whenever that is asked for, and at the end."""
    before = resident_bytes(host)

    def grown_bytes() -> int:
        grown = resident_bytes(host) - before
        assert grown < limit_bytes, f"{grown / MEBIBYTE:.0f} MiB"
        return grown

    yield grown_bytes
    grown_bytes()


def flood(host: Host, piece: bytes, total_bytes: int, *, first: bytes = b"", listens: bool = False) -> int:
    """Say `first`, then `piece` again and again, for a second at most after the last word got through.

    Return how much was taken. What is heard is thrown away.
    """
    sent = 0
    with connected(host, first, receive_bytes=0 if listens else 4096) as sock, suppress(ConnectionError):
        sock.settimeout(0)
        heard = [sock] if listens else []
        while sent < total_bytes:
            readable, writable, _ = select.select(heard, [sock], [], 1.0)
            if readable and not sock.recv(1 << 18):
                break
            if writable:
                sent += sock.send(piece[sent % len(piece) :])
            if not (readable or writable):
                break
    return sent


def unsent_bytes(host: Host) -> int:
    """How much the kernel keeps of what the host has said, until its clients take it (Linux)."""
    port = f":{host.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(fields[4].partition(":")[0], 16) for fields in lines if fields[1].endswith(port))


# Slow ones.


@pytest.mark.parametrize(
    ("said", "more"),
    [
        (b"POST /events HTTP/1.1\r\nX: ", b"x"),
        (b"", b"\r\n"),
        (request(b"POST /events HTTP/1.1", AUTHORIZATION, b"Content-Length: 1000"), b" "),
        (request(b"POST /events/fast HTTP/1.1", AUTHORIZATION, b"Transfer-Encoding: chunked"), b"1\r\n \r\n"),
        (request(b"POST /events HTTP/1.1", b"Content-Length: 1000"), b" "),
        (request(b"GET /healthz HTTP/1.1", b"Content-Length: 1000"), b" "),
    ],
    ids=["headers", "nothing", "bodies", "chunks", "bodies without a token", "bodies nobody reads"],
)
def test_a_crowd_that_trickles_is_sent_away_and_events_ring_meanwhile(
    host: Host, broker: Mosquitto, said: bytes, more: bytes
) -> None:
    """Slowloris: each a byte now and then. Nobody keeps a connection beyond the deadline for what it is at."""
    before = host.descriptors_at_rest()
    with crowd(host, 300, said) as sockets:
        begun_at = time.monotonic()
        rings(host, broker)
        while open_ := still_open(sockets):
            assert time.monotonic() - begun_at < PATIENCE_SECONDS, open_
            for sock in sockets:
                with suppress(OSError):
                    sock.send(more)
            time.sleep(0.2)
    eventually(lambda: host.descriptors() <= before, PATIENCE_SECONDS)


@pytest.mark.parametrize("count", [4, 100])
def test_a_crowd_that_never_listens_is_sent_away(host: Host, count: int) -> None:
    """Answers are kept for so long only: a connection whose client takes nothing stayed for ever, with all it held."""
    before = host.descriptors_at_rest()
    asked = request(b"GET /docs/swagger-ui-bundle.min.js HTTP/1.1") * count
    with memory_bounded(host, 96 * MEBIBYTE), crowd(host, 20, asked, receive_bytes=4096):
        assert host.http.get("/healthz").status_code == 200
        eventually(lambda: host.descriptors() <= before + 1, PATIENCE_SECONDS)


@pytest.mark.parametrize("receive_bytes", [0, 4096])
def test_what_a_crowd_leaves_unread_is_bounded_in_the_kernel_too(host: Host, receive_bytes: int) -> None:
    """It took whole answers, megabytes for each connection: a crowd without a token held hundreds."""
    before = host.descriptors_at_rest()
    asked = request(b"GET /docs/swagger-ui-bundle.min.js HTTP/1.1")
    with memory_bounded(host, 48 * MEBIBYTE), crowd(host, 150, asked, receive_bytes=receive_bytes) as sockets:
        assert host.http.get("/healthz").status_code == 200
        assert unsent_bytes(host) < 32 * MEBIBYTE
        assert still_open(sockets[-1:]) == 1
        eventually(lambda: host.descriptors() <= before + 40, WRITE_SECONDS * 0.9)  # the rest before its time is over
        eventually(lambda: host.descriptors() <= before + 1, PATIENCE_SECONDS)


# Greedy ones.


def test_headers_that_are_not_finished_are_bounded_together(host: Host, broker: Mosquitto) -> None:
    """Each kept a hundred kilobytes for as long as a header may take; those that come in one read are let through."""
    field = b"X: " + b"x" * 110 + b"\r\n"
    with memory_bounded(host, 40 * MEBIBYTE) as grown_bytes:
        for _ in range(3):
            with crowd(host, 1000, b"GET / HTTP/1.1\r\n" + field * 250):
                rings(host, broker, 2)
                grown_bytes()


@pytest.mark.parametrize(
    "piece",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        post(b"", "/events/fast"),
        post(b"x", "/events"),
        request(b"GET /assets/x HTTP/1.1"),
        request(b"GET /healthz HTTP/1.1", b"Connection: upgrade", b"Upgrade: h2c"),
    ],
    ids=["lost", "fast", "sure", "assets", "upgrades"],
)
def test_pipelined_requests_do_not_pile_up(host: Host, broker: Mosquitto, piece: bytes) -> None:
    """However many are sent, and whether answers are read or not: every answer let in another bufferful of requests."""
    with memory_bounded(host, 48 * MEBIBYTE) as grown_bytes:
        for listens in (False, True, False):
            flood(host, piece * 2000, 64 * MEBIBYTE if FUZZ else 8 * MEBIBYTE, listens=listens)
            grown_bytes()
    rings(host, broker, 2)


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (
            request(b"POST /events HTTP/1.1", AUTHORIZATION, b"Transfer-Encoding: chunked") + b"0\r\n",
            b"a: b\r\n" * 9_000,
        ),
        (request(b"GET /healthz HTTP/1.1", b"Transfer-Encoding: chunked") + b"0\r\n", b"a: b\r\n" * 9_000),
        (request(b"GET /healthz HTTP/1.1", b"Transfer-Encoding: chunked") + b"0\r\na: ", b"b" * 60_000),
        (request(b"POST /events HTTP/1.1", AUTHORIZATION, b"Transfer-Encoding: chunked") + b"1;", b"b" * 60_000),
        (b"GET /healthz HTTP/1.1\r\n", b"a:\r\n" * 15_000),
        (b"GET /", b"a" * 60_000),
    ],
    ids=["trailers", "trailers after the answer", "one trailer", "extension", "fields", "target"],
)
def test_what_never_ends_is_cut_off_before_it_fills_the_memory(host: Host, first: bytes, piece: bytes) -> None:
    """A bound for every part of a request, not only for its body."""
    with memory_bounded(host, 48 * MEBIBYTE):
        assert flood(host, piece, 64 * MEBIBYTE, first=first) < 32 * MEBIBYTE


def test_paths_that_nobody_knows_are_not_remembered(host: Host) -> None:
    """Each question for a file of `/docs` was kept for ever, also of those that are not there."""
    with memory_bounded(host, 6 * MEBIBYTE):
        for number in range(200):
            assert host.http.get(f"/docs/{number}{'x' * 60_000}").status_code == 404


# Rude ones.


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"POST /eve",
        request(b"POST /events HTTP/1.1", AUTHORIZATION, b"Content-Length: 9") + b"{",
        post(b"{"),
        post(b"{", "/events/fast") + b"POST",
        ALIVE * 3,
    ],
    ids=["at once", "in a header", "in a body", "while it waits", "between two", "after answers"],
)
def test_connections_that_are_reset_leave_nothing(host: Host, said: bytes) -> None:
    """No descriptor, no memory (a timer held what was reset for 75 s), and no word in the log."""
    before = host.descriptors_at_rest()
    with memory_bounded(host, 8 * MEBIBYTE):
        for _ in range(20 if FUZZ else 5):
            with crowd(host, 200, said) as sockets:
                if said == ALIVE * 3:
                    for sock in sockets:
                        assert sock.recv(1)
                for sock in sockets:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        eventually(lambda: host.descriptors() <= before, PATIENCE_SECONDS)


# Idle ones.


def test_idle_connections_are_cheap_and_hinder_nobody(host: Host, broker: Mosquitto) -> None:
    """While they are open, uploads ring, and a broker that was down is reached again; then they are closed."""
    before, open_before = resident_bytes(host), host.descriptors_at_rest()
    begun_at = time.monotonic()
    with Subscriber(broker.url, TOPICS) as listener, crowd(host, IDLE) as sockets:
        fresh_bytes = (resident_bytes(host) - before) / IDLE
        rings_for(listener, host)
        listener.stop()
        broker.restart()
        eventually(lambda: host.http.get("/readyz").status_code == 200, PATIENCE_SECONDS)
        assert host.post(upload()).json() == {"outcomes": ["no_subscribers"]}
        eventually(lambda: still_open(sockets) == 0, PATIENCE_SECONDS + HEADER_SECONDS)
        closed_after_seconds = time.monotonic() - begun_at
    eventually(lambda: host.descriptors() <= open_before, PATIENCE_SECONDS)
    print(f"{IDLE} idle connections: {fresh_bytes / 1024:.1f} KiB each, closed after {closed_after_seconds:.1f} s")  # noqa: T201 - for `pytest -rP`
    assert fresh_bytes < 32 * 1024


def test_more_connections_than_descriptors_take_nothing_from_those_that_are_there(
    tmp_path: Path, broker: Mosquitto
) -> None:
    """New ones are closed at once, the descriptors that the host needs itself stay free, and the log says why."""
    patch = f"{SHORT}\nimport resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))"
    with Host(tmp_path, environment(broker.url), patch=patch) as host, connected(host) as kept:
        stream = kept.makefile("rb")
        kept.sendall(ALIVE)
        assert next_answer(stream)
        with crowd(host, 400) as sockets:
            eventually(lambda: still_open(sockets) < 172, PATIENCE_SECONDS)
            assert still_open(sockets) > 100
            kept.sendall(post(upload()))
            answer = next_answer(stream)
            assert answer is not None
            assert answer.status == 200
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{host.url}/healthz", trust_env=False)
            broker.restart()  # a new connection to it needs a descriptor
            eventually(lambda: "mqtt connected" in host.log.rpartition("mqtt disconnected")[2], PATIENCE_SECONDS)
            kept.sendall(post(upload()))
            answer = next_answer(stream)
            assert answer is not None
            assert answer.status == 200
        stream.close()
        rings(host, broker, 2)
        warnings = [line for line in host.lines("WARNING") if "connections" in line["message"]]
        assert [line["limit"] for line in warnings] == [172]


def test_without_a_free_descriptor_the_host_lives_on(tmp_path: Path, broker: Mosquitto) -> None:
    """Not even one for what it needs itself: what was promised is kept as soon as there is one again."""
    patch = f"{SHORT}\nimport resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
    patch += "from infra.host import server\nserver.room_for_connections = lambda: None"
    with Host(tmp_path, environment(broker.url), patch=patch) as host:
        for _ in range(3):
            with crowd(host, 200):
                time.sleep(0.1)
            eventually(lambda: host.descriptors() < 30, PATIENCE_SECONDS)
        rings(host, broker, 2)
        assert host.child.poll() is None


def test_the_end_does_not_wait_for_a_crowd(tmp_path: Path, broker: Mosquitto) -> None:
    """Idle, half-said, unread: exit status 0 in time all the same."""
    known = environment(broker.url, ADMIN_TOKENS=TOKEN)
    with Host(tmp_path, known) as host, crowd(host, 200), crowd(host, 100, b"POST /eve"):
        asked = request(b"GET /docs/swagger-ui-bundle.min.js HTTP/1.1")
        with crowd(host, 10, asked * 3, receive_bytes=4096), crowd(host, 50, ALIVE):
            assert host.http.get("/healthz").status_code == 200
            assert host.stop() < 3.0 + PATIENCE_SECONDS / 10
