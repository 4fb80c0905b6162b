from __future__ import annotations

import json
import os
import re
import shlex
import socket
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import typer
from minio.credentials.providers import StaticProvider
from minio.minioadmin import MinioAdmin
from typer.testing import CliRunner, Result

from infra.commands.connect import EPILOG, connect
from infra.connect import minio_admin
from infra.connect.minio import Doors
from infra.local.install import find_minio, find_versitygw
from infra.local.process import free_port
from infra.local.stores import Minio, MotoServer, Store, VersityGateway
from tests.conftest import missing
from tests.fakes.rgw import ARN, Rgw, rgw
from tests.hosts import eventually
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

DELIVERY_DEADLINE_SECONDS = PATIENCE_SECONDS
TOKEN = "a-token-of-the-tests-0123456789"
EVENTS = {f"s3:ObjectCreated:{how}" for how in ("Put", "Post", "Copy", "CompleteMultipartUpload")}
FOREIGN_TARGET = {
    "MINIO_NOTIFY_WEBHOOK_ENABLE_OTHER": "on",
    "MINIO_NOTIFY_WEBHOOK_ENDPOINT_OTHER": "http://127.0.0.1:9/other",
}
OUR_IDS = [f"bucketbell-{door}-{what}" for door in ("fast", "sure") for what in ("configs", "assets", "canary")]

app = typer.Typer(pretty_exceptions_enable=False)
app.command(epilog=EPILOG)(connect)

Run = Callable[..., Result]


@dataclass(frozen=True, slots=True)
class Post:
    """What a door received."""

    path: str
    authorization: str | None
    document: dict[str, Any]


@pytest.fixture
def doors() -> Iterator[tuple[str, Queue[Post]]]:
    """A web server with the two doors: its URL and what came in."""
    posts: Queue[Post] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            posts.put(Post(self.path, self.headers["Authorization"], json.loads(body or b"{}")))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", posts
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def minio(tmp_path: Path) -> Iterator[Minio]:
    """A real MinIO that knows one webhook target, somebody else's."""
    find_minio() or missing("minio", "`make minio`")
    with Minio(tmp_path / "minio", environment=FOREIGN_TARGET) as store:
        yield store


@pytest.fixture
def moto(tmp_path: Path) -> Iterator[MotoServer]:
    """Moto's S3 and SQS."""
    with MotoServer(tmp_path / "moto") as store:
        yield store


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command on a store, away from any `.env`, with an environment of its own."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("AWS_", "BUCKET", "WEBHOOK_", "CONFIGS_", "ASSETS_", "SWEEP_")):
            monkeypatch.delenv(name)

    def run(store: Store, *arguments: str, expect: int = 0, **variables: str) -> Result:
        credentials = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
        environment = {**credentials, "WEBHOOK_TOKENS": f"{TOKEN},{TOKEN}-old", **variables}
        options = ["--endpoint-url", store.endpoint_url, "--bucket", "firmware", *arguments]
        result = CliRunner().invoke(app, options, env=environment)
        assert result.exit_code == expect, result.output
        assert "Traceback" not in result.output
        return result

    return run


def rules(store: Store) -> dict[str, Any]:
    """The bucket's rules as boto3 parses them."""
    answer: dict[str, Any] = store.client().get_bucket_notification_configuration(Bucket="firmware")
    del answer["ResponseMetadata"]
    return answer


def lines_of(result: Result) -> dict[str, str]:
    """The environment lines in the command's own words, as a shell reads them."""
    pairs = re.findall(r"^([A-Z_0-9]+)=(.*)$", result.output, re.MULTILINE)
    return {name: "".join(shlex.split(value)) for name, value in pairs}


def test_minio_is_set_up_by_connects_own_words(
    minio: Minio, run: Run, doors: tuple[str, Queue[Post]], tmp_path: Path
) -> None:
    """Refused and explained; then, with the printed lines, an upload reaches both doors with the token."""
    url, posts = doors
    options = ["--create", "--host-url", url, "--queue-dir", str(tmp_path / "event queue"), "--show-token"]

    refused = run(minio, *options, expect=1)
    assert "MinIO does not know the targets BUCKETBELLFAST, BUCKETBELLSURE" in refused.stderr
    assert "restart MinIO with them, then run this again" in refused.stderr
    assert rules(minio) == {}

    lines = {name: value for name, value in lines_of(refused).items() if "MINIO" in name or name == "GOMAXPROCS"}
    assert lines["GOMAXPROCS"] == "64"
    minio.environment = {**FOREIGN_TARGET, **lines}
    minio.restart()
    accepted = run(minio, *options)
    assert not lines.keys() & lines_of(accepted).keys()
    assert "Nothing is left to do." in accepted.stdout
    assert lines_of(accepted)["SWEEP_SECONDS"] == "300"
    ours = rules(minio)["QueueConfigurations"]
    assert [rule["Id"] for rule in ours] == OUR_IDS
    assert all(set(rule["Events"]) == EVENTS for rule in ours)

    s3 = minio.client()
    s3.put_object(Bucket="firmware", Key="elsewhere/x", Body=b"x")
    s3.put_object(Bucket="firmware", Key="configs/aa-bb-cc-dd-ee-ff.json", Body=b"{}")
    s3.put_object_tagging(
        Bucket="firmware",
        Key="configs/aa-bb-cc-dd-ee-ff.json",
        Tagging={"TagSet": [{"Key": "tag", "Value": "v"}]},
    )
    s3.put_object(Bucket="firmware", Key="assets/app.bin", Body=b"x")
    came = collect(posts, 4)
    assert sorted((post.path, post.document["Key"]) for post in came) == [
        ("/events", "firmware/assets/app.bin"),
        ("/events", "firmware/configs/aa-bb-cc-dd-ee-ff.json"),
        ("/events/fast", "firmware/assets/app.bin"),
        ("/events/fast", "firmware/configs/aa-bb-cc-dd-ee-ff.json"),
    ]
    assert {post.authorization for post in came} == {f"Bearer {TOKEN}"}
    assert {post.document["EventName"] for post in came} == {"s3:ObjectCreated:Put"}
    assert (tmp_path / "event queue").is_dir()


