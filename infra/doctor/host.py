"""The running host, at its own doors: is it there, does it take our token, could it publish, and a file rung again."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import quote_plus

from functions.cameras.detections import LABEL
from functions.cameras.discovery import availability_label
from functions.events.routes import Routes, Skip
from functions.s3.clients import StorageError
from infra.device.trouble import FetchError
from infra.doctor.checks import Checkup, NotCheckedError, Timed, WrongError
from infra.host.mqtt.birth_messages import WILL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.doctor.database import DatabaseLeg
    from infra.doctor.store import StoreLeg
    from infra.http_client import Web

HOST, TOKEN, READY, TOPICS, RING = "host", "webhook token", "host's broker", "publish rights", "ring"

MAX_ANSWER_BYTES = 1 << 22  # metrics of a host with many cameras, too
RING_SECONDS = 12.0
STATUS = "/api/v1/integrations/mqtt/status"
_TEST = json.dumps({"Service": "bucketbell doctor", "Event": "s3:TestEvent"}).encode()
_TURNED_AWAY = re.compile(r'^events_total\{[^}]*outcome="unauthorised"[^}]*\} (\S+)$', re.MULTILINE)


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

    def rights(self, store: StoreLeg | None, key: str | None) -> tuple[Checkup, ...]:
        """What the broker lets the host publish; with a `key`, by announcing that file again."""
        if key is not None:
            needs = (HOST, TOKEN, READY)
            return (Checkup(TOPICS, lambda: self._ring(store, key), needs, seconds=RING_SECONDS),)
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
                "Name the authority of its certificate with `--ca-file`."
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
        if not self.settings.admin_tokens:
            raise NotCheckedError("MQTT has no question for it: `--ring FILE` announces a real file again")
        topics = self._verdicts()
        for topic, reason in topics.items():
            if reason:
                self._refused(topic, reason)
        wanted = Routes.of(self.settings).topics
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
        return f"{prefix}/{label}" if label == LABEL else label

    def _verdicts(self) -> dict[str, str]:
        """What the broker last said to the host: by topic, "" where it took the message."""
        token = self.settings.admin_tokens[0].get_secret_value()
        answer = self.ask("GET", STATUS, {"Authorization": f"Bearer {token}", "Accept": "application/json"})
        if answer.status != HTTPStatus.OK:
            raise NotCheckedError(f"the host does not accept the first of ADMIN_TOKENS (HTTP {answer.status})")
        topics = answer.document.get("topics", [])
        return {str(one["topic"]): "" if one["accepted"] else str(one["reason"]) for one in topics}

    def _ring(self, store: StoreLeg | None, key: str) -> Timed:
        if store is None:
            raise NotCheckedError("BUCKET is not set")
        try:
            found = store.objects.head(key)
        except StorageError as error:
            raise NotCheckedError(f"the store does not tell of {key}: {error.message}") from None
        if found is None:
            raise WrongError(f"There is no file {key} in the bucket.", "Name one that is there, with its prefix.")
        record = {
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "eventTime": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "s3": {
                "bucket": {"name": store.bucket},
                "object": {"key": quote_plus(key), "size": found.size, "eTag": found.etag}
                | ({"versionId": found.version_id} if found.version_id else {}),
            },
        }
        topic = self._topic_of(record)
        headers = {"Content-Type": "application/json"}
        if self.settings.webhook_tokens:
            headers["Authorization"] = f"Bearer {self.settings.webhook_tokens[0].get_secret_value()}"
        began_at = time.monotonic()
        answer = self.ask("POST", "/events", headers, json.dumps({"Records": [record]}).encode())
        outcome = ", ".join(map(str, answer.document.get("outcomes", [])))
        if answer.status == HTTPStatus.OK and outcome in {"delivered", "sent", "no_subscribers"}:
            said = {"no_subscribers": ", and nobody listens there", "sent": " (QoS 0: nobody confirms it)"}
            return Timed.since(began_at, f"{key} rang on {topic}{said.get(outcome, '')}")
        if outcome in {"refused", "gave_up"}:
            reasons = self._verdicts() if self.settings.admin_tokens else {}
            self._refused(topic, reasons.get(topic) or "not allowed")
        raise WrongError(
            f"{key} was not announced on {topic}: {outcome or f'HTTP {answer.status}'}.",
            "The host's log names the reason (`publish failed`): most often the broker's rules forbid this topic.",
        )

    def _topic_of(self, record: Mapping[str, Any]) -> str:
        from functions.events.plan import plan  # noqa: PLC0415 - only to ring

        action = plan({"Records": [record]}, Routes.of(self.settings))[0].action
        if isinstance(action, Skip):
            raise WrongError(
                f"No device would hear of that file: {action.reason}.",
                "Name a file below CONFIGS_PREFIX or ASSETS_PREFIX; a config's name is <mac>.json with dashes.",
            )
        message = getattr(action, "message", None)
        return "a camera's topic" if message is None else str(message.topic)

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
