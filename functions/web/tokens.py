"""Tokens: JWTs that say which device asks, or which one object may be had; the only importer of PyJWT.

A key of DEVICE_TOKEN_KEYS is one of

- `kid:<base64>`: HS256, at least 32 bytes, e.g. `2026:` and the output of `openssl rand -base64 32`;
- `kid:ed25519:<base64>`: EdDSA, the 32 bytes of a private key, which signs and verifies;
- `kid:ed25519-public:<base64>`: EdDSA, the 32 bytes of a public key, which verifies only (what a server needs that
  mints elsewhere). Both need the package `cryptography`.

Each key has one algorithm, whatever a token's header says (RFC 8725 §3.1).
"""

from __future__ import annotations

import base64
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jwt
from jwt.types import Options

from functions.events.names import is_mac, normalise_mac

VARIABLE = "DEVICE_TOKEN_KEYS"
AUDIENCE = "bucketbell"
OBJECT_AUDIENCE = "bucketbell/object"  # so that neither kind of token passes for the other
DAY_SECONDS = 24 * 3600
YEAR_SECONDS = 365 * DAY_SECONDS
LEEWAY_SECONDS = 30  # between the clocks of who minted and who verifies
MIN_SECRET_BYTES = 32  # RFC 7518 §3.2: as long as the hash
ED25519_BYTES = 32
MAX_TOKEN_CHARACTERS = 2048  # ours have about 300
MAX_REMEMBERED_TOKENS = 16_384  # some ten megabytes
SOON_SECONDS = 30 * 24 * 3600
MAX_ENDING = 100

_REQUIRED = ["sub", "aud", "exp", "iat", "jti"]
_CLAIMS_UNCHECKED: Options = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_sub": False,
    "verify_jti": False,
}
_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# Most specific first. What is not here has no word of its own.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "not_yet_valid"),
    (jwt.MissingRequiredClaimError, "missing_claim"),
    (jwt.InvalidAudienceError, "wrong_audience"),
    (jwt.InvalidAlgorithmError, "wrong_algorithm"),
    (jwt.InvalidSignatureError, "bad_signature"),
)


class KeyringError(ValueError):
    """DEVICE_TOKEN_KEYS cannot be used. The message names the variable and the entry's place, never its content."""


class TokenError(Exception):
    """A token is not valid. `reason` is a slug; `kid` and `jti` are set where a key of ours vouches for them."""

    def __init__(self, reason: str, *, kid: str = "", jti: str = "") -> None:
        """Keep the parts as data. Nothing here comes from an unsigned token."""
        self.reason = reason
        self.kid = kid
        self.jti = jti
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class DeviceToken:
    """What a valid token says. `mac` is spelled as it was minted: six hex pairs joined by dashes."""

    mac: str
    jti: str
    issued_at: datetime
    expires_at: datetime
    kid: str

    @property
    def is_renewable(self) -> bool:
        """Whether its device may ask for the next one. One that was made for less than the usual time is to end."""
        return (self.expires_at - self.issued_at).total_seconds() >= YEAR_SECONDS


@dataclass(frozen=True, slots=True)
class MintedToken:
    """A new token of a device, and what it says."""

    token: str = field(repr=False)
    said: DeviceToken


@dataclass(frozen=True, slots=True)
class SeenTokens:
    """Of the devices that have shown a token: how many, and whose last one ends soon and when (the next first)."""

    devices: int
    ending: tuple[tuple[str, datetime], ...]
    """At most MAX_ENDING."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """A token taken apart, true or not: `reason` is "" for a valid one. Its signature is left out."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    reason: str


@dataclass(frozen=True, slots=True)
class _TokenKey:
    kid: str
    algorithm: str
    verifying: Any = field(repr=False)
    signing: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Verified:
    """What a good signature vouches for."""

    subject: str
    audience: str
    jti: str
    kid: str
    ends_at: int
    issued_at: datetime
    expires_at: datetime


