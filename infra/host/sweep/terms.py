"""What the sweep goes by, and what a round of it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.host.sweep.judge import Newest

if TYPE_CHECKING:
    from functions.settings import Settings


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings of the sweep."""

    bucket: str
    prefixes: tuple[str, ...]
    events_prefix: str | None = None
    pause_seconds: float = 60.0
    grace_seconds: float | None = None
    """None: as the store's ways are."""
    rings_per_second: int = 50
    max_rings: int = 1000
    catch_up_seconds: int = 86_400
    events_max_age_seconds: int = 300
    polls: bool = False
    """Whether events come out of a queue that is polled."""

    @classmethod
    def of(cls, settings: Settings) -> Terms:
        """Take them from settings with BUCKET."""
        return cls(
            bucket=settings.bucket or "",
            prefixes=(settings.configs_prefix, settings.assets_prefix),
            events_prefix=settings.events_prefix,
            pause_seconds=settings.sweep_seconds,
            grace_seconds=settings.sweep_grace_seconds,
            rings_per_second=settings.sweep_rings_per_second,
            max_rings=settings.sweep_max_rings,
            catch_up_seconds=settings.sweep_catch_up_seconds,
            events_max_age_seconds=settings.sweep_events_max_age_seconds,
            polls=settings.sqs_queue_url is not None or settings.r2_queue_url is not None,
        )


@dataclass(slots=True)
class Round:
    """A sweep, so far."""

    newest: Newest
    began_at: float
    told_at: float = 0.0
    listed: int = 0
    counted: int = 0
    rollbacks: int = 0
    rang: int = 0
    failed: int = 0
    lost: bool = False

    def figures(self, now: float) -> dict[str, object]:
        """What to say of it."""
        return {
            "listed": self.listed,
            "announced": self.rang,
            "failed": self.failed,
            "counted_as_announced": self.counted,
            "rollbacks": self.rollbacks,
            "seconds": round(now - self.began_at, 1),
        }

    def __post_init__(self) -> None:
        self.told_at = self.began_at
