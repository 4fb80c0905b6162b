"""The balancer that stands before two hosts: whose failures it hides, and whose it passes on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from infra.local.process import free_port
from tests.fakes.balancer import Balancer

ANSWER_SECONDS = 5.0


class Greeter:
    """A server that says its name to whoever connects, and then waits for the end."""

    def __init__(self, name: bytes) -> None:
        """Listens at once."""
        self._name = name
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Refuse from now on."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with ExitStack() as lines:
            while True:
                try:
                    line, _ = self._listener.accept()
                except OSError:
                    return
                lines.enter_context(line)
                line.sendall(self._name)


@pytest.fixture
def greeters() -> Iterator[tuple[Greeter, Greeter]]:
    """Two of them."""
    with closing(Greeter(b"one")) as one, closing(Greeter(b"two")) as two:
        yield one, two


def greeting(port: int) -> bytes:
    """What a new connection to that port hears first."""
    with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) as line:
        return line.recv(16)


def test_connections_go_to_each_in_turn(greeters: tuple[Greeter, Greeter]) -> None:
    """Four connections: two for each, and counted."""
    one, two = greeters
    with Balancer([one.port, two.port]) as balancer:
        assert [greeting(balancer.port) for _ in range(4)] == [b"one", b"two", b"one", b"two"]
        assert balancer.connections == {one.port: 2, two.port: 2}


def test_one_that_refuses_is_passed_over(greeters: tuple[Greeter, Greeter]) -> None:
    """The other one gets all."""
    one, _ = greeters
    with Balancer([free_port(), one.port]) as balancer:
        assert [greeting(balancer.port) for _ in range(3)] == [b"one"] * 3


def test_a_client_hears_of_the_end_when_nobody_is_left() -> None:
    """Its connection is closed, not left hanging."""
    with Balancer([free_port(), free_port()]) as balancer:
        assert greeting(balancer.port) == b""
