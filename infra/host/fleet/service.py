"""The fleet's parts on the host, put together: what hears, what keeps, what answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from functions.admin.fleet import FleetAnswers
from functions.devices.reports import router as reports_router
from functions.fleet.home_assistant import INSTALL
from infra.host.fleet.census import Census
from infra.host.fleet.home_assistant import DeviceUpdates
from infra.host.fleet.keeper import Keeper
from infra.host.fleet.listener import ReportListener
from infra.host.fleet.stream import Changes
from infra.host.metrics import FleetTelemetry

if TYPE_CHECKING:
    from functions.devices.downloads import Downloads, Principal
    from functions.mqtt.broker import BrokerConfig
    from functions.settings import Settings
    from functions.web.messages import Request
    from functions.web.router import Router
    from functions.web.tokens import DeviceToken
    from infra.host.fleet.home_assistant import ChannelRing
    from infra.host.metrics import PrometheusTelemetry

SWITCH_SECONDS = 0.0005
"""So long the bell's loop waits for the interpreter while a thread of ours reads reports; Python's own is ten times."""


class FleetService:
    """One for each host with DATABASE_URL and BUCKET."""

    def __init__(
        self,
        settings: Settings,
        answers: FleetAnswers,
        telemetry: PrometheusTelemetry,
        *,
        broker: Callable[[], BrokerConfig | None],
        discovery_prefix: Callable[[], str | None],
        ring: ChannelRing | None = None,
    ) -> None:
        """`broker` is the one in force, `discovery_prefix` Home Assistant's, if it shall hear of devices.

        `ring` is None where no device can be told alone. Nothing runs before `start`.
        """
        self.answers = answers
        self.changes = Changes(time.time_ns)
        self.census = Census(answers.census)
        counts = FleetTelemetry(telemetry.registry)
        counts.watch(lambda: self.census.devices)
        self.updates = DeviceUpdates(
            answers,
            settings.topic_prefix,
            telemetry,
            broker=lambda: self._listener.place,
            discovery_prefix=discovery_prefix,
            ring=ring,
        )
        answers.changed = self.updates.note
        self.keeper = Keeper(
            answers.store,
            answers.catalogue,
            counts,
            accepts_unknown=settings.fleet_accept_unknown == "on",
            retention_days=settings.fleet_retention_days,
            tell=self._tell,
            asks=self.updates.ask,
        )
        self._listener = ReportListener(
            settings.topic_prefix,
            self.keeper.hear,
            broker=lambda: _without_will(broker()),
            leads=answers.store.lead,
            hearing=answers.hearing,
            kinds=("report", "status") if ring is None else ("report", "status", INSTALL),
        )

    @classmethod
    def of(
        cls,
        settings: Settings,
        downloads: Downloads,
        telemetry: PrometheusTelemetry,
        *,
        broker: Callable[[], BrokerConfig | None],
        discovery_prefix: Callable[[], str | None],
        ring: ChannelRing | None = None,
    ) -> FleetService | None:
        """The service, or None where the settings ask for none."""
        answers = FleetAnswers.of(settings, downloads.objects)
        return (
            None
            if answers is None
            else cls(settings, answers, telemetry, broker=broker, discovery_prefix=discovery_prefix, ring=ring)
        )

    def start(self) -> None:
        """Begin to listen and to write, on the running loop. Blocks for nothing."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self.changes.start()
        self.keeper.start()
        self.census.start()
        self._listener.start()
        self.updates.start()

    def stop(self) -> None:
        """End within a few seconds: first what hears, then what writes, then what it is written to."""
        self._listener.stop()
        self.updates.stop()
        self.census.stop()
        self.keeper.stop()
        self.answers.close()

    def _tell(self, kind: str, data: Mapping[str, object]) -> None:
        self.changes.tell(kind, data)
        if kind != "upload":
            self.updates.note(str(data["mac"]))

    def noticing(self, router: Router[Principal]) -> Router[Principal]:
        """The same routes; whoever is let in with a device's token is known from then on."""

        def admit(request: Request) -> Principal:
            principal = router.admit(request)
            if principal.device is not None:
                self.keeper.asked(principal.device.mac)
            return principal

        return replace(router, admit=admit)

    def reports(self, downloads: Downloads) -> Router[DeviceToken]:
        """The route by which devices report over HTTP."""

        def admit(request: Request) -> DeviceToken:
            token = downloads.admit_device(request)
            self.keeper.asked(token.mac)
            return token

        return reports_router(admit, self.keeper.record_one)


def _without_will(broker: BrokerConfig | None) -> BrokerConfig | None:
    """The publisher's connection alone says whether the host is there."""
    return None if broker is None else replace(broker, availability_topic=None)
