"""`python -m infra.bench`: measures, and prints each figure beside its target.

Exit status 0 when everything could be measured, whatever the figures say; 1 when something could not; 2 for wrong use.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.bench import (
    blackhole,
    cold,
    detections,
    downloads,
    fleet,
    imports,
    latency,
    listing,
    lost,
    outages,
    presign,
    pull,
    slow_link,
    switch,
    thaw,
    throughput,
)
from infra.bench.figures import Bench, Figure

MEASUREMENTS: dict[str, tuple[Callable[[Bench], list[Figure]], str]] = {
    "latency": (latency.measure, "upload to message, against MinIO's own MQTT target"),
    "latency_queue": (latency.measure_queue, "the same, against its MQTT target with queue_dir"),
    "lost": (lost.measure, "uploads while broker, host, or host and MinIO are down"),
    "outages": (outages.measure, "uploads while the broker is killed over and over, at QoS 1 and 2"),
    "switch": (switch.measure, "another broker is stored under 200 events a second"),
    "detections": (detections.measure, "upload to message: a camera's event against a config"),
    "blackhole": (blackhole.measure, "the test of settings whose broker never answers"),
    "slow_link": (slow_link.measure, "600 messages over a link of 400 ms"),
    "thaw": (thaw.measure, "the inline publisher after a freeze"),
    "throughput": (throughput.measure, "requests a second, against parsing only and threads"),
    "import": (imports.measure, "import time of functions.notify"),
    "cold": (cold.measure, "the deployed function's cold start and warm call, against a usual function's"),
    "presign": (presign.measure, "presigning a URL, against boto3's own"),
    "downloads": (downloads.measure, "GET /assets/x, against the same server answering a constant 307"),
    "pull": (pull.measure, "upload to the verified file on a device's disk, leg by leg"),
    "listing": (listing.measure, "a manifest of 10,000 objects, against a bare LIST"),
    "fleet": (fleet.measure, "200 devices told of one asset"),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one measurement: figures, or the reason why there are none."""

    name: str
    seconds: float
    figures: Sequence[Figure]
    problem: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m infra.bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=MEASUREMENTS, help="these measurements only")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--list", action="store_true", help="name the measurements and stop")
    options = parser.parse_args(arguments)
    if options.list:
        for name, (_, about) in MEASUREMENTS.items():
            print(f"{name:<14} {about}")
        return 0
    # SIGTERM ends the parts in the same orderly way as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = Console(stderr=True, highlight=False)
    try:
        results = [_measure(name, progress, quick=options.quick) for name in options.only or MEASUREMENTS]
    except KeyboardInterrupt:
        progress.print("stopped")
        return 130
    if options.json:
        print(json.dumps([_document(result) for result in results], ensure_ascii=False, indent=2))
    else:
        _show(results)
    return 1 if any(result.problem for result in results) else 0


def _measure(name: str, progress: Console, *, quick: bool) -> Result:
    measure, about = MEASUREMENTS[name]
    begun_at = time.monotonic()
    figures: Sequence[Figure] = ()
    problem = ""
    progress.print(f"[bold]{name}[/]: {about}")
    with tempfile.TemporaryDirectory(prefix="bucketbell-bench-") as directory, progress.status("…") as status:

        def say(text: str) -> None:
            if progress.is_terminal:
                status.update(text)
            else:
                progress.print(f"  {text}", soft_wrap=True)

        try:
            figures = measure(Bench(Path(directory), quick, say))
        except Exception as error:  # noqa: BLE001 - whatever it was, the others can still be measured
            problem = f"{type(error).__name__}: {error}"
            progress.print(f"  [red]could not be measured[/] {problem}", soft_wrap=True)
    return Result(name, time.monotonic() - begun_at, figures, problem)


def _show(results: Sequence[Result]) -> None:
    table = Table("figure", "value", "target", "", "both sides", header_style="bold", box=None, padding=(0, 1))
    for column in (1, 2):
        table.columns[column].justify = "right"
        table.columns[column].no_wrap = True
    for result in results:
        table.add_row(f"[bold]{result.name}[/]", "", "", "", f"[dim]{result.seconds:.0f} s[/]")
        if result.problem:
            table.add_row("  could not be measured", "", "", "[red]?[/]", result.problem)
        for figure in result.figures:
            mark = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: ""}[figure.passed]
            target = "" if figure.target is None else f"{figure.sense} {_number(figure.target)} {figure.unit}"
            table.add_row(f"  {figure.what}", f"{_number(figure.value)} {figure.unit}", target, mark, figure.detail)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width of its own
    console.print(table)


def _number(value: float) -> str:
    return f"{value:g}" if value == int(value) else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"  # noqa: PLR2004 - to read


def _document(result: Result) -> dict[str, object]:
    figures = [{**asdict(figure), "passed": figure.passed} for figure in result.figures]
    return {"name": result.name, "seconds": round(result.seconds, 1), "problem": result.problem, "figures": figures}


if __name__ == "__main__":
    sys.exit(main())