def collect(posts: Queue[Post], count: int) -> list[Post]:
    """The next `count` posts that carry events."""
    came: list[Post] = []
    deadline = time.monotonic() + DELIVERY_DEADLINE_SECONDS
    while len(came) < count:
        try:
            post = posts.get(timeout=max(0.01, deadline - time.monotonic()))
        except Empty:
            pytest.fail(f"only {came} came within {DELIVERY_DEADLINE_SECONDS:g} s")
        if post.document:
            came.append(post)
    return came


def test_minio_keeps_foreign_rules_and_a_second_run_changes_nothing(minio: Minio, run: Run) -> None:
    """Others' rules stay through connecting, connecting again, the strict mode, and removing."""
    minio.environment = {
        **FOREIGN_TARGET,
        **lines_of(run(minio, "--create", "--dry-run", "--queue-dir", str(minio.directory / "q"), "--show-token")),
    }
    minio.restart()
    s3 = minio.client()
    s3.create_bucket(Bucket="firmware")
    foreign = [
        {"Id": "theirs", "QueueArn": "arn:minio:sqs::OTHER:webhook", "Events": ["s3:ObjectCreated:*"]},
        {
            "QueueArn": "arn:minio:sqs::OTHER:webhook",
            "Events": ["s3:ObjectRemoved:*", "s3:ObjectCreated:Put"],
            "Filter": {
                "Key": {"FilterRules": [{"Name": "prefix", "Value": "configs/"}, {"Name": "suffix", "Value": "é"}]}
            },
        },
    ]
    s3.put_bucket_notification_configuration(
        Bucket="firmware", NotificationConfiguration={"QueueConfigurations": foreign}
    )
    before = rules(minio)

    shown = run(minio, "--dry-run")
    assert "+ bucketbell-fast-configs" in shown.stdout
    assert "Nothing was changed" in shown.stdout
    assert rules(minio) == before

    run(minio)
    connected = rules(minio)
    assert connected["QueueConfigurations"][:2] == before["QueueConfigurations"]
    assert [rule["Id"] for rule in connected["QueueConfigurations"][2:]] == OUR_IDS
    again = run(minio)
    assert "Nothing to change" in again.stdout
    assert rules(minio) == connected

    strict = run(minio, "--sure-only")
    assert "MINIO_API_SYNC_EVENTS=on" in strict.stdout
    assert [rule["Id"] for rule in rules(minio)["QueueConfigurations"]] == ["theirs", "", *OUR_IDS[3:]]

    document = json.loads(run(minio, "--remove", "--json").stdout)
    assert document["changed"] is True
    assert len(document["rules"]["removed"]) == 3
    assert rules(minio) == before
    assert "Nothing to change" in run(minio, "--remove").stdout


def test_a_dry_run_creates_no_bucket(minio: Minio, run: Run) -> None:
    """A dry run with `--create` makes no bucket; removing from an absent bucket is a problem, from a bare one not."""
    run(minio, "--create", "--dry-run")
    assert minio.client().list_buckets()["Buckets"] == []
    run(minio, "--remove", expect=1)
    minio.client().create_bucket(Bucket="firmware")
    assert "Nothing to change" in run(minio, "--remove").stdout


def test_the_token_is_shown_only_when_asked_for(minio: Minio, run: Run) -> None:
    """Neither words nor JSON hold the token without `--show-token`, nor any token line where there is none."""
    said = run(minio, "--create", "--dry-run")
    assert TOKEN not in said.output
    assert "MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_BUCKETBELLSURE=<the first of WEBHOOK_TOKENS>" in said.stdout
    result = run(minio, "--create", "--dry-run", "--json")
    assert TOKEN not in result.output
    document = json.loads(result.stdout)
    assert document["minio_environment"]["MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_BUCKETBELLFAST"] is None
    assert document["changed"] is False
    assert "AUTH_TOKEN" not in run(minio, "--create", "--dry-run", WEBHOOK_TOKENS="").output


