"""The routes of the devices' API, and how a failure is told to a device."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from functions.devices.downloads import ASSETS, BROKEN_RETRY_SECONDS, CONFIGS, Downloads, Principal
from functions.devices.renewal import TOKEN, TokenRenewal
from functions.s3.clients import UNREACHABLE, StorageError
from functions.settings import SettingsError
from functions.telemetry import logger
from functions.web.messages import THUMBNAILS, Problem, unavailable
from functions.web.router import Route, Router, unforeseen
from functions.web.tokens import KeyringError

BUSY_RETRY_SECONDS = 5  # the store is slow or down
FILE_METHODS = ("GET", "HEAD")
HINT = "Ask for /configs/<mac>.json, /assets/<path> or /manifest."


def router(downloads: Downloads, renewed: Callable[[], None] = lambda: None) -> Router[Principal]:
    """All that a device can ask for. `renewed` counts the tokens that are."""
    routes = (
        Route(FILE_METHODS, f"{CONFIGS}*", downloads.config),
        Route(FILE_METHODS, ASSETS, downloads.asset, same_for_all=True),
        Route(FILE_METHODS, f"{ASSETS}/*", downloads.asset, same_for_all=True),
        Route(FILE_METHODS, THUMBNAILS, downloads.thumbnail),
        Route(FILE_METHODS, f"{THUMBNAILS}/*", downloads.thumbnail),
        Route(("GET",), "/manifest", downloads.manifest),
        Route(("POST",), TOKEN, TokenRenewal(downloads.keyring, renewed)),
    )
    return Router("download", routes, downloads.admit, HINT, explain, _names)


def _names(caller: Principal) -> tuple[str, str]:
    """What names a device's token in the log."""
    return (caller.device.kid, caller.device.jti) if caller.device is not None else ("", "")


def explain(error: Exception) -> Problem:
    """How a failure is told to a device."""
    if isinstance(error, StorageError):
        busy = error.code == UNREACHABLE or (error.status or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR
        details = {"code": error.code, "status": error.status}
        if busy:
            logger.warning("store is slow or down", extra=details)
        else:
            logger.error("store cannot be used", extra={**details, "detail": error.message})
        retry_after_seconds = BUSY_RETRY_SECONDS if busy else BROKEN_RETRY_SECONDS
        detail = "The object store does not answer as it should."
        return unavailable("store_busy" if busy else "store_broken", detail, retry_after_seconds=retry_after_seconds)
    if isinstance(error, (SettingsError, KeyringError)):
        logger.error("settings cannot be used", extra={"problem": str(error)})  # which holds no value
        detail = "Downloads are not configured: the log says what to set."
        return unavailable("bad_settings", detail, retry_after_seconds=BROKEN_RETRY_SECONDS)
    return unforeseen(error)
