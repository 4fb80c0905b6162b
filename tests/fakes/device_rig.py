"""One reference device in this process, its events kept, with no pauses between attempts unless asked for."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from infra.device.loop import Device
from infra.device.names import Kind
from infra.device.server import DownloadServer
from infra.device.store import DeviceStore
from infra.http_client import Web
from infra.incoming import Received
from tests.fakes.slow_store import TOKEN
from tests.timing import PATIENCE_SECONDS

FILE, NEW = "assets/firmware.bin", os.urandom(300_001)
"""The asset that the tests of one device begin with."""

MAC = "a1-b2-c3-d4-e5-f6"
TOPICS: dict[str, Kind] = {"t/updates/configs": "config", "t/updates/assets": "asset"}


class DeviceRig:
    """A device of `MAC` on `directory`; `events` holds what it reported, as (event, fields), progress left out.

    After a failure it waits for `retry_seconds`, or else as long as it likes but at most `pause_seconds`.
    """

    def __init__(
        self,
        directory: Path,
        server_url: str,
        *,
        spread_seconds: float = 0.0,
        pause_seconds: float = 0.0,
        ca_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        retry_seconds: float | None = None,
    ) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.spreads: list[tuple[float, float]] = []
        self.directory = directory
        self._news = threading.Condition()
        self._web = Web(ca_file=ca_file)
        self._pause_seconds = pause_seconds
        self._retry_seconds = retry_seconds
        self.store = DeviceStore(directory)
        self.server = DownloadServer(self._web, server_url, TOKEN)
        self.device = Device(
            MAC,
            TOPICS,
            web=self._web,
            server=self.server,
            store=self.store,
            report=self._report,
            spread_seconds=spread_seconds,
            clock=clock,
            uniform=self._uniform,
        )
        self._thread: threading.Thread | None = None

    def once(self) -> bool:
        """Catch up in this thread."""
        return self.device.run(once=True)

    def start(self) -> Self:
        """Run in a thread until the end of the `with`, and catch up at once, as when the broker has confirmed."""
        self._thread = threading.Thread(target=self.device.run, name="device", daemon=True)
        self._thread.start()
        self.device.listening()
        return self

    def announce(self, path: str, *, etag: str | None = None, event_id: str | None = None) -> None:
        """Let it hear that `configs/…` or `assets/…` is new."""
        folder, _, filename = path.partition("/")
        self.say(f"t/updates/{folder}", json.dumps({"filename": filename}).encode(), etag=etag, id=event_id)

    def say(self, topic: str, payload: bytes, **properties: str | None) -> None:
        """Let it hear anything at all."""
        said = tuple((name, value) for name, value in properties.items() if value is not None)
        self.device.hear(
            Received(
                topic,
                payload,
                qos=1,
                retain=False,
                user_properties=said,
                content_type=None,
                received_at=time.monotonic(),
                received_wall=time.time(),
            )
        )

    def named(self, event: str) -> list[dict[str, Any]]:
        """The fields of every event of that name so far."""
        with self._news:
            return [fields for name, fields in self.events if name == event]

    def reasons(self, event: str = "failed") -> list[str]:
        """The reasons of every event of that name so far."""
        return [fields["reason"] for fields in self.named(event)]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """The `count`th event of that name; fails when it does not come in time."""
        with self._news:
            self._news.wait_for(lambda: [name for name, _ in self.events].count(event) >= count, PATIENCE_SECONDS)
            found = [fields for name, fields in self.events if name == event]
        assert len(found) >= count, self.events
        return found[count - 1]

    def content(self, path: str) -> bytes:
        """What is under the final name."""
        return (self.directory / path).read_bytes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.stop()
        if self._thread is not None:
            self._thread.join(PATIENCE_SECONDS)
            assert not self._thread.is_alive()
        self.store.close()
        self._web.close()

    def _report(self, event: str, /, **fields: object) -> None:
        if event == "progress":
            return
        json.dumps(fields)  # plain values only
        with self._news:
            self.events.append((event, fields))
            self._news.notify_all()

    def _uniform(self, low: float, high: float) -> float:
        self.spreads.append((low, high))
        if low and self._retry_seconds is not None:
            return self._retry_seconds
        return min(low, self._pause_seconds)
