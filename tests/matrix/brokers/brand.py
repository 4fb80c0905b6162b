"""What the suite has to know of a broker: how it is started, with whom it lets in, and what it can be told to limit."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.local.process import Process, free_port
from infra.subscriber import Subscriber

BELL, LIMITED = "bell", "limited"
"""Who may do everything, and who may not publish on `FORBIDDEN`."""
USERS = (BELL, LIMITED)
PASSWORD = "ring-ring-ring"

CONFIGS, ASSETS = "iotsupport/updates/configs", "iotsupport/updates/assets"
FORBIDDEN = CONFIGS
HOME, DISCOVERY = "home", "homeassistant"
"""Below these it tells Home Assistant of cameras."""

ASK_SECONDS = 0.2
START_SECONDS = 120.0
LISTEN_SECONDS = 30.0  # some brokers take long while thousands leave


@dataclass(frozen=True, slots=True)
class Limits:
    """What a broker is told to take, and no more; None: what it takes by itself."""

    packet_bytes: int | None = None
    receive_maximum: int | None = None


@dataclass(frozen=True, slots=True)
class Brand:
    """One broker. `make` writes its files for that port, and does not start it.

    `version` finds it in the log where it is no text. `can_limit`: fields of `Limits`. `user_suffix` is added to names.
    `protocols` it speaks; `missing` says what to type where it is not here.
    """

    how: str
    make: Callable[[Path, int, Limits], Process]
    version: str | re.Pattern[str]
    missing: Callable[[], str | None]
    can_limit: frozenset[str] = frozenset()
    user_suffix: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that runs."""

    brand: Brand
    process: Process
    port: int

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        """As it says itself, or as it was fetched."""
        if isinstance(self.brand.version, str):
            return self.brand.version
        found = self.brand.version.search(self.process.log_text())
        return found[1] if found else "unknown"

    def user(self, name: str) -> str:
        """A user's name as this broker wants it."""
        return name + self.brand.user_suffix

    def environment(self, user: str = BELL, *, protocol: str = "5", **more: str) -> dict[str, str]:
        """The host's variables."""
        return {
            "MQTT_URL": self.url,
            "MQTT_USERNAME": self.user(user),
            "MQTT_PASSWORD": PASSWORD,
            "MQTT_PROTOCOL": protocol,
            **more,
        }

    @contextmanager
    def ear(self, *topics: str, protocol: str = "5", qos: int = 2) -> Iterator[Subscriber]:
        """A subscriber that listens."""
        subscriber = Subscriber(
            self.url,
            topics or (CONFIGS, ASSETS),
            qos=qos,
            protocol=protocol,
            username=self.user(BELL),
            password=PASSWORD,
        )
        try:
            yield subscriber.start(LISTEN_SECONDS)
        finally:
            subscriber.stop()


@contextmanager
def running(brand: Brand, directory: Path, limits: Limits | None = None) -> Iterator[Running]:
    """A broker of that brand, from its start until its end; whatever it has started ends with it."""
    port = free_port()
    directory.mkdir(parents=True)
    process = brand.make(directory, port, limits or Limits())
    process.start_timeout_seconds = START_SECONDS
    try:
        process.start()
        yield Running(brand, process, port)
    finally:
        process.kill()


def listening(port: int) -> bool:
    """Whether anybody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), ASK_SECONDS):
        return True
    return False