def test_a_bucket_that_is_not_there_is_named(minio: Minio, run: Run) -> None:
    """Without `--create` an absent bucket is a problem that names the option."""
    assert "--create" in run(minio, expect=1).stderr
    document = json.loads(run(minio, "--json", expect=1).stdout)
    assert document["error"]["code"] == "NoSuchBucket"


def test_wrong_credentials_are_named(minio: Minio, run: Run) -> None:
    """A wrong secret says which variables to correct."""
    assert "AWS_SECRET_ACCESS_KEY" in run(minio, expect=1, AWS_SECRET_ACCESS_KEY="wrong-secret").stderr


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_store_that_does_not_answer_is_given_up(kind: str, run: Run, tmp_path: Path) -> None:
    """A closed or silent port is reported within six seconds, with what to look at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = MotoServer(tmp_path / "none", port=listener.getsockname()[1])
        if kind == "closed":
            listener.close()
        began = time.monotonic()
        result = run(store, "--bucket", "firmware", expect=1)
        assert time.monotonic() - began < 6 + SLACK_SECONDS
    assert "--endpoint-url" in result.stderr


def test_sqs_is_set_up_and_an_upload_arrives_in_the_queue(moto: MotoServer, run: Run) -> None:
    """Bucket, queue and dead-letter queue are created, the policy is the bucket's, an upload arrives, twice is idle."""
    result = run(moto, "--create")
    url = lines_of(result)["SQS_QUEUE_URL"]
    sqs, s3 = moto.client("sqs"), moto.client()
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert attributes["ReceiveMessageWaitTimeSeconds"] == "20"
    assert json.loads(attributes["RedrivePolicy"])["deadLetterTargetArn"].endswith(":bucketbell-firmware-dlq")
    (statement,) = json.loads(attributes["Policy"])["Statement"]
    assert statement["Condition"]["ArnEquals"] == {"aws:SourceArn": "arn:aws:s3:::firmware"}
    connected = rules(moto)
    assert [(rule["Id"], set(rule["Events"])) for rule in connected["QueueConfigurations"]] == [
        ("bucketbell-queue-configs", EVENTS),
        ("bucketbell-queue-assets", EVENTS),
        ("bucketbell-queue-canary", EVENTS),
    ]

    s3.put_object(Bucket="firmware", Key="elsewhere/x", Body=b"x")
    s3.put_object(Bucket="firmware", Key="assets/app.bin", Body=b"x")
    keys: list[str] = []
    deadline = time.monotonic() + DELIVERY_DEADLINE_SECONDS
    while not keys and time.monotonic() < deadline:
        for message in sqs.receive_message(QueueUrl=url, WaitTimeSeconds=1).get("Messages", []):
            keys += [record["s3"]["object"]["key"] for record in json.loads(message["Body"]).get("Records", [])]
    assert [key.replace("%2F", "/") for key in keys] == ["assets/app.bin"]

    again = run(moto, "--create")
    assert "Nothing to change" in again.stdout
    assert lines_of(again)["SQS_QUEUE_URL"] == url
    assert rules(moto) == connected


def test_sqs_keeps_foreign_rules_and_policies(moto: MotoServer, run: Run) -> None:
    """A topic, another queue's rule and others' policy statements stay, also after removing."""
    s3, sqs = moto.client(), moto.client("sqs")
    s3.create_bucket(Bucket="firmware")
    url = sqs.create_queue(QueueName="shared")["QueueUrl"]
    theirs = {"Sid": "Theirs", "Effect": "Allow", "Principal": "*", "Action": "sqs:ReceiveMessage", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [theirs]})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    topic = {"Id": "t", "TopicArn": "arn:aws:sns:us-east-1:123456789012:t", "Events": ["s3:ObjectRemoved:*"]}
    uploads = {"Key": {"FilterRules": [{"Name": "prefix", "Value": "uploads/"}]}}
    queue = {"Id": "q", "QueueArn": arn, "Events": ["s3:ObjectCreated:*"], "Filter": uploads}
    s3.put_bucket_notification_configuration(
        Bucket="firmware",
        NotificationConfiguration={
            "EventBridgeConfiguration": {},
            "TopicConfigurations": [topic],
            "QueueConfigurations": [queue],
        },
    )
    before = rules(moto)
    assert set(before) == {"TopicConfigurations", "QueueConfigurations"}

    said = run(moto, "--queue-url", url)
    assert "no dead-letter queue" in said.stdout
    after = rules(moto)
    assert after["QueueConfigurations"][0] == before["QueueConfigurations"][0]
    assert len(after["QueueConfigurations"]) == 4
    assert after["TopicConfigurations"] == before["TopicConfigurations"]

    run(moto, "--remove")
    assert rules(moto) == before
    kept = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])["Attributes"]["Policy"]
    assert json.loads(kept)["Statement"] == [theirs]


def test_sqs_removing_what_connect_created_leaves_no_permission(moto: MotoServer, run: Run) -> None:
    """Where ours was the only statement, removing takes the queue's whole policy away; the queue stays."""
    url = lines_of(run(moto, "--create"))["SQS_QUEUE_URL"]
    run(moto, "--remove")
    attributes = moto.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert not attributes.get("Policy")
    assert rules(moto) == {}


