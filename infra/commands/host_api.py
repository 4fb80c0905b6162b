"""The API of a running host, as several commands ask it: where it is, the token, and how a refusal is told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from infra.commands.common import ca_file_option, fail, http_client, http_url, plain, token_option

if TYPE_CHECKING:
    from infra.http_client import Web

SERVER = "http://127.0.0.1:8080"
MAX_ANSWER_BYTES = 4 << 20
MAX_PAUSES = 30  # that a host may ask for before one answer

_SERVER_HELP = "The host, e.g. http://127.0.0.1:8080."


def _server(url: str) -> str:
    return http_url(url) or url


ServerUrl = Annotated[
    str, typer.Option("--server", "--host-url", envvar="BUCKETBELL_SERVER", callback=_server, help=_SERVER_HELP)
]
Token = Annotated[
    str, token_option("BUCKETBELL_TOKEN", "One of the host's ADMIN_TOKENS", "one of the host's ADMIN_TOKENS")
]
CaFile = Annotated[Path | None, ca_file_option("BUCKETBELL_CA_FILE", "the host")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, as the API answers it.")]


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """What the host answered."""

    etag: str
    stale: str
    document: dict[str, Any]


class Api:
    """The API of one host, below `base`."""

    def __init__(self, web: Web, server: str, token: str, base: str) -> None:
        """Ask nothing yet."""
        self._web = web
        self._server = server
        self._token = token
        self._base = base

    def ask(
        self, method: str, what: str, document: Mapping[str, object] | None = None, *, if_match: str = ""
    ) -> HostAnswer:
        """Return the answer, or say why there is not one and exit 1. A host that asks for a pause gets it."""
        from infra.device.trouble import FetchError  # noqa: PLC0415 - what a command needs is loaded when it runs

        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        body = None
        if document is not None:
            body, headers["Content-Type"] = json.dumps(document).encode(), "application/json"
        if if_match:
            headers["If-Match"] = if_match
        status, text, etag, stale = 0, b"", "", ""
        try:
            for _ in range(MAX_PAUSES):
                with self._web.request(method, f"{self._server}{self._base}/{what}", headers, body) as answer:
                    status, text = answer.status, answer.body(MAX_ANSWER_BYTES)
                    etag, stale = answer.headers.get("ETag", ""), answer.headers.get("Bucketbell-Stale", "")
                    pause_seconds = answer.retry_after_seconds
                if status != HTTPStatus.TOO_MANY_REQUESTS or pause_seconds is None:
                    break
                time.sleep(pause_seconds)
            found = {} if status == HTTPStatus.NO_CONTENT else json.loads(text)
        except FetchError as trouble:
            fail(f"{self._server}: {trouble}")
        except ValueError:
            fail(f"{self._server}: HTTP {status}, and the answer is not JSON: is this bucketbell's host?")
        if not isinstance(found, dict) or status not in {HTTPStatus.OK, HTTPStatus.NO_CONTENT}:
            _refused(self._server, status, found)
        return HostAnswer(etag, stale, found)


@contextmanager
def open_api(server: str, token: str, ca_file: Path | None, base: str) -> Iterator[Api]:
    """Give the API of the host at `server`."""
    with http_client(ca_file, "BUCKETBELL_CA_FILE") as web:
        yield Api(web, server, token, base)


def _refused(server: str, status: int, found: object) -> NoReturn:
    problem = found if isinstance(found, dict) else {}
    errors = problem.get("errors") or []
    if not errors:
        fail(f"{server}: HTTP {status}: {problem.get('detail') or problem.get('title') or 'no reason given'}")
    for one in errors:
        typer.echo(plain(f"{one['field']} {one['problem']}: it must be {one['expected']}"), err=True)
    raise typer.Exit(1)


def print_json(document: Mapping[str, object]) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(document))
