"""`python -m infra.bench`: measures, and prints each figure beside its peer and its target.

Exit status 0 if everything could be measured, even if a goal is missed; 1 if something could not; 2 for wrong use.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from infra.bench import (
    blackhole,
    cold,
    console,
    detections,
    downloads,
    fanout,
    fleet,
    half_open,
    imports,
    jetstream,
    latency,
    listing,
    lost,
    memory,
    outages,
    page,
    plot,
    presign,
    pull,
    rates,
    reports,
    rest,
    slow_link,
    sweep,
    switch,
    thaw,
    throughput,
)
from infra.bench.figures import Bench, Figure, Result
from infra.local.machine import describe

MEASUREMENTS: dict[str, tuple[Callable[[Bench], list[Figure]], str]] = {
    "latency": (latency.measure, "upload to message, against MinIO's own MQTT target"),
    "latency_queue": (latency.measure_queue, "the same, against its MQTT target with queue_dir"),
    "rate_1": (rates.measure_1, "upload to message at 1 upload/s, against both of MinIO's MQTT targets"),
    "rate_10": (rates.measure_10, "the same at 10 uploads/s"),
    "rate_100": (rates.measure_100, "the same at 100 uploads/s"),
    "cold": (cold.measure, "the deployed function's cold start and warm call, against a usual function's"),
    "import": (imports.measure, "import time of functions.notify"),
    "thaw": (thaw.measure, "the first publish after a freeze, against paho's threaded client"),
    "half_open": (half_open.measure, "a publish over a link that has vanished, against the same"),
    "throughput": (throughput.measure, "requests a second, against parsing only and threads"),
    "node": (throughput.measure_node, "requests a second, against a host of Node"),
    "fanout": (fanout.measure, "what many subscribers of one broker cost the handler"),
    "fanout_own": (fanout.measure_own, "configs on their devices' own topics, against one topic for all"),
    "memory": (memory.measure, "the host's memory, files and threads after a million events"),
    "memory_mix": (memory.measure_mix, "the same of both doors, with downloads beside them"),
    "rest": (rest.measure, "the host while nobody asks anything of it"),
    "presign": (presign.measure, "presigning a URL, against boto3's own"),
    "downloads": (downloads.measure, "GET /assets/x, against the same server answering a constant 307"),
    "listing": (listing.measure, "manifests of 1,000 to 100,000 objects, against a bare LIST"),
    "pull": (pull.measure, "upload to the verified file on a device's disk, leg by leg"),
    "fleet": (fleet.measure, "200 devices told of one asset"),
    "reports": (reports.measure, "devices' reports: stored a second, and what they do to the bell"),
    "console": (
        console.measure,
        "the page with 10,000 devices: when it is there, when it says that all have an upload",
    ),
    "detections": (detections.measure, "upload to message: a camera's event against a config"),
    "lost": (lost.measure, "uploads while broker, host, or host and MinIO are down"),
    "outages": (outages.measure, "uploads while the broker is killed over and over, at QoS 1 and 2"),
    "jetstream": (jetstream.measure, "upload to message through NATS JetStream, against both webhook doors"),
    "jetstream_hosts": (jetstream.measure_hosts, "two hosts on one stream against one, with a slow broker"),
    "jetstream_kills": (jetstream.measure_kills, "uploads while one of two hosts is killed over and over"),
    "sweep": (sweep.measure, "the sweep: beside the doors, over 100,000 objects, and on a store without events"),
    "switch": (switch.measure, "another broker is stored under 200 events a second"),
    "blackhole": (blackhole.measure, "the test of settings whose broker never answers"),
    "slow_link": (slow_link.measure, "600 messages over a link of 400 ms"),
}
ATTEMPTS = 2  # what fails once may have met somebody else's work on the machine; the page says so


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m infra.bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=MEASUREMENTS, help="these measurements only")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--write", type=Path, metavar="PAGE.md", help="write this page, and a plot beside it")
    parser.add_argument("--list", action="store_true", help="name the measurements and stop")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if options.list:
        for name, (_, about) in MEASUREMENTS.items():
            print(f"{name:<14} {about}")
        return 0
    # SIGTERM ends the parts in the same orderly way as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = Console(stderr=True, highlight=False)
    begun_at, described = time.monotonic(), describe()
    names = options.only or list(MEASUREMENTS)
    results = []
    try:
        for number, name in enumerate(names, 1):
            minutes = (time.monotonic() - begun_at) / 60
            progress.print(
                f"[bold]{name}[/] ({number} of {len(names)}, {minutes:.1f} min so far): {MEASUREMENTS[name][1]}"
            )
            results.append(_measure(name, progress, quick=options.quick))
            progress.print(f"  {_in_short(results[-1])}", soft_wrap=True)
    except KeyboardInterrupt:
        progress.print("stopped")
        return 130
    if options.write:
        command = f"make bench ARGS={shlex.quote(shlex.join(arguments))}"
        whole = not options.only and not options.quick
        _write(options.write, page.Run(results, command, datetime.now(UTC).date(), described, whole))
    if options.json:
        print(json.dumps([_document(result) for result in results], ensure_ascii=False, indent=2))
    else:
        _show(results)
    return 1 if any(result.problem for result in results) else 0


def _measure(name: str, progress: Console, *, quick: bool) -> Result:
    measure, about = MEASUREMENTS[name]
    begun_at = time.monotonic()
    figures: Sequence[Figure] = ()
    problems: list[str] = []
    for _ in range(ATTEMPTS):
        with tempfile.TemporaryDirectory(prefix="bucketbell-bench-") as directory, progress.status("…") as status:

            def say(text: str, status: Status = status) -> None:
                if progress.is_terminal:
                    status.update(text)
                else:
                    progress.print(f"  {text}", soft_wrap=True)

            try:
                figures = measure(Bench(Path(directory), quick, say))
                break
            except Exception as error:  # noqa: BLE001 - whatever it was, the others can still be measured
                problems.append(f"{type(error).__name__}: {error}")
                progress.print(f"  [red]could not be measured[/] {escape(problems[-1])}", soft_wrap=True)
    problem = "" if figures else problems[-1]
    return Result(
        name,
        about,
        _story(measure),
        time.monotonic() - begun_at,
        figures,
        problem,
        "" if problem else "".join(problems),
    )


def _story(measure: Callable[[Bench], list[Figure]]) -> str:
    """How it is measured: what its module says, but for what is about running that, and what it says itself."""
    paragraphs = f"{inspect.getdoc(inspect.getmodule(measure))}\n\n{inspect.getdoc(measure)}".split("\n\n")
    return "\n\n".join(paragraph for paragraph in paragraphs if not paragraph.startswith("`python -m"))


def _in_short(result: Result) -> str:
    missed = sum(figure.passed is False for figure in result.figures)
    return f"[dim]{len(result.figures)} figures, {missed} goals missed, {result.seconds:.0f} s[/]"


def _write(file: Path, run: page.Run) -> None:
    picture = file.with_suffix(".svg")
    picture.write_text(plot.draw(run.results), encoding="utf-8")
    file.write_text(page.render(run, picture.name), encoding="utf-8")


def _show(results: Sequence[Result]) -> None:
    columns = ("figure", "ours", "the peer's", "value", "spread", "goal", "")
    table = Table(*columns, header_style="bold", box=None, padding=(0, 1))
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    for result in results:
        table.add_row(f"[bold]{result.name}[/]", "", "", "", "", f"[dim]{result.seconds:.0f} s[/]", "")
        if result.problem:
            table.add_row(f"  could not be measured: {escape(result.problem)}", "", "", "", "", "", "[red]?[/]")
        for figure in result.figures:
            mark = {True: "[green]met[/]", False: "[red]MISSED[/]", None: ""}[figure.passed]
            peer = f", against {figure.peer}" if figure.peer else ""
            detail = f" [dim]({escape(figure.detail)})[/]" if figure.detail else ""
            table.add_row(
                f"  {escape(figure.what + peer)}{detail}",
                *(figure.sides or ("", "")),
                page.value(figure),
                page.spread(figure),
                page.goal(figure),
                mark,
            )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 180  # a file or a pipe has no width of its own
    console.print(table)


def _document(result: Result) -> dict[str, object]:
    figures = [{**asdict(figure), "passed": figure.passed} for figure in result.figures]
    return {
        "name": result.name,
        "seconds": round(result.seconds, 1),
        "problem": result.problem,
        "hiccup": result.hiccup,
        "figures": figures,
    }


if __name__ == "__main__":
    sys.exit(main())
