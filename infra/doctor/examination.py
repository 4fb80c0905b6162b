"""Which checks an installation needs, in the order in which things have to be well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.doctor.broker import LOGIN, BrokerLeg
from infra.doctor.canary import CanaryLeg
from infra.doctor.checks import Checkup, NotCheckedError
from infra.doctor.database import STORED, DatabaseLeg
from infra.doctor.doors import DoorsLeg
from infra.doctor.downloads import DownloadsLeg
from infra.doctor.fleet import FleetLeg
from infra.doctor.host import HostLeg
from infra.doctor.hosts import HostsLeg
from infra.doctor.jetstream import JetStreamLeg
from infra.doctor.rules import RulesLeg
from infra.doctor.store import BUCKET, StoreLeg
from infra.doctor.sweepers import SweepersLeg

if TYPE_CHECKING:
    from functions.settings import Settings
    from infra.http_client import Web


def checks_of(
    settings: Settings, web: Web, host_url: str, *, ring: str | None, host_is_default: bool
) -> tuple[Checkup, ...]:
    """All checks of this installation; what it does not use is not among them."""
    database = DatabaseLeg(settings)
    broker = BrokerLeg(database, host_url, (STORED,))
    host = HostLeg(database, web, host_url, broker=LOGIN, is_default=host_is_default)
    hosts = HostsLeg(database, broker)
    store = None if settings.bucket is None else StoreLeg(settings, settings.bucket)
    checks = database.checks()
    if store is None:
        return (
            *checks,
            Checkup(BUCKET, _no_bucket),
            *(JetStreamLeg(settings, None).checks() if settings.nats_url else ()),
            *broker.checks(),
            *host.checks(),
            *host.rights(ring),
            *DownloadsLeg(settings, None, host, web).checks(),
            *hosts.checks(),
        )
    rules = RulesLeg(store, host_url)
    return (
        *checks,
        *store.checks(),
        *rules.checks(),
        *broker.checks(),
        *host.checks(),
        *(JetStreamLeg(settings, rules) if settings.nats_url else DoorsLeg(store, rules, host)).checks(),
        *CanaryLeg(store, rules, host, hosts).checks(),
        *host.rights(ring),
        *DownloadsLeg(settings, store, host, web).checks(),
        *SweepersLeg(store).checks(),
        *FleetLeg(host, broker).checks(),
        *hosts.checks(),
    )


def _no_bucket() -> str:
    raise NotCheckedError("BUCKET is not set: the store, its rules and the downloads cannot be looked at")
