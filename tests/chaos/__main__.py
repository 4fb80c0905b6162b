"""`python -m tests.chaos`: numbered uploads while something breaks; none may go unheard.

Exit status 0 when nothing is missing and every repeat bears the first's id; 1 when a message was lost, a repeat bears
another id, the control saw no loss, or a scenario could not be played, each said by name; 2 for wrong use.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from infra.local.machine import in_one_sentence
from tests.chaos import report
from tests.chaos.runner import Result, play, result_of
from tests.chaos.scenarios import FAMILIES, PROFILES, SCENARIOS

DEFAULT_JOBS = {"short": 6, "long": 4}  # most of each is waiting


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--profile", choices=PROFILES, default="short", help="few messages each (default), or many")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SCENARIOS, help="these scenarios only")
    parser.add_argument("--family", nargs="+", metavar="FAMILY", choices=FAMILIES, help="these families only")
    parser.add_argument("--jobs", type=int, metavar="N", help="scenarios side by side")
    parser.add_argument("--list", action="store_true", help="name the scenarios and stop")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument(
        "--also", nargs="+", type=Path, metavar="FILE", default=(), help="--json of earlier runs: not again"
    )
    parser.add_argument("--write", type=Path, metavar="PATH", help="write the results as Markdown")
    options = parser.parse_args(arguments)
    runs = [json.loads(file.read_text()) for file in options.also]
    if any(run["profile"] != options.profile for run in runs):
        parser.error(f"not all of these runs were of the {options.profile} profile")
    earlier = [result_of(document) for run in runs for document in run["results"]]
    names = [
        name
        for name, scenario in SCENARIOS.items()
        if name in (options.only or SCENARIOS)
        and scenario.family in (options.family or FAMILIES)
        and name not in {result.name for result in earlier}
    ]
    console = Console(highlight=False)
    if options.list:
        for name in names:
            console.print(f"{name:<24} {escape(SCENARIOS[name].what)}", soft_wrap=True)
        return 0
    # SIGTERM ends the parts in the same orderly way as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun_at = time.monotonic()
    try:
        played = _play_all(names, options.profile, options.jobs or DEFAULT_JOBS[options.profile])
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
        return 130
    results = sorted((*earlier, *played), key=lambda result: list(SCENARIOS).index(result.name))
    seconds = time.monotonic() - begun_at + sum(run["seconds"] for run in runs)
    if options.json:
        documents = [{**asdict(result), "complaint": result.complaint} for result in results]
        run = {"profile": options.profile, "seconds": seconds, "results": documents}
        sys.stdout.write(json.dumps(run, ensure_ascii=False, indent=2) + "\n")
    else:
        report.show(console, results, seconds)
    if options.write:
        options.write.write_text(report.page(results, options.profile, seconds, in_one_sentence()))
    return 1 if any(result.complaint for result in results) else 0


def _play_all(names: Sequence[str], profile: str, jobs: int) -> list[Result]:
    """Each in a process of its own, `jobs` at a time."""
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    results: dict[str, Result] = {}
    # Fresh interpreters: a forked one would inherit the lifelines of the parts (infra.local.process).
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    try:
        playing = {pool.submit(play, name, profile): name for name in names}
        with progress.status(f"{len(names)} scenarios, {jobs} side by side") as status:
            for done in as_completed(playing):
                result = results[playing[done]] = done.result()
                progress.print(report.line(result))
                if result.last_words:
                    progress.print(escape(result.last_words))
                status.update(f"{len(names) - len(results)} of {len(names)} scenarios to go")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return list(results.values())


if __name__ == "__main__":
    sys.exit(main())
