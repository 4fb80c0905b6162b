"""The bucket's notification rules: are those there that `bucketbell connect` would make, and is there a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from functions.events.names import CANARY_KEY
from functions.s3 import clients as storage
from functions.s3.clients import StorageError, storage_errors
from functions.s3.objects import S3_CONNECT_TIMEOUT_SECONDS, S3_READ_TIMEOUT_SECONDS
from infra.connect import documents
from infra.connect.apply import look
from infra.connect.documents import FAST_TARGET
from infra.connect.errors import ConnectError, unsupported
from infra.connect.jetstream import Streams
from infra.connect.minio import DEFAULT_QUEUE_DIRECTORY, Doors
from infra.connect.plans import Clients, Plan, Wish
from infra.connect.sweep import propose
from infra.doctor import minio
from infra.doctor.checks import Checkup, NotCheckedError, WrongError
from infra.doctor.store import BUCKET, FORBIDDEN, TARGETS_SECONDS

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

    from infra.doctor.minio import MinioTargets
    from infra.doctor.store import StoreLeg

RULES = "notification rules"

_CONNECT = "Run `bucketbell connect` with the same settings: it makes exactly these rules, and leaves others alone."
_NEW_LINES = (
    "`bucketbell connect --dry-run` prints the lines that MinIO's environment needs: put them there, restart MinIO, "
    "then run `bucketbell connect`. If they are there, MinIO cannot write its queue directory: let it."
)


class RulesLeg:
    """How the bucket tells of its uploads. `targets` is None where MinIO's administration did not tell us."""

    def __init__(self, store: StoreLeg, host_url: str) -> None:
        """Nothing is asked yet."""
        self._store = store
        self._host_url = host_url
        self.targets: MinioTargets | None = None
        self.reason = ""
        """Why there are no `targets`."""
        self.names: tuple[str, ...] = ()
        """MinIO's targets that the rules use."""
        self.before: dict[str, Any] = {}
        """The rules as they are; none where they cannot be read, of which `look` tells."""
        self.posts_without_rules = False
        """Whether it is a store that has no rules and may tell of each upload all the same."""

    def checks(self) -> tuple[Checkup, ...]:
        """All of them, in order."""
        return (Checkup(RULES, self._rules, (BUCKET,), seconds=TARGETS_SECONDS + 5),)

    def _rules(self) -> str:
        settings, bucket = self._store.settings, self._store.bucket
        before = self.before = self._before()
        doors = Doors(self._host_url, self._is_sure_only(before), DEFAULT_QUEUE_DIRECTORY, None)
        if settings.nats_url:
            doors = Streams.of(settings, sure_only=doors.sure_only, queue_directory=DEFAULT_QUEUE_DIRECTORY)
        queues = documents.our_queue_names(before)
        wish = Wish(
            bucket=bucket,
            prefixes=self._store.prefixes,
            doors=doors,
            queue_name=queues[0] if queues else documents.default_queue_name(bucket),
            queue_url=settings.sqs_queue_url,
        )
        try:
            plan = look(self._clients(), wish)
        except ConnectError as error:
            return self._without_rules(error, before, queues)
        if plan.store == "none":
            return self._no_events()
        if plan.kind.by_hand:
            return self._without_rules(unsupported(plan.store, plan.kind.title), before, queues)
        if plan.store == "minio":
            self.names = tuple(arn.split(":")[4] for arn in doors.targets.values())
            self._judge_targets()
        self._judge(plan)
        if plan.store == "sqs" and settings.sqs_queue_url is None and not settings.sweep_seconds:
            url = plan.queue.url if plan.queue else ""
            raise WrongError(
                "The bucket's events go to a queue, and the host does not take them: SQS_QUEUE_URL is not set.",
                f"Set SQS_QUEUE_URL={url} for the host, unless a Lambda function takes this queue's messages.",
            )
        return ", ".join(f"{prefix}*" for prefix in wish.prefixes.values()) + f" → {self._where(plan)}"

    def _where(self, plan: Plan) -> str:
        return ", ".join(self.names) or (plan.queue.name if plan.queue else plan.kind.title)

    def _before(self) -> dict[str, Any]:
        try:
            with storage_errors():
                found: Any = self._store.s3.get_bucket_notification_configuration(Bucket=self._store.bucket)
        except StorageError:
            return {}
        if self._store.server == "minio":
            try:
                self.targets = minio.look(self._store.patient)
            except StorageError as error:
                self.reason = (
                    "these credentials may not ask MinIO's administration (admin:ServerInfo)"
                    if error.status == FORBIDDEN
                    else f"MinIO's administration does not answer: {error.message}"
                )
        return {name: value for name, value in found.items() if name != "ResponseMetadata"}

    def _is_sure_only(self, before: dict[str, Any]) -> bool:
        """Whether `connect --sure-only` set it up: MinIO's environment says so, or else the rules."""
        if self.targets is not None and self.targets.variables:
            return (
                self.targets.variables.get("MINIO_API_SYNC_EVENTS") == "on" and FAST_TARGET not in self.targets.states
            )
        ours = [str(rule.get("Id")) for rule in before.get(documents.QUEUES, ()) if documents.is_ours(rule)]
        return any("-sure-" in name for name in ours) and not any("-fast-" in name for name in ours)

    def _clients(self) -> Clients:
        settings, s3 = self._store.settings, self._store.s3

        def sqs() -> SQSClient:
            return storage.client(
                "sqs",
                settings,
                connect_timeout_seconds=S3_CONNECT_TIMEOUT_SECONDS,
                read_timeout_seconds=S3_READ_TIMEOUT_SECONDS,
                attempts=1,
            )

        return Clients(s3, sqs, s3.meta.region_name)

    def _judge_targets(self) -> None:
        unknown = [] if self.targets is None else [name for name in self.names if name not in self.targets.states]
        if unknown:
            raise WrongError(f"MinIO does not know {' and '.join(unknown)}, which the rules need.", _NEW_LINES)

    def _judge(self, plan: Plan) -> None:
        # Without a rule for it nothing is missing but what `CanaryLeg` sees.
        change = documents.difference(*(documents.without(rules, CANARY_KEY) for rules in (plan.before, plan.after)))
        if not change.added and not change.removed:
            return
        wanted = tuple(rule for rule in plan.after.get(documents.QUEUES, ()) if documents.is_ours(rule))
        others = documents.overlapping(plan.before, wanted)
        if others and not documents.has_ours(plan.before):
            raise NotCheckedError(f"the rules were not made by `connect`: {'; '.join(others)}")
        if change.removed:
            raise WrongError(
                f"Rules of ours are for another prefix, event or target: {'; '.join(change.removed)}. "
                f"Wanted: {'; '.join(change.added)}.",
                _CONNECT,
            )
        if len(change.added) == 1:
            raise WrongError(f"A rule is missing: {change.added[0]}.", _CONNECT)
        names = "; ".join(rule.partition(" \N{RIGHTWARDS ARROW} ")[0] for rule in change.added)
        raise WrongError(f"{len(change.added)} rules are missing: {names}.", _CONNECT)

    def _without_rules(self, error: ConnectError, before: dict[str, Any], queues: tuple[str, ...]) -> str:
        sweeps = self._store.settings.sweep_seconds
        if error.code == "NoSuchQueue" or "NonExistentQueue" in error.code or error.code == "QueueDoesNotExist":
            if sweeps and not queues and self._store.settings.sqs_queue_url is None:
                return f"there are none; the host sweeps every {sweeps} s"
            what = f"The rules send to the queue {queues[0]}, which" if queues else "The queue for the bucket's events"
            raise WrongError(
                f"{what} does not exist.", "Run `bucketbell connect --create`, and correct SQS_QUEUE_URL if it is set."
            )
        if error.code == "UnsupportedStore":
            self.posts_without_rules = True
            if error.server == "versitygw":
                words = "Versity Gateway says at its own start where it posts events (VGW_EVENT_WEBHOOK_URL)"
            elif error.server == "seaweedfs":
                words = "SeaweedFS's filer has in its notification.toml where it posts events"
            else:
                words = "this store has neither rules that can be read, nor a queue"
            raise NotCheckedError(f"{words}{'' if sweeps else '. SWEEP_SECONDS would find what it does not tell'}")
        if error.code == "OverlappingRules" and not documents.has_ours(before):
            raise NotCheckedError("the rules were not made by `connect`")
        if "may not use" in error.message:
            raise NotCheckedError(
                "these credentials may not read the rules (s3:GetBucketNotification); the host does not need to"
            )
        raise WrongError(error.message, error.advice)

    def _no_events(self) -> str:
        store = self._store
        if store.settings.sweep_seconds:
            return f"the store sends no events; the host sweeps every {store.settings.sweep_seconds} s"
        seconds = propose(store.s3, store.bucket, store.prefixes, "none", 0).proposed_seconds
        raise WrongError(
            "This store sends no events, so that nobody tells the host of an upload.",
            f"Set SWEEP_SECONDS={seconds} for the host, and restart it: it then lists the bucket itself.",
        )
