"""Entry: an administrator's HTTP request in; broker settings, status, or what came of a test out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from functions.admin.api import described, explain, router
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
    from aws_lambda_powertools.utilities.typing import LambdaContext

    from functions.admin.operations import TopicVerdict
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
_router: Router[None] | None = None
_renewal: Renewal | None = None


def _ready() -> Router[None]:
    """Return this process's routes, by settings that are read again now and then."""
    global _router, _renewal  # noqa: PLW0603 - one warm pool of database connections for each process
    with _lock:
        if _renewal is None:
            _renewal = Renewal(after_seconds=RENEW_SECONDS)
        try:
            changed = _renewal.renew()
        except SettingsError as error:
            changed = False
            logger.error("settings cannot be read again", extra={"problem": str(error)})  # which holds no value
        if _router is None or changed:
            settings = _renewal.settings
            administration = Administration(settings, ConfigStore.of(settings), NoLocalPublisher())
            _router = router(administration, Uploads(Routes.of(settings)))
        return _router


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """AWS Lambda entry: an HTTP API's event (payload format 2.0)."""
    del context
    try:
        ready = _ready()
    except (SettingsError, StoreUnavailableError) as error:
        return answer_of(explain(error).reply)
    return respond(ready, event)


def _start() -> None:
    global _router  # noqa: PLW0603 - as in `_ready`
    _router = None  # what a snapshot may hold is out of date
    described()


begin(_start)
