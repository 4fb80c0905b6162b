"""`bucketbell token`: makes the tokens that devices show, and explains them."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from infra.commands.common import fail, load_or_exit

if TYPE_CHECKING:
    from functions.web.tokens import Keyring

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600, "y": 365 * 24 * 3600}
MAX_EXPIRES_SECONDS = 10 * UNIT_SECONDS["y"]

EPILOG = (
    "Examples: `bucketbell token a1-b2-c3-d4-e5-f6 --expires 30d` · `bucketbell token inspect eyJ…` · "
    "`… | bucketbell token inspect -`. The keys are in DEVICE_TOKEN_KEYS: the first signs, all verify, so that they "
    "can be rotated. To revoke a token, put its id (`jti`) into DEVICE_TOKENS_REVOKED. To revoke all tokens of a key, "
    "take the key out."
)


class _MintByDefault(TyperGroup):
    """`token <mac>` means `token mint <mac>`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - of the click that typer brings along
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
    mac: Annotated[str, typer.Argument(metavar="MAC", help="The device's MAC: a1-b2-c3-d4-e5-f6, a1:b2:… or a1b2….")],
    expires: Annotated[str, typer.Option(help="How long it is valid: a number and s, m, h, d, w or y.")] = "1y",
) -> None:
    """Print a token for one device on standard output, and nothing else there."""
    seconds = _seconds(expires)
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
