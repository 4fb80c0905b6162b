"""The route by which a device reports over HTTP, on the host and on Lambda."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from functions.fleet.reports import MAX_REPORT_BYTES, DeviceReport, ReportError, parse_report
from functions.stored.errors import StoreUnavailableError
from functions.telemetry import logger
from functions.web.messages import Problem, Reply, Request, unavailable, unfit
from functions.web.router import Route, Router, unforeseen

if TYPE_CHECKING:
    from functions.web.tokens import DeviceToken

BUSY_RETRY_SECONDS = 5  # the database is slow or down
PATH = "/report"
HINT = f"A report is sent with POST to {PATH}."


def router(admit: Callable[[Request], DeviceToken], record: Callable[[DeviceReport], None]) -> Router[DeviceToken]:
    """What a device can report; see docs/devices.md. `record` raises `StoreUnavailableError`."""

    def report(request: Request, token: DeviceToken) -> Reply:
        try:
            said = parse_report(request.body, token.mac)
        except ReportError as error:
            raise _refused(error) from None
        record(said)
        return Reply(HTTPStatus.NO_CONTENT, {"Cache-Control": "no-store"})

    return Router(
        "report",
        (Route(("POST",), PATH, report, max_body_bytes=MAX_REPORT_BYTES),),
        admit,
        HINT,
        _explain,
        lambda token: (token.kid, token.jti),
    )


def _refused(error: ReportError) -> Problem:
    field = {"not_json": "body", "too_large": "body", "foreign_mac": "mac", "unknown_state": "state"}
    name = field.get(error.refusal, "filename" if "filename" in error.refusal else "report")
    return unfit([{"field": name, "problem": "cannot be used", "expected": str(error)}])


def _explain(error: Exception) -> Problem:
    if isinstance(error, StoreUnavailableError):
        logger.warning("a report cannot be kept", extra={"problem": str(error)})  # which holds no credentials
        detail = "The report cannot be kept now: send it again."
        return unavailable("database_unavailable", detail, retry_after_seconds=BUSY_RETRY_SECONDS)
    return unforeseen(error)
