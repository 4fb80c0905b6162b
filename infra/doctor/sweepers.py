"""Hosts that sweep one bucket without a record that they share: each announces what the other has announced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from functions.s3.clients import StorageError
from infra.doctor.checks import Checkup, NotCheckedError, WrongError
from infra.doctor.store import GET, LIST
from infra.host.sweep.marker import KEY, Marker, MarkerDamagedError, NewerMarkerError
from infra.host.sweep.state import SAVE_SECONDS

if TYPE_CHECKING:
    from infra.doctor.store import StoreLeg

SWEEPERS = "sweeper"

TOGETHER_SECONDS = 60
"""So long two must have written in turns: a restart on another machine, with another clock, is no second host."""

RECENT_SECONDS = 3 * SAVE_SECONDS


class SweepersLeg:
    """Who writes the sweep's state."""

    def __init__(self, store: StoreLeg) -> None:
        """Nothing is asked yet."""
        self._store = store

    def checks(self) -> tuple[Checkup, ...]:
        """One, where there is a sweep."""
        return (Checkup(SWEEPERS, self._alone, (LIST, GET)),) if self._store.settings.sweep_seconds else ()

    def _alone(self) -> str:
        settings = self._store.settings
        url = settings.database_url
        if url is not None and not url.get_secret_value().startswith("sqlite"):
            return "one of the hosts that share the database"
        if url is not None or settings.sweep_state_file is not None:
            raise NotCheckedError("hosts that keep the sweep's state in files do not see each other: one may sweep")
        marker = Marker(settings, self._store.bucket)
        try:
            marker.fetch()
        except NewerMarkerError:
            raise WrongError(
                f"{KEY} in the bucket was written by a newer release.", "Run that release, on this machine too."
            ) from None
        except MarkerDamagedError as error:
            raise WrongError(
                f"{KEY} in the bucket is damaged: {error}.", "Restart the host: it puts it aside and begins anew."
            ) from None
        except StorageError as error:
            raise NotCheckedError(f"{KEY} cannot be read: {error.message}") from None
        if not marker.hosts:
            raise NotCheckedError("no host has stored what it announced yet")
        newest = max(last for _, last in marker.hosts.values())
        recent = {name: times for name, times in marker.hosts.items() if newest - times[1] <= RECENT_SECONDS}
        for name, (first, last) in recent.items():
            for other, (other_first, other_last) in recent.items():
                if name < other and min(last, other_last) - max(first, other_first) >= TOGETHER_SECONDS:
                    raise WrongError(
                        f"Two hosts sweep this bucket: {name} and {other}. Each announces what the other announced.",
                        "Set SWEEP_SECONDS=0 for all but one, or give all of them one DATABASE_URL of PostgreSQL. (If "
                        "one was stopped just now, look again in a quarter of an hour.)",
                    )
        return max(recent, key=lambda one: recent[one][1])
