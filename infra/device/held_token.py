"""The device's token: given at the start, replaced by its next one before it ends, kept in the device's folder.

A token is a JWT, and its next one has the same id (`jti`). So of what is kept only that counts which came of the token
that was given: another one is a person's decision. Until a new token has been accepted once, the one before is kept
too: a host that does not know the new one's key yet must not lock the device out.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from infra.device.store import DeviceStore
from infra.device.trouble import FetchError

RENEW_BELOW = 0.5
"""A next token is asked for when less than this share of the life is left."""


class HeldToken:
    """What the device shows. Not thread-safe."""

    def __init__(self, given: str, store: DeviceStore | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """`given` counts if the `store` keeps none that came of it. Without a `store`, nothing lasts."""
        self._store = store
        self._clock = clock
        kept = () if store is None else store.tokens()
        jti = _claims(given).get("jti")
        came_of_it = [token for token in kept if jti is not None and _claims(token).get("jti") == jti]
        self._tokens = list(dict.fromkeys((*came_of_it, given)))

    @property
    def headers(self) -> dict[str, str]:
        """What shows it."""
        return {"Authorization": f"Bearer {self._tokens[0]}"}

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next one; never of a token whose times cannot be read."""
        claims = _claims(self._tokens[0])
        begin, end = claims.get("iat"), claims.get("exp")
        if not isinstance(begin, int) or not isinstance(end, int):
            return False
        return end - self._clock() < RENEW_BELOW * (end - begin)

    def replace(self, token: str) -> None:
        """Show this one from now on; FetchError (`disk_full`, `cannot_store`) where it cannot be kept, and is not used.

        No change, if it is the one that is shown.
        """
        tokens = list(dict.fromkeys((token, self._tokens[0])))
        self._keep(tokens)
        self._tokens = tokens

    def accepted(self) -> None:
        """The server took it: those before are not needed any more."""
        if len(self._tokens) > 1:
            del self._tokens[1:]
            with suppress(FetchError):  # the next run sees more than it needs
                self._keep(self._tokens)

    def step_back(self) -> bool:
        """The server did not take it: show the one before from now on, if there is one."""
        if len(self._tokens) == 1:
            return False
        del self._tokens[0]
        with suppress(FetchError):  # the next run steps back itself
            self._keep(self._tokens)
        return True

    def _keep(self, tokens: list[str]) -> None:
        if self._store is not None:
            self._store.keep_tokens(tokens)


def _claims(token: str) -> dict[str, Any]:
    """What a token says, believed as it stands: its server decides. Empty where it is no JWT."""
    try:
        _, payload, _ = token.split(".")
        document = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
