"""What a measurement is given and what it gives back: figures, each with its target beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TIMES = "\N{MULTIPLICATION SIGN}"  # the unit of a ratio


class NotMeasuredError(Exception):
    """A measurement could not be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One measurement's surroundings. `quick` asks for fewer repetitions, `say` shows progress."""

    directory: Path
    quick: bool
    say: Callable[[str], None]

    def count(self, full: int, quick: int) -> int:
        """How many repetitions to make."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `detail` gives the numbers behind a ratio, with their units.

    One without `sense` and `target` is only reported.
    """

    what: str
    value: float
    sense: Literal["≤", "≥", "="] | None = None
    target: float | None = None
    unit: str = ""
    detail: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the value meets the target, None where there is none."""
        if self.target is None:
            return None
        if self.sense == "=":
            return self.value == self.target
        return self.value <= self.target if self.sense == "≤" else self.value >= self.target


def percentile(values: Sequence[float], percent: int) -> float:
    """The `percent`-th percentile (1 to 99) of at least two values, interpolated between neighbours."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def milliseconds(seconds: float) -> str:
    """A duration, to read."""
    return f"{seconds * 1e3:.2f} ms"
