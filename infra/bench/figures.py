"""What a measurement is given and what it gives back: figures, each with its peer and its target beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

TIMES = "\N{MULTIPLICATION SIGN}"  # the unit of a ratio

Sense = Literal["≤", "≥", "="]


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
    """One line of the table. One without `target` is only reported; `sense` alone says which way is better.

    A comparison names its `peer`, what both `sides` measured by themselves (ours first, to read, with units), and the
    `spread`: the lowest and the highest of `value` over that many `rounds`, in which both sides took turns.
    """

    what: str
    value: float
    sense: Sense | None = None
    target: float | None = None
    unit: str = ""
    detail: str = ""
    peer: str = ""
    sides: tuple[str, str] | None = None
    spread: tuple[float, float] | None = None
    rounds: int = 0

    @property
    def passed(self) -> bool | None:
        """Whether the value meets the target, None where there is none."""
        if self.target is None:
            return None
        if self.sense == "=":
            return self.value == self.target
        return self.value <= self.target if self.sense == "≤" else self.value >= self.target


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one measurement: figures, or the `problem` why there are none.

    `about` says in a few words what it is, `story` in paragraphs how it is made. `hiccup` is why the first attempt
    failed, where the second did not.
    """

    name: str
    about: str
    story: str
    seconds: float
    figures: Sequence[Figure]
    problem: str = ""
    hiccup: str = ""


def compared(
    what: str,
    peer: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    show: Callable[[float], str],
    *,
    sense: Sense | None = None,
    target: float | None = None,
    detail: str = "",
) -> Figure:
    """Ours divided by the peer's, round by round: the median of these ratios, and their spread.

    Each side has one value of each round; `show` writes such a value with its unit, and the medians are shown.
    """
    ratios = [mine / its for mine, its in zip(ours, theirs, strict=True)]
    return Figure(
        what,
        statistics.median(ratios),
        sense,
        target,
        TIMES,
        detail,
        peer,
        (show(statistics.median(ours)), show(statistics.median(theirs))),
        (min(ratios), max(ratios)),
        len(ratios),
    )


def compared_percentiles(
    what: str,
    peer: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    percent: int,
    *,
    rounds: int = 5,
    sense: Sense | None = None,
    target: float | None = None,
    detail: str = "",
) -> Figure:
    """Our percentile of durations in seconds, divided by the peer's, over all of them.

    Both sides were measured in turn; the spread is that of the ratio in each of `rounds` equal stretches of the run.
    """
    ratios = [
        percentile(mine, percent) / percentile(its, percent)
        for mine, its in zip(_stretches(ours, rounds), _stretches(theirs, rounds), strict=True)
    ]
    mine, its = percentile(ours, percent), percentile(theirs, percent)
    return Figure(
        f"{what}, p{percent}",
        mine / its,
        sense,
        target,
        TIMES,
        detail,
        peer,
        (milliseconds(mine), milliseconds(its)),
        (min(ratios), max(ratios)),
        rounds,
    )


def _stretches(values: Sequence[float], count: int) -> list[Sequence[float]]:
    edges = [len(values) * number // count for number in range(count + 1)]
    return [values[begin:end] for begin, end in pairwise(edges)]


def percentile(values: Sequence[float], percent: int) -> float:
    """The `percent`-th percentile (1 to 99) of at least two values, interpolated between neighbours."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def milliseconds(seconds: float) -> str:
    """A duration, to read."""
    return f"{seconds * 1e3:.2f} ms"


def seconds(value: float) -> str:
    """A longer duration, to read."""
    return f"{value:.2f} s"


def per_second(rate: float) -> str:
    """A rate, to read."""
    return f"{rate:,.0f}/s"


def number(value: float) -> str:
    """A figure's value, spread or target, to read."""
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"  # noqa: PLR2004 - to read