def test_sqs_overlapping_rules_are_named_and_nothing_changes(moto: MotoServer, run: Run) -> None:
    """Somebody's rule for the same keys is named; rules and queues stay as they are."""
    s3 = moto.client()
    s3.create_bucket(Bucket="firmware")
    topic = {"Id": "theirs", "TopicArn": "arn:aws:sns:us-east-1:123456789012:t", "Events": ["s3:ObjectCreated:*"]}
    s3.put_bucket_notification_configuration(
        Bucket="firmware", NotificationConfiguration={"TopicConfigurations": [topic]}
    )
    before = rules(moto)
    result = run(moto, "--create", expect=1)
    assert "theirs: * → arn:aws:sns:us-east-1:123456789012:t on ObjectCreated:*" in result.stderr
    assert rules(moto) == before
    assert "QueueUrls" not in moto.client("sqs").list_queues()


def test_sqs_dry_run_creates_nothing(moto: MotoServer, run: Run) -> None:
    """A dry run with `--create` shows bucket, queues and rules, and makes none of them."""
    said = run(moto, "--create", "--dry-run")
    for step in (
        "create the bucket firmware",
        "dead-letter queue bucketbell-firmware-dlq",
        "+ bucketbell-queue-assets",
    ):
        assert step in said.stdout
    assert moto.client().list_buckets()["Buckets"] == []
    assert "QueueUrls" not in moto.client("sqs").list_queues()


def test_sqs_queue_that_is_not_there_is_named(moto: MotoServer, run: Run) -> None:
    """Without `--create` an absent queue is a problem that names the option."""
    moto.client().create_bucket(Bucket="firmware")
    assert "--create" in run(moto, expect=1).stderr
    assert "--queue-url" in run(moto, "--queue-url", f"{moto.endpoint_url}/123456789012/gone", expect=1).stderr


def test_sqs_bucket_in_another_region(moto: MotoServer, run: Run) -> None:
    """Where AWS wants the region named in creating a bucket, it is."""
    run(moto, "--create", AWS_REGION="eu-west-1")
    place = moto.client().get_bucket_location(Bucket="firmware")
    assert place["LocationConstraint"] == "eu-west-1"


@pytest.mark.parametrize("name", ["S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"])
def test_a_region_that_is_not_the_stores_is_named_and_the_stores_used(
    name: str, run: Run, tmp_path: Path, minio_binary: Path
) -> None:
    """The plan is the same, and nobody has to guess why."""
    del minio_binary
    store = Minio(tmp_path / "abroad", environment={"MINIO_REGION": "", "MINIO_SITE_REGION": "eu-central-1"})
    store.region = "eu-central-1"
    with store:
        store.client().create_bucket(Bucket="firmware")
        wrong = run(store, "--dry-run", **{name: "us-west-2"})
        words = f"{name} is us-west-2, but the store signs for eu-central-1: set S3_REGION=eu-central-1, for the host"
        assert words in wrong.output
        right = run(store, "--dry-run", S3_REGION="eu-central-1")
        assert right.output in wrong.output


def test_a_region_is_named_where_the_store_cannot_be_set_up(versitygw: VersityGateway, run: Run) -> None:
    """The reason why it cannot is the true one, not the region's."""
    versitygw.client().create_bucket(Bucket="firmware")
    refused = run(versitygw, expect=1, S3_REGION="eu-central-1")
    assert "Versity Gateway does not let connect set up its notifications" in refused.output
    assert "Bad Request" not in refused.output


def test_a_store_with_neither_is_told_so(tmp_path: Path, run: Run) -> None:
    """Versity Gateway has no notification rules: plain words, the door's URL to configure by hand, exit 1."""
    find_versitygw() or missing("versitygw", "`make versitygw`")
    with VersityGateway(tmp_path / "versity") as store:
        store.client().create_bucket(Bucket="firmware")
        result = run(store, expect=1)
    assert "Versity Gateway does not let connect set up its notifications" in result.stderr
    assert (
        "VGW_EVENT_WEBHOOK_URL=http://bucketbell:<the first of WEBHOOK_TOKENS>@127.0.0.1:8080/events" in result.stdout
    )
    assert TOKEN not in result.output
    assert lines_of(result)["SWEEP_SECONDS"] == "60"


@contextmanager
def store_with(rules: str, directory: Path, server: str = "") -> Iterator[tuple[Store, list[str]]]:
    """A store that answers every GET with these rules (XML), and the bodies that were PUT to it."""
    body = f"<NotificationConfiguration>{rules}</NotificationConfiguration>".encode()
    writes: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body)

        def do_PUT(self) -> None:
            writes.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._answer(b"")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def version_string(self) -> str:
            return server

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield MotoServer(directory, port=http.server_port), writes  # never started: it stands for the address
        http.shutdown()
        thread.join(5)


def test_rules_that_boto3_would_lose_are_left_alone(run: Run, tmp_path: Path) -> None:
    """A store whose rules hold a field that boto3 drops gets no write at all, and the field is named."""
    rule = "<Id>t</Id><Topic>arn:x</Topic><Event>s3:ObjectCreated:*</Event><OpaqueData>precious</OpaqueData>"
    with store_with(f"<TopicConfiguration>{rule}</TopicConfiguration>", tmp_path) as (store, writes):
        result = run(store, "--store", "minio", expect=1)
    assert "<OpaqueData>" in result.stderr
    assert writes == []


