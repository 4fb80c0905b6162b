"""A Cloudflare Queue, pulled over HTTP: where an R2 bucket puts its events."""

from __future__ import annotations

import binascii
import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from functions.backoff import backoff_seconds
from functions.events.dialects import as_object, excerpt
from functions.events.envelopes import SqsMessage
from infra.host.poller import QueuedMessage

if TYPE_CHECKING:
    from pydantic import SecretStr

    from infra.http_client import Web

MAX_MESSAGES = 50  # of 100 that Cloudflare would give, and each has 128 KB at most
MAX_ANSWER_BYTES = 16 << 20
PAUSE_SECONDS = 1.0  # Cloudflare answers at once when there is nothing
FIRST_RETRY_SECONDS = 10.0  # the queue counts tries, and drops a message after its `max_retries`
LONGEST_RETRY_SECONDS = 3600.0
MARGIN_SECONDS = 30.0  # beside the broker's time, before a message counts as not dealt with
_ADVICE = {
    HTTPStatus.UNAUTHORIZED: "is R2_QUEUE_TOKEN right, and not expired?",
    HTTPStatus.FORBIDDEN: "does R2_QUEUE_TOKEN have the permission Queues: Edit, for this account?",
    HTTPStatus.NOT_FOUND: "are both ids in R2_QUEUE_URL right?",
    HTTPStatus.BAD_REQUEST: "has the queue an HTTP pull consumer? `wrangler queues consumer http add <queue>`",
}


class QueueError(Exception):
    """The queue cannot be asked; the message says what to do, and holds no secret."""


class CloudflareQueue:
    """Its calls block (Cloudflare Queues, "Pull consumers"). It may hold messages that are not for us."""

    source = "r2"
    pause_seconds = PAUSE_SECONDS
    is_shared = True

    def __init__(self, web: Web, url: str, token: SecretStr, *, patience_seconds: float) -> None:
        """`url` as in R2_QUEUE_URL. `patience_seconds`: how long a message may take to be dealt with."""
        self._web = web
        self._url = url
        self._token = token
        self._lease_ms = int((patience_seconds + MARGIN_SECONDS) * 1000)

    def receive(self) -> list[QueuedMessage]:
        """See `PolledQueue`. Raises QueueError and FetchError."""
        result = self._call("pull", {"batch_size": MAX_MESSAGES, "visibility_timeout_ms": self._lease_ms})
        messages = result.get("messages")
        found = [_received(as_object(one)) for one in messages] if isinstance(messages, list) else []
        return [one for one in found if one.receipt]

    def settle(self, done: Sequence[QueuedMessage], kept: Sequence[QueuedMessage]) -> None:
        """See `PolledQueue`. Raises QueueError and FetchError."""
        acks = [{"lease_id": one.receipt} for one in done]
        self._call("ack", {"acks": acks, "retries": [_retry(one) for one in kept]})

    def _call(self, action: str, document: dict[str, Any]) -> dict[Any, Any]:
        url, body = f"{self._url}/messages/{action}", json.dumps(document).encode()
        with self._web.request("POST", url, self._headers(), body) as response:
            try:
                answer = as_object(json.loads(response.body(MAX_ANSWER_BYTES)))
            except (ValueError, RecursionError):
                answer = {}
            if response.status != HTTPStatus.OK or answer.get("success") is not True:
                raise QueueError(_words(response.status, answer))
        return as_object(answer.get("result"))

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token.get_secret_value()}", "Content-Type": "application/json"}


def _received(message: dict[Any, Any]) -> QueuedMessage:
    lease, tries = message.get("lease_id"), message.get("attempts")
    receipt = lease if isinstance(lease, str) else ""
    # The lease is unique, and there for each message; it names the message from here on.
    return QueuedMessage(
        SqsMessage.of(receipt, _body(message.get("body"))), receipt, tries if isinstance(tries, int) else 1
    )


def _body(sent: object) -> object:
    """The text that was put into the queue: JSON and bytes come in base64, text as it is."""
    if isinstance(sent, dict | list):
        return json.dumps(sent)
    if not isinstance(sent, str) or sent.lstrip().startswith(("{", "[")):
        return sent
    try:
        return binascii.a2b_base64(sent, strict_mode=True).decode()
    except ValueError:  # binascii.Error, a character outside ASCII, or bytes that are no text
        return sent


def _retry(one: QueuedMessage) -> dict[str, object]:
    seconds = backoff_seconds(
        max(1, one.tries), first_seconds=FIRST_RETRY_SECONDS, longest_seconds=LONGEST_RETRY_SECONDS
    )
    return {"lease_id": one.receipt, "delay_seconds": round(seconds)}


def _words(status: int, answer: dict[Any, Any]) -> str:
    errors = answer.get("errors")
    first = as_object(errors[0]) if isinstance(errors, list) and errors else {}
    said = excerpt(first.get("message")) if isinstance(first.get("message"), str) else "no reason"
    advice = next((f" ({words})" for code, words in _ADVICE.items() if code == status), "")
    return f"Cloudflare answered {status}: {said}{advice}"
