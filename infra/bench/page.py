"""The page that a run writes: on what, how, every figure beside its peer and its goal, and what each row means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from infra.bench.figures import Figure, Result, number

HEAD = """\
# Benchmarks

Written by `{command}` on {day}, in {minutes:.0f} minutes, and by nothing else. If you doubt a figure, run it again.
All parts are real and on one machine, so that both sides of a comparison share its processors, its disk and its noise.
"""

HOW_TO_READ = """\
![Each ratio with its spread and its goal]({plot})

## The figures

A ratio is ours divided by the peer's: the median over rounds in which both took turns, or that of a percentile over
the whole run. Its spread is the lowest and the highest of the rounds. What has no goal is only reported.

| figure | ours | the peer's | value | spread | goal | |
|---|--:|--:|--:|--:|--:|---|
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What a page tells of: the results, how they were asked for, when, and on what machine.

    `whole`: nothing was left out, and nothing repeated less often.
    """

    results: Sequence[Result]
    command: str
    day: date
    machine: Mapping[str, str]
    whole: bool = True

    @property
    def missed(self) -> list[tuple[Result, Figure]]:
        """The figures that do not meet their goals."""
        return [(result, figure) for result in self.results for figure in result.figures if figure.passed is False]


def render(run: Run, plot: str) -> str:
    """The page in Markdown; `plot` is the address of the picture."""
    minutes = sum(result.seconds for result in run.results) / 60
    return "\n".join(
        [
            HEAD.format(command=run.command, day=run.day.isoformat(), minutes=minutes),
            *([] if run.whole else ["**Not a whole run**: measurements were left out, or repeated less often.\n"]),
            "| | |\n|---|---|",
            *(f"| {_cell(what)} | {_cell(words)} |" for what, words in run.machine.items()),
            "",
            *_summary(run),
            "",
            HOW_TO_READ.format(plot=plot) + "\n".join(_rows(run.results)),
            "",
            "## What was measured",
            *_stories(run.results),
            "",
        ]
    )


def _summary(run: Run) -> Iterator[str]:
    aimed = sum(figure.passed is not None for result in run.results for figure in result.figures)
    yield f"{aimed} figures have a goal, and {aimed - len(run.missed)} meet it." + (" Missed:" if run.missed else "")
    if run.missed:
        yield ""
    for result, figure in run.missed:
        yield f"- **{result.name}**: {_cell(_title(figure))} is {value(figure)}, the goal {goal(figure)}"
    if unmeasured := [result.name for result in run.results if result.problem]:
        yield f"\nCould not be measured: {', '.join(unmeasured)}."


def _rows(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        notes = [result.about, *([f"at the second attempt ({result.hiccup})"] if result.hiccup else [])]
        yield f"| **{result.name}**: {_cell('; '.join(notes))} | | | | | | {result.seconds:.0f} s |"
        if result.problem:
            yield f"| could not be measured: {_cell(result.problem)} | | | | | | **?** |"
        for figure in result.figures:
            ours, theirs = figure.sides or ("", "")
            note = f"<br><sub>{_cell(figure.detail)}</sub>" if figure.detail else ""
            cells = [_cell(_title(figure)) + note, ours, theirs, value(figure), spread(figure), goal(figure)]
            yield f"| {' | '.join(cells)} | {MARKS[figure.passed]} |"


def _stories(results: Sequence[Result]) -> Iterator[str]:
    """How each is measured; what several have in common is said with the first."""
    said: set[str] = set()
    for result in results:
        paragraphs = result.story.split("\n\n")
        yield "\n\n".join([f"\n### {result.name}", *(one for one in paragraphs if one not in said)])
        said |= set(paragraphs)


MARKS = {True: "met", False: "**MISSED**", None: ""}


def _title(figure: Figure) -> str:
    return f"{figure.what}, against {figure.peer}" if figure.peer else figure.what


def value(figure: Figure) -> str:
    """A figure's value with its unit, to read."""
    return f"{number(figure.value)} {figure.unit}".rstrip()


def goal(figure: Figure) -> str:
    """What it should be, or nothing."""
    return "" if figure.target is None else f"{figure.sense} {number(figure.target)} {figure.unit}".rstrip()


def spread(figure: Figure) -> str:
    """Its lowest and highest, and over how many rounds, or nothing."""
    if figure.spread is None:
        return ""
    low, high = figure.spread
    return f"{number(low)} to {number(high)}, {figure.rounds} rounds"


def _cell(text: str) -> str:
    """Fit for a table's cell, and not to be taken for HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
