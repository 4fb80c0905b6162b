"""`bucketbell token`: makes the tokens that devices show, and explains them."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import Enum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from infra.commands.common import fail, load_or_exit

if TYPE_CHECKING:
    from functions.web.tokens import Keyring, MintedToken

STANDARD_INPUT = "-"
COLUMNS = ("mac", "token", "expires_at", "id")
PROGRESS_SECONDS = 2.0  # between two words of how far it is
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600, "y": 365 * 24 * 3600}
MAX_EXPIRES_SECONDS = 10 * UNIT_SECONDS["y"]

EPILOG = (
    "Examples: `bucketbell token a1-b2-c3-d4-e5-f6 --expires 30d` · `bucketbell token inspect eyJ…` · "
    "`… | bucketbell token inspect -` · `bucketbell token --from macs.csv --output tokens.csv`. "
    "The keys are in DEVICE_TOKEN_KEYS: the first signs, all verify, so that they "
    "can be rotated. To revoke a token, put its id (`jti`) into DEVICE_TOKENS_REVOKED. To revoke all tokens of a key, "
    "take the key out."
)


class Format(Enum):
    """How many tokens are written."""

    CSV = "csv"
    JSON = "json"


class _MintByDefault(TyperGroup):
    """`token <mac>` means `token mint <mac>`, and `token --from FILE` means `token mint --from FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - of the click that typer brings along
        """Leave options to `mint`: the group itself has none but help."""
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["mint", *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - as above
        """Take `mint` if no command is named."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["mint", *args]
        return super().resolve_command(ctx, args)


token = typer.Typer(
    name="token",
    cls=_MintByDefault,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog=EPILOG,
    help="Make a token for a device, `bucketbell token <mac>`, or explain one, `bucketbell token inspect <token>`.",
)


@token.command()
def mint(
    *,
    mac: Annotated[
        str, typer.Argument(metavar="MAC", help="The device's MAC: a1-b2-c3-d4-e5-f6, a1:b2:… or a1b2….")
    ] = "",
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Instead of one MAC a list of them, - for standard input: one a line, or CSV with a column `mac`.",
        ),
    ] = "",
    form: Annotated[Format, typer.Option("--format", help="With --from: how the tokens are written.")] = Format.CSV,
    output: Annotated[
        Path | None,
        typer.Option(
            help="With --from: a new file for the tokens, which only you can read. Default: standard output.",
            show_default=False,
        ),
    ] = None,
    expires: Annotated[str, typer.Option(help="How long it is valid: a number and s, m, h, d, w or y.")] = "1y",
) -> None:
    """Print a token for one device on standard output, and nothing else there; or write one for each of a list.

    A list is done whole or not at all: each line that is wrong is named, and nothing is made. A device that is listed
    twice gets one token. For each there are `mac`, `token`, `expires_at`, and the `id` to revoke it by.
    """
    seconds = _seconds(expires)
    if source:
        if mac:
            raise typer.BadParameter("either one MAC, or a list with --from", param_hint="MAC")
        _mint_all(source, form, output, seconds)
        return
    if output is not None:
        raise typer.BadParameter("goes with --from", param_hint="--output")
    if not mac:
        raise typer.BadParameter("name one, or a list of them with --from", param_hint="MAC")
    from functions.web.tokens import KeyringError  # noqa: PLC0415 - PyJWT only for this command

    try:
        typer.echo(_keyring().mint(mac, expires_seconds=seconds))
    except KeyringError as error:
        fail(str(error))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="MAC") from None


@token.command()
def inspect(
    *,
    text: Annotated[str, typer.Argument(metavar="TOKEN", help="The token, or - to read it from standard input.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Show what a token claims, and whether it is valid here. Exit 1 if it is not."""
    from functions.web.tokens import TokenError  # noqa: PLC0415 - as above

    try:
        inspection = _keyring().inspect((sys.stdin.read() if text == "-" else text).strip())
    except TokenError as error:
        fail(f"this is not a token: {error.reason}")
    if as_json:
        document = {"valid": not inspection.reason, "reason": inspection.reason or None}
        typer.echo(json.dumps(document | {"header": dict(inspection.header), "claims": dict(inspection.claims)}))
    else:
        typer.echo(f"valid    {'yes' if not inspection.reason else f'no: {inspection.reason}'}")
        for name, value in (*inspection.header.items(), *inspection.claims.items()):
            # A stranger may have written it: no control character and no line of its own reaches the terminal.
            typer.echo(f"{_plain(name):<8} {_plain(value)}{_moment(name, value)}")
    if inspection.reason:
        raise typer.Exit(1)


def _mint_all(source: str, form: Format, output: Path | None, expires_seconds: int) -> None:
    from functions.web.tokens import KeyringError  # noqa: PLC0415 - as above
    from infra.commands.macs import NoListError, read_macs  # noqa: PLC0415 - as above

    ring = _keyring()
    if output is not None and output.exists():
        raise typer.BadParameter("is there already: its tokens would be lost", param_hint="--output")
    try:
        with _opened(source) as file, read_macs(file, _say) as macs:
            if macs.wrong:
                fail(f"wrong lines: {macs.wrong:,}; no token was made")
            if not macs.good:
                fail("there is no MAC in it: no token was made")
            now, told_at = time.time(), time.monotonic()
            with _written(output) as out:
                put, end = _writer(out, form)
                for number, mac in enumerate(macs):
                    put(ring.issue(mac, expires_seconds=expires_seconds, now=now))
                    if time.monotonic() - told_at >= PROGRESS_SECONDS:
                        told_at = time.monotonic()
                        _say(f"{number + 1:,} of {macs.good:,} tokens")
                end()
            if output is not None:
                _say(f"tokens in {output}: {macs.good:,}")
    except (KeyringError, NoListError) as error:
        fail(f"{error}: no token was made")
    except OSError as error:
        if error.filename is None:  # what reads our output is gone, for instance
            raise
        fail(f"{error.filename}: {error.strerror}")


@contextlib.contextmanager
def _opened(source: str) -> Iterator[TextIO]:
    """The list; the bytes that are no text are no MAC either."""
    if source == STANDARD_INPUT:
        yield TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="replace", newline="")
        return
    with Path(source).open(encoding="utf-8-sig", errors="replace", newline="") as file:
        yield file


@contextlib.contextmanager
def _written(output: Path | None) -> Iterator[TextIO]:
    """Where the tokens go. A file is there whole or not at all."""
    if output is None:
        yield sys.stdout
        return
    descriptor, part = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")  # 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        Path(part).rename(output)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _writer(out: TextIO, form: Format) -> tuple[Callable[[MintedToken], object], Callable[[], object]]:
    """What writes a token, and what writes the end."""
    if form is Format.CSV:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(COLUMNS)
        return (lambda minted: rows.writerow(_row(minted))), (lambda: None)
    before = iter(("[\n",))

    def put(minted: MintedToken) -> None:
        out.write(next(before, ",\n") + json.dumps(dict(zip(COLUMNS, _row(minted), strict=True))))

    return put, lambda: out.write("\n]\n")


def _row(minted: MintedToken) -> tuple[str, ...]:
    said = minted.said
    return said.mac, minted.token, f"{said.expires_at:%Y-%m-%dT%H:%M:%SZ}", said.jti


def _say(words: str) -> None:
    typer.echo(words, err=True)


def _keyring() -> Keyring:
    from functions.web.tokens import Keyring, KeyringError  # noqa: PLC0415 - as above

    settings = load_or_exit().settings
    try:
        keys = [key.get_secret_value() for key in settings.device_token_keys]
        return Keyring.parse(keys, revoked=settings.device_tokens_revoked)
    except KeyringError as error:
        fail(str(error))


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhdwy])", text.strip())
    seconds = int(match[1]) * UNIT_SECONDS[match[2]] if match else 0
    if not 0 < seconds <= MAX_EXPIRES_SECONDS:
        raise typer.BadParameter("must be like 12h, 30d or 1y, and at most 10y", param_hint="--expires")
    return seconds


def _plain(value: object) -> str:
    return json.dumps(value).removeprefix('"').removesuffix('"')


def _moment(name: str, value: object) -> str:
    """Return a moment in words; nothing if it is not a moment, or is beyond what a calendar knows."""
    if name not in {"exp", "iat", "nbf"} or not isinstance(value, int):
        return ""
    try:
        return f"  ({datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC)"
    except (OverflowError, ValueError):
        return ""
