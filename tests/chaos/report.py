"""What a run looks like: a line as each scenario ends, a table for the terminal, and the page docs/reliability.md."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.chaos.runner import Result
from tests.chaos.scenarios import FAMILIES, PROFILES, SCENARIOS, Family

COLUMNS = ("uploaded", "heard", "missing", "repeats", "out of order", "recovery", "longest wait")
PIPE_WIDTH = 170  # a file or a pipe has no width of its own

INTRODUCTION = """\
# Does anything get lost?

`make chaos` uploads numbered objects at a steady rate while something breaks, and compares what was uploaded with what
a subscriber heard. It wrote this page itself, on {day}, with the {profile} profile: a fault lasts {outage:g} s, and all
took {minutes:.0f} minutes on {machine}.

**{summary}**

```console
$ {command}
```

[How to read it](#how-to-read-it), [what is real](#what-is-real), [what this cannot show](#what-this-cannot-show).
"""

READING = """\
## How to read it

- **uploaded**: PUTs that the store answered with 200, {rate} a second. One that failed, because the store itself was
  down, is not repeated under its name; the next has a number of its own. Where the sweep is on it counts if the store
  has the object all the same.
- **heard**, **missing**: how many of them a subscriber with a persistent session got (MQTT 5, QoS 1), and how many
  never, although the rig waited {hear:g} s after the last upload and a LIST shows the object. One missing message fails
  the run. What a store answered and has no longer would be its own loss, and is told apart.
- **repeats**: further messages of the same upload, for which it waits {repeat:g} s more. Each must bear the `id` of
  the first, so that a device can drop it; one that bears another fails the run.
- **out of order**: first heard after an upload that began only when this one had been answered. Reported, not
  promised: what rings at once overtakes what waits in a queue.
- **recovery**: the longest time from the end of a fault (broker back, password given, line open again) to the next
  message.
- **longest wait**: from a PUT's answer to its message; mostly the length of the fault, and then the pace of the queue:
  MinIO looks at its own every 3 s.
"""

METHOD = """\
## What is real

Mosquitto, MinIO and `bucketbell host` are processes of their own, set up by `bucketbell connect`, with both doors
and without the sweep unless the row says otherwise. They are really killed, frozen and restarted. SQS is moto's server,
which S3 events of its own go to. Each row has parts of its own. Where the sweep is on, it pauses for 2 s.

The host reaches its broker through a TCP proxy of the rig, which swallows, delays or resets; the subscriber does not.
Where a fault must cut the host off, the rig asks the host at its end whether it is, and a fault that did not bite
fails the run. The host has its defaults, but that it waits {deadline:g} s for the broker. Mosquitto writes its
sessions to disk at every change, if a moment after it has confirmed, and keeps what waits for a slow subscriber
(`max_queued_messages 1000000`; by default it keeps 1,000 and drops the rest silently).

## What this cannot show

- **A broker that loses what it has confirmed.** Mosquitto keeps nothing on disk by default: killed, it takes along
  what it acknowledged and its subscribers have not read. No publisher can know. In `broker-forgets` the host comes
  back only once the subscriber is there again; in `early-flush` it is back first, and the broker says that nobody
  listens.
- **A disk that lies**: parts are killed here, the machine never loses its power.
- **AWS itself.** SQS and Lambda are stood in for, by moto and by a process that is frozen between two calls.
- **Many machines.** All runs on one, over loopback; a partition is the proxy's, and all
  clocks are one, but in `clock-jumps`.
- **What nobody has thought of.**
"""


def line(result: Result) -> str:
    """One line for the terminal, with rich's markup."""
    verdict = result.verdict
    mark = f"[red]FAIL {escape(result.complaint)}[/]" if result.complaint else "[green]pass[/]"
    figures = ""
    if verdict is not None:
        figures = f"{verdict.uploaded} uploaded, {len(verdict.missing)} missing, {verdict.repeats} repeats  "
    return f"{result.name:<24} {result.seconds:4.0f} s  {figures}{mark}"


def show(console: Console, results: Sequence[Result], seconds: float) -> None:
    """Print the table and what is wrong."""
    table = Table("", *COLUMNS, "", header_style="bold", box=None, padding=(0, 1))
    for column in table.columns[1:-1]:
        column.justify = "right"
    for family, members in _families(results):
        table.add_row(f"[bold]{FAMILIES[family]}[/]")
        for result in members:
            mark = "[red]FAIL[/]" if result.complaint else "[green]pass[/]"
            table.add_row(f"  {result.name}", *_figures(result), mark)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table)
    for result in results:
        if result.complaint:
            console.print(f"[red]{result.name}[/]: {escape(result.complaint)}", soft_wrap=True)
    console.print(f"{_summary(results)} {seconds:.0f} s in all.", soft_wrap=True)


