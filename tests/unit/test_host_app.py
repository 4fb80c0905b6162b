"""The host's edges that need no socket: its end, what it calls loopback, and what it says of the link."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from functions.events.routes import Routes
from functions.settings import SettingsError, load
from functions.telemetry import logger
from infra.host.app import App
from infra.host.bell import Bell
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.link import LinkStatus
from infra.host.mqtt.publisher import HostPublisher
from infra.host.server import LinkLog, build, serve
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


def app(*, on_start: tuple[Any, ...] = (), on_stop: tuple[Any, ...] = ()) -> App:
    """An application without a broker."""
    telemetry = PrometheusTelemetry()
    publisher = HostPublisher(None, telemetry)
    bell = Bell(publisher, Routes(), telemetry, patience_seconds=1.0)
    return App(bell, publisher, telemetry, on_start=on_start, on_stop=on_stop)


@on_uvloop
async def test_a_failure_at_the_end_is_logged_and_the_rest_still_ends(said: list[tuple[str, str]]) -> None:
    """The publisher says good-bye although the poller could not."""
    calls: list[str] = []

    async def fails() -> None:
        raise RuntimeError("unforeseen")

    async def works() -> None:
        calls.append("stopped")

    sent: list[str] = []
    messages = iter(({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}))

    async def receive() -> Any:  # noqa: ANN401 - ASGI's message
        return next(messages)

    async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's message
        sent.append(message["type"])

    await app(on_stop=(fails, works))({"type": "lifespan"}, receive, send)
    assert calls == ["stopped"]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert said == [("ERROR", "shutdown")]


@on_uvloop
async def test_a_client_that_leaves_in_the_middle_of_its_body_gets_no_answer() -> None:
    """Nobody is there to read one, and nothing is raised."""
    messages = iter(({"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}))
    sent: list[Any] = []

    async def receive() -> Any:  # noqa: ANN401 - ASGI's message
        return next(messages)

    async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's message
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/events", "headers": []}
    await app()(scope, receive, send)
    assert sent == []


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
    """`build` opens nothing; neither the application nor the publisher renders a secret."""
    known = {"MQTT_URL": "mqtt://broker", "MQTT_USERNAME": "u", "MQTT_PASSWORD": "s3cret", "WEBHOOK_TOKENS": TOKEN}
    made, publisher = build(load(known).settings)
    assert not publisher.ready
    shown = repr(vars(publisher)) + repr(publisher.status) + repr(made)
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
    failed = ("WARNING", "mqtt connection failed; trying on")
    connected, disconnected = ("INFO", "mqtt connected"), ("INFO", "mqtt disconnected")
    assert said == [failed, failed, connected, disconnected, failed, connected, disconnected]
