"""`bucketbell config`: shows the settings, and where each comes from."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from pydantic import SecretStr

from functions.settings import setting_names
from infra.commands.common import fail, load_or_exit

EPILOG = "Example: `bucketbell config --json`"
MASK = "********"


def config(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: for each variable its value and origin.")
    ] = False,
) -> None:
    """Show the settings in force and where each comes from. Secrets are masked.

    If some are wrong, it names each of them, says what would be right, and exits 1. It connects to nothing.
    """
    loaded = load_or_exit()
    rows = {
        name.upper(): (shown(getattr(loaded.settings, name)), loaded.origins.get(name, "default"))
        for name in setting_names()
    }
    if loaded.settings.s3_region is None:
        from functions.s3 import clients  # noqa: PLC0415 - boto3 is only for this command

        try:
            rows["S3_REGION"] = clients.region(loaded.settings)
        except clients.StorageError as error:
            fail(f"S3_REGION: boto3 cannot read it from its own files: {error.message}")
    if as_json:
        document = {name: {"value": value, "origin": origin} for name, (value, origin) in rows.items()}
        typer.echo(json.dumps(document, indent=2))
        return
    # The value comes last: it may be long, and nothing is cut off.
    name_width, origin_width = (max(map(len, column)) for column in (rows, (origin for _, origin in rows.values())))
    for name, (value, origin) in rows.items():
        line = f"{name:<{name_width}}  {origin:<{origin_width}}  {'-' if value is None else value}"
        typer.secho(line, dim=origin == "default")


def shown(value: object) -> object:
    """Return a setting as it may be shown: a secret as a fixed number of stars; None if it is not set."""
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, tuple):
        return ", ".join(str(shown(item)) for item in value) or None
    if value is None or isinstance(value, (int, float)):
        return value
    first, *others = str(value).splitlines() or [""]
    return f"{first} … ({len(others)} more lines)" if others else first
