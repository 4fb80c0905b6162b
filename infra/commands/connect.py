"""The command `bucketbell connect`: its options, and what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from functions.s3 import clients as storage
from functions.s3.regions import mismatch, remedy, sentence
from functions.settings import Settings, SettingsError, load
from functions.settings.addresses import parse_nats_url
from infra.commands.common import ENV_FILE, http_url
from infra.commands.common import endpoint_url as parsed_endpoint_url
from infra.connect import documents, jetstream, minio_admin
from infra.connect.apply import carry_out, look, rest
from infra.connect.errors import ConnectError, Rest, explain, explained, no_events
from infra.connect.minio import DEFAULT_QUEUE_DIRECTORY, Doors
from infra.connect.plans import Clients, Plan, Wish
from infra.connect.report import ConnectReport
from infra.connect.sweep import Events, Proposal, propose

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

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


def _nats_url(url: str | None) -> str | None:
    try:
        for server in (url or "").split(",") if url else ():
            parse_nats_url(server.strip())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return url


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
    configure: Annotated[
        bool,
        typer.Option(
            "--configure",
            help="MinIO: set its targets too, and restart it. With an administrator's key, while the host runs.",
        ),
    ] = False,
    host_url: Annotated[
        str, typer.Option(callback=http_url, help="Where `bucketbell host` is, as the store reaches it.")
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
        bool, typer.Option("--show-token", help="Print the token (a secret) instead of a placeholder.")
    ] = False,
    queue: Annotated[
        str | None,
        typer.Option(
            callback=_queue_name, help="SQS: the queue's name. Ceph: the topic's.", show_default="bucketbell-<bucket>"
        ),
    ] = None,
    queue_url: Annotated[
        str | None, typer.Option(callback=http_url, help="SQS: an existing queue's URL, instead of --queue.")
    ] = None,
    nats_url: Annotated[
        str | None,
        typer.Option(
            callback=_nats_url,
            help="MinIO: let it publish into NATS JetStream instead, e.g. nats://127.0.0.1:4222, and make the stream "
            "there. With NATS_URL set this is the default; `--nats-url ''` is for webhooks again.",
        ),
    ] = None,
    store: Annotated[
        Literal["auto", "minio", "rustfs", "ceph", "seaweedfs", "versitygw", "sqs", "none"],
        typer.Option(help="Which kind of store it is; `auto` asks it."),
    ] = "auto",
    remove: Annotated[
        bool,
        typer.Option(
            "--remove",
            help="Remove our rules, and with --configure the targets that it has set. The bucket, the queue and rules "
            "of others stay.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout, for scripts; text for people goes to stderr.")
    ] = False,
) -> None:
    """Set up a bucket so that its uploads reach the host. You can run it as often as you like.

    It finds out which store it is. It adds notification rules for CONFIGS_PREFIX, ASSETS_PREFIX and EVENTS_PREFIX, and
    one for the object that `bucketbell doctor` writes; existing rules stay. **MinIO** and **RustFS** use two webhook
    targets, a fast one and one that keeps events on disk. With `--configure` it sets MinIO's; otherwise it prints the
    lines for their environment. **Ceph** gets a topic. On **AWS** and other stores with SQS it uses one queue, and
    prints the SQS_QUEUE_URL for the host. With `--queue-url` the queue may belong to a stack on AWS: then its function
    takes the messages, and a host should not. For **SeaweedFS** and **Versity Gateway** it prints what to set there.

    It also proposes SWEEP_SECONDS for this store, and says how many LIST calls that takes a month. A store without
    events needs nothing else. Last of all it says what is still to do, or that nothing is.
    """
    if queue and queue_url:
        raise typer.BadParameter("use --queue or --queue-url, not both")
    report = ConnectReport(as_json=as_json, dry_run=dry_run)
    try:
        given = ({"BUCKET": bucket} if bucket else {}) | ({} if nats_url is None else {"NATS_URL": nats_url})
        settings = load(env_file=ENV_FILE, given=given).settings
    except SettingsError as error:
        report.fail(ConnectError("WrongSettings", str(error), "Correct them: `bucketbell config` shows them all."))
    bucket = bucket or _bucket(settings.bucket)
    if bucket is None:
        raise typer.BadParameter("name the bucket with --bucket, or set BUCKET")
    token = settings.webhook_tokens[0].get_secret_value() if settings.webhook_tokens else None
    doors = Doors(host_url, sure_only, queue_dir, token)
    if settings.nats_url:
        doors = jetstream.Streams.of(settings, sure_only=sure_only, queue_directory=queue_dir)
    wish = Wish(
        bucket=bucket,
        prefixes={"configs": settings.configs_prefix, "assets": settings.assets_prefix}
        | ({"events": settings.events_prefix} if settings.events_prefix else {}),
        doors=doors,
        queue_name=queue or documents.default_queue_name(bucket),
        queue_url=queue_url,
        store=store,
        create=create,
        remove=remove,
        configure=configure,
        show_token=show_token,
    )
    report.about(settings, wish.doors, endpoint_url)
    try:
        if settings.nats_url and not remove:
            jetstream.set_up(settings, report.say, dry_run=dry_run)
        plan, left = _set_up(settings, endpoint_url, wish, report, dry_run=dry_run)
    except ConnectError as error:
        report.fail(error)
    if settings.nats_url and not remove and plan.store == "minio":
        left = replace(left, todo=(*left.todo, jetstream.host_lines(settings)))
    report.done(plan, left)


def _set_up(
    settings: Settings, endpoint_url: str | None, wish: Wish, report: ConnectReport, *, dry_run: bool
) -> tuple[Plan, Rest]:
    """Plan the change and make it; raises ConnectError, also if nothing arrives before a person has done something."""
    clients = partial(_clients, settings, endpoint_url)
    try:
        region = storage.region(settings)
        plan, found = _look(clients, wish, region.name)
        if found != region.name:
            report.say(f"{sentence(mismatch(region, found))}: {remedy(found)}, for the host too.")
        report.planned(plan)
        writers = clients(found, WRITE_TIMEOUT_SECONDS, attempts=storage.MAX_ATTEMPTS)
        if plan.changes_anything and not dry_run:
            report.began()
            plan = carry_out(writers, plan, report.say)
        report.made(plan)
        left = rest(writers, plan)
        if not wish.remove and not (plan.bucket_missing and dry_run):
            readers = clients(found, LOOK_TIMEOUT_SECONDS, attempts=1)
            report.sweep = _proposal(readers, wish, settings, plan.kind.events)
    except storage.StorageError as error:
        raise explain(error, "s3:*", wish.bucket) from None
    if left.problem:
        raise left.problem
    if plan.store == "none" and not wish.remove and not settings.sweep_seconds:
        raise no_events()
    return plan, left


def _proposal(clients: Clients, wish: Wish, settings: Settings, events: Events) -> Proposal:
    with explained("s3:ListBucket", wish.bucket):
        return propose(clients.s3, wish.bucket, wish.prefixes, events, settings.sweep_seconds)


def _look(clients: Callable[..., Clients], wish: Wish, region: str) -> tuple[Plan, str]:
    """Return the plan, and the region it is for: the one that the store names, if it names another."""
    heard: list[str] = []
    # MinIO tells of its targets only after it has tried them.
    seconds = minio_admin.ANSWER_SECONDS if wish.configure else LOOK_TIMEOUT_SECONDS
    readers = clients(region, seconds, attempts=1)
    storage.on_other_region(readers.s3, heard.append)
    try:
        plan = look(readers, wish)
    except (storage.StorageError, ConnectError):
        if not heard:
            raise
    if not heard:
        return plan, region
    return look(clients(heard[-1], seconds, attempts=1), wish), heard[-1]


def _clients(
    settings: Settings, endpoint_url: str | None, region: str, timeout_seconds: float, *, attempts: int
) -> Clients:
    def options(endpoint: str | None) -> storage.Options:
        seconds = timeout_seconds
        return {"endpoint_url": endpoint, "read_timeout_seconds": seconds, "attempts": attempts, "region_name": region}

    s3 = storage.client("s3", settings, **options(endpoint_url))

    @cache
    def sqs() -> SQSClient:
        # One address for both, as with moto and LocalStack, unless SQS was given one of its own.
        own = storage.configured_endpoint("sqs", settings) or endpoint_url
        return storage.client("sqs", settings, **options(own))

    @cache
    def sns() -> Any:  # noqa: ANN401 - boto3 makes a client's methods at run time
        return storage.client("sns", settings, **options(s3.meta.endpoint_url))

    @cache
    def admin() -> Any:  # noqa: ANN401 - only `minio_admin` may load its type
        return minio_admin.open_admin(settings, s3.meta.endpoint_url, region)

    return Clients(s3, sqs, region, sns, admin)