def page(results: Sequence[Result], profile: str, seconds: float, machine: str) -> str:
    """Return docs/reliability.md; `machine` is what all ran on."""
    known = PROFILES[profile]
    introduction = INTRODUCTION.format(
        day=f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
        profile=profile,
        minutes=seconds / 60,
        outage=known.outage_seconds,
        summary=_summary(results),
        machine=machine,
        command="make chaos" if profile == "short" else f'make chaos ARGS="--profile {profile}"',
    )
    rates = sorted({f"{result.per_second:g}" for result in results if result.verdict is not None}, key=float)
    rate = " to ".join(rates[:: max(1, len(rates) - 1)])
    reading = READING.format(rate=rate, hear=known.hear_seconds, repeat=known.repeat_seconds)
    method = METHOD.format(deadline=known.deadline_seconds)
    return "\n".join((introduction, *_sections(results), reading, method))


def _sections(results: Sequence[Result]) -> list[str]:
    sections = []
    for family, members in _families(results):
        lines = [
            f"## {FAMILIES[family]}",
            "",
            f"| what breaks | events from | times | {' | '.join(COLUMNS)} |",
            f"|---|---|{'--:|' * (1 + len(COLUMNS))}",
        ]
        for result in members:
            scenario = SCENARIOS[result.name]
            cells = [
                f"**{result.name}**: {scenario.what}",
                result.events_from,
                str(result.times),
                *_figures(result),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"\n{note}" for note in _notes(members)]
        sections.append("\n".join((*lines, "")))
    return sections


def _notes(members: Sequence[Result]) -> list[str]:
    """What the figures of a family do not say."""
    notes = [f"**{one.name}** failed: {one.complaint}." for one in members if one.complaint]
    notes += [f"**{one.name}**: {SCENARIOS[one.name].why}." for one in members if SCENARIOS[one.name].why]
    if lost := [f"{one.name} {len(one.verdict.lost):,}" for one in members if one.verdict and one.verdict.lost]:
        notes.append(f"Objects that the store answered, and has no longer: {', '.join(lost)}.")
    if refused := [f"{one.name} {one.failed:,}" for one in members if one.failed]:
        notes.append(f"PUTs that the store did not take: {', '.join(refused)}.")
    return notes


def _families(results: Sequence[Result]) -> list[tuple[Family, list[Result]]]:
    """The results by family, in the order of `FAMILIES`, without empty ones."""
    grouped = [(one, [result for result in results if SCENARIOS[result.name].family == one]) for one in FAMILIES]
    return [(family, members) for family, members in grouped if members]


def _figures(result: Result) -> list[str]:
    """The cells under `COLUMNS`."""
    verdict = result.verdict
    if verdict is None:
        return ["-"] * len(COLUMNS)
    recovery = "-" if verdict.recovery_seconds is None else _seconds(verdict.recovery_seconds)
    counts = (verdict.uploaded, verdict.heard, len(verdict.missing), verdict.repeats, verdict.out_of_order)
    return [*(f"{count:,}" for count in counts), recovery, _seconds(verdict.longest_wait_seconds)]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _summary(results: Sequence[Result]) -> str:
    """The whole run in a few sentences."""
    played = [result for result in results if result.verdict is not None]
    ours = [result for result in played if SCENARIOS[result.name].expects == "nothing missing"]
    verdicts = [result.verdict for result in ours if result.verdict is not None]
    uploaded = sum(verdict.uploaded for verdict in verdicts)
    missing = sum(len(verdict.missing) for verdict in verdicts)
    repeats = sum(verdict.repeats for verdict in verdicts)
    renamed = sum(len(verdict.renamed) for verdict in verdicts)
    words = [f"{len(ours)} ways to break it, {uploaded:,} uploads: {missing:,} missing; {repeats:,} repeats,"]
    words.append(f"{renamed:,} of them under another id." if renamed else "each under the id of the first.")
    others = [f"`{result.name}`" for result in played if SCENARIOS[result.name].expects == "a loss"]
    words += [f"With the safety off the rig sees the loss: {', '.join(others)}."] if others else []
    if failed := [f"`{result.name}`" for result in results if result.complaint]:
        words.append(f"Failed: {', '.join(failed)}.")
    return " ".join(words)
