"""Pure: who is let in. Wrong tokens never shut out right ones: behind a TLS proxy all have one address.

What is worth nothing by its form, or is remembered as good, is told at once. For the rest a signature has to be
computed, and that has its bound for the process. Static secrets are safe by their length; short ones are refused
unverified to an address that guesses.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote

from functions.web.messages import Problem, Request
from infra.host.web.origin import neighbourhood

SIGNATURES_PER_SECOND = 2000  # of unknown tokens: a tenth of a processor
SUSPECTS_SIGNATURES_PER_SECOND = 1000  # of those, at most, for addresses that have failed within a minute
SHORT_SECRET_CHARACTERS = 20
WRONG_TRIES_PER_MINUTE = 30  # of one address; then short secrets are refused unverified
MINUTE_SECONDS = 60.0
MAX_ADDRESSES = 50_000
SIGNATURE = "x-bz-event-notification-signature"  # Backblaze B2's


class Entrance:
    """One for the process: counts what each address got wrong, and what has been verified this second."""

    def __init__(
        self,
        secrets: Sequence[str] = (),
        needs_signature: Callable[[str], bool] = lambda _token: False,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`secrets` are all that are compared, `needs_signature` tells whether a token costs one."""
        self._has_short = any(len(secret) < SHORT_SECRET_CHARACTERS for secret in secrets)
        self._needs_signature = needs_signature
        self._clock = clock
        self._failures: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        self._second_at = 0.0
        self._signatures = 0

    def wait_seconds(self, token: str, address: str, *, signed: bool = False) -> int:
        """Return in how many seconds `token` may be verified; 0 is now, and counts. Tells nothing of its worth.

        `signed`: where it is taken, tokens that bear a signature are.
        """
        if len(token) < SHORT_SECRET_CHARACTERS and (wait_seconds := self.guess_wait_seconds(address)):
            return wait_seconds
        return self.signature_wait_seconds(address) if signed and self._needs_signature(token) else 0

    def guess_wait_seconds(self, address: str) -> int:
        """Return in how many seconds a short secret may be tried from there; 0 where there is none to be guessed."""
        if not self._has_short:
            return 0
        since, failures = self._of(address)
        return int(since + MINUTE_SECONDS - self._clock()) + 1 if failures >= WRONG_TRIES_PER_MINUTE else 0

    def signature_wait_seconds(self, address: str) -> int:
        """Return in how many seconds a signature may be computed for that address; 0 is now, and counts."""
        now = self._clock()
        if now - self._second_at >= 1.0:
            self._second_at, self._signatures = now, 0
        limit = SUSPECTS_SIGNATURES_PER_SECOND if self._of(address)[1] else SIGNATURES_PER_SECOND
        if self._signatures >= limit:
            return 1
        self._signatures += 1
        return 0

    def failed(self, address: str) -> None:
        """Count a token that was worth nothing."""
        since, failures = self._of(address)
        key = neighbourhood(address)
        self._failures[key] = (since, failures + 1)
        self._failures.move_to_end(key)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def _of(self, address: str) -> tuple[float, int]:
        """Return the beginning of this address's minute, and how often it failed since."""
        now = self._clock()
        since, failures = self._failures.get(neighbourhood(address), (now, 0))
        return (since, failures) if now - since < MINUTE_SECONDS else (now, 0)


@dataclass(frozen=True, slots=True)
class Gate:
    """The way in to one set of paths. `check` raises Problem where a request's token is no good.

    `on_stranger` counts who is turned away, by a word. `signed`: see `Entrance.wait_seconds`.
    """

    entrance: Entrance
    check: Callable[[Request], object]
    on_stranger: Callable[[str], None] = lambda _reason: None
    signed: bool = False

    def admit(self, request: Request) -> bytes:
        """Return whose share the request takes: its token's, once that is verified. Raises Problem."""
        token, address = request.token, request.address
        wait_seconds = self.entrance.wait_seconds(token, address, signed=self.signed) if token else 0
        if wait_seconds:
            self.on_stranger("too_many")
            raise too_many(wait_seconds)
        try:
            self.check(request)
        except Problem as problem:
            if problem.status == HTTPStatus.UNAUTHORIZED:
                self.on_stranger("bad_token" if token else "no_token")
                if token:
                    self.entrance.failed(address)
            raise
        return share_of(token)


