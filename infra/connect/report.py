"""Says what `connect` does, and what is left to do: to people, or as one JSON document."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from functions.s3 import clients as storage
from infra.connect import documents
from infra.connect.apply import VERSITY, Plan
from infra.connect.errors import NO_EVENTS, ConnectError
from infra.connect.minio import TOKEN_PLACEHOLDER, Doors

if TYPE_CHECKING:
    from functions.settings import Settings
    from infra.connect.sweep import Proposal

EXIT_PROBLEM = 1
BESIDE_A_FUNCTION = "\n(No sweep where a Lambda function takes this queue's messages: it would announce them again.)"
WHY_SWEEP = "Events can be lost. The host finds what it was not told of with these lines in its environment:\n\n"


class ConnectReport:
    """Says what happens, to people or as one JSON document."""

    def __init__(self, *, as_json: bool, dry_run: bool) -> None:
        self._as_json = as_json
        self._dry_run = dry_run
        self.sweep: Proposal | None = None
        self._doors: Doors | None = None
        self._remarks: list[str] = []
        self._document: dict[str, Any] = {"dry_run": dry_run, "changed": False, "error": None}

    def about(self, settings: Settings, doors: Doors, endpoint_url: str | None) -> None:
        """Remember what is asked for, and what of it is worth a remark on MinIO."""
        self._doors = doors
        endpoint = endpoint_url or storage.configured_endpoint("s3", settings)
        if endpoint and storage.is_loopback(doors.host_url) and not storage.is_loopback(endpoint):
            self._remarks.append(f"{doors.host_url} means MinIO's own machine there: is the host on it? (--host-url)")
        if not storage.is_loopback(doors.host_url) and doors.token is None:
            self._remarks.append("Set WEBHOOK_TOKENS first: without it the host listens on loopback only.")

    def say(self, text: str) -> None:
        """Tell people; where stdout is for scripts, on stderr."""
        typer.echo(text, err=self._as_json)

    def planned(self, plan: Plan) -> None:
        """Show what there is to change."""
        change = documents.difference(plan.before, plan.after)
        self._document |= {"store": plan.store, "bucket": plan.wish.bucket, "steps": plan.steps}
        self._document["rules"] = {"added": change.added, "removed": change.removed, "kept": change.kept}
        if not plan.changes_anything:
            self.say(f"Nothing to change: the bucket {plan.wish.bucket} is as it should be.")
            return
        self.say(f"{'It would' if self._dry_run else 'To do'}:")
        for step in plan.steps:
            self.say(f"  {step}")
        if change.added or change.removed:
            self.say(f"  change the rules of the bucket {plan.wish.bucket}:")
            for line in change.lines:
                self.say(f"  {line}")

    def began(self) -> None:
        """Until `done`, part of the plan may be true already."""
        self._document["changed"] = None

    def done(self, plan: Plan) -> None:
        """Say how it ended and what is left to do on MinIO or the host."""
        if plan.changes_anything:
            self.say("Nothing was changed (--dry-run)." if self._dry_run else "Done.")
            self._document["changed"] = not self._dry_run
        if plan.wish.remove:
            self._after_removal(plan)
        elif plan.store == "minio":
            self._minio_lines()
        elif plan.queue:
            self._host_lines(plan)
        if plan.store == "none":
            self._document |= {"store": plan.store, "bucket": plan.wish.bucket}
            self.say(NO_EVENTS)
        if self.sweep:
            beside = BESIDE_A_FUNCTION if plan.store == "sqs" else ""
            self.say(f"\n{'' if plan.store == 'none' else WHY_SWEEP}{self.sweep.text}{beside}")
        self._finish()

    def fail(self, error: ConnectError) -> NoReturn:
        """Say what is wrong and what to do, and exit with EXIT_PROBLEM."""
        typer.echo(f"{error.message}\n{error.advice}", err=True)
        self._document["error"] = {"code": error.code, "message": error.message, "advice": error.advice}
        if error.code == "UnsupportedStore" and self._doors:
            self._by_hand(self._doors, error.server)
        if error.code == "UnknownTarget":
            self._minio_lines()
        if self.sweep:
            typer.echo(f"\n{WHY_SWEEP if error.code == 'UnsupportedStore' else ''}{self.sweep.text}", err=True)
        self._finish()
        raise typer.Exit(EXIT_PROBLEM)

    def _minio_lines(self) -> None:
        assert self._doors is not None  # noqa: S101 - `about` comes before anything that knows of MinIO
        lines = self._doors.environment()
        self.say("\nMinIO's environment needs these lines (/etc/default/minio, compose, …) before it starts:\n")
        for name, value in lines.items():
            self.say(f"{name}={value if value == TOKEN_PLACEHOLDER else shlex.quote(value)}")
        if TOKEN_PLACEHOLDER in lines.values():
            self.say(f"\n({TOKEN_PLACEHOLDER}: a secret; --show-token prints it.)")
        self.say("\nShould they ever go, run `bucketbell connect --remove` first: the rules name their targets.")
        # A placeholder is no value: a script must not take it for one.
        self._document["minio_environment"] = {
            name: None if value == TOKEN_PLACEHOLDER else value for name, value in lines.items()
        }
        for remark in self._remarks:
            self.say(remark)
        self._document["remarks"] = self._remarks

    def _host_lines(self, plan: Plan) -> None:
        assert plan.queue is not None  # noqa: S101 - SQS always has one
        if plan.queue.url:
            self.say(
                f"\nThe host's environment needs this line:\n\nSQS_QUEUE_URL={plan.queue.url}\n\n"
                "(not where a Lambda function takes this queue's messages: the two would share them)\n"
            )
        self._document["host_environment"] = {"SQS_QUEUE_URL": plan.queue.url}
        for remark in plan.queue.remarks:
            self.say(remark)
        self._document["remarks"] = plan.queue.remarks

    def _after_removal(self, plan: Plan) -> None:
        if plan.store == "minio":
            self.say("MinIO's BUCKETBELL… lines may go too, once no other bucket's rules name these targets.")
        elif names := documents.our_queue_names(plan.before):
            self.say(f"Left as they are, with what is in them: {', '.join(names)} and the dead-letter queue.")

    def _by_hand(self, doors: Doors, server: str) -> None:
        url = doors.host_url + "/events"
        self._document["webhook_url"] = url
        if server == VERSITY:
            scheme, _, place = url.partition("://")
            user = "" if doors.token is None else f"bucketbell:{doors.token}@"
            typer.echo(f"  start Versity Gateway with VGW_EVENT_WEBHOOK_URL={scheme}://{user}{place}", err=True)
            typer.echo("  in its environment, and after the host: it ends if nobody answers.", err=True)
            return
        typer.echo(f"  let it POST its S3 event JSON to {url}, for created objects under the prefixes;", err=True)
        if doors.token is None:
            typer.echo("  no token: the host then listens on loopback only;", err=True)
        else:
            typer.echo(f"  with the header `Authorization: Bearer {doors.token}`;", err=True)
        typer.echo(
            "  if it can send none (hosted stores mostly): set SWEEP_SECONDS to 2 to 10, and that is all.", err=True
        )

    def _finish(self) -> None:
        self._document["sweep"] = self.sweep and self.sweep.document
        if self._as_json:
            typer.echo(json.dumps(self._document, indent=2))
