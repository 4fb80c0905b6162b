"""`bucketbell why` and `bucketbell ring`: what became of an upload, and to announce it again, by a running host."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from infra.commands.common import fail, load_or_exit, plain
from infra.commands.host_api import SERVER, Api, AsJson, CaFile, ServerUrl, open_api, print_json

BASE = "/api/v1"
MAX_UNASKED = 100  # more are announced with --yes only
MAX_FILES = 100_000
RINGS_PER_SECOND = 10.0
MAX_FAILURES_IN_A_ROW = 5

WHY_EPILOG = (
    "Examples: `bucketbell why assets/x.bin` · `bucketbell why a1-b2-c3-d4-e5-f6`. The token is BUCKETBELL_TOKEN, or "
    "the first of ADMIN_TOKENS. Exit code 0: it was announced. 1: it was not, or that is not known; 2: wrong options."
)
RING_EPILOG = (
    "Examples: `bucketbell ring assets/x.bin` · `bucketbell ring --since 2h` · `bucketbell ring assets/x.bin --device "
    "a1-b2-c3-d4-e5-f6`. The token is BUCKETBELL_TOKEN, or the first of ADMIN_TOKENS. Exit code 0: announced. 1: not, "
    "or not all; 2: wrong options."
)

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _optional_word(token: str | None) -> str | None:
    return token.strip() if token and token.strip() else None


AdminToken = Annotated[
    str | None,
    typer.Option(
        envvar="BUCKETBELL_TOKEN",
        callback=_optional_word,
        show_default=False,
        help="One of the host's ADMIN_TOKENS; else the first of ADMIN_TOKENS here. Better set it in the environment.",
    ),
]


def why(
    key: Annotated[str, typer.Argument(help="The key; a config's MAC or a bare file name will do.")],
    *,
    server: ServerUrl = SERVER,
    token: AdminToken = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Tell what became of an upload, from the bucket to the broker; or what is in the way."""
    with open_api(server, token_or_first(token), ca_file, BASE) as api:
        found = api.ask("GET", f"why?{_query(key=key)}").document
    if as_json:
        print_json(found)
    else:
        typer.echo(plain(found["key"]))
        for line in found["story"]:
            typer.echo(f"  {_moment(line['at']):<24}  {plain(line['text'])}")
        typer.secho(plain(found["answer"]), bold=True, fg="green" if found["well"] else "red")
    if not found["well"]:
        raise typer.Exit(1)


def ring(
    key: Annotated[str | None, typer.Argument(help="The key; a config's MAC or a bare file name will do.")] = None,
    *,
    since: Annotated[
        str | None,
        typer.Option(
            help="All files modified since then: 90s, 30m, 2h, 1d, or a time (of this machine, without a zone)."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="The MAC of the only device to hear it, on its own topic (the host's DEVICE_TOPICS)."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help=f"Also announce more than {MAX_UNASKED} files.")] = False,
    server: ServerUrl = SERVER,
    token: AdminToken = None,
    ca_file: CaFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object for each file, as the API answers it.")
    ] = False,
) -> None:
    """Announce a file again under a new id, so that devices take it for a new upload.

    After an older version has come back because a newer one was deleted, for instance: a deletion announces nothing.
    """
    if (key is None) == (since is None):
        raise typer.BadParameter("name a file, or give --since")
    moment = None if since is None else _since(since)
    with open_api(server, token_or_first(token), ca_file, BASE) as api:
        keys = [key] if key is not None else _modified_since(api, moment or datetime.now(UTC), announces_many=yes)
        if not _ring_all(api, keys, device, as_json=as_json):
            raise typer.Exit(1)


def _ring_all(api: Api, keys: Sequence[str], device: str | None, *, as_json: bool) -> bool:
    """Announce these, paced; whether all were. A file may have gone meanwhile; if nothing succeeds, it ends."""
    failed = in_a_row = 0
    for number, key in enumerate(keys):
        if number:
            time.sleep(1 / RINGS_PER_SECOND)
        try:
            answer = api.ask("POST", "ring", {"key": key} | ({} if device is None else {"device": device})).document
        except typer.Exit:
            if len(keys) == 1:
                raise
            answer = {"ok": False}
            typer.echo(plain(f"{key} was not announced"), err=True)
        else:
            _show_ring(answer, as_json=as_json)
        failed += not answer["ok"]
        in_a_row = 0 if answer["ok"] else in_a_row + 1
        if in_a_row == MAX_FAILURES_IN_A_ROW and number + 1 < len(keys):
            fail(f"{in_a_row} in a row were not announced: the last {len(keys) - number - 1:,} files were not tried")
    return not failed


def _show_ring(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        words = f"{answer['key']}: {answer['detail']} ({answer['topic']}, id {answer['id']})"
        typer.secho(plain(words), fg=None if answer["ok"] else "red")


def _modified_since(api: Api, since: datetime, *, announces_many: bool) -> list[str]:
    """Return the keys, the oldest first; too many without --yes end the command."""
    files: list[dict[str, Any]] = []
    after = ""
    while True:
        page = api.ask("GET", f"ring?{_query(since=since.isoformat(), after=after)}").document
        files += page["files"]
        if len(files) > MAX_FILES:
            fail(f"more than {MAX_FILES:,} files were modified since then: nothing was announced")
        after = page["next"] or ""
        if not after:
            break
    keys = [one["key"] for one in sorted(files, key=lambda one: (one["last_modified"], one["key"]))]
    if len(keys) > MAX_UNASKED and not announces_many:
        fail(f"{len(keys):,} files were modified since then; nothing was announced. Announce them all with --yes")
    typer.echo(f"{len(keys):,} files were modified since {_moment(since.isoformat())}", err=True)
    return keys


def _since(text: str) -> datetime:
    """Read a span back from now, or a time; without a zone it is this machine's."""
    try:
        if (span := re.fullmatch(r"(\d{1,6})([smhd])", text.strip().lower())) is not None:
            return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        problem = "must be a span such as 2h, or a time such as 2026-11-30T12:00"
        raise typer.BadParameter(problem, param_hint="--since") from None


def token_or_first(given: str | None) -> str:
    """The given token, or the first of ADMIN_TOKENS."""
    if given is not None:
        return given
    tokens = load_or_exit().settings.admin_tokens
    if not tokens:
        fail("set BUCKETBELL_TOKEN to one of the host's ADMIN_TOKENS, or ADMIN_TOKENS as the host has it")
    return tokens[0].get_secret_value()


def _query(**parameters: str) -> str:
    try:
        return urlencode(parameters)
    except UnicodeEncodeError:
        fail("the key is not UTF-8")


def _moment(at: str | None) -> str:
    return "now" if at is None else at.replace("T", " ").replace("+00:00", "Z")