class _VerifiedTokens:
    """What was verified last, by token. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Verified] = OrderedDict()

    def get(self, token: str) -> _Verified | None:
        with self._lock:
            known = self._known.get(token)
            if known is not None:
                self._known.move_to_end(token)
            return known

    def values(self) -> tuple[_Verified, ...]:
        with self._lock:
            return tuple(self._known.values())

    def put(self, token: str, verified: _Verified) -> None:
        with self._lock:
            self._known[token] = verified
            if len(self._known) > MAX_REMEMBERED_TOKENS:
                self._known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys: the first that can sign does, all verify. `revoked` holds the `jti` of revoked tokens."""

    keys: tuple[_TokenKey, ...]
    revoked: frozenset[str] = frozenset()
    # A signature that was good once stays so.
    _remembered: _VerifiedTokens = field(init=False, repr=False, compare=False, default_factory=_VerifiedTokens)

    @classmethod
    def parse(cls, entries: Iterable[str], *, revoked: Iterable[str] = ()) -> Keyring:
        """Read DEVICE_TOKEN_KEYS' entries; without entries, no token is valid. Raises KeyringError."""
        keys = tuple(_parse_key(entry, place) for place, entry in enumerate(entries, 1))
        if len({key.kid for key in keys}) < len(keys):
            raise KeyringError(f"{VARIABLE}: two keys have the same id: give each its own")
        return cls(keys, frozenset(revoked))

    @property
    def can_sign(self) -> bool:
        """Whether there is a key to mint with."""
        return any(key.signing is not None for key in self.keys)

    def mint(self, mac: str, *, expires_seconds: float = YEAR_SECONDS, now: float | None = None) -> str:
        """A token for the device `mac`, its letters kept as they are. Raises ValueError for no MAC, KeyringError."""
        return self.issue(mac, expires_seconds=expires_seconds, now=now).token

    def issue(self, mac: str, *, expires_seconds: float = YEAR_SECONDS, now: float | None = None) -> MintedToken:
        """As `mint`, and what the token says."""
        return self._for_device(normalise_mac(mac), uuid.uuid4().hex, _seconds(now), expires_seconds)

    def renew(self, before: DeviceToken, *, now: float | None = None) -> MintedToken:
        """The next token of the device that showed `before`, under the same id. Raises KeyringError.

        It is the same one all day, so nobody can collect many. It never ends earlier than `before`.
        """
        today = _seconds(now) // DAY_SECONDS * DAY_SECONDS
        left_seconds = before.expires_at.timestamp() - today
        return self._for_device(before.mac, before.jti, today, max(YEAR_SECONDS, left_seconds))

    def mint_for_object(self, object_key: str, *, expires_seconds: float = YEAR_SECONDS) -> str:
        """A token for anybody to have this one object. Raises KeyringError."""
        issued_at = _seconds()
        return self._sign(object_key, OBJECT_AUDIENCE, uuid.uuid4().hex, (issued_at, issued_at + int(expires_seconds)))[
            0
        ]

    def _for_device(self, mac: str, jti: str, issued_at: int, expires_seconds: float) -> MintedToken:
        times = (issued_at, issued_at + int(expires_seconds))
        token, kid = self._sign(mac, AUDIENCE, jti, times)
        begin, end = (datetime.fromtimestamp(moment, UTC) for moment in times)
        return MintedToken(token, DeviceToken(mac, jti, begin, end, kid))

    def _sign(self, subject: str, audience: str, jti: str, times: tuple[int, int]) -> tuple[str, str]:
        """A token that begins and ends at these `times`, and the id of its key."""
        key = next((key for key in self.keys if key.signing is not None), None)
        if key is None:
            raise KeyringError(f"{VARIABLE}: holds no key that can sign, e.g. 2026:$(openssl rand -base64 32)")
        claims = {"sub": subject, "aud": audience, "iat": times[0], "exp": times[1], "jti": jti}
        return jwt.encode(claims, key.signing, algorithm=key.algorithm, headers={"kid": key.kid}), key.kid

    def verify(self, token: str) -> DeviceToken:
        """What `token` says, if it is one of ours and in force; raises TokenError otherwise."""
        said = self._verify(token, AUDIENCE)
        return DeviceToken(said.subject, said.jti, said.issued_at, said.expires_at, said.kid)

    def verify_for_object(self, token: str) -> str:
        """The key of the object that `token` is for, if it is one of ours and in force; raises TokenError otherwise."""
        return self._verify(token, OBJECT_AUDIENCE).subject

    def seen(self) -> SeenTokens:
        """What is remembered of devices' tokens. Who has a newer one already needs none."""
        last: dict[str, _Verified] = {}
        for one in self._remembered.values():
            mac = one.subject.casefold()
            if one.audience == AUDIENCE and one.jti not in self.revoked:
                last[mac] = max(one, last.get(mac, one), key=lambda token: token.ends_at)
        soon = [one for one in last.values() if one.ends_at < time.time() + SOON_SECONDS]
        soon = sorted(soon, key=lambda one: one.ends_at)[:MAX_ENDING]
        return SeenTokens(len(last), tuple((one.subject, one.expires_at) for one in soon))

    def needs_signature(self, token: str) -> bool:
        """Whether the signature of `token` still has to be computed."""
        if self._remembered.get(token) is not None:
            return False
        try:
            _check_form(token)
            self._key(jwt.get_unverified_header(token))
        except (TokenError, jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return False
        return True

    def _verify(self, token: str, audience: str) -> _Verified:
        said = self._remembered.get(token)
        if said is None:
            _check_form(token)
            said = self._claims(token, audience)
            if audience == AUDIENCE and not is_mac(said.subject):
                raise TokenError("bad_subject", kid=said.kid, jti=said.jti)
            self._remembered.put(token, said)
        if said.audience != audience:
            raise TokenError("wrong_audience", kid=said.kid, jti=said.jti)
        # As PyJWT asks it, for those that were in force when they were remembered.
        if said.ends_at <= time.time() - LEEWAY_SECONDS:
            raise TokenError("expired", kid=said.kid, jti=said.jti)
        if said.jti in self.revoked:
            raise TokenError("revoked", kid=said.kid, jti=said.jti)
        return said

    def _claims(self, token: str, audience: str) -> _Verified:
        """What `token` claims; by its signature, audience and times."""
        kid = ""
        try:
            key = self._key(jwt.get_unverified_header(token))
            kid = key.kid
            claims = jwt.decode(
                token,
                key.verifying,
                algorithms=[key.algorithm],
                audience=audience,
                leeway=LEEWAY_SECONDS,
                options={"require": _REQUIRED},
            )
            issued_at, expires_at = (datetime.fromtimestamp(int(claims[name]), UTC) for name in ("iat", "exp"))
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, OSError, RecursionError) as error:
            reason = next((slug for kind, slug in _REASONS if isinstance(error, kind)), "malformed")
            jti = "" if reason == "bad_signature" else self._signed_id(token, kid)  # which costs another signature
            raise TokenError(reason, kid=kid if jti else "", jti=jti) from None
        return _Verified(str(claims["sub"]), audience, claims["jti"], kid, int(claims["exp"]), issued_at, expires_at)

    def inspect(self, token: str) -> Inspection:
        """Take `token` apart for a person; raises TokenError("malformed") where there is nothing to see."""
        try:
            parts = jwt.decode_complete(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise TokenError("malformed") from None
        try:
            self.verify(token)
        except TokenError as error:
            return Inspection(parts["header"], parts["payload"], error.reason)
        return Inspection(parts["header"], parts["payload"], "")

    def _key(self, header: Mapping[str, Any]) -> _TokenKey:
        for key in self.keys:
            if key.kid == header.get("kid"):
                return key
        raise TokenError("unknown_kid")

    def _signed_id(self, token: str, kid: str) -> str:
        """The `jti` of a token with a good signature and bad claims, for the log."""
        for key in self.keys:
            if key.kid == kid:
                try:
                    claims = jwt.decode(token, key.verifying, algorithms=[key.algorithm], options=_CLAIMS_UNCHECKED)
                except (jwt.PyJWTError, ValueError, RecursionError):
                    return ""
                jti = claims.get("jti")
                return jti if isinstance(jti, str) else ""
        return ""


def _seconds(now: float | None = None) -> int:
    return int(time.time() if now is None else now)


def _check_form(token: str) -> None:
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise TokenError("too_long")
    if not token.isascii():
        raise TokenError("malformed")


def _parse_key(entry: str, place: int) -> _TokenKey:
    kid, _, rest = entry.strip().partition(":")
    kind, separator, encoded = rest.rpartition(":")
    where = f"{VARIABLE}: entry {place}"
    if _KID.fullmatch(kid) is None or (separator and kind not in {"ed25519", "ed25519-public"}):
        raise KeyringError(
            f"{where} must be an id of letters, digits, dots and dashes, a colon, and base64, "
            "e.g. 2026:$(openssl rand -base64 32); before an Ed25519 key's base64 write ed25519: or ed25519-public:"
        )
    material = _decode(encoded)
    if not kind:
        if len(material) < MIN_SECRET_BYTES:
            raise KeyringError(f"{where} must hold at least {MIN_SECRET_BYTES} bytes in base64 after its id")
        return _TokenKey(kid, "HS256", material, material)
    if len(material) != ED25519_BYTES:
        raise KeyringError(f"{where} must hold the {ED25519_BYTES} bytes of an Ed25519 key in base64")
    try:
        # Optional: only those who want EdDSA install it.
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - see above
    except ImportError:
        raise KeyringError(f"{where} is an Ed25519 key: install the package `cryptography`") from None
    if kind == "ed25519":
        private = ed25519.Ed25519PrivateKey.from_private_bytes(material)
        return _TokenKey(kid, "EdDSA", private.public_key(), private)
    return _TokenKey(kid, "EdDSA", ed25519.Ed25519PublicKey.from_public_bytes(material), None)


def _decode(encoded: str) -> bytes:
    """The bytes of base64, the URL's alphabet and missing padding allowed; b"" for anything else."""
    text = encoded.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return b""
