"""Entry: a device's HTTP request in; a presigned URL, the manifest of what is current, or the next token, out."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from functions import lean_imports
from functions.devices.api import explain, router
from functions.devices.downloads import Downloads, Principal
from functions.lifecycle import Renewal, begin
from functions.settings import SettingsError
from functions.telemetry import EmfTelemetry, logger
from functions.web.api_gateway import answer_of, respond
from functions.web.router import Router
from functions.web.tokens import KeyringError

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

RENEW_SECONDS = 120.0  # between two looks into the secret: a rotated key is in force in 5 minutes, even if one fails

_lock = threading.Lock()
_downloads: Downloads | None = None
_router: Router[Principal] | None = None
_renewal: Renewal | None = None


def _ready() -> Router[Principal]:
    """Return this process's routes, by settings that are read again now and then. Raises what `explain` knows.

    The last good ones stay in use while Secrets Manager does not answer or its secret cannot be used.
    """
    global _downloads, _router, _renewal  # noqa: PLW0603 - one warm client of the store for each process is the point of it
    with _lock:
        if _renewal is None or _downloads is None or _router is None:
            _renewal = Renewal(after_seconds=RENEW_SECONDS)
            _downloads = Downloads.of(_renewal.settings)
            _router = router(_downloads, _renewed)
        try:
            if _renewal.renew():
                _downloads = Downloads.of(_renewal.settings)
                _router = router(_downloads, _renewed)
                logger.info("settings have changed")
        except (SettingsError, KeyringError) as error:
            logger.error("settings cannot be read again", extra={"problem": str(error)})  # which holds no value
        return _router


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """AWS Lambda entry: an HTTP API's event (payload format 2.0)."""
    del context
    try:
        ready = _ready()
    except (SettingsError, KeyringError) as error:
        return answer_of(explain(error).reply)
    return respond(ready, event)


def _renewed() -> None:
    telemetry = EmfTelemetry()
    telemetry.token_renewed()
    telemetry.flush()


def _start() -> None:
    """Do half a second of imports at the cheapest moment. Each request is told what is wrong."""
    global _downloads  # noqa: PLW0603 - as in `_ready`
    _downloads = None  # what a snapshot may hold is out of date
    with suppress(SettingsError, KeyringError):
        _ready()
        _warm_up()


def _warm_up() -> None:
    if _downloads is not None:
        _downloads.warm_up()


begin(_start, asks_aws=True)
lean_imports.end()
