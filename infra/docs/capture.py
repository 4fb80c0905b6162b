"""`python -m infra.docs.capture` makes `docs/cameras.svg` again: the real commands, recorded as a terminal shows them.

The broker, the store and the host are those of `make run`. Only the remarks were written by hand.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from infra.local.detection import PICTURE, detect
from infra.local.install import ensure_mosquitto
from infra.local.mosquitto import Mosquitto
from infra.local.process import PartError
from infra.local.stack import BUCKETBELL, DemoError, Stack
from infra.subscriber import Subscriber, SubscriberError

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "cameras.svg"
COLUMNS = 112
CONTINUED = " \\\n"
USERNAME, PASSWORD = "cameras", "let-me-in"
PREFIX = "home"
COMMAND_SECONDS = 20.0
HEAR_SECONDS = 10.0
# A spinner is gone when its command ends.
_SPINNER = re.compile(r"^.*[\u2801-\u28ff].*\n?", re.MULTILINE)
# GitHub shows no fonts from elsewhere, and a picture should not load any.
_FONTS = re.compile(r"@font-face \{.*?\}", re.DOTALL)


class Terminal:
    """What a person types and sees."""

    def __init__(self, variables: dict[str, str]) -> None:
        """`variables` are exported beforehand."""
        self.console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
        self._variables = variables

    def remark(self, words: str) -> None:
        """Say what comes now."""
        self.console.print(f"\n[dim]# {words}[/]")

    def line(self, markup: str) -> None:
        """Show one line, cut where the terminal ends."""
        self.console.print(markup, no_wrap=True, overflow="ellipsis")

    def run(self, *arguments: str, exit_code: int = 0, **more: str) -> None:
        """Run `bucketbell` and show all that it says. Raises `DemoError` when it ends otherwise than expected."""
        command = f"bucketbell {shlex.join(arguments)}"
        lines = textwrap.wrap(
            command, COLUMNS - 4, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
        self.console.print(f"[bold]$[/] {escape(CONTINUED.join(lines))}")
        done = subprocess.run(
            [BUCKETBELL, *arguments],
            env={**os.environ, **self._variables, **more, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode != exit_code:
            raise DemoError(f"{command}: exit code {done.returncode}\n{done.stdout}")
        self.console.print(Text.from_ansi(_SPINNER.sub("", done.stdout).rstrip("\n")))

    def svg(self, title: str) -> str:
        """All that was shown."""
        return _FONTS.sub("", self.console.export_svg(title=title, unique_id="cameras"))


def record(directory: Path) -> str:
    """Set a broker up by the API, and see a detection arrive there. Raises `DemoError`."""
    stack = Stack(directory)
    try:
        with Mosquitto(directory / "broker", users={USERNAME: PASSWORD}) as broker:
            stack.start()
            terminal = Terminal(
                {
                    "BUCKETBELL_SERVER": stack.host.url,
                    "BUCKETBELL_TOKEN": stack.admin_token,
                    "BUCKETBELL_MQTT_PASSWORD": PASSWORD,
                }
            )
            show(terminal, stack, broker)
    finally:
        stack.stop()
    return terminal.svg("bucketbell: cameras")


def show(terminal: Terminal, stack: Stack, broker: Mosquitto) -> None:
    """All that is in the picture."""
    where = ("--broker-host", "127.0.0.1", "--broker-port", str(broker.port), "--username", USERNAME)
    terminal.remark("Try a broker first. Nothing is stored; here the password is wrong:")
    terminal.run("mqtt", "test", *where, "--password", "env", exit_code=1, BUCKETBELL_MQTT_PASSWORD="wrong")
    terminal.remark("With the right one, store it. The running host connects at once:")
    terminal.run("mqtt", "set", *where, "--password", "env", "--topic-prefix", PREFIX, "--discovery", "--retain")
    topics = (f"{PREFIX}/camera/#", "homeassistant/device/#")
    with (
        Subscriber(broker.url, topics[:1], username=USERNAME, password=PASSWORD) as ear,
        Subscriber(broker.url, topics[1:], username=USERNAME, password=PASSWORD) as home,
    ):
        terminal.remark("A camera's software uploads a picture, then its event; somebody listens at the broker:")
        seen = detect(stack, ear, topic_prefix=PREFIX)
        discovery = home.next(HEAR_SECONDS)
    size_bytes = PICTURE.stat().st_size
    terminal.line(f"[bold]upload[/]  {seen.key}.jpg   {size_bytes:,} bytes")
    terminal.line(f"[bold]upload[/]  {seen.key}.json  {seen.uploaded_ms:.1f} ms")
    terminal.line(f"[bold green]  rang[/]  {discovery.topic}  [dim]{len(discovery.payload):,} bytes[/]")
    terminal.line(
        f"[bold green]  rang[/]  {seen.message.topic}  [bold]{seen.heard_ms:.1f} ms[/] after the upload began"
    )
    for name, value in json.loads(seen.message.payload).items():
        terminal.line(f"        [dim]{name:<20}[/]  [cyan]{escape(json.dumps(value))}[/]")
    terminal.line(
        f"[bold green]opened[/]  thumbnail_url: {seen.content_type}, {size_bytes:,} bytes, as it was uploaded  "
        f"[bold]{seen.opened_ms:.1f} ms[/]"
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the picture; 0 when everything that it shows was seen."""
    parser = argparse.ArgumentParser(prog="python -m infra.docs.capture", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=FILE, help="where to write it")
    file: Path = parser.parse_args(arguments).file
    try:
        ensure_mosquitto(lambda _words: None)
        with tempfile.TemporaryDirectory(prefix="bucketbell-") as directory:
            svg = record(Path(directory))
    except (DemoError, PartError, SubscriberError) as error:
        print(error, file=sys.stderr)
        return 1
    file.write_text(svg, encoding="utf-8")
    print(f"written: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
