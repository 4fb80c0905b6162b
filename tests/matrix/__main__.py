"""Plays one contract suite over object stores and one over MQTT brokers, and says what works with each.

Without arguments it tries all that is at hand, and says what is not, and which word brings it. Exit status 0 when all
went as it must; 1 when something failed (an upload missing with the sweep on, for instance) or something that was asked
for is not at hand; 2 for wrong use. What a store or broker cannot do, or loses by its nature, is no failure.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from infra.local.install import Say
from tests.matrix import stores
from tests.matrix.page import page, title
from tests.matrix.result import Subject, load, save

NAME_WIDTH = 48


class Half(Protocol):
    """What the stores and the brokers have in common."""

    NAMES: tuple[str, ...]

    def missing(self, name: str) -> str | None:
        """What to type to bring it; None where it is at hand."""

    def run(self, names: Sequence[str], say: Say) -> Iterator[Subject]:
        """Try each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    brokers = _brokers()
    halves = {name: half for half in (cast("Half", stores), brokers) if half for name in half.NAMES}
    options = _parsed(arguments, halves)
    absent = {name: half.missing(name) for name, half in halves.items() if name in options.only}
    here = [name for name, word in absent.items() if not word]
    for name, word in absent.items():
        if word:
            _say(f"{name} is not here: {word}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun_at = time.monotonic()
    failed = 0
    try:
        for subject in _run(here, brokers, options.jobs):
            _show(subject)
            failed += bool(subject.failed)
            if options.write:
                save(subject)
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    _say(f"{len(here)} tried, {failed} of them with failures, {time.monotonic() - begun_at:.0f} s in all")
    if options.write:
        options.write.write_text(page(load()), encoding="utf-8")
    return 1 if failed or (options.asked and len(here) < len(absent)) else 0


def _parsed(arguments: Sequence[str] | None, halves: dict[str, Half]) -> argparse.Namespace:
    words = "\n".join(f"  {name:<12} {half.missing(name) or 'is at hand'}" for name, half in halves.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix",
        description=__doc__,
        epilog=f"stores and brokers, and what brings those that are not at hand:\n{words}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAME,…", help="these only; one that is not at hand is a failure")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="stores side by side, and brokers beside them (figures need 1)"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="PATH",
        help='keep the results in tests/matrix/results, and write the page of all that are kept there (with --only "" '
        "of those that are kept already)",
    )
    options = parser.parse_args(arguments)
    options.asked = options.only is not None
    options.only = [name for name in options.only.split(",") if name] if options.asked else list(halves)
    if unknown := [name for name in options.only if name not in halves]:
        parser.error(f"{', '.join(unknown)}: not known; there are {', '.join(halves)}")
    return options


def _run(names: Sequence[str], brokers: Half | None, jobs: int) -> Iterator[Subject]:
    runs: list[Callable[[], Iterator[Subject]]] = [
        partial(stores.run, [name for name in names if name in stores.NAMES], _say, jobs=jobs)
    ]
    if brokers:
        runs.append(partial(brokers.run, [name for name in names if name in brokers.NAMES], _say))
    if jobs == 1:
        for run in runs:
            yield from run()
        return
    with ThreadPoolExecutor() as pool:
        for done in as_completed([pool.submit(_all_of, run) for run in runs]):
            yield from done.result()


def _all_of(run: Callable[[], Iterator[Subject]]) -> list[Subject]:
    return list(run())


def _brokers() -> Half | None:
    """The other half, loaded only when it is wanted."""
    name = "tests.matrix.brokers"
    return cast("Half", import_module(name)) if find_spec(name) else None


def _show(subject: Subject) -> None:
    _say(f"\n{title(subject)} {subject.version}")
    for check in subject.checks:
        _say(f"  {check.name:<{NAME_WIDTH}} {check.verdict:<12} {check.said}".rstrip())
    for name, value in subject.figures.items():
        _say(f"  {name:<{NAME_WIDTH}} {value:g}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
