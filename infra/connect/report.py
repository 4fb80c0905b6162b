"""Says what `connect` does, and what is left to do: to people, or as one JSON document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from functions.s3 import clients as storage
from infra.connect import documents
from infra.connect.errors import ConnectError, Rest

if TYPE_CHECKING:
    from functions.settings import Settings
    from infra.connect.minio import Doors
    from infra.connect.plans import Plan
    from infra.connect.sweep import Proposal

EXIT_PROBLEM = 1
BESIDE_A_FUNCTION = "\n(No sweep where a Lambda function takes this queue's messages: it would announce them again.)"
WHY_SWEEP = "The host finds what it was not told of with these lines in its environment:\n\n"


class ConnectReport:
    """Says what happens, to people or as one JSON document."""

    def __init__(self, *, as_json: bool, dry_run: bool) -> None:
        self._as_json = as_json
        self._dry_run = dry_run
        self.sweep: Proposal | None = None
        self._remarks: list[str] = []
        self._document: dict[str, Any] = {"dry_run": dry_run, "changed": False, "error": None}

    def about(self, settings: Settings, doors: Doors, endpoint_url: str | None) -> None:
        """Remember what of the doors is worth a remark where a store posts to them."""
        endpoint = endpoint_url or storage.configured_endpoint("s3", settings)
        if endpoint and storage.is_loopback(doors.host_url) and not storage.is_loopback(endpoint):
            self._remarks.append(
                f"{doors.host_url} means the store's own machine there: is the host on it? (--host-url)"
            )
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
            if not plan.kind.by_hand:
                self.say(f"Nothing to change: the bucket {plan.wish.bucket} is as it should be.")
            return
        self.say(f"{'It would' if self._dry_run else 'To do'}:")
        for step in (one.words for one in plan.first):
            self.say(f"  {step}")
        if change.added or change.removed:
            self.say(f"  change the rules of the bucket {plan.wish.bucket}:")
            for line in change.lines:
                self.say(f"  {line}")
        for step in (one.words for one in plan.last):
            self.say(f"  {step}")

    def began(self) -> None:
        """Until `done`, part of the plan may be true already."""
        self._document["changed"] = None

    def made(self, plan: Plan) -> None:
        """Say what has become of the plan."""
        if plan.changes_anything:
            self.say("Nothing was changed (--dry-run)." if self._dry_run else "Done.")
            self._document["changed"] = not self._dry_run

    def done(self, plan: Plan, rest: Rest) -> None:
        """Say what is left to do."""
        posts = plan.store not in {"sqs", "none"} and not plan.wish.remove
        self._left(rest, self._remarks if posts else ())
        if self.sweep:
            beside = BESIDE_A_FUNCTION if plan.store == "sqs" else ""
            why = "" if plan.store == "none" else f"{plan.kind.lost} {WHY_SWEEP}"
            self.say(f"\n{why}{self.sweep.text}{beside}")
        self._finish()

    def fail(self, error: ConnectError) -> NoReturn:
        """Say what is wrong and what to do, and exit with EXIT_PROBLEM."""
        typer.echo(f"{error.message}\n{error.advice}", err=True)
        self._document["error"] = {"code": error.code, "message": error.message, "advice": error.advice}
        if error.rest:
            self._left(error.rest, self._remarks)
        if self.sweep:
            why = WHY_SWEEP if error.rest else ""
            typer.echo(f"\n{why}{self.sweep.text}", err=True)
        self._finish()
        raise typer.Exit(EXIT_PROBLEM)

    def _left(self, rest: Rest, more: list[str] | tuple[str, ...]) -> None:
        for remark in (*rest.remarks, *more):
            self.say(remark)
        for todo in rest.todo:
            self.say(f"\nStill to do: {todo}")
        if not rest.todo:
            self.say("Nothing is left to do." if not self._dry_run else "Nothing else is to do.")
        self._document |= rest.document
        self._document["remarks"] = [*rest.remarks, *more]
        self._document["left_to_do"] = list(rest.todo)

    def _finish(self) -> None:
        self._document["sweep"] = self.sweep and self.sweep.document
        if self._as_json:
            typer.echo(json.dumps(self._document, indent=2))
