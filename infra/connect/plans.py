"""What `connect` is asked for, what it finds, and what it plans: the same for every kind of store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast
from xml.etree import ElementTree as ET

from functions.events.names import CANARY_KEY
from functions.s3.clients import StorageError, storage_errors
from infra.connect import documents
from infra.connect.documents import Document, Rule
from infra.connect.errors import ConnectError, Rest, explained
from infra.connect.kinds import KindName, StoreKind, recognise
from infra.connect.minio import Doors

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_sqs.client import SQSClient

    from infra.connect.queues import Queue

_BEFORE_PARSE = "before-parse.s3.GetBucketNotificationConfiguration"
_ROOT = "NotificationConfiguration"

Speak = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for.

    `prefixes` are by name. `store` `auto`: find out. `queue_url` beats `queue_name`, which is a topic's name too.
    `configure`: set MinIO's targets as well.
    """

    bucket: str
    prefixes: Mapping[str, str]
    doors: Doors
    queue_name: str
    queue_url: str | None = None
    store: KindName | Literal["auto"] = "auto"
    create: bool = False
    remove: bool = False
    configure: bool = False
    show_token: bool = False

    def rules(self, targets: Mapping[str, str], section: str = documents.QUEUES) -> tuple[Rule, ...]:
        """Our rules for these targets, the canary's included; none where they are to go."""
        if self.remove:
            return ()
        return documents.wanted_rules(targets, {**self.prefixes, "canary": CANARY_KEY}, section)


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients of the store: most stores need only the first.

    `sns` and `admin` are None for who only looks at the rules.
    """

    s3: S3Client
    sqs: Callable[[], SQSClient]
    region: str
    sns: Callable[[], Any] | None = None
    admin: Callable[[], Any] | None = None


class Change(NamedTuple):
    """One change besides those of the rules: in words, and how it is made; returns what the plan is now."""

    words: str
    make: Callable[[Clients, Plan, Speak], Plan]


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is and what it becomes; nothing has been changed yet.

    `first` is done before the rules are written, `last` after that. `queue` is where the events go on SQS.
    `patience_seconds`: how long the store may refuse the rules because it does not know of the last step yet.
    """

    wish: Wish
    kind: StoreKind
    before: Document = field(default_factory=dict)
    after: Document = field(default_factory=dict)
    first: tuple[Change, ...] = ()
    last: tuple[Change, ...] = ()
    queue: Queue | None = None
    bucket_missing: bool = False
    patience_seconds: float = 0.0

    @property
    def store(self) -> KindName:
        """The kind's name."""
        return self.kind.name

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done besides the bucket's rules, in words."""
        return tuple(step.words for step in (*self.first, *self.last))

    @property
    def changes_anything(self) -> bool:
        """Whether `carry_out` would write at all."""
        return bool(self.first or self.last) or self.before != self.after


@dataclass(frozen=True, slots=True)
class BucketState:
    """A bucket's rules as they are, the elements in them that boto3 would drop, and the kind, where it is known."""

    rules: Document
    dropped: tuple[str, ...]
    missing: bool
    kind: StoreKind | None
    server: str


class Way(Protocol):
    """How stores of one kind are set up: a module of this folder."""

    def plan(self, clients: Clients, wish: Wish, state: BucketState, kind: StoreKind) -> Plan:
        """Plan the change. Writes nothing. Raises ConnectError."""

    def write(self, clients: Clients, plan: Plan, say: Speak) -> None:
        """Make the rules as the plan says. Raises ConnectError."""

    def rest(self, clients: Clients, plan: Plan) -> Rest:
        """Say what people have to do themselves once the plan is true."""


class RefusedRulesError(Exception):
    """The store refuses to tell its rules; `kind` is None where its headers do not say what it is."""

    def __init__(self, kind: StoreKind | None) -> None:
        self.kind = kind
        super().__init__("the store has no rules")


def read(s3: S3Client, bucket: str, no_rules: Callable[[StorageError], bool] = lambda _: False) -> BucketState:
    """Read the rules. Raises StorageError, and RefusedRulesError if `no_rules` says so of one.

    MinIO leaves out a rule whose target it no longer has: such a rule is lost in writing.
    """
    dropped: list[str] = []
    headers: dict[str, str] = {}

    def watch(response_dict: Mapping[str, Any], **_: object) -> None:
        headers.update({name.lower(): value for name, value in response_dict["headers"].items()})
        dropped.extend(dropped_elements(response_dict["body"]))

    s3.meta.events.register(_BEFORE_PARSE, watch)
    rules: Document = {}
    missing = False
    try:
        with storage_errors():
            rules = cast("Document", s3.get_bucket_notification_configuration(Bucket=bucket))
    except StorageError as error:
        missing = error.code == "NoSuchBucket"
        if no_rules(error):
            raise RefusedRulesError(recognise(headers)) from None
        if not missing:
            raise
    finally:
        s3.meta.events.unregister(_BEFORE_PARSE, watch)
    rules.pop("ResponseMetadata", None)
    return BucketState(rules, tuple(dropped), missing, recognise(headers), headers.get("server", "").lower())


def dropped_elements(body: bytes) -> list[str]:
    """The XML elements that boto3 would drop in silence."""
    try:
        root = ET.fromstring(body)  # noqa: S314 - the next to parse these bytes is botocore, the same way
    except ET.ParseError:
        return []  # botocore will say so
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    # An error has a document of its own.
    return [name for name in names if name not in documents.KNOWN_ELEMENTS] if names[0] == _ROOT else []


def whole(state: BucketState) -> Document:
    """The rules, if boto3 can write them all back; otherwise ConnectError."""
    if state.dropped:
        raise ConnectError(
            "UnknownRules",
            f"The rules were not changed: they hold <{state.dropped[0]}>, which would be lost in writing them back.",
            "Set this bucket's rules with the store's own tools.",
        )
    return state.rules


def replace_rules(s3: S3Client, wish: Wish, change: Callable[[Document], Document]) -> None:
    """Read the rules again, so that what somebody else changed meanwhile stays, and write them as a whole."""
    with explained("s3:PutBucketNotification", wish.bucket):
        before = whole(read(s3, wish.bucket))
        after = change(before)
        if after != before:
            with storage_errors():
                s3.put_bucket_notification_configuration(
                    Bucket=wish.bucket, NotificationConfiguration=cast("Any", after)
                )


def creation(wish: Wish, state: BucketState) -> tuple[Change, ...]:
    """The step that makes the bucket, where it is missing."""
    return (Change(f"create the bucket {wish.bucket}", _create_bucket),) if state.missing else ()


def _create_bucket(clients: Clients, plan: Plan, _: Speak) -> Plan:
    bucket = plan.wish.bucket
    with explained("s3:CreateBucket", bucket), storage_errors():
        # AWS wants the region named unless it is its first one; the others take none but their own.
        if plan.store != "sqs" or clients.region == "us-east-1":
            clients.s3.create_bucket(Bucket=bucket)
        else:
            place = cast("Any", {"LocationConstraint": clients.region})
            clients.s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
    return plan
