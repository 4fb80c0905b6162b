"""`bucketbell fleet`: who has which file, as a running host knows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from infra.commands.common import plain
from infra.commands.host_api import SERVER, Api, AsJson, CaFile, ServerUrl, open_api, print_json
from infra.commands.uploads import BASE, AdminToken, token_or_first

MAX_SHOWN = 1000
WATCH_SECONDS = 2.0
WIDEST = 10_000
COLOURS = {"has_it": "green", "on_the_way": "cyan", "failed": "red", "waiting": "yellow", "offline": "bright_black"}
STANDINGS = tuple(COLOURS)

fleet = typer.Typer(
    name="fleet",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Who has which file: what the host knows of devices, files and uploads. The host needs DATABASE_URL and "
    "BUCKET; devices report what they have.",
    epilog="The token is BUCKETBELL_TOKEN, or the first of ADMIN_TOKENS.",
)

StateOption = Annotated[str, typer.Option("--state", help=f"Only those that are so far: {', '.join(STANDINGS)}.")]
Search = Annotated[str, typer.Option("--search", help="Only those whose name has this in it.")]
WatchOption = Annotated[bool, typer.Option("--watch", help=f"Show it again every {WATCH_SECONDS:g} s, until Ctrl-C.")]
Mac = Annotated[str, typer.Argument(help="The device's MAC address, in any form.")]

Row = Sequence[str]


@fleet.command()
def files(
    *,
    search: Search = "",
    watch: WatchOption = False,
    server: ServerUrl = SERVER,
    token: AdminToken = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the bucket's files, newest first, each with how many devices have it."""

    def rows(found: list[dict[str, Any]]) -> Iterator[Row]:
        for one in found:
            counts = (str(one[name]) if one["should"] else "" for name in STANDINGS)
            yield one["key"], _moment(one["last_modified"]), str(one["should"] or "nobody"), *counts

    with open_api(server, token_or_first(token), ca_file, BASE) as api:
        columns = ("file", "modified", "should", *STANDINGS)
        _show(lambda: _all(api, "files", "files", search=search), columns, rows, watch=watch, as_json=as_json)


