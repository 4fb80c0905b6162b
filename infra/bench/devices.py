"""Devices in a process of their own, told by one subscriber, so that all of them hear at the same moment.

`python -m infra.bench.devices` obeys `["start", …]` (the fields of `Fleet`), which is answered when all have caught
up, and `["wait", filename]`, which is answered with the fields of `Pulled` when all have that file or have had
`WAIT_SECONDS`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from functions.events.routes import Routes
from infra.bench.child import Child, obey
from infra.bench.figures import NotMeasuredError
from infra.device.loop import Device
from infra.device.names import Kind
from infra.device.server import DownloadServer
from infra.device.store import DeviceStore
from infra.http_client import Response, Web
from infra.incoming import Received
from infra.subscriber import Subscriber, SubscriberError

START_SECONDS = 40.0
WAIT_SECONDS = 40.0
MARGIN_SECONDS = 5.0
CONNECTIONS = 64  # kept open; more are opened where more are needed at once

_STEPS = ("heard", "downloading", "verified")  # reported when heard, when the URL is there, when the file is in place


@dataclass(frozen=True, slots=True)
class Fleet:
    """The devices to be: one for each MAC address and token, each in a folder of its own below `directory`."""

    tokens: Mapping[str, str]
    directory: str
    server_url: str
    mqtt_url: str
    spread_seconds: float

    def file(self, mac: str, filename: str) -> Path:
        """Where that device keeps that asset."""
        return Path(self.directory, mac, "assets", filename)


@dataclass(frozen=True, slots=True)
class Pulled:
    """What came of one asset, by MAC address: heard, URL had, verified and in place. All times are `time.monotonic`.

    `asked_server_at` and `asked_store_at` are the moments of all requests so far; `failures` the reasons of those that
    did not succeed.
    """

    moments: Mapping[str, tuple[float, float, float]]
    asked_server_at: list[float]
    asked_store_at: list[float]
    failures: list[str]


class Devices:
    """The process, seen from the bench."""

    def __init__(self, fleet: Fleet) -> None:
        """Nothing is started yet."""
        self._fleet = fleet

    def wait(self, filename: str) -> Pulled:
        """What came of this asset, once all have it or `WAIT_SECONDS` have passed."""
        return Pulled(**self._child.ask(("wait", filename), WAIT_SECONDS + MARGIN_SECONDS))

    def __enter__(self) -> Self:
        with ExitStack() as parts:
            self._child = parts.enter_context(Child("infra.bench.devices"))
            if self._child.ask(("start", asdict(self._fleet)), START_SECONDS + MARGIN_SECONDS) != "ready":
                raise NotMeasuredError(f"the devices had not caught up within {START_SECONDS:g} s")
            self._parts = parts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()


class _CountingWeb(Web):
    """Writes down when each request was made, and to whom."""

    def __init__(self, server_url: str) -> None:
        super().__init__(connections=CONNECTIONS)
        self._server_url = server_url
        self.asked_server_at: list[float] = []
        self.asked_store_at: list[float] = []

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Response]:
        asked_at = self.asked_server_at if url.startswith(self._server_url) else self.asked_store_at
        asked_at.append(time.monotonic())
        with super().get(url, headers) as answer:
            yield answer


class _Running:
    """Child: the devices, a thread each."""

    def __init__(self, fleet: Fleet) -> None:
        self._web = _CountingWeb(fleet.server_url)
        self._news = threading.Condition()
        self._caught_up: set[str] = set()
        self._moments: dict[tuple[str, str], dict[str, float]] = {}
        self._failures: list[str] = []
        topics: dict[str, Kind] = dict(zip(Routes().topics, ("config", "asset"), strict=True))
        self._devices = {
            mac: Device(
                mac,
                topics,
                web=self._web,
                server=DownloadServer(self._web, fleet.server_url, token),
                store=DeviceStore(Path(fleet.directory, mac)),
                report=self._report_of(mac),
                spread_seconds=fleet.spread_seconds,
            )
            for mac, token in fleet.tokens.items()
        }
        for device in self._devices.values():
            threading.Thread(target=device.run, daemon=True).start()
        Subscriber(fleet.mqtt_url, tuple(topics), qos=1, on_message=self._tell, on_state=self._listen).begin()

    def ready(self) -> bool:
        """Whether all have caught up in time."""
        with self._news:
            return self._news.wait_for(lambda: len(self._caught_up) == len(self._devices), START_SECONDS)

    def pulled(self, filename: str) -> Pulled:
        """As `Devices.wait`."""

        def complete() -> dict[str, tuple[float, float, float]]:
            found = {mac: self._moments.get((mac, filename), {}) for mac in self._devices}
            return {
                mac: (at["heard"], at["downloading"], at["verified"])
                for mac, at in found.items()
                if len(at) == len(_STEPS)
            }

        with self._news:
            self._news.wait_for(lambda: len(complete()) == len(self._devices), WAIT_SECONDS)
            return Pulled(complete(), self._web.asked_server_at, self._web.asked_store_at, self._failures)

    def _tell(self, message: Received) -> None:
        for device in self._devices.values():
            device.hear(message)

    def _listen(self, error: SubscriberError | None) -> None:
        if error is None:
            for device in self._devices.values():
                device.listening()

    def _report_of(self, mac: str) -> Callable[..., None]:
        def report(event: str, /, **fields: object) -> None:
            now = time.monotonic()
            if event == "progress":
                return
            with self._news:
                if event == "caught_up":
                    self._caught_up.add(mac)
                elif event == "failed":
                    self._failures.append(str(fields["reason"]))
                elif event in _STEPS:
                    self._moments.setdefault((mac, str(fields["filename"])), {})[event] = now
                self._news.notify_all()

        return report


def main() -> None:
    """Child: obey."""
    running: list[_Running] = []

    def do(order: tuple[str, Any]) -> object:
        command, argument = order
        if command == "start":
            running.append(_Running(Fleet(**argument)))
            return "ready" if running[0].ready() else "late"
        return asdict(running[0].pulled(argument))

    obey(do)


if __name__ == "__main__":
    main()
