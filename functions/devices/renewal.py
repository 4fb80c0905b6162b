"""A device's next token, in exchange for the one that it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from functions.devices.downloads import Principal
from functions.telemetry import logger
from functions.web.messages import Problem, Reply, Request, as_json, iso
from functions.web.tokens import Keyring

TOKEN = "/token"  # noqa: S105 - a path


@dataclass(frozen=True, slots=True)
class TokenRenewal:
    """Answers `POST /token`. `renewed` counts."""

    keyring: Keyring
    renewed: Callable[[], None] = lambda: None

    def __call__(self, request: Request, caller: Principal) -> Reply:
        """Answer with the next token. Raises Problem (403) where there is none for this caller."""
        del request  # its token says it all
        before = caller.device
        if before is None:
            raise _refused("not_a_device", "Only a device's own token is renewed: `bucketbell token` makes one.")
        if not before.is_renewable:
            raise _refused("not_renewable", "This token was made for less than a year: it ends when it ends.")
        if not self.keyring.can_sign:
            raise _refused("no_signing_key", "No key here signs: tokens are made elsewhere.")
        minted = self.keyring.renew(before)
        self.renewed()
        said = minted.said
        until = iso(said.expires_at)
        logger.info("a token was renewed", extra={"kid": said.kid, "jti": said.jti, "mac": said.mac, "until": until})
        answer = {"token": minted.token, "expires_at": until}
        return Reply(HTTPStatus.OK, {"Cache-Control": "no-store"}, as_json(answer))


def _refused(reason: str, detail: str) -> Problem:
    return Problem(HTTPStatus.FORBIDDEN, reason, detail)
