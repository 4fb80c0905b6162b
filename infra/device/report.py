"""Shows what the device does: a line for each event, and on a terminal a progress bar; or JSON lines for scripts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

# Configs of other devices, and repeats, are usual: a person need not see them.
_QUIET = {("skipped", "not_ours"), ("skipped", "repeat"), ("skipped", "in_progress"), ("skipped", "unchanged")}


class JsonReport:
    """One JSON object a line: `event`, `at` (seconds since 1970), and the event's own fields."""

    def __init__(self, stream: TextIO) -> None:
        """Each line is flushed."""
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: str, /, **fields: object) -> None:
        """Write the line, except for progress."""
        if event == "progress":
            return
        line = json.dumps({"event": event, "at": round(time.time(), 3), **fields})
        with self._lock:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is left to do."""


class TextReport:
    """For a person. Use it from any thread; `close` gives the terminal back."""

    def __init__(self, console: Console) -> None:
        """The bar is shown on a terminal only."""
        self._console = console
        self._lock = threading.Lock()
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("          {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __call__(self, event: str, /, **fields: object) -> None:
        """Show one event."""
        with self._lock:
            if event == "progress":
                self._show_progress(fields)
                return
            if event != "heard":
                self._end_progress()
            if (event, fields.get("reason")) not in _QUIET and event in _WORDS:
                self._say(event, _WORDS[event](fields))

    def close(self) -> None:
        """Take the bar away."""
        with self._lock:
            self._end_progress()

    def _say(self, event: str, words: str) -> None:
        colour = {"verified": "green", "failed": "red", "gone": "yellow", "skipped": "yellow"}.get(event, "default")
        moment = time.strftime("%H:%M:%S")
        # Names come from the network: no control character reaches the terminal, no markup is taken for ours.
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
        self._console.print(f"{moment}  [bold {colour}]{event:<9}[/]  {escape(text)}", soft_wrap=True)

    def _show_progress(self, fields: dict[str, Any]) -> None:
        if self._task is None:
            self._task = self._bar.add_task(escape(_path(fields)), total=fields["size"])
            self._bar.start()
        self._bar.update(self._task, completed=fields["length"])

    def _end_progress(self) -> None:
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None


def _path(fields: dict[str, Any]) -> str:
    return " ".join(str(fields[field]) for field in ("kind", "filename") if field in fields)


def _heard(fields: dict[str, Any]) -> str:
    age_ms = fields["event_age_ms"]
    age = "" if age_ms is None else f", {age_ms:.0f} ms after the upload (by two clocks)"
    return f"{_path(fields)}{age}; fetching in {fields['wait_ms']:.0f} ms"


def _verified(fields: dict[str, Any]) -> str:
    resumed = f", {fields['resumed_bytes']:,} of them from before" if fields["resumed_bytes"] else ""
    legs = ", ".join(
        f"{leg} {fields[f'{leg}_ms']:.1f}" for leg in ("waited", "asked", "downloaded", "verified", "placed")
    )
    return (
        f"{_path(fields)}  {fields['size']:,} bytes{resumed}, by {fields['by']}  {fields['total_ms']:.1f} ms ({legs})"
    )


def _failed(fields: dict[str, Any]) -> str:
    retry_ms = fields["retry_in_ms"]
    then = "given up" if retry_ms is None else f"again in {retry_ms / 1e3:.1f} s"
    return f"{_path(fields)}  {fields['reason']}: {fields['detail']}; {then}"


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "listening": lambda fields: f"on {fields['broker']}: {', '.join(fields['topics'])}",
    "deaf": lambda fields: f"{fields['detail']}; trying again",
    "caught_up": lambda f: f"{f['listed']:,} listed, {f['unchanged']:,} here already, {f['wanted']:,} to fetch",
    "heard": _heard,
    "skipped": lambda fields: f"{_path(fields)}  {fields['reason']}: {fields.get('detail', '')}",
    "renewing": lambda fields: f"{_path(fields)}  the URL: {fields['reason']}",
    "unreported": lambda fields: f"{fields['detail']}; telling the host by HTTP",
    "token_kept": lambda fields: f"{fields['reason']}: {fields['detail']}",
    "token_renewed": lambda fields: f"good until {fields['expires_at']}",
    "gone": lambda fields: f"{_path(fields)}  is no longer on the server; what is here stays",
    "verified": _verified,
    "failed": _failed,
}