@fleet.command()
def devices(
    filename: Annotated[str | None, typer.Argument(help="Only those that should have this file.")] = None,
    *,
    state: StateOption = "",
    search: Search = "",
    watch: WatchOption = False,
    server: ServerUrl = SERVER,
    token: AdminToken = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List devices, each with how far it is with the file that it should have."""

    def rows(found: list[dict[str, Any]]) -> Iterator[Row]:
        for one in found:
            target = filename or (one["target"] or {}).get("filename", "")
            said = one.get("reported_at") or one.get("at")
            yield one["mac"], _online(one["online"]), one["standing"] or "", target, _moment(said)

    what = "devices" if filename is None else f"files/{quote(filename)}/devices"
    with open_api(server, token_or_first(token), ca_file, BASE) as api:
        columns = ("device", "online", "standing", "file", "reported")
        ask = lambda: _all(api, what, "devices", search=search, state=state)  # noqa: E731 - its arguments are all here
        _show(ask, columns, rows, watch=watch, as_json=as_json)


@fleet.command()
def uploads(
    *,
    watch: WatchOption = False,
    server: ServerUrl = SERVER,
    token: AdminToken = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the last uploads: when each was announced and confirmed, and who has it."""

    def rows(found: list[dict[str, Any]]) -> Iterator[Row]:
        for one in found:
            legs = (one[name] for name in ("uploaded_at", "rang_at", "confirmed_at", "first_at", "last_at"))
            yield one["key"], *map(_moment, legs), str(one["has_it"])

    with open_api(server, token_or_first(token), ca_file, BASE) as api:
        columns = ("file", "uploaded", "announced", "confirmed", "first device", "last device", "have it")
        ask = lambda: api.ask("GET", "uploads").document["uploads"]  # noqa: E731 - as above
        _show(ask, columns, rows, watch=watch, as_json=as_json)


@fleet.command()
def device(
    mac: Mac,
    *,
    server: ServerUrl = SERVER,
    token: AdminToken = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one device: what it holds, and its last states."""
    with open_api(server, token_or_first(token), ca_file, BASE) as api:
        _show_device(api.ask("GET", f"devices/{quote(mac)}").document, as_json=as_json)


@fleet.command()
def assign(
    mac: Mac,
    filename: Annotated[str, typer.Argument(help="The asset's path; `-` for what the device follows by itself.")],
    *,
    server: ServerUrl = SERVER,
    token: AdminToken = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Say which asset a device should have."""
    with open_api(server, token_or_first(token), ca_file, BASE) as api:
        wanted = {"filename": "" if filename == "-" else filename}
        _show_device(api.ask("PUT", f"devices/{quote(mac)}/assignment", wanted).document, as_json=as_json)


@fleet.command()
def forget(mac: Mac, *, server: ServerUrl = SERVER, token: AdminToken = None, ca_file: CaFile = None) -> None:
    """Forget a device that is gone, and all that it said."""
    with open_api(server, token_or_first(token), ca_file, BASE) as api:
        api.ask("DELETE", f"devices/{quote(mac)}")
    typer.echo(f"{plain(mac)} is forgotten")


def _all(api: Api, what: str, name: str, **query: str) -> list[dict[str, Any]]:
    """All pages, up to `MAX_SHOWN` lines."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None and len(found) < MAX_SHOWN:
        page = api.ask("GET", f"{what}?{urlencode({'limit': MAX_SHOWN, 'after': after, **query})}").document
        found += page[name]
        after = page["next"]
    return found


def _show(
    ask: Callable[[], list[dict[str, Any]]],
    columns: Sequence[str],
    rows: Callable[[list[dict[str, Any]]], Iterator[Row]],
    *,
    watch: bool,
    as_json: bool,
) -> None:
    if as_json:
        _print(ask, watch=watch)
        return
    from rich.console import Console  # noqa: PLC0415 - what a command needs is loaded when it runs
    from rich.live import Live  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    def table() -> Table:
        found = ask()
        shown = Table(box=None, pad_edge=False)
        for column in columns:
            shown.add_column(_words(column), overflow="fold")  # a name that is cut off is of no use
        for row in rows(found):
            # Names come from the bucket and from devices: no control character reaches the terminal, and no markup.
            shown.add_row(*(Text(plain(_words(cell)), COLOURS.get(cell, "default")) for cell in row))
        if len(found) >= MAX_SHOWN:
            shown.caption = f"the first {MAX_SHOWN:,}; narrow it down with --search or --state"
        return shown

    console = Console()
    if not console.is_terminal:
        console.width = WIDEST  # for `grep` and the like: a line for each
    if not watch:
        console.print(table())
        return
    try:
        with Live(table(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(table(), refresh=True)
    except KeyboardInterrupt:
        return


def _print(ask: Callable[[], list[dict[str, Any]]], *, watch: bool) -> None:
    while True:
        for one in ask():
            print_json(one)
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


def _show_device(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    target = found["target"]
    typer.secho(plain(found["mac"]), bold=True)
    lines = {
        "online": _online(found["online"]),
        "version": found["version"],
        "agent": found["agent"],
        "should have": target and f"{target['filename']} ({target['rule']})",
        "standing": _words(found["standing"] or ""),
        "known": f"by its {found['source']}, since {_moment(found['known_since'])}",
    }
    for name, text in lines.items():
        if text:
            typer.echo(f"  {name:<12} {plain(text)}")
    for one in found["history"]:
        reason = f": {one['reason']}" if one["reason"] else ""
        typer.echo(f"  {_moment(one['at']):<12} {plain(one['filename'])}  {one['state']}{plain(reason)}")


def _words(name: str) -> str:
    return name.replace("_", " ") if name in COLOURS else name


def _online(online: bool | None) -> str:  # noqa: FBT001 - of a document
    return {True: "online", False: "offline", None: ""}[online]


def _moment(at: str | None) -> str:
    """The time of this machine, and the day unless it is today."""
    if not at:
        return ""
    moment = datetime.fromisoformat(at).astimezone()
    is_today = moment.date() == datetime.now(UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M")
