"""The host's HTTP server by itself, on a real socket, with and without TLS: order, deadlines, doors of all kinds."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import pytest

from functions.web.messages import Problem, Reply, Request
from infra.host.web import protocol
from infra.host.web import server as server_module
from infra.host.web.door import Answer, Door
from infra.host.web.protocol import HttpProtocol
from infra.host.web.server import Server
from infra.host.web.tls import Certificate
from infra.local.certificates import make_certificates
from infra.local.process import free_port
from tests.hosts import on_uvloop, until
from tests.timing import PATIENCE_SECONDS

LARGE_BYTES = 8 << 20
GET = b"GET %b HTTP/1.1\r\nHost: bell\r\n\r\n"


def ok(text: str) -> Reply:
    """A reply with this body."""
    return Reply(HTTPStatus.OK, {}, text)


def fail(_request: Request, _answer: Answer) -> None:
    """As a door with a fault does."""
    raise RuntimeError("unforeseen")


def answer_twice(_request: Request, answer: Answer) -> None:
    """As a door with another fault does."""
    answer(ok("first"))
    answer(ok("second"))


class Rooms:
    """Doors that answer at once, when told to, twice, by failing, and with what they have read."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def open(self, request: Request) -> Door:
        """By path."""
        if request.path == "/closed":
            raise Problem(HTTPStatus.FORBIDDEN, "closed", "This door is closed.")
        doors = {
            "/now": Door(lambda asked, answer: answer(ok(asked.query))),
            "/later": Door(lambda asked, answer: self.waiting.append(lambda: answer(ok(asked.query)))),
            "/twice": Door(answer_twice),
            "/large": Door(lambda _, answer: answer(ok("x" * LARGE_BYTES))),
            "/unchanged": Door(lambda _, answer: answer(Reply(HTTPStatus.NOT_MODIFIED, {"ETag": '"e"'}))),
            "/odd": Door(lambda _, answer: answer(Reply(HTTPStatus.OK, {"X": "\u4e16"}, "odd"))),
            "/fails": Door(fail),
            "/echo": Door(lambda asked, answer: answer(ok(asked.body.decode())), max_body_bytes=10),
        }
        return doors[request.path]


class Way:
    """How client and server speak with each other: in plain text unless there is a certificate."""

    certificate: Certificate | None = None
    client: ssl.SSLContext | None = None


