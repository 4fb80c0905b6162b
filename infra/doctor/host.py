"""The running host, at its own doors: is it there, does it take our token, could it publish, and a file rung again."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import urlencode

from functions.admin import openapi
from functions.cameras.detections import LABEL
from functions.cameras.discovery import availability_label
from functions.events.routes import OWN_LABEL, Routes
from infra.device.trouble import FetchError
from infra.doctor.checks import Checkup, NotCheckedError, Timed, WrongError
from infra.host.mqtt.birth_messages import WILL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.doctor.database import DatabaseLeg
    from infra.http_client import Web

HOST, TOKEN, READY, TOPICS = "host", "webhook token", "host's broker", "publish rights"

MAX_ANSWER_BYTES = 1 << 22  # metrics of a host with many cameras, too
RING_SECONDS = 12.0
_TEST = json.dumps({"Service": "bucketbell doctor", "Event": "s3:TestEvent"}).encode()
_TURNED_AWAY = re.compile(r'^events_total\{[^}]*outcome="unauthorised"[^}]*\} (\S+)$', re.MULTILINE)


_NOT_NOW = frozenset(
    {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.FORBIDDEN}
)


class HeardAgo(NamedTuple):
    """An event that the host has heard: at which door, of which ETag, and how many seconds ago."""

    door: str
    etag: str
    seconds: float


class DoorAnswer(NamedTuple):
    """What the host answered: its JSON, or None where it was none."""

    status: int
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object, {} where it is none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class HostLeg:
    """One host, as this machine reaches it."""

    def __init__(self, database: DatabaseLeg, web: Web, url: str, *, broker: str, is_default: bool) -> None:
        """`broker` is the check of the broker that must be well; `is_default`: nobody named this URL."""
        self.settings = database.settings
        self._database = database
        self.url = url
        self._web = web
        self._broker = broker
        self._is_default = is_default

    def checks(self) -> tuple[Checkup, ...]:
        """All of them, in order."""
        return (
            Checkup(HOST, self._alive),
            Checkup(TOKEN, self._token, (HOST,)),
            Checkup(READY, self._ready, (HOST, self._broker)),
        )

    def rights(self, key: str | None) -> tuple[Checkup, ...]:
        """What the broker lets the host publish; with a `key`, by announcing that file again."""
        if key is not None:
            return (Checkup(TOPICS, lambda: self._ring(key), (HOST, READY), seconds=RING_SECONDS),)
        return (Checkup(TOPICS, self._topics, (HOST, READY)),)

    def turned_away(self) -> float:
        """How many events came with a wrong token since the host's start."""
        metrics = self.ask("GET", "/metrics").body.decode(errors="replace")
        return sum(map(float, _TURNED_AWAY.findall(metrics)))

    def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> DoorAnswer:
        """Ask the host. Raises WrongError where it does not answer."""
        try:
            with self._web.request(method, f"{self.url}{path}", headers or {}, body) as answer:
                return DoorAnswer(answer.status, answer.body(MAX_ANSWER_BYTES))
        except FetchError as error:
            named = "name its address with `--host-url`" if self._is_default else "correct `--host-url`"
            certificate = "certificate" in str(error).lower()
            raise WrongError(
                f"The host does not answer at {self.url}: {error}",
                "Name the authority of its certificate with `--ca-file`, or in BUCKETBELL_CA_FILE: for the host's page "
                "in the host's environment."
                if certificate
                else f"Start it with `bucketbell host`, or {named}.",
            ) from None

    def _alive(self) -> Timed:
        began_at = time.monotonic()
        answer = self.ask("GET", "/healthz")
        if answer.status != HTTPStatus.OK or answer.document.get("alive") is not True:
            raise WrongError(
                f"What answers at {self.url} is not a bucketbell host (HTTP {answer.status}).",
                "Another program has that port, or a proxy does not pass it on: correct `--host-url`, or the proxy.",
            )
        return Timed.since(began_at, f"{self.url} is alive")

    def _token(self) -> str:
        tokens = [token.get_secret_value() for token in self.settings.webhook_tokens]
        for number, token in enumerate(tokens or [""]):
            headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
            answer = self.ask("POST", "/events", headers, _TEST)
            if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}:
                which = f"number {number + 1} of WEBHOOK_TOKENS" if tokens else "a request without a token"
                raise WrongError(
                    f"The host does not accept {which}: it runs with other tokens.",
                    "Set the same WEBHOOK_TOKENS for the host and here, and restart the host.",
                )
            if answer.status >= HTTPStatus.BAD_REQUEST:
                raise WrongError(
                    f"The host refuses a test event: HTTP {answer.status}: {answer.document.get('detail', '')}",
                    "Set WEBHOOK_TOKENS for the host, and restart it.",
                )
        return f"the host accepts {'each' if len(tokens) > 1 else 'it'}" if tokens else "none is needed, on loopback"

    def _ready(self) -> str:
        answer = self.ask("GET", "/readyz")
        mqtt = answer.document.get("mqtt", {})
        if answer.status != HTTPStatus.OK:
            raise WrongError(
                f"The host is not connected to its broker {mqtt.get('broker', '')}: {mqtt.get('reason', '')}",
                "The broker lets these settings in, so the host has others, or has not tried again yet: compare them, "
                "and restart the host.",
            )
        if not mqtt.get("configured"):
            raise WrongError(
                "The host has no broker, and publishes nothing.", "Set MQTT_URL for the host, and restart it."
            )
        return f"connected to {mqtt.get('broker', '')}"

    def _topics(self) -> str:
        topics = self._verdicts()
        for topic, reason in topics.items():
            if reason:
                self._refused(topic, reason)
        wanted = Routes.of(self.settings).labels
        missing = [topic for topic in wanted if topic not in topics]
        if missing:
            raise NotCheckedError(
                f"nothing was published on {' and '.join(missing)} since the host's start: `--ring FILE` announces a "
                "file again"
            )
        return ", ".join(topics)

    def _filter_of(self, label: str) -> str:
        """What a broker's rule calls the topics that a metric calls `label`."""
        stored = self._database.stored
        prefix = self.settings.topic_prefix if stored is None else stored.config.topic_prefix
        if label in {WILL, availability_label(prefix)}:
            return f"{prefix}/bucketbell/+/availability"
        if label == OWN_LABEL:
            return f"{self.settings.topic_prefix}/{label}"
        return f"{prefix}/{label}" if label == LABEL else label

    def _verdicts(self) -> dict[str, str]:
        """What the broker last said to the host: by topic, "" where it took the message."""
        topics = self.status().get("topics", [])
        return {str(one["topic"]): "" if one["accepted"] else str(one["reason"]) for one in topics}

    def status(self) -> dict[str, Any]:
        """What the host says of its broker, and of devices' tokens."""
        return self.administer("GET", openapi.STATUS).document

    def administer(self, method: str, path: str, body: Mapping[str, object] | None = None) -> DoorAnswer:
        """Ask what only an administrator may."""
        if not self.settings.admin_tokens:
            raise NotCheckedError("only with ADMIN_TOKENS does the host tell")
        headers = {"Authorization": f"Bearer {self.settings.admin_tokens[0].get_secret_value()}"}
        headers |= {"Accept": "application/json", "Content-Type": "application/json"}
        answer = self.ask(method, path, headers, None if body is None else json.dumps(body).encode())
        if answer.status in _NOT_NOW:
            raise NotCheckedError(f"the host does not tell: HTTP {answer.status}: {answer.document.get('detail', '')}")
        return answer

    def events_of(self, key: str) -> list[HeardAgo]:
        """What the host has heard of this key."""
        found = self.administer("GET", f"{openapi.WHY}?{urlencode({'key': key})}").document
        if "asked_at" not in found:
            raise NotCheckedError("the host is of an older release")
        now = datetime.fromisoformat(found["asked_at"])  # its clock need not be ours
        return [
            HeardAgo(one["door"], one["etag"] or "", (now - datetime.fromisoformat(one["at"])).total_seconds())
            for one in found["events"]
        ]

    def _ring(self, key: str) -> Timed:
        began_at = time.monotonic()
        answer = self.administer("POST", openapi.RING, {"key": key})
        found = answer.document
        if answer.status == HTTPStatus.OK and found.get("ok") is True:
            return Timed.since(began_at, f"{found['key']}: {found['detail']} ({found['topic']})")
        if found.get("outcome") == "refused":
            self._topics()  # the host has just met it
        raise WrongError(
            f"{key} was not announced: {found.get('detail') or f'HTTP {answer.status}'}",
            "Name a file that is in the bucket and that devices use. If it is one, the host's log names the reason "
            "(`publish failed`).",
        )

    def _refused(self, label: str, reason: str) -> NoReturn:
        stored = self._database.stored
        user = self.settings.mqtt_username if stored is None else stored.config.username
        topic = self._filter_of(label)
        who = f"the user {user}" if user else "this client"
        raise WrongError(
            f"The broker does not let {who} publish on {topic}: {reason}.",
            f"Allow {who} to write {topic} in the broker's rules (Mosquitto's acl_file: `topic write {topic}` below "
            f"`user {user or '…'}`), and reload the broker.",
        )
