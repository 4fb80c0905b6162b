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
from infra.host.web.door import Answer, Door
from infra.host.web.protocol import HttpProtocol
from infra.host.web.server import Server
from infra.host.web.tls import Certificate
from infra.local.certificates import make_certificates
from infra.local.process import free_port
from tests.hosts import on_uvloop, until
from tests.timing import PATIENCE_SECONDS

LARGE_BYTES = 32 << 20  # more than the kernel takes of an answer that nobody reads
GET = b"GET %b HTTP/1.1\r\nHost: bell\r\n\r\n"


def ok(text: str) -> Reply:
    """A reply with this body."""
    return Reply(HTTPStatus.OK, {}, text)


def fail(_request: Request, _answer: Answer) -> None:
    """As a door with a fault does."""
    raise RuntimeError("unforeseen")


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
            "/twice": Door(lambda _, answer: (answer(ok("first")), answer(ok("second")))[0]),
            "/fails": Door(fail),
            "/large": Door(lambda _, answer: answer(ok("x" * LARGE_BYTES))),
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
    """As does one that is closed: neither is the client's fault alone."""
    async with serving(Rooms()) as (reader, writer, _):
        writer.write(GET % b"/fails" + GET % b"/closed" + GET % b"/now?on")
        assert [(await heard(reader))[0] for _ in range(3)] == [500, 403, 200]


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
