"""What a hostile client says on a socket of its own, what it hears, and how the host's process looks from outside."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.hosts import TOKEN, Host
from tests.timing import PATIENCE_SECONDS

AUTHORIZATION = f"Authorization: Bearer {TOKEN}".encode()
LAST = b"GET /the-last-request HTTP/1.1\r\nHost: bell\r\nConnection: close\r\n\r\n"
LAST_STATUS = 404
MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it stood on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


def request(line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    """A request with exactly these fields; line ends are ours."""
    return b"\r\n".join([line, b"Host: bell", *fields, b"", b""]) + body


def post(body: bytes, door: str = "/events", *fields: bytes) -> bytes:
    """An event as a store sends it."""
    length = b"Content-Length: %d" % len(body)
    return request(b"POST %b HTTP/1.1" % door.encode(), AUTHORIZATION, *fields, length, body=body)


def chunked(body: bytes, size: int) -> bytes:
    """The body in chunks of that size."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@contextmanager
def connected(host: Host, said: bytes = b"", *, receive_bytes: int = 0) -> Iterator[socket.socket]:
    """A connection on which that was said; `receive_bytes`: how much it takes in at most, unread."""
    with socket.socket() as sock:
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.settimeout(PATIENCE_SECONDS)
        sock.connect(("127.0.0.1", host.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):  # it may be closed before all is said
            sock.sendall(said)
        yield sock


def next_answer(stream: BinaryIO, method: str = "GET") -> Answer | None:
    """The next answer, None where the connection ends instead; AssertionError for anything else on the wire."""
    line = b""
    with suppress(ConnectionError):
        line = stream.readline()
    if not line:
        return None
    version, status, _ = line.split(b" ", 2)
    assert version == b"HTTP/1.1", line
    headers = {name.lower(): value for name, value in http.client.parse_headers(stream).items()}
    if status == b"100":
        return next_answer(stream, method)
    assert "transfer-encoding" not in headers
    length = 0 if method == "HEAD" or status in {b"204", b"304"} else int(headers["content-length"])
    body = stream.read(length) or b""
    assert len(body) == length
    return Answer(int(status), headers, body)


def hear(sock: socket.socket) -> list[Answer]:
    """All answers until the host ends the connection; TimeoutError where it does not."""
    found: list[Answer] = []
    with sock.makefile("rb") as stream:
        while (answer := next_answer(stream)) is not None:
            found.append(answer)
    return found


def statuses(host: Host, *said: bytes, half_close: bool = False) -> list[int]:
    """What a connection hears until it ends. Once it has heard something it asks its last request, LAST_STATUS.

    So a request that was taken for two, or two for one, shows in the count.
    """
    with connected(host) as sock, suppress(ConnectionError):
        for one in said:
            sock.sendall(one)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as stream:
            found: list[int] = []
            while (answer := next_answer(stream)) is not None:
                found.append(answer.status)
                if len(found) == 1 and not half_close:
                    with suppress(OSError):
                        sock.sendall(LAST)
        return found
    return []


def resident_bytes(host: Host) -> int:
    """The memory that the process really has (Linux)."""
    lines = Path(f"/proc/{host.child.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))
