"""The real host with stored broker settings, an administrator who asks it, and a store that keeps on posting."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from infra.subscriber import Subscriber
from tests.databases import new_key
from tests.hosts import TOKEN, Host, environment, eventually, upload
from tests.timing import PATIENCE_SECONDS

ADMIN = "admin-token-0123456789"
API = "/api/v1/integrations/mqtt"
USER, PASSWORD = "bell", "canary-9f2c-secret"
KEY = new_key().get_secret_value()
SHORT = """
from infra.host import broker_settings
broker_settings.RELOAD_SECONDS, broker_settings.RETRY_SECONDS = 0.2, 0.1
"""


def storing(url: str, mqtt_url: str | None = None, **more: str) -> dict[str, str]:
    """What a host needs to know to keep settings in that database."""
    known = {
        "DATABASE_URL": url,
        "ENCRYPTION_KEYS": KEY,
        "ADMIN_TOKENS": ADMIN,
        "MQTT_CONNECT_TIMEOUT_SECONDS": "5",
        "MQTT_PUBLISH_TIMEOUT_SECONDS": "3",
        "DEVICE_REQUESTS_PER_MINUTE": "0",
    }
    return environment(mqtt_url, **known | more)


def settings_of(port: int, **changes: object) -> dict[str, object]:
    """Settings as a person stores them."""
    return {"broker_host": "127.0.0.1", "broker_port": port, "topic_prefix": "home"} | changes


class Admin:
    """Asks one host as an administrator does."""

    def __init__(self, host: Host) -> None:
        self._http = host.http

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own options
        """The answer to one request."""
        return self._http.request(method, f"{API}/{path}", headers={"Authorization": f"Bearer {ADMIN}"}, **more)

    def put(self, port: int, **changes: object) -> dict[str, Any]:
        """Store settings; what is in force from now on."""
        answer = self.ask("PUT", "config", json=settings_of(port, **changes))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def config(self) -> dict[str, Any]:
        """The settings in force."""
        return dict(self.ask("GET", "config").json())

    def status(self) -> dict[str, Any]:
        """How the connection is doing."""
        return dict(self.ask("GET", "status").json())

    def connected(self) -> bool:
        """Whether the broker has accepted."""
        return bool(self.status()["connected"])


@contextmanager
def stored(
    directory: Path, environment: dict[str, str], port: int, patch: str = SHORT, /, **changes: object
) -> Iterator[tuple[Host, Admin]]:
    """A host with these settings stored; `patch` is Python that it runs first."""
    with Host(directory, environment, ready=False, patch=patch) as host:
        admin = Admin(host)
        eventually(lambda: admin.ask("GET", "config").status_code == 200)  # the tables are made
        admin.put(port, **changes)
        yield host, admin


def readiness(host: Host) -> tuple[int, dict[str, Any]]:
    """What `/readyz` says."""
    answer = host.http.get("/readyz")
    return answer.status_code, answer.json()["mqtt"]


class Stream:
    """Posts events at the sure door as a store does: each once, and again while the host answers 503."""

    def __init__(self, host: Host, stem: str) -> None:
        self._host = host
        self._stem = stem
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.confirmed: list[str] = []
        self.answers: list[int] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE_SECONDS)

    def next_name(self) -> str:
        """The first name that is certainly not posted yet."""
        return self._name(len(self.confirmed) + 1)

    def _name(self, number: int) -> str:
        return f"{self._stem}-{number:05d}.bin"

    def _run(self) -> None:
        with httpx.Client(base_url=self._host.url, timeout=PATIENCE_SECONDS, trust_env=False) as http:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            while not self._over.is_set():
                name = self._name(len(self.confirmed))
                body = upload(f"assets/{name}")
                while (status := http.post("/events", content=body, headers=headers).status_code) == 503:
                    self.answers.append(status)
                    time.sleep(0.05)
                self.answers.append(status)
                self.confirmed.append(name)
                time.sleep(0.002)


def names(subscriber: Subscriber) -> list[str]:
    """The files heard of, in order."""
    return [json.loads(message.payload)["filename"] for message in subscriber.messages]


def four(host: Host) -> tuple[float, float, float, float]:
    """The metrics that watch the connection, in the order in which the requirements name them."""
    return (
        host.metric("mqtt_connection_status"),
        host.metric("mqtt_messages_published_total"),
        host.metric("mqtt_publish_errors_total"),
        host.metric("mqtt_reconnect_attempts_total"),
    )
