"""`bucketbell`: registers the commands. Each of them imports what it needs when it runs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from infra.commands.config import EPILOG as CONFIG_EPILOG
from infra.commands.config import config
from infra.commands.connect import EPILOG as CONNECT_EPILOG
from infra.commands.connect import connect
from infra.commands.database import MIGRATE_EPILOG, ROTATE_KEYS_EPILOG, migrate, rotate_keys
from infra.commands.demo import demo
from infra.commands.device import EPILOG as DEVICE_EPILOG
from infra.commands.device import device
from infra.commands.doctor import EPILOG as DOCTOR_EPILOG
from infra.commands.doctor import doctor
from infra.commands.fleet import fleet
from infra.commands.host import EPILOG as HOST_EPILOG
from infra.commands.host import host
from infra.commands.listen import EPILOG as LISTEN_EPILOG
from infra.commands.listen import listen
from infra.commands.mqtt import mqtt
from infra.commands.tokens import token
from infra.commands.uploads import RING_EPILOG, WHY_EPILOG, ring, why

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Put a file in the bucket; every device that needs it knows within milliseconds.\n\n"
    "Every setting is an environment variable. It is also read from `.env` in the working directory and from files in "
    "the directory SECRETS_DIR; the first that has it wins. `bucketbell config` shows them all.",
    epilog="Exit code 0: done. 1: it could not be done; standard error says why. 2: wrong options.",
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it with the option's value
    if wanted:
        typer.echo(f"bucketbell {version('bucketbell')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Take the options that stand before a command; the help is the application's."""


app.command(epilog=HOST_EPILOG)(host)
app.command()(demo)
app.command(epilog=CONNECT_EPILOG)(connect)
app.command(epilog=DOCTOR_EPILOG)(doctor)
app.command(epilog=DEVICE_EPILOG)(device)
app.add_typer(token)
app.command(epilog=MIGRATE_EPILOG)(migrate)
app.command(epilog=ROTATE_KEYS_EPILOG)(rotate_keys)
app.add_typer(mqtt)
app.command(epilog=WHY_EPILOG)(why)
app.command(epilog=RING_EPILOG)(ring)
app.add_typer(fleet)
app.command(epilog=LISTEN_EPILOG)(listen)
app.command(epilog=CONFIG_EPILOG)(config)
