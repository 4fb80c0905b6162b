"""`bucketbell doctor`: looks at everything by itself, and says what is wrong and what to do about it."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from functions.settings import SettingsError, load
from infra.commands.common import ENV_FILE, ca_file_option, http_client, http_url, plain

if TYPE_CHECKING:
    from infra.doctor.checks import Finding

DEFAULT_HOST_URL = "http://127.0.0.1:8080"
COLOURS = {"ok": "green", "wrong": "red", "not checked": "yellow"}
NAME_WIDTH = 22

EPILOG = (
    "Examples: `bucketbell doctor` · `bucketbell doctor --ring assets/firmware.bin` · `bucketbell doctor --host-url "
    "https://bell.local --json`\n\n"
    "Exit code 0: nothing is wrong. 1: something is; mend the first thing first, and run it again. 2: wrong options."
)


def doctor(
    *,
    host_url: Annotated[
        str | None,
        typer.Option(
            "--host-url",
            "--server",
            envvar="BUCKETBELL_SERVER",
            callback=http_url,
            help="The running host, as this machine reaches it.",
            show_default=DEFAULT_HOST_URL,
        ),
    ] = None,
    ring: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also announce this file again, e.g. assets/firmware.bin: its devices hear of it, and the broker says "
            "whether the host may publish there. Nothing else finds out what it may publish. Needs ADMIN_TOKENS.",
        ),
    ] = None,
    ca_file: Annotated[Path | None, ca_file_option("BUCKETBELL_CA_FILE", "the host and the store's links")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, for scripts.")] = False,
) -> None:
    """Look at each part by itself, in the order in which things must be well, and say what to do.

    It looks at the settings, the database, the store (its clock, region, bucket, the rights in it, its notification
    rules), the broker (name, TLS, login, last will), the running host and what MinIO says of its way there, download
    links, tokens that end soon, and other hosts. A small file of its own goes the whole way, to see how long it takes
    to each door. Run it where the host runs, with the host's settings.

    What is **wrong** comes with its remedy. What depends on it, or cannot be seen from here, is **not checked**. It
    leaves nothing behind: the host gets a test event and announces nothing, the file is removed, the store is asked to
    refuse a wrong checksum where the sweep must be able to write, and nothing is published at the broker. It takes a
    few seconds, at most 25.
    """
    findings = _findings(host_url, ring, ca_file, quiet=as_json)
    wrong = [finding for finding in findings if finding.health == "wrong"]
    if as_json:
        document = {
            "ok": not wrong,
            "first": wrong[0].name if wrong else None,
            "checks": [asdict(finding) for finding in findings],
        }
        typer.echo(json.dumps(document, indent=2))
    elif wrong:
        typer.secho(f"\nFirst mend: {wrong[0].name}. Then run this again.", bold=True)
    else:
        unknown = sum(finding.health == "not checked" for finding in findings)
        typer.echo(f"\nNothing is wrong{f'; {unknown} could not be checked' if unknown else ''}.")
    if wrong:
        raise typer.Exit(1)


def _findings(host_url: str | None, ring: str | None, ca_file: Path | None, *, quiet: bool) -> list[Finding]:
    from infra.doctor.checks import Finding, examine  # noqa: PLC0415 - what a command needs is loaded when it runs

    def hear(finding: Finding) -> None:
        if not quiet:
            _show(finding)

    try:
        settings = load(env_file=ENV_FILE).settings
    except SettingsError as error:
        remedy = "Correct them; `bucketbell config` shows all settings, and where each comes from."
        found = Finding("settings", "wrong", str(error).replace("\n", "; "), remedy)
        rest = Finding("all else", "not checked", "it needs: settings")
        for one in (found, rest):
            hear(one)
        return [found, rest]
    from infra.doctor.examination import checks_of  # noqa: PLC0415 - as above

    well = Finding("settings", "ok", "valid")
    hear(well)
    logging.disable(logging.CRITICAL)  # what the host's code logs is found here, too, and stdout is ours
    try:
        with http_client(ca_file, "BUCKETBELL_CA_FILE") as web:
            checks = checks_of(settings, web, host_url or DEFAULT_HOST_URL, ring=ring, host_is_default=host_url is None)
            return [well, *examine(checks, hear)]
    finally:
        logging.disable(logging.NOTSET)


def _show(finding: Finding) -> None:
    typer.secho(f"{finding.health:<11}", fg=COLOURS[finding.health], nl=False)
    took = "" if finding.milliseconds is None else f" ({finding.milliseconds:g} ms)"
    typer.echo(f"  {finding.name:<{NAME_WIDTH}} {plain(finding.detail)}{took}")
    if finding.remedy:
        typer.echo(f"{'':13}{'':{NAME_WIDTH}} \N{RIGHTWARDS ARROW} {plain(finding.remedy)}")
    sys.stdout.flush()
