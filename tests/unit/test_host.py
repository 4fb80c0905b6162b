"""The host's edges that need no socket: its end, what it calls loopback, and what it says of the link."""

from __future__ import annotations

import logging
import socket
from contextlib import AsyncExitStack
from typing import Any

import pytest

from functions.settings import SettingsError, load
from functions.telemetry import logger
from infra.host.logs import LinkLog
from infra.host.mqtt.link import LinkStatus
from infra.host.server import Host, serve
from infra.host.web.origin import is_loopback
from tests.hosts import TOKEN, on_uvloop


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one line."""
        self.lines.append((record.levelname, record.getMessage()))


@pytest.fixture
def said() -> Any:  # noqa: ANN401 - a generator fixture
    """(level, text) of what is logged during the test."""
    handler = Lines()
    # Powertools' logger passes what it does not know on to the standard one.
    standard = logging.getLogger(logger.name)
    standard.addHandler(handler)
    yield handler.lines
    standard.removeHandler(handler)


def built(**known: str) -> Host:
    """A host without a broker."""
    return Host(load(known).settings)


@on_uvloop
async def test_a_failure_at_the_end_is_logged_and_the_rest_still_ends(
    said: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher says goodbye although what began after it could not end."""
    host = built()
    calls: list[str] = []
    stop_holdups = host._bell.holdups.stop  # noqa: SLF001 - what a poller, say, might do

    async def fails() -> None:
        calls.append("failed")
        await stop_holdups()
        raise RuntimeError("unforeseen")

    stop = host.publisher.stop

    async def works() -> None:
        calls.append("stopped")
        await stop()

    monkeypatch.setattr(host._bell.holdups, "stop", fails)  # noqa: SLF001 - as above
    monkeypatch.setattr(host.publisher, "stop", works)
    async with AsyncExitStack() as stack:
        await host._start(stack)  # noqa: SLF001 - `run` waits for a signal
        assert calls == []
    assert calls == ["failed", "stopped"]
    assert said == [("ERROR", "shutdown")]


@on_uvloop
async def test_what_has_begun_ends_where_the_rest_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the caller's; the publisher is stopped all the same."""
    host = built()
    calls: list[str] = []
    stop = host.publisher.stop

    async def fails() -> None:
        raise RuntimeError("unforeseen")

    async def works() -> None:
        calls.append("stopped")
        await stop()

    monkeypatch.setattr(host._bell.holdups, "start", fails)  # noqa: SLF001 - as above
    monkeypatch.setattr(host.publisher, "stop", works)
    with pytest.raises(RuntimeError, match="unforeseen"):
        async with AsyncExitStack() as stack:
            await host._start(stack)  # noqa: SLF001 - as above
    assert calls == ["stopped"]


@on_uvloop
async def test_a_host_that_cannot_listen_says_so_and_ends() -> None:
    """With the system's error, and nothing left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="address"):
        await built().run("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 - that it is not loopback is the point
        ("::", False),
        ("", False),
        ("192.168.1.2", False),
        ("localhost.example.org", False),
        ("broker", False),
    ],
)
def test_only_loopback_counts_as_loopback(host: str, *, expected: bool) -> None:
    """Whatever is not surely this machine alone needs a token."""
    assert is_loopback(host) is expected


def test_an_open_door_is_refused_before_anything_starts() -> None:
    """The variable is named."""
    with pytest.raises(SettingsError, match="WEBHOOK_TOKENS"):
        serve(load({}).settings, "0.0.0.0", 8080)  # noqa: S104 - that it is refused is the point


@on_uvloop
async def test_a_built_host_is_not_connected_and_shows_no_secret() -> None:
    """Building it opens nothing; neither the host nor the publisher renders a secret."""
    known = {"MQTT_URL": "mqtt://broker", "MQTT_USERNAME": "u", "MQTT_PASSWORD": "s3cret", "WEBHOOK_TOKENS": TOKEN}
    host = built(**known)
    assert not host.publisher.ready
    shown = repr(vars(host.publisher)) + repr(host.publisher.status) + repr(vars(host)) + repr(vars(host.site))
    assert "s3cret" not in shown
    assert TOKEN not in shown


def test_the_link_is_logged_at_each_change_and_each_cause_once(said: list[tuple[str, str]]) -> None:
    """INFO on connect and disconnect; WARNING for a cause, however often it repeats, and again after a success."""
    log = LinkLog()
    up = LinkStatus("mqtt://b", connected=True, since=0.0)
    away = LinkStatus("mqtt://b", connected=False, since=0.0, reason="refused")
    denied = LinkStatus("mqtt://b", connected=False, since=0.0, reason="not authorized", reason_code=0x87)
    for status in (away, away, denied, away, denied, up, away, up):
        log(status)
    log(LinkStatus("mqtt://b", connected=False, since=0.0, reason="shut down"))
    failed = ("WARNING", "mqtt connection failed; trying again")
    connected, disconnected = ("INFO", "mqtt connected"), ("INFO", "mqtt disconnected")
    assert said == [failed, failed, connected, disconnected, failed, connected, disconnected]
