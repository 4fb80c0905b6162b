"""Devices' reports: whether the host hears them, and what the broker keeps while it does not."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn

from functions.admin import openapi
from infra.doctor.broker import LOGIN
from infra.doctor.checks import Checkup, NotCheckedError, WrongError
from infra.doctor.database import TABLES
from infra.doctor.host import HOST, READY

if TYPE_CHECKING:
    from infra.doctor.broker import BrokerLeg
    from infra.doctor.host import HostLeg

REPORTS, ROOM = "reports", "room for reports"

MOSQUITTO_IN_FLIGHT = 20


class FleetLeg:
    """What an installation with DATABASE_URL and BUCKET has on top."""

    def __init__(self, host: HostLeg, broker: BrokerLeg) -> None:
        """Nothing is asked yet."""
        self._host = host
        self._broker = broker

    def checks(self) -> tuple[Checkup, ...]:
        """Both, where reports are kept."""
        if self._host.settings.database_url is None:
            return ()
        return (Checkup(REPORTS, self._heard, (TABLES, HOST, READY)), Checkup(ROOM, self._room, (LOGIN,)))

    def _heard(self) -> str:
        found = self._host.administer("GET", f"{openapi.FILES}?limit=1")
        reports = found.document.get("reports")
        if found.status == HTTPStatus.CONFLICT:
            raise WrongError(
                "The host keeps nothing of devices: it runs without DATABASE_URL or BUCKET.",
                "Set both for the host as they are here, and restart it.",
            )
        if reports is None:
            raise NotCheckedError("the host is of an older release")
        if reports["by"] == "another":
            raise NotCheckedError("another host of this database hears them: name it with `--host-url`")
        if reports["by"] == "nobody":
            prefix = self._host.settings.topic_prefix
            raise WrongError(
                f"The host does not hear devices' reports: {reports['detail']}.",
                f"Let the host's user read {prefix}/devices/+/report and {prefix}/devices/+/status at the broker (in "
                f"Mosquitto's ACL: `topic read {prefix}/devices/#`).",
            )
        return "the broker has taken the host's subscription; what an ACL then withholds, Mosquitto does not say"

    def _room(self) -> NoReturn:
        said = "The broker does not say how many reports it keeps while the host or its database is down"
        advice = "raise both for more than some hundred devices"
        if self._broker.receive_maximum == MOSQUITTO_IN_FLIGHT:
            raise NotCheckedError(
                f"{said}. Its max_inflight_messages is Mosquitto's own ({MOSQUITTO_IN_FLIGHT}), so that its "
                f"max_queued_messages may be, too: beyond 1,000 it drops reports in silence: {advice}"
            )
        raise NotCheckedError(
            f"{said}. Mosquitto drops those beyond max_queued_messages (1,000 where it is not set) in silence, and "
            f"sends max_inflight_messages (20) at a time: {advice}"
        )
