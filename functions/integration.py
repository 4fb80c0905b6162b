"""Entry: HTTP requests that need the database: an administrator's, and a device's report."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from functions.admin.api import described, explain, router
from functions.admin.fleet import FleetAnswers
from functions.admin.operations import Administration, CannotPublishError
from functions.admin.uploads import Uploads
from functions.events.routes import Routes
from functions.lifecycle import Renewal, begin
from functions.settings import SettingsError
from functions.stored.errors import StoreUnavailableError
from functions.stored.store import ConfigStore
from functions.telemetry import logger
from functions.web.api_gateway import answer_of, respond

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aws_lambda_powertools.utilities.typing import LambdaContext

    from functions.admin.operations import TopicVerdict
    from functions.settings import Settings
    from functions.stored.model import MqttConfig
    from functions.stored.store import ProcessStatus, Stored
    from functions.web.router import Router

RENEW_SECONDS = 120.0  # between two looks into the secret


class NoLocalPublisher:
    """The `Publishing` of a function that answers requests: other functions publish, and look at the database."""

    def status(self) -> ProcessStatus | None:
        """See `Publishing.status`."""
        return None

    def topics(self) -> tuple[TopicVerdict, ...]:
        """See `Publishing.topics`."""
        return ()

    def availability_topic(self, config: MqttConfig) -> None:
        """See `Publishing.availability_topic`: a frozen function's last will would lie."""

    def apply(self, stored: Stored | None) -> None:
        """See `Publishing.apply`: the other functions will do it."""

    def publish_discovery(self) -> int:
        """See `Publishing.publish_discovery`."""
        raise CannotPublishError(
            "On Lambda a camera is announced with its next event; only the host can do so at once."
        )

    def forget_camera(self, camera_id: str) -> bool:
        """See `Publishing.forget_camera`."""
        del camera_id
        raise CannotPublishError("Only the host can remove a camera. Without one: publish an empty retained message.")


_lock = threading.Lock()
_routers: tuple[Router[Any], ...] = ()
_renewal: Renewal | None = None


def _ready() -> tuple[Router[Any], ...]:
    """Return this process's routes, by settings that are read again now and then."""
    global _routers, _renewal  # noqa: PLW0603 - one warm pool of database connections for each process
    with _lock:
        if _renewal is None:
            _renewal = Renewal(after_seconds=RENEW_SECONDS)
        try:
            changed = _renewal.renew()
        except SettingsError as error:
            changed = False
            logger.error("settings cannot be read again", extra={"problem": str(error)})  # which holds no value
        if not _routers or changed:
            _routers = tuple(_made(_renewal.settings))
        return _routers


def _made(settings: Settings) -> Iterator[Router[Any]]:
    administration = Administration(settings, ConfigStore.of(settings), NoLocalPublisher())
    uploads = Uploads(Routes.of(settings))
    if settings.database_url is None or settings.bucket is None:
        yield router(administration, uploads)
        return
    from functions.devices.downloads import Downloads  # noqa: PLC0415 - tokens bring cryptography
    from functions.devices.reports import router as reports_router  # noqa: PLC0415 - as above
    from functions.web.tokens import KeyringError  # noqa: PLC0415 - as above

    try:
        downloads = Downloads.of(settings)
    except KeyringError as error:
        raise SettingsError((("DEVICE_TOKEN_KEYS", str(error).removeprefix("DEVICE_TOKEN_KEYS: ")),)) from None
    fleet = FleetAnswers.of(settings, downloads.objects)
    yield router(administration, uploads, fleet)
    if fleet is not None:
        yield reports_router(downloads.admit_device, fleet.report)


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """AWS Lambda entry: an HTTP API's event (payload format 2.0)."""
    del context
    try:
        ready = _ready()
    except (SettingsError, StoreUnavailableError) as error:
        return answer_of(explain(error).reply)
    return respond(ready[0], event, *ready[1:])


def _start() -> None:
    global _routers  # noqa: PLW0603 - as in `_ready`
    _routers = ()  # what a snapshot may hold is out of date
    described()


begin(_start)
