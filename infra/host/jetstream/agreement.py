"""Hosts on one consumer must mean the same by an event: else half of the uploads are announced somewhere else.

Each writes into the shared bucket how it routes, and again every few seconds. A host that finds something else there
takes no events, and says what differs; the others go on. Who wrote it may be gone: what nobody has written again for
`LEASE_SECONDS` by this host's own clock is replaced.
"""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

from nats.js import errors as js_errors

from functions.telemetry import logger
from infra.jetstream.connection import JetStreamError

if TYPE_CHECKING:
    from nats.js.kv import KeyValue

    from functions.settings import Settings

LEASE_SECONDS = 30.0
RENEW_SECONDS = 8.0
ATTEMPTS = 3
VARIABLES = ("bucket", "topic_prefix", "configs_prefix", "assets_prefix", "events_prefix")


class Agreement:
    """Lives as long as the process: it has to know for how long it has seen what others wrote."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is written before `renew`."""
        self._key = f"settings-{settings.nats_consumer}"
        self._own: dict[str, Any] = {name.upper(): getattr(settings, name) for name in VARIABLES}
        self._revision = 0
        self._theirs: tuple[int, float] = (0, 0.0)  # the revision that others wrote, and when that was new to us
        self._other_broker = ""

    async def renew(self, bucket: KeyValue, broker: str | None) -> None:
        """Write down what is meant here. Raises `JetStreamError` where another host means something else.

        `broker` is where this host publishes: another one is only warned of, for brokers may be a cluster.
        """
        own = json.dumps({"host": socket.gethostname(), "settings": self._own, "broker": broker}).encode()
        for _ in range(ATTEMPTS):
            try:
                last = self._judge(await bucket.get(self._key), broker)
            except js_errors.KeyNotFoundError:
                last = 0
            try:
                write = bucket.update(self._key, own, last=last) if last else bucket.create(self._key, own)
                self._revision = await write
            except js_errors.KeyWrongLastSequenceError:
                continue  # another host was a moment earlier: see what it means
            return

    def _judge(self, entry: KeyValue.Entry, broker: str | None) -> int:
        """Return the revision that may be replaced. Raises `JetStreamError`."""
        theirs = _read(entry.value)
        revision = entry.revision or 0
        if theirs.get("settings") == self._own:
            self._warn_of_another_broker(theirs, broker)
        elif revision == self._theirs[0] and time.monotonic() - self._theirs[1] > LEASE_SECONDS:
            logger.info("the hosts with other settings have gone", extra={"host": theirs.get("host")})
        else:
            if revision != self._theirs[0]:
                self._theirs = revision, time.monotonic()
            raise JetStreamError(self._difference(theirs))
        return revision

    async def leave(self, bucket: KeyValue) -> None:
        """Take back what this host was the last to write; others of the same mind write it again."""
        if self._revision:
            await bucket.delete(self._key, last=self._revision)

    def _difference(self, theirs: dict[str, Any]) -> str:
        settings = theirs.get("settings")
        other: dict[str, Any] = settings if isinstance(settings, dict) else {}
        differs = [name for name in self._own if other.get(name) != self._own[name]]
        each = ", ".join(f"{name} is {other.get(name)!r} there and {self._own[name]!r} here" for name in differs)
        return (
            f"another host ({theirs.get('host')}) takes events from this consumer with other settings: {each}. Set "
            "them alike, or give this host a stream and a consumer of its own (NATS_STREAM, NATS_CONSUMER)"
        )

    def _warn_of_another_broker(self, theirs: dict[str, Any], broker: str | None) -> None:
        other = theirs.get("broker")
        if other and broker and other not in (broker, self._other_broker):
            self._other_broker = str(other)
            words = "another host on this consumer publishes to another broker: do both belong to one cluster?"
            logger.warning(words, extra={"host": theirs.get("host"), "broker": other, "own_broker": broker})


def _read(value: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(value or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