def test_rules_of_every_kind_are_written_back(run: Run, tmp_path: Path) -> None:
    """EventBridge, a topic's and a function's rule are in what is written; a second run writes nothing at all."""
    theirs = (
        "<TopicConfiguration><Id>t</Id><Topic>arn:t</Topic><Event>s3:ObjectRemoved:*</Event></TopicConfiguration>",
        "<CloudFunctionConfiguration><CloudFunction>arn:f</CloudFunction><Event>s3:x:*</Event></CloudFunctionConfiguration>",
        "<EventBridgeConfiguration />",
    )
    with store_with("".join(theirs), tmp_path) as (store, writes):
        run(store, "--store", "minio")
    (written,) = writes
    assert [part for part in theirs if part not in written] == []
    assert written.count("<Id>bucketbell-") == 6

    inner = written.partition(">")[2].removesuffix("</NotificationConfiguration>")
    with store_with(inner, tmp_path) as (store, writes):
        assert "Nothing to change" in run(store, "--store", "minio").stdout
    assert writes == []


KEYS_ON_A_PAGE = 1000


@contextmanager
def store_that_lists(
    pages: int,
    directory: Path,
    *,
    refusal: tuple[int, str] = (501, "NotImplemented"),
    server: str = "",
    lists: int = 200,
) -> Iterator[tuple[Store, list[str]]]:
    """A store that refuses everything but LIST: so many pages below each prefix; and what else was asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            asked.append(f"LIST {query['prefix']}" if "list-type" in query else f"{self.command} {self.path}")
            if "list-type" not in query:
                self._answer(refusal[0], f"<Error><Code>{refusal[1]}</Code><Message>No.</Message></Error>")
                return
            number = int(query.get("start-after", "").rpartition("/")[2] or 0)
            keys = range(number, min(number + KEYS_ON_A_PAGE, pages * KEYS_ON_A_PAGE))
            told = "".join(f"<Contents><Key>{query['prefix']}{key + 1}</Key></Contents>" for key in keys)
            more = str(number + KEYS_ON_A_PAGE < pages * KEYS_ON_A_PAGE).lower()
            self._answer(lists, f"<ListBucketResult><IsTruncated>{more}</IsTruncated>{told}</ListBucketResult>")

        def do_POST(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            self.do_GET()

        def version_string(self) -> str:
            return server

        def _answer(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield MotoServer(directory, port=http.server_port), asked  # never started: it stands for the address
        finally:
            http.shutdown()
            thread.join(5)


@pytest.mark.parametrize(
    ("refusal", "server"),
    [
        ((501, "NotImplemented"), ""),
        ((405, "MethodNotAllowed"), ""),
        ((400, "NotImplemented"), ""),
    ],
)
def test_a_store_without_events_needs_the_sweep_and_nothing_else(
    refusal: tuple[int, str], server: str, run: Run, tmp_path: Path
) -> None:
    """It says so, and what to set: something is left to do until it is set. Nothing is written to the store."""
    with store_that_lists(0, tmp_path, refusal=refusal, server=server) as (store, asked):
        todo = run(store, expect=1)
        assert "This store sends no events that the host can read: there is nothing to set up in it" in todo.stderr
        assert lines_of(todo) == {"BUCKET": "firmware", "AWS_ENDPOINT_URL": store.endpoint_url, "SWEEP_SECONDS": "2"}
        assert "A sweep takes 2 LIST calls, at most 2,592,000 a month" in todo.stderr
        document = json.loads(run(store, "--json", expect=1).stdout)
        assert document["error"]["code"] == "NoEvents"
        assert document["sweep"]["host_environment"] == lines_of(todo)

        assert lines_of(run(store, expect=1, S3_REGION="garage"))["S3_REGION"] == "garage"
        done = run(store, SWEEP_SECONDS="20", BUCKET="firmware")
        assert "nothing to set up in it" in done.stdout
        assert "SWEEP_SECONDS=20 is set here" in done.stdout
        assert "at most 259,200 a month" in done.stdout
        assert "nothing to set up" in run(store, "--remove").stdout
        assert {one.partition("?")[2] or one for one in asked} == {"notification", "LIST configs/", "LIST assets/"}


@pytest.mark.parametrize(
    ("pages", "seconds", "words"),
    [
        (1, 5, "Files there now: 3,000. A sweep takes 3 LIST calls, at most 1,555,200 a month."),
        (
            1000,
            10,
            "Files there now: more than 30,000. A sweep takes more than 30 LIST calls, more than 7,776,000 a month.",
        ),
    ],
)
def test_many_files_are_counted_up_to_a_bound(pages: int, seconds: int, words: str, run: Run, tmp_path: Path) -> None:
    """Ten pages of each prefix; the more there are, the longer the pause. Cameras' events are swept here too."""
    with store_that_lists(pages, tmp_path) as (store, asked):
        result = run(store, expect=1, EVENTS_PREFIX="events/")
        assert words in result.stderr
        assert lines_of(result)["SWEEP_SECONDS"] == str(seconds)
        lists = [one for one in asked if one.startswith("LIST")]
        assert {one: lists.count(one) for one in lists} == dict.fromkeys(
            ("LIST configs/", "LIST assets/", "LIST events/"), min(pages, 10)
        )


