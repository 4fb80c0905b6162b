"""The command `bucketbell connect`: its options, and what it says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from functions.s3 import clients as storage
from functions.settings import Settings, SettingsError, load
from infra.commands.common import ENV_FILE, http_url
from infra.commands.common import endpoint_url as parsed_endpoint_url
from infra.connect import documents
from infra.connect.apply import Clients, Plan, Wish, carry_out, look
from infra.connect.errors import ConnectError, explain
from infra.connect.minio import DEFAULT_QUEUE_DIRECTORY, TOKEN_PLACEHOLDER, Doors

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

EXIT_PROBLEM = 1
# With storage.CONNECT_TIMEOUT_SECONDS before it: a store that does not answer is given up within 5 s.
LOOK_TIMEOUT_SECONDS = 3.0
WRITE_TIMEOUT_SECONDS = 20.0  # AWS tries each destination before it answers

EPILOG = (
    "Example: `bucketbell connect --endpoint-url http://127.0.0.1:9000 --bucket firmware --create`\n\n"
    "Credentials and region: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, S3_REGION or AWS_REGION. "
    "Exit code 0: done, or nothing to do. 1: you have to do something; it says what. 2: wrong options."
)


def _bucket(name: str | None) -> str | None:
    # The letters that S3 has ever allowed: newer rules are the store's to enforce.
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}", name):
        raise typer.BadParameter("a bucket's name has 3 to 63 letters, digits, dots and dashes")
    return name


def _queue_name(name: str | None) -> str | None:
    # SQS allows 80, and `-dlq` comes behind it.
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,76}", name):
        raise typer.BadParameter("a queue's name has up to 76 letters, digits, - and _ (S3 knows no FIFO queues)")
    return name


def _directory(path: str) -> str:
    if not PurePosixPath(path).is_absolute():
        raise typer.BadParameter("MinIO needs an absolute path, e.g. " + DEFAULT_QUEUE_DIRECTORY)
    return path


def connect(
    *,
    bucket: Annotated[
        str | None, typer.Option(callback=_bucket, help="The bucket to set up. Default: the setting BUCKET.")
    ] = None,
    endpoint_url: Annotated[
        str | None,
        typer.Option(
            callback=parsed_endpoint_url,
            help="The store, e.g. http://127.0.0.1:9000. Default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else AWS.",
        ),
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Create the bucket, and on SQS the queue, if missing.")
    ] = False,
    host_url: Annotated[
        str, typer.Option(callback=http_url, help="MinIO: where `bucketbell host` is, as MinIO reaches it.")
    ] = "http://127.0.0.1:8080",
    sure_only: Annotated[
        bool,
        typer.Option(
            "--sure-only",
            help="MinIO: use only the target that keeps events on disk. Nothing is lost even if host and MinIO "
            "fail together; each event takes up to 3 s.",
        ),
    ] = False,
    queue_dir: Annotated[
        str,
        typer.Option(
            callback=_directory,
            help="MinIO: its directory for undelivered events, on a volume that lasts, outside its data.",
        ),
    ] = DEFAULT_QUEUE_DIRECTORY,
    show_token: Annotated[
        bool, typer.Option("--show-token", help="MinIO: print the token (a secret) instead of a placeholder.")
    ] = False,
    queue: Annotated[
        str | None,
        typer.Option(callback=_queue_name, help="SQS: the queue's name.", show_default="bucketbell-<bucket>"),
    ] = None,
    queue_url: Annotated[
        str | None, typer.Option(callback=http_url, help="SQS: an existing queue's URL, instead of --queue.")
    ] = None,
    store: Annotated[
        Literal["auto", "minio", "sqs"], typer.Option(help="How the store notifies; `auto` asks it.")
    ] = "auto",
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove our rules. The bucket, the queue and rules of others stay.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout, for scripts; text for people goes to stderr.")
    ] = False,
) -> None:
    """Set up a bucket so that its uploads reach the host. You can run it as often as you like.

    It adds notification rules for CONFIGS_PREFIX, ASSETS_PREFIX and EVENTS_PREFIX; existing rules stay. On **MinIO**
    it uses two webhook targets, a fast one and one that keeps events on disk, and prints the lines that MinIO's
    environment needs. On **AWS** and other stores with SQS it uses one queue, and prints the SQS_QUEUE_URL for the
    host. With `--queue-url` the queue may belong to a stack on AWS: then its function takes the messages, and a host
    should not.
    """
    if queue and queue_url:
        raise typer.BadParameter("use --queue or --queue-url, not both")
    report = _Report(as_json=as_json, dry_run=dry_run)
    try:
        settings = load(env_file=ENV_FILE, given={"BUCKET": bucket} if bucket else None).settings
    except SettingsError as error:
        report.fail(ConnectError("WrongSettings", str(error), "Correct them: `bucketbell config` shows them all."))
    bucket = bucket or _bucket(settings.bucket)
    if bucket is None:
        raise typer.BadParameter("name the bucket with --bucket, or set BUCKET")
    token = settings.webhook_tokens[0].get_secret_value() if settings.webhook_tokens else None
    doors = Doors(host_url, sure_only, queue_dir, token if show_token or token is None else TOKEN_PLACEHOLDER)
    wish = Wish(
        bucket=bucket,
        prefixes={"configs": settings.configs_prefix, "assets": settings.assets_prefix}
        | ({"events": settings.events_prefix} if settings.events_prefix else {}),
        targets=doors.targets,
        queue_name=queue or documents.default_queue_name(bucket),
        queue_url=queue_url,
        store=store,
        create=create,
        remove=remove,
    )
    report.about(settings, doors, endpoint_url)
    try:
        try:
            region = storage.region(settings)
            clients = partial(_clients, settings, endpoint_url)
            plan, found = _look(clients, wish, region.name)
            if found != region.name:
                report.say(
                    f"The bucket is in {found}, not in {region.name} ({region.origin}): set S3_REGION={found}, for the "
                    "host too."
                )
            report.planned(plan)
            if plan.changes_anything and not dry_run:
                report.began()
                writers = clients(found, WRITE_TIMEOUT_SECONDS, attempts=storage.MAX_ATTEMPTS)
                plan = carry_out(writers, plan, report.say)
        except storage.StorageError as error:
            raise explain(error, "s3:*", bucket) from None
    except ConnectError as error:
        report.fail(error)
    report.done(plan)


def _look(clients: Callable[..., Clients], wish: Wish, region: str) -> tuple[Plan, str]:
    """Return the plan, and the region it is for: the one that the store names, if it names another."""
    heard: list[str] = []
    readers = clients(region, LOOK_TIMEOUT_SECONDS, attempts=1)
    storage.on_other_region(readers.s3, heard.append)
    try:
        plan = look(readers, wish)
    except (storage.StorageError, ConnectError):
        if not heard:
            raise
    if not heard:
        return plan, region
    return look(clients(heard[-1], LOOK_TIMEOUT_SECONDS, attempts=1), wish), heard[-1]


def _clients(
    settings: Settings, endpoint_url: str | None, region: str, timeout_seconds: float, *, attempts: int
) -> Clients:
    @cache
    def sqs() -> SQSClient:
        # One address for both, as with moto and LocalStack, unless SQS was given one of its own.
        own = storage.configured_endpoint("sqs", settings) or endpoint_url
        return storage.client(
            "sqs",
            settings,
            endpoint_url=own,
            read_timeout_seconds=timeout_seconds,
            attempts=attempts,
            region_name=region,
        )

    s3 = storage.client(
        "s3",
        settings,
        endpoint_url=endpoint_url,
        read_timeout_seconds=timeout_seconds,
        attempts=attempts,
        region_name=region,
    )
    return Clients(s3, sqs, region)


class _Report:
    """Says what happens, to people or as one JSON document."""

    def __init__(self, *, as_json: bool, dry_run: bool) -> None:
        self._as_json = as_json
        self._dry_run = dry_run
        self._doors: Doors | None = None
        self._remarks: list[str] = []
        self._document: dict[str, Any] = {"dry_run": dry_run, "changed": False, "error": None}

    def about(self, settings: Settings, doors: Doors, endpoint_url: str | None) -> None:
        """Remember what is asked for, and which remarks MinIO's user should see."""
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
        self._finish()

    def fail(self, error: ConnectError) -> NoReturn:
        """Say what is wrong and what to do, and exit with EXIT_PROBLEM."""
        typer.echo(f"{error.message}\n{error.advice}", err=True)
        self._document["error"] = {"code": error.code, "message": error.message, "advice": error.advice}
        if error.code == "UnsupportedStore" and self._doors:
            self._by_hand(self._doors)
        if error.code == "UnknownTarget":
            self._minio_lines()
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

    def _by_hand(self, doors: Doors) -> None:
        url = replace(doors, token=None).host_url + "/events"
        typer.echo(f"  let it POST its S3 event JSON to {url}, for created objects under the prefixes;", err=True)
        if doors.token is None:
            typer.echo("  no token: the host then listens on loopback only;", err=True)
        else:
            typer.echo(f"  with the header `Authorization: Bearer {doors.token}`;", err=True)
        typer.echo(
            f"  Versity Gateway: start it with `--event-webhook-url {url}`; it sends no token, so the host must "
            "be on its loopback without WEBHOOK_TOKENS.",
            err=True,
        )
        self._document["webhook_url"] = url

    def _finish(self) -> None:
        if self._as_json:
            typer.echo(json.dumps(self._document, indent=2))