class StoreGate:
    """The way in to the doors for events: a store presents one of WEBHOOK_TOKENS, or signs with it, as it can."""

    def __init__(self, tokens: Sequence[str], entrance: Entrance) -> None:
        """Without `tokens` all are let in."""
        self._tokens = tuple(token.encode() for token in tokens)
        self._entrance = entrance

    @property
    def is_open(self) -> bool:
        """Whether no token is asked for."""
        return not self._tokens

    def admit(self, token: str, address: str) -> None:
        """Raise Problem where `token` is not ours. All are compared, whole: the time must not tell which was near."""
        if self.is_open:
            return
        if token and (wait_seconds := self._entrance.wait_seconds(token, address)):
            raise too_many(wait_seconds, closes=True)
        offered = token.encode(errors="replace")
        if not sum(hmac.compare_digest(offered, known) for known in self._tokens):
            if token:
                self._entrance.failed(address)
            raise _refused("bad_token", "A token of WEBHOOK_TOKENS is needed.")

    def await_signed(self, address: str) -> None:
        """Raise Problem where no body may come from there now, to have its signature verified."""
        if wait_seconds := self._entrance.signature_wait_seconds(address):
            raise too_many(wait_seconds, closes=True)

    def admit_signed(self, signature: str, body: bytes, address: str) -> None:
        """Raise Problem where `signature` is not that of `body` by one of our tokens. The bounds are those of `admit`.

        As Backblaze B2 signs ("Event Notifications", `hmacSha256SigningSecret`): HMAC-SHA-256, behind `v1=` in hex.
        """
        version, _, offered = signature.strip().partition("=")
        wait_seconds = self._entrance.guess_wait_seconds(address)
        known = [token for token in self._tokens if not wait_seconds or len(token) >= SHORT_SECRET_CHARACTERS]
        given = offered.lower().encode(errors="replace") if version == "v1" else b""
        if sum(hmac.compare_digest(given, hmac.digest(token, body, "sha256").hex().encode()) for token in known):
            return
        if len(known) < len(self._tokens):
            raise too_many(wait_seconds, closes=True)
        self._entrance.failed(address)
        detail = "The signature is not that of this body by a token of WEBHOOK_TOKENS: sign with one of them."
        raise _refused("bad_signature", detail)


def _refused(reason: str, detail: str) -> Problem:
    headers = {"WWW-Authenticate": "Bearer"}
    return Problem(HTTPStatus.UNAUTHORIZED, reason, detail, headers=headers, closes=True)


def too_many(wait_seconds: int, *, closes: bool = False) -> Problem:
    """A 429 that says when to come again."""
    headers = {"Retry-After": str(wait_seconds)}
    detail = f"Come again in {wait_seconds} s."
    return Problem(HTTPStatus.TOO_MANY_REQUESTS, "too_many", detail, headers=headers, closes=closes)


def share_of(token: str) -> bytes:
    """Return the key of a token's share: not the token, which would be kept."""
    return hashlib.blake2b(token.encode(errors="replace"), digest_size=16).digest()


def offered(request: Request) -> str:
    """Return what a store presents: its bearer token, or the password of `Basic` with any user; else ""."""
    scheme, _, rest = request.header("authorization").strip().partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2].decode(errors="replace")
        except (binascii.Error, ValueError):
            return ""
    return request.bearer


def take_token(query: str) -> tuple[str, str]:
    """Split a query string into what its one `token` is, "" where there is not one, and what remains of it.

    A `+` is no blank: a token has none, and a person who writes one into an address may not think of encoding it.
    """
    fields = query.split("&") if query else []
    tokens = [field.partition("=")[2] for field in fields if _name(field) == "token"]
    rest = "&".join(field for field in fields if _name(field) != "token")
    return (unquote(tokens[0]) if len(tokens) == 1 else ""), rest


def _name(field: str) -> str:
    return unquote(field.partition("=")[0])