def test_a_store_without_events_that_refuses_to_list_cannot_be_used(run: Run, tmp_path: Path) -> None:
    """There is no other way to hear of a file: the store's answer is shown."""
    with store_that_lists(0, tmp_path, lists=403) as (store, _):
        assert "These credentials may not use s3:ListBucket on firmware" in run(store, expect=1).stderr


def test_what_the_sweep_costs_is_told_for_each_store(minio: Minio, moto: MotoServer, run: Run) -> None:
    """MinIO and a queue keep events: the sweep is for what they lose. Cameras' events are left to the doors."""
    for store, seconds, calls in ((minio, 300, "17,280"), (moto, 3600, "1,440")):
        assert "SWEEP_SECONDS" not in run(store, "--create", "--dry-run").output  # there is no bucket to count yet
        s3 = store.client()
        s3.create_bucket(Bucket="firmware")
        for number in range(3):
            s3.put_object(Bucket="firmware", Key=f"assets/{number}", Body=b"x")
        result = run(store, "--create", "--dry-run", EVENTS_PREFIX="events/")
        assert lines_of(result)["SWEEP_SECONDS"] == str(seconds)
        words = f"Files there now: 3. A sweep takes 2 LIST calls, at most {calls} a month. On a store of your own"
        assert words in result.stdout
        document = json.loads(run(store, "--create", "--dry-run", "--json", SWEEP_SECONDS="60").stdout)
        assert document["sweep"] | {"objects": 3, "set_seconds": 60, "list_calls_a_month": 86_400} == document["sweep"]
        assert "SWEEP_SECONDS" not in run(store, "--remove", "--dry-run").output


@pytest.fixture
def seaweedfs(tmp_path: Path) -> Iterator[Store]:
    """What answers as SeaweedFS does: no rules, and its name."""
    with store_with("", tmp_path, server="SeaweedFS 30GB 4.53") as (store, writes):
        yield store
    assert writes == []


def test_seaweedfs_gets_a_whole_notification_toml(seaweedfs: Store, run: Run) -> None:
    """The file is complete, TOML, and holds the token only when asked to; there is something to do, so exit 1."""
    told = run(seaweedfs, "--host-url", "http://host:8080", expect=1, CONFIGS_PREFIX='con"figs/')
    assert TOKEN not in told.output
    assert "SeaweedFS does not let connect set up its notifications" in told.stderr
    assert "four times in 21 s" in told.stdout
    assert lines_of(told)["SWEEP_SECONDS"] == "60"
    told = run(seaweedfs, "--host-url", "http://host:8080", "--show-token", expect=1, CONFIGS_PREFIX='con"figs/')
    (text,) = re.findall(r"^\[notification\.webhook\]\n.*?\n\n", told.stdout, re.DOTALL | re.MULTILINE)
    assert tomllib.loads(text)["notification"]["webhook"] == {
        "enabled": True,
        "endpoint": "http://host:8080/events",
        "bearer_token": TOKEN,
        "event_types": ["create", "update", "rename"],
        "path_prefixes": [f"/buckets/firmware/{prefix}" for prefix in ('con"figs/', "assets/", ".bucketbell/canary")],
    }


def test_rustfs_is_told_by_its_own_names(run: Run, tmp_path: Path) -> None:
    """The lines and the rules are RustFS's: its variables, its targets in lower case, and no target to configure."""
    with store_with("", tmp_path) as (store, writes):
        told = run(store, "--store", "rustfs", "--host-url", "http://host:8080")
        assert "cannot be configured from here" in run(store, "--store", "rustfs", "--configure", expect=1).stderr
    assert writes[0].count("<Queue>arn:rustfs:sqs::bucketbellsure:webhook</Queue>") == 3
    lines = lines_of(told)
    assert lines["RUSTFS_OUTBOUND_ALLOW_ORIGINS"] == "http://host:8080"
    assert lines["RUSTFS_NOTIFY_WEBHOOK_ENDPOINT_BUCKETBELLFAST"] == "http://host:8080/events/fast"
    assert "RustFS's environment needs these lines" in told.stdout
    assert TOKEN not in told.output
    assert not [name for name in lines if "MINIO" in name or name == "GOMAXPROCS"]


@pytest.fixture
def ceph(tmp_path: Path) -> Iterator[tuple[Store, Rgw]]:
    """Ceph RGW's answers, and what it knows."""
    with rgw() as store:
        address = MotoServer(tmp_path, port=int(store.endpoint_url.rpartition(":")[2]))  # never started
        yield address, store


CEPH_IDS = {f"bucketbell-sure-{what}" for what in ("configs", "assets", "canary")}


