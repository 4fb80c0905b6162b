"""`bucketbell demo`: shows the whole way on this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    *,
    once: Annotated[
        bool, typer.Option("--once", help="End after the last step, with 0 if every step was seen.")
    ] = False,
) -> None:
    """Show what bucketbell does: an upload rings and a device pulls it, all on this machine.

    It starts Mosquitto, an object store, a host and a device on free ports, and stops them in the end. The object store
    is MinIO where it is installed, else moto (the extra `demo`). Nothing is installed: a missing program is named, with
    the command that brings it.
    """
    from infra.local.demo import present  # noqa: PLC0415 - what a command needs is loaded when it runs
    from infra.local.install import ensure_parts  # noqa: PLC0415 - as above

    raise typer.Exit(present(stay=not once, ensure=ensure_parts))