@pytest.fixture(autouse=True, params=["http", "https"])
def _way(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this module is run both ways."""
    if request.param == "https":
        files = make_certificates(tmp_path)
        monkeypatch.setattr(Way, "certificate", Certificate(files.server_cert, files.server_key))
        monkeypatch.setattr(Way, "client", ssl.create_default_context(cafile=files.ca_file))


@asynccontextmanager
async def serving(rooms: Rooms) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Server]]:
    """A server, and one connection to it."""
    server, port = Server(rooms), free_port()
    await server.start("127.0.0.1", port, Way.certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=Way.client)
    try:
        yield reader, writer, server
    finally:
        writer.close()
        await server.stop()
        assert not server.connections


async def heard(reader: asyncio.StreamReader) -> tuple[int, str]:
    """The next answer: status and body."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
        return int(head.split(" ")[1]), (await reader.readexactly(length)).decode()


@on_uvloop
async def test_answers_keep_the_order_of_their_requests() -> None:
    """Also where the first is known last: nobody could tell whose answer it is otherwise."""
    rooms = Rooms()
    async with serving(rooms) as (reader, writer, _):
        writer.write(GET % b"/later?1" + GET % b"/now?2" + GET % b"/later?3")
        await until(lambda: rooms.waiting)
        rooms.waiting.pop()()
        assert await heard(reader) == (200, "1")
        assert await heard(reader) == (200, "2")
        rooms.waiting.pop()()
        assert await heard(reader) == (200, "3")


@on_uvloop
async def test_a_request_has_one_answer() -> None:
    """A second one would be taken for the next request's."""
    async with serving(Rooms()) as (reader, writer, _):
        writer.write(GET % b"/twice" + GET % b"/now?next")
        assert await heard(reader) == (200, "first")
        assert await heard(reader) == (200, "next")


@on_uvloop
async def test_a_door_that_fails_is_500_and_the_connection_goes_on() -> None:
    """As does one that is closed, or cannot be found, or answers what HTTP cannot say: no client has to wait."""
    async with serving(Rooms()) as (reader, writer, _):
        for path, status in ((b"/fails", 500), (b"/closed", 403), (b"/missing", 500), (b"/odd", 500), (b"/now", 200)):
            writer.write(GET % path)
            assert (await heard(reader))[0] == status


@on_uvloop
async def test_an_answer_for_a_client_that_has_left_goes_nowhere() -> None:
    """Its door answers all the same."""
    rooms = Rooms()
    async with serving(rooms) as (_, writer, server):
        writer.write(GET % b"/later?1")
        await until(lambda: rooms.waiting)
        client: socket.socket = writer.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset: no half-close
        writer.transport.abort()
        await until(lambda: not server.connections)
        rooms.waiting.pop()()


@pytest.mark.parametrize("parts", [1, 2], ids=["in one piece", "in two"])
def test_a_kept_connection_outlives_the_deadlines_of_its_requests(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that came in a second piece left its deadline behind: the next request met a closed connection."""
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.1)
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.1)
    said = b"POST /echo HTTP/1.1\r\nHost: bell\r\nContent-Length: 2\r\n\r\n", b"hi"

    @on_uvloop
    async def scenario() -> None:
        async with serving(Rooms()) as (reader, writer, _):
            for _ in range(2):
                for piece in (b"".join(said),) if parts == 1 else said:
                    writer.write(piece)
                    await asyncio.sleep(0.02)
                assert await heard(reader) == (200, "hi")
                await asyncio.sleep(0.3)

    scenario()


@on_uvloop
async def test_a_client_that_asks_first_is_told_to_go_on_or_not() -> None:
    """RFC 9110 §10.1.1: 100 where the body is wanted, the final answer where it is not."""
    head = b"POST /echo HTTP/1.1\r\nHost: bell\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    async with serving(Rooms()) as (reader, writer, _):
        writer.write(head % 2)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        assert await heard(reader) == (200, "hi")
        writer.write(head % 11)
        assert (await heard(reader))[0] == 413
        assert await reader.read() == b""


@on_uvloop
async def test_the_end_waits_for_answers_that_are_due() -> None:
    """And for nobody else."""
    rooms = Rooms()
    async with serving(rooms) as (reader, writer, server):
        writer.write(GET % b"/later?1")
        await until(lambda: rooms.waiting)
        asyncio.get_running_loop().call_later(0.05, rooms.waiting.pop())
        await server.stop()
        assert await heard(reader) == (200, "1")
        assert await reader.read() == b""


@on_uvloop
async def test_the_end_answers_who_has_waited_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 for what is not ready then, so that a client may try another host; nobody is just cut off."""
    monkeypatch.setattr(server_module, "GRACE_SECONDS", 0.1)
    rooms = Rooms()
    async with serving(rooms) as (reader, writer, server):
        writer.write(GET % b"/later?1" + GET % b"/now?2")
        await until(lambda: rooms.waiting)
        await server.stop()
        assert (await heard(reader))[0] == 503
        assert await reader.read() == b""
        rooms.waiting.pop()()


@on_uvloop
async def test_the_end_does_not_wait_for_a_body_that_nobody_reads() -> None:
    """Its request has been answered."""
    async with serving(Rooms()) as (reader, writer, server):
        writer.write(b"POST /now?1 HTTP/1.1\r\nHost: bell\r\nContent-Length: 5\r\n\r\nhi")
        assert await heard(reader) == (200, "1")
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport can
        ending = asyncio.create_task(server.stop())
        await until(lambda: all(one._over for one in server.connections))  # noqa: SLF001 - nothing else shows it
        writer.close()
        await ending
        assert loop.time() - began_at < server_module.GRACE_SECONDS


@on_uvloop
async def test_a_kept_connection_serves_one_request_after_the_other() -> None:
    """GET, HEAD, 304, POST and pipelined ones: the length of each is what its client takes for it."""
    async with serving(Rooms()) as (reader, writer, server):
        for _ in range(3):
            writer.write(GET % b"/now?1")
            assert await heard(reader) == (200, "1")
            writer.write(b"HEAD /now?four HTTP/1.1\r\nHost: bell\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length: 4" in head
            writer.write(GET % b"/unchanged")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 304 Not Modified\r\n")
            assert b"content-length" not in head
            writer.write(b"POST /echo HTTP/1.1\r\nHost: bell\r\nContent-Length: 2\r\n\r\nhi" + GET % b"/now?2")
            assert await heard(reader) == (200, "hi")
            assert await heard(reader) == (200, "2")
        assert len(server.connections) == 1


@pytest.mark.parametrize(
    "said",
    [
        b"GET /now?1 HTTP/1.1\r\nHost: bell\r\nConnection: close\r\n\r\n",
        b"GET /now?1 HTTP/1.0\r\n\r\n",
    ],
    ids=["asked to", "HTTP/1.0"],
)
@on_uvloop
async def test_the_last_answer_closes_the_connection(said: bytes) -> None:
    """What comes behind it is not answered any more (RFC 9112 §9.6)."""
    async with serving(Rooms()) as (reader, writer, server):
        writer.write(said + GET % b"/now?2")
        answer = await reader.read()
        assert answer.endswith(b"connection: close\r\n\r\n1")
        assert answer.count(b"HTTP/1.1 ") == 1
        await until(lambda: not server.connections)


@pytest.mark.parametrize("_way", ["http"], indirect=True)  # a client over TLS cannot close one direction
@on_uvloop
async def test_a_client_that_says_no_more_still_gets_all_of_its_answer() -> None:
    """However slowly it takes it: longer than a client lingers."""
    async with serving(Rooms()) as (reader, writer, _):
        writer.write(GET % b"/large")
        writer.write_eof()
        await slowly(reader, LARGE_BYTES)


@pytest.mark.parametrize("_way", ["http"], indirect=True)  # uvloop's TLS client drops what it was slow to take
@on_uvloop
async def test_nonsense_behind_a_request_does_not_cut_its_answer_short() -> None:
    """The connection ends when the client has it."""
    async with serving(Rooms()) as (reader, writer, _):
        writer.write(GET % b"/large" + b"nonsense\r\n\r\n")
        await slowly(reader, LARGE_BYTES)


async def slowly(reader: asyncio.StreamReader, size_bytes: int) -> None:
    """Take an answer of that size and the connection's end, after a pause."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    await asyncio.sleep(1.5 * protocol.LINGER_SECONDS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert len(await reader.read()) == size_bytes


@on_uvloop
async def test_a_header_has_its_bound_however_much_is_read_at_once() -> None:
    """431, before a further byte comes."""
    async with serving(Rooms()) as (reader, writer, _):
        writer.write(b"GET /now HTTP/1.1\r\nHost: bell\r\nX: " + b"x" * 60_000)  # which loopback brings at once
        assert (await heard(reader))[0] == 431
        assert await reader.read() == b""


@on_uvloop
async def test_a_body_has_its_own_time_after_a_slow_header() -> None:
    """Each within its deadline, both together not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "HEADER_SECONDS", 1.5)
        patch.setattr(protocol, "BODY_SECONDS", 1.5)
        async with serving(Rooms()) as (reader, writer, _):
            for piece in (b"POST /echo HTTP/1.1\r\n", b"Host: bell\r\nContent-Length: 2\r\n\r\n", b"hi"):
                writer.write(piece)
                await asyncio.sleep(0.9)
            assert await heard(reader) == (200, "hi")


@on_uvloop
async def test_nobody_is_late_while_nothing_is_read() -> None:
    """A body behind requests that wait for their answers has its time when its turn comes."""
    rooms = Rooms()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "BODY_SECONDS", 1.0)
        async with serving(rooms) as (reader, writer, _):
            post = b"POST /echo HTTP/1.1\r\nHost: bell\r\nContent-Length: 2\r\n\r\n"
            writer.write(GET % b"/later?1" + GET % b"/later?2" + post)
            await asyncio.sleep(1.5)
            for number in ("1", "2"):
                await until(lambda: rooms.waiting)
                rooms.waiting.pop()()
                assert await heard(reader) == (200, number)
            writer.write(b"hi")
            assert await heard(reader) == (200, "hi")
            writer.write(post)
            assert (await heard(reader))[0] == 408


@on_uvloop
async def test_nobody_is_told_to_go_on_who_has_an_answer() -> None:
    """A 100 behind it would be taken for the next answer."""
    async with serving(Rooms()) as (reader, writer, _):
        fields = b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(b"POST /now?1 HTTP/1.1\r\nHost: bell\r\n" + fields)
        assert await heard(reader) == (200, "1")
        writer.write(b"5\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"hello\r\n0\r\n\r\n" + GET % b"/now?2")
        assert await heard(reader) == (200, "2")


@on_uvloop
async def test_nothing_is_logged_that_any_client_can_cause(caplog: pytest.LogCaptureFixture) -> None:
    """Kept connections, large answers, nonsense, and the end."""
    async with serving(Rooms()) as (reader, writer, server):
        for number in range(5):
            writer.write(GET % (b"/now?%d" % number) + GET % b"/now?next")
            assert await heard(reader) == (200, f"{number}")
            assert await heard(reader) == (200, "next")
        writer.write(GET % b"/large" + GET % b"/now?after")
        assert len((await heard(reader))[1]) == LARGE_BYTES
        assert await heard(reader) == (200, "after")
        writer.write(b"nonsense\r\n\r\n")
        assert (await heard(reader))[0] == 400
        assert await reader.read() == b""
        await until(lambda: not server.connections)
    assert caplog.records == []


@on_uvloop
async def test_a_client_of_before_is_not_told_to_go_on() -> None:
    """HTTP/1.0 knows no 100 (RFC 9110 §10.1.1): it would be taken for the answer."""
    async with serving(Rooms()) as (reader, writer, _):
        writer.write(b"POST /echo HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"hi")
        assert await heard(reader) == (200, "hi")


def test_a_client_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves unread is counted, and kept no longer than the deadline for reading it."""
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.2)
    counted: list[int] = []

    @on_uvloop
    async def scenario() -> None:
        async with serving(Rooms()) as (_, writer, server):
            hold = server.unread.hold

            def count(connection: HttpProtocol, size_bytes: int) -> Iterator[HttpProtocol]:
                counted.append(size_bytes)
                return hold(connection, size_bytes)

            monkeypatch.setattr(server.unread, "hold", count)
            writer.write(GET % b"/large")
            await until(lambda: counted)
            await until(lambda: not server.connections)

    scenario()
    assert counted[0] > LARGE_BYTES // 4