def test_ceph_gets_a_persistent_topic_and_rules(ceph: tuple[Store, Rgw], run: Run) -> None:
    """Bucket, topic and rules are made; a second run changes nothing; nothing is left to do, and no token is shown."""
    address, store = ceph
    assert "--create" in run(address, expect=1).stderr
    run(address, "--create", "--dry-run")
    assert (store.buckets, store.topics) == ({}, {})

    odd = "a+token/of-the&tests-0123456789"
    done = run(address, "--create", "--host-url", "http://host:8080", WEBHOOK_TOKENS=odd)
    assert "Nothing is left to do." in done.stdout
    assert "events?token=<the first of WEBHOOK_TOKENS>" in done.stdout
    assert odd not in done.output
    assert quote(odd, safe="") not in done.output
    (topic,) = store.topics.values()
    assert topic["push-endpoint"] == f"http://host:8080/events?token={quote(odd, safe='')}"
    assert topic["persistent"] == "true"
    assert store.buckets["firmware"].keys() == CEPH_IDS
    assert "ObjectRemoved" not in "".join(store.buckets["firmware"].values())
    again = run(address, "--host-url", "http://host:8080", WEBHOOK_TOKENS=odd)
    assert "Nothing to change" in again.stdout
    assert lines_of(again)["SWEEP_SECONDS"] == "60"


def test_ceph_learns_of_a_changed_token_and_keeps_the_rules_of_others(ceph: tuple[Store, Rgw], run: Run) -> None:
    """Rules hold what their topic was: they are put again. Ours go one by one, and the topic with them."""
    address, store = ceph
    run(address, "--create")
    store.topics["theirs"] = {"push-endpoint": "http://theirs"}
    theirs = {
        "Id": "theirs",
        "TopicArn": f"{ARN}theirs",
        "Events": ["s3:ObjectRemoved:*"],
    }
    address.client().put_bucket_notification_configuration(
        Bucket="firmware", NotificationConfiguration={"TopicConfigurations": [theirs]}
    )
    changed = run(address, WEBHOOK_TOKENS="another-token-0123456789", ASSETS_PREFIX="files/")
    assert "set the topic bucketbell-firmware" in changed.stdout
    assert {store.posts[one] for one in CEPH_IDS} == {"http://127.0.0.1:8080/events?token=another-token-0123456789"}
    assert "files/" in store.buckets["firmware"]["bucketbell-sure-assets"]
    run(address, "--remove")
    assert store.buckets["firmware"].keys() == {"theirs"}
    assert store.topics.keys() == {"theirs"}
    assert "Nothing to change" in run(address, "--remove").stdout


@contextmanager
def listening(url: str) -> Iterator[None]:
    """Somebody takes connections at this address, and answers nothing."""
    place = urlsplit(url)
    with socket.create_server((str(place.hostname), int(place.port or 0))):
        yield


def uptime_seconds(store: Store) -> int:
    """How long MinIO has run, as it says itself."""
    return int(json.loads(admin_of(store).info())["servers"][0]["uptime"])


def admin_of(store: Store) -> MinioAdmin:
    """A client of MinIO's admin API."""
    keys = StaticProvider(store.access_key, store.secret_key)
    address = store.endpoint_url.removeprefix("http://")
    return MinioAdmin(endpoint=address, credentials=keys, region=store.region, secure=False)


def configured(store: Store) -> str:
    """MinIO's webhook targets, as it runs with them."""
    return admin_of(store).config_get("notify_webhook")


def test_configure_does_it_all_and_undoes_it(
    minio: Minio, run: Run, doors: tuple[str, Queue[Post]], tmp_path: Path
) -> None:
    """Targets, restart and rules in one run; the next changes nothing; a new token is set; removing leaves nothing."""
    url, posts = doors
    queue_directory = tmp_path / "event queue"
    options = ["--configure", "--host-url", url, "--queue-dir", str(queue_directory)]
    shown = run(minio, "--create", "--dry-run", *options)
    assert "restart MinIO" in shown.stdout
    assert "BUCKETBELL" not in configured(minio)

    done = run(minio, "--create", *options)
    assert TOKEN not in shown.output + done.output
    assert {name for name in lines_of(done) if "MINIO" in name or "GO" in name} == {"MINIO_SYNC_BOOT", "GOMAXPROCS"}
    assert "Still to do: MinIO's environment needs these lines" in done.stdout
    assert [rule["Id"] for rule in rules(minio)["QueueConfigurations"]] == OUR_IDS
    minio.client().put_object(Bucket="firmware", Key="assets/app.bin", Body=b"x")
    minio.client().put_object(Bucket="firmware", Key=".bucketbell/canary", Body=b"x")
    came = collect(posts, 4)
    assert {post.authorization for post in came} == {f"Bearer {TOKEN}"}
    assert sorted((post.path, post.document["Key"]) for post in came) == [
        (path, f"firmware/{key}")
        for path in ("/events", "/events/fast")
        for key in (".bucketbell/canary", "assets/app.bin")
    ]
    assert queue_directory.is_dir()

    before = uptime_seconds(minio)
    assert "Nothing to change" in run(minio, *options).stdout
    assert uptime_seconds(minio) >= before

    changed = json.loads(run(minio, *options, "--json", WEBHOOK_TOKENS="another-token-0123456789").stdout)
    assert changed["steps"][:2] == [f"set MinIO's target BUCKETBELL{door}: its token" for door in ("SURE", "FAST")]
    minio.client().put_object(Bucket="firmware", Key="assets/more.bin", Body=b"x")
    assert {post.authorization for post in collect(posts, 2)} == {"Bearer another-token-0123456789"}

    gone = run(minio, "--remove", "--configure")
    assert "Nothing is left to do." in gone.stdout
    assert rules(minio) == {}
    assert "BUCKETBELL" not in configured(minio)
    assert "Nothing to change" in run(minio, "--remove", "--configure").stdout


def test_configure_says_what_is_in_the_way(
    minio: Minio, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No host, no directory, no right, no answer after the restart, a bucket that needs the targets: each is named."""
    host = f"http://127.0.0.1:{free_port()}"
    options = ["--create", "--configure", "--host-url", host]
    refused = run(minio, *options, "--queue-dir", str(tmp_path / "q"), expect=1)
    assert f"MinIO does not reach the host at {host}" in refused.stderr
    assert "Start the host" in refused.stderr
    assert "BUCKETBELL" not in configured(minio)

    admin = admin_of(minio)
    admin.user_add("mere-user", "mere-users-secret")
    admin.policy_set("readwrite", "mere-user")
    mere = {"AWS_ACCESS_KEY_ID": "mere-user", "AWS_SECRET_ACCESS_KEY": "mere-users-secret"}
    allowed = ["s3:*", "admin:ServerInfo"]  # enough to look, not to set
    told = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": [one]} for one in allowed]}
    told["Statement"][0]["Resource"] = ["arn:aws:s3:::*"]  # type: ignore[index]  # a dict of its own
    policy = tmp_path / "looker.json"
    policy.write_text(json.dumps(told))
    refused = run(minio, *options, expect=1, **mere)
    assert "admin:ServerInfo" in refused.stderr
    admin.policy_add("looker", str(policy))
    admin.policy_set("looker", "mere-user")
    refused = run(minio, *options, expect=1, **mere)
    assert "This key may not administer MinIO" in refused.stderr
    assert "without --configure" in refused.stderr

    with listening(host):
        refused = run(minio, *options, "--queue-dir", "/proc/nowhere", expect=1)
        assert "MinIO cannot write the directory for its queue" in refused.stderr
        assert "--queue-dir" in refused.stderr
        assert "BUCKETBELL" not in configured(minio)

        monkeypatch.setattr(minio_admin, "RESTART_SECONDS", 0.0)
        refused = run(minio, *options, "--queue-dir", str(tmp_path / "q"), expect=1)
        assert "MinIO was told to restart, and is not back after 0 s" in refused.stderr
        monkeypatch.undo()
        eventually(lambda: minio.is_ready() and "BUCKETBELLSURE" in configured(minio))
        assert rules(minio) == {}
        again = run(minio, *options, "--queue-dir", str(tmp_path / "q"))
        assert "Waiting for MinIO" not in again.stdout  # it runs with the targets: there is no second restart
        assert [rule["Id"] for rule in rules(minio)["QueueConfigurations"]] == OUR_IDS

        minio.client().create_bucket(Bucket="second")
        run(minio, *options[1:], "--queue-dir", str(tmp_path / "q"), "--bucket", "second")
        run(minio, "--remove", "--configure")  # the other bucket's rules name them
        assert "BUCKETBELLFAST" in configured(minio)
        assert "BUCKETBELLSURE" in configured(minio)


def test_what_minios_environment_says_wins(run: Run, tmp_path: Path) -> None:
    """A variable that says otherwise is named; with the right ones, there is nothing to set and nothing left to do."""
    find_minio() or missing("minio", "`make minio`")
    host = f"http://127.0.0.1:{free_port()}"
    lines = Doors(host, sure_only=False, queue_directory=str(tmp_path / "q"), token=TOKEN).environment()
    name = "MINIO_NOTIFY_WEBHOOK_ENDPOINT_BUCKETBELLSURE"
    options = ["--create", "--configure", "--host-url", host, "--queue-dir", str(tmp_path / "q")]
    with Minio(tmp_path / "minio", environment={**lines, name: "http://127.0.0.1:9/other"}) as store:
        refused = run(store, *options, expect=1)
        assert (
            "MinIO's environment says otherwise, and wins: MINIO_NOTIFY_WEBHOOK_ENDPOINT_BUCKETBELLSURE."
            in refused.stderr
        )
        assert TOKEN not in refused.output
        assert "MINIO_NOTIFY_WEBHOOK_ENDPOINT_BUCKETBELLSURE" in lines_of(
            run(store, "--create", *options[2:], "--dry-run")
        )
        store.environment = lines
        store.restart()
        done = run(store, *options)
        assert "Waiting for MinIO" not in done.stdout
        assert "Nothing is left to do." in done.stdout
        refused = run(store, *options, expect=1, WEBHOOK_TOKENS="another-token-0123456789")
        assert "MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_BUCKETBELLSURE" in refused.stderr
