from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import typer
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from functions.s3 import clients as storage
from functions.settings import load
from infra.commands.connect import EPILOG, connect
from infra.connect import documents, queues, targets
from infra.connect.apply import carry_out
from infra.connect.documents import Document, Rule
from infra.connect.errors import ConnectError, explain
from infra.connect.kinds import KINDS, recognise
from infra.connect.minio import TOKEN_PLACEHOLDER, Doors
from infra.connect.plans import Change, Clients, Plan, Wish, dropped_elements
from infra.connect.queues import Queue
from infra.connect.sweep import propose
from infra.doctor.minio import MinioTargets

PREFIXES = {"configs": "configs/", "assets": "assets/"}
MINIO = {"fast": documents.minio_arn("BUCKETBELLFAST"), "sure": documents.minio_arn("BUCKETBELLSURE")}
QUEUE_ARN = "arn:aws:sqs:eu-west-1:123456789012:bucketbell-firmware"

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="markdown")
app.command(epilog=EPILOG)(connect)

texts = st.text(max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
filters = st.builds(
    lambda rules: {"Key": {"FilterRules": rules}},
    st.lists(st.fixed_dictionaries({"Name": st.sampled_from(["prefix", "Suffix"]), "Value": texts}), max_size=2),
)


def foreign_rules(arn_field: str) -> st.SearchStrategy[Rule]:
    """Rules of other people, with fields of any kind."""
    return st.fixed_dictionaries(
        {arn_field: st.just("arn:minio:sqs:eu:OTHER:webhook") | texts, "Events": st.lists(texts, max_size=3)},
        optional={"Id": texts | st.just("bucketbell-stack-7"), "Filter": filters, "Unheard-of": json_values},
    )


foreign_documents: st.SearchStrategy[Document] = st.fixed_dictionaries(
    {},
    optional={
        "TopicConfigurations": st.lists(foreign_rules("TopicArn"), min_size=1, max_size=3),
        "QueueConfigurations": st.lists(foreign_rules("QueueArn"), min_size=1, max_size=4),
        "LambdaFunctionConfigurations": st.lists(foreign_rules("LambdaFunctionArn"), min_size=1, max_size=3),
        "EventBridgeConfiguration": st.just({}),
        "SomethingNew": json_values,
    },
)
wishes: st.SearchStrategy[tuple[Rule, ...]] = st.sampled_from(
    [MINIO, {"sure": MINIO["sure"]}, {"queue": QUEUE_ARN}]
).map(lambda targets: documents.wanted_rules(targets, PREFIXES))


def theirs(document: Document) -> Document:
    """Everything in `document` that is not a rule of ours."""
    queues = [rule for rule in document.get("QueueConfigurations", ()) if not documents.is_ours(rule)]
    rest = {field: value for field, value in document.items() if field != "QueueConfigurations"}
    return rest | ({"QueueConfigurations": queues} if queues else {})


@given(foreign_documents, wishes)
def test_merging_keeps_what_others_set_as_and_where_it_is(document: Document, wanted: tuple[Rule, ...]) -> None:
    """Whatever others configured comes through a merge unchanged and in its order, and all of our rules are added."""
    before = copy.deepcopy(document)
    merged = documents.merge(document, wanted)
    assert theirs(merged) == before
    assert [rule for rule in merged["QueueConfigurations"] if documents.is_ours(rule)] == list(wanted)
    assert document == before


@given(foreign_documents, wishes, wishes)
def test_merging_again_changes_nothing(document: Document, first: tuple[Rule, ...], wanted: tuple[Rule, ...]) -> None:
    """A second merge of the same wish changes nothing, also after another wish was in force."""
    once = documents.merge(documents.merge(document, first), wanted)
    assert documents.merge(once, wanted) == once
    assert not documents.difference(once, documents.merge(once, wanted)).added


@given(foreign_documents, wishes)
def test_removing_undoes_adding(document: Document, wanted: tuple[Rule, ...]) -> None:
    """Taking our rules away again leaves exactly what was there before."""
    assert documents.merge(documents.merge(document, wanted), ()) == document


@given(foreign_documents, wishes, st.randoms())
def test_a_stores_own_spelling_is_recognised(document: Document, wanted: tuple[Rule, ...], random: Random) -> None:
    """A store that answers with its region, `Prefix` and other orders still has nothing to change."""
    merged = copy.deepcopy(documents.merge(document, wanted))
    for rule in merged["QueueConfigurations"]:
        if documents.is_ours(rule):
            rule["QueueArn"] = rule["QueueArn"].replace("arn:minio:sqs::", "arn:minio:sqs:eu-west-1:")
            rule["Filter"]["Key"]["FilterRules"][0]["Name"] = "Prefix"
            random.shuffle(rule["Events"])
    random.shuffle(merged["QueueConfigurations"])
    assert documents.merge(merged, wanted) is merged


def test_a_rule_of_ours_that_is_out_of_date_is_replaced() -> None:
    """A changed prefix replaces the rule, and `--sure-only` takes the fast door's rules away."""
    old = documents.merge({}, documents.wanted_rules(MINIO, {"configs": "old/", "assets": "assets/"}))
    wanted = documents.wanted_rules({"sure": MINIO["sure"]}, PREFIXES)
    change = documents.difference(old, documents.merge(old, wanted))
    assert [text.split(":")[0] for text in change.added] == ["bucketbell-sure-configs"]
    assert [text.split(":")[0] for text in change.removed] == [
        "bucketbell-fast-configs",
        "bucketbell-fast-assets",
        "bucketbell-sure-configs",
    ]
    assert [text.split(":")[0] for text in change.kept] == ["bucketbell-sure-assets"]


@pytest.mark.parametrize(
    ("rule", "ours"),
    [
        ({"Id": "bucketbell-fast-configs", "QueueArn": "anything"}, True),
        ({"Id": "", "QueueArn": "arn:minio:sqs:eu-west-1:BUCKETBELLSURE:webhook"}, True),
        ({"QueueArn": "arn:minio:sqs::BUCKETBELLFAST:webhook"}, True),
        ({"Id": "mine", "QueueArn": "arn:minio:sqs::BUCKETBELLFAST:webhook"}, False),
        ({"Id": "bucketbell-stack-7", "QueueArn": "x"}, False),
        ({"Id": "", "QueueArn": "arn:minio:sqs::BUCKETBELLSURE2:webhook"}, False),
        ({"QueueArn": "arn:minio:sqs::OTHER:webhook"}, False),
    ],
)
def test_our_rules_are_told_from_others(rule: Rule, *, ours: bool) -> None:
    """A rule is ours by an Id that only we write, or, without any Id, by one of our two MinIO targets."""
    assert documents.is_ours(rule) is ours


def test_only_events_that_ring_are_subscribed() -> None:
    """Tagging and retention, which MinIO's wildcard includes, are not subscribed to."""
    events = {event for rule in documents.wanted_rules(MINIO, PREFIXES) for event in rule["Events"]}
    assert events == {
        "s3:ObjectCreated:Put",
        "s3:ObjectCreated:Post",
        "s3:ObjectCreated:Copy",
        "s3:ObjectCreated:CompleteMultipartUpload",
    }


@pytest.mark.parametrize(
    ("events", "rules", "meets"),
    [
        (["s3:ObjectCreated:*"], [], True),
        (["s3:ObjectCreated:Put"], [("Prefix", "configs/a")], True),
        (["s3:ObjectCreated:Copy"], [("prefix", "ass")], True),
        (["s3:ObjectCreated:Copy"], [("suffix", ".jpg")], True),
        (["s3:ObjectCreated:*"], [("prefix", "uploads/")], False),
        (["s3:ObjectRemoved:*"], [], False),
        (["s3:ObjectTagging:Put"], [("prefix", "configs/")], False),
    ],
)
@pytest.mark.parametrize(("section", "field"), list(documents.ARN_FIELDS.items()))
def test_rules_in_the_way_are_named(
    section: str, field: str, events: list[str], rules: list[tuple[str, str]], *, meets: bool
) -> None:
    """A rule of any kind for the same events and keys, which AWS would refuse ours beside, is named by its Id."""
    filter_rules = [{"Name": name, "Value": value} for name, value in rules]
    rule = {"Id": "theirs", field: "arn:x", "Events": events, "Filter": {"Key": {"FilterRules": filter_rules}}}
    wanted = documents.wanted_rules({"queue": QUEUE_ARN}, PREFIXES)
    named = documents.overlapping({section: [rule]}, wanted)
    assert [text.split(":")[0] for text in named] == (["theirs"] if meets else [])


def test_our_own_rules_are_not_in_the_way() -> None:
    """A bucket that is set up already has no rule in the way."""
    wanted = documents.wanted_rules({"queue": QUEUE_ARN}, PREFIXES)
    assert documents.overlapping(documents.merge({}, wanted), wanted) == ()


def test_the_queues_policy_lets_in_one_bucket_of_one_account() -> None:
    """The statement allows S3 to send for exactly this bucket, of the queue's own account."""
    policy = documents.allow_bucket(None, bucket="firmware", queue_arn=QUEUE_ARN)
    assert policy is not None
    (statement,) = json.loads(policy)["Statement"]
    assert statement.pop("Sid").isalnum()
    assert statement == {
        "Effect": "Allow",
        "Principal": {"Service": "s3.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": QUEUE_ARN,
        "Condition": {
            "ArnEquals": {"aws:SourceArn": "arn:aws:s3:::firmware"},
            "StringEquals": {"aws:SourceAccount": "123456789012"},
        },
    }


def test_other_statements_of_a_policy_stay() -> None:
    """Allowing and forgetting a bucket keeps the policy's other statements; doing either twice changes nothing."""
    theirs = {"Sid": "Theirs", "Effect": "Allow", "Principal": "*", "Action": "sqs:ReceiveMessage", "Resource": "*"}
    before = json.dumps({"Version": "2008-10-17", "Id": "x", "Statement": theirs})
    allowed = documents.allow_bucket(before, bucket="firmware", queue_arn=QUEUE_ARN)
    assert allowed is not None
    assert json.loads(allowed)["Statement"][0] == theirs
    assert documents.allow_bucket(allowed, bucket="firmware", queue_arn=QUEUE_ARN) is None
    both = documents.allow_bucket(allowed, bucket="second", queue_arn=QUEUE_ARN)
    assert both is not None
    assert len(json.loads(both)["Statement"]) == 3
    forgotten = documents.forget_bucket(allowed, bucket="firmware")
    assert forgotten is not None
    assert json.loads(forgotten) == {"Version": "2008-10-17", "Id": "x", "Statement": [theirs]}
    assert documents.forget_bucket(forgotten, bucket="firmware") is None


def test_a_queue_that_is_created_outlives_an_outage_of_an_hour() -> None:
    """Redelivery goes on for an hour before the dead-letter queue, which keeps longer than the queue does."""
    attributes = documents.queue_attributes("arn:dlq")
    redrive = json.loads(attributes["RedrivePolicy"])
    assert redrive["deadLetterTargetArn"] == "arn:dlq"
    assert redrive["maxReceiveCount"] * int(attributes["VisibilityTimeout"]) >= 3600
    dead_letter = documents.dead_letter_attributes()
    assert int(dead_letter["MessageRetentionPeriod"]) > int(attributes["MessageRetentionPeriod"])


def test_the_default_queues_name_is_one_that_sqs_takes() -> None:
    """The longest bucket name with dots still makes a queue name, dead-letter queue included."""
    name = documents.default_queue_name("a.b-" + "c" * 59) + "-dlq"
    assert len(name) <= 80
    assert name.replace("-", "").isalnum()


def test_minios_lines_for_both_doors() -> None:
    """Both targets get token and URL, only the sure one a queue on disk; MinIO more event workers, and a safe start."""
    assert Doors("http://10.0.0.7:8080", sure_only=False, queue_directory="/q", token="t").environment() == {
        "MINIO_NOTIFY_WEBHOOK_ENABLE_BUCKETBELLFAST": "on",
        "MINIO_NOTIFY_WEBHOOK_ENDPOINT_BUCKETBELLFAST": "http://10.0.0.7:8080/events/fast",
        "MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_BUCKETBELLFAST": "t",
        "MINIO_NOTIFY_WEBHOOK_ENABLE_BUCKETBELLSURE": "on",
        "MINIO_NOTIFY_WEBHOOK_ENDPOINT_BUCKETBELLSURE": "http://10.0.0.7:8080/events",
        "MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_BUCKETBELLSURE": "t",
        "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_BUCKETBELLSURE": "/q",
        "MINIO_NOTIFY_WEBHOOK_QUEUE_LIMIT_BUCKETBELLSURE": "100000",
        "MINIO_SYNC_BOOT": "on",
        "GOMAXPROCS": "64",
    }


def test_minios_lines_for_the_strict_mode() -> None:
    """With the sure door only, uploads wait for it; without a token there is no token line."""
    lines = Doors("http://127.0.0.1:8080", sure_only=True, queue_directory="/q", token=None).environment()
    assert (lines["MINIO_API_SYNC_EVENTS"], lines["MINIO_SYNC_BOOT"]) == ("on", "on")
    assert not [name for name in lines if "FAST" in name or "AUTH_TOKEN" in name or name == "GOMAXPROCS"]


@pytest.mark.parametrize(
    ("body", "unknown"),
    [
        ("<NotificationConfiguration/>", []),
        ("<NotificationConfiguration xmlns='http://s3'><EventBridgeConfiguration/></NotificationConfiguration>", []),
        ("<NotificationConfiguration><TopicConfiguration><OpaqueData/></TopicConfiguration></NotificationConfiguration>",
         ["OpaqueData"]),
        ("<Error><Code>NoSuchBucket</Code></Error>", []),
        ("not XML", []),
    ],
)  # fmt: skip
def test_fields_that_boto3_would_drop_are_seen(body: str, unknown: list[str]) -> None:
    """A rule with a field that boto3 does not know, hence would lose in writing back, is noticed."""
    assert dropped_elements(body.encode()) == unknown


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (storage.StorageError(storage.UNREACHABLE, "no route"), "--endpoint-url"),
        (storage.StorageError(storage.NO_CREDENTIALS, "none"), "Set AWS_ACCESS_KEY_ID"),
        (storage.StorageError("SignatureDoesNotMatch", "no", status=403), "Correct AWS_ACCESS_KEY_ID"),
        (storage.StorageError("AccessDenied", "no", status=403), "s3:GetBucketNotification on firmware"),
        (storage.StorageError("NotImplemented", "no", status=501), "by hand"),
        (storage.StorageError("SlowDown", "busy", status=503), "SlowDown"),
        (storage.StorageError("AuthorizationHeaderMalformed", "set S3_REGION=x", status=400), "Set S3_REGION"),
    ],
)
def test_every_trouble_says_what_to_do(error: storage.StorageError, says: str) -> None:
    """Whatever the store answers, the message names the thing to look at."""
    assert says in str(explain(error, "s3:GetBucketNotification", "firmware"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bucket", "a/b"], "3 to 63"),
        (["--bucket", "firmware", "--endpoint-url", "127.0.0.1:9000"], "http://127.0.0.1:9000"),
        (["--bucket", "firmware", "--endpoint-url", "http://minio_1:9000"], "underscore"),
        (["--bucket", "firmware", "--host-url", "http://user:word@host"], "without credentials"),
        (["--bucket", "firmware", "--queue-dir", "events"], "absolute path"),
        (["--bucket", "firmware", "--queue", "q.fifo"], "FIFO"),
        (["--bucket", "firmware", "--queue", "q", "--queue-url", "http://sqs/q"], "not both"),
        ([], "--bucket"),
        (["--bucket", "firmware", "--store", "swift"], "minio"),
    ],
)
def test_wrong_options_exit_2_and_say_what_is_right(arguments: list[str], says: str) -> None:
    """Options that cannot be right are refused before anything is asked of the store."""
    result = CliRunner().invoke(app, arguments, env={"BUCKET": "", "COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.stderr.replace("│", " ").split())


def test_a_wrong_setting_is_named() -> None:
    """A setting that is wrong is named and nothing is asked of the store; JSON says so too."""
    result = CliRunner().invoke(app, ["--bucket", "firmware", "--json"], env={"CONFIGS_PREFIX": "/x"})
    assert result.exit_code == 1
    assert "CONFIGS_PREFIX" in result.stderr
    assert json.loads(result.stdout)["error"]["code"] == "WrongSettings"


def test_help_explains_each_option() -> None:
    """Help has a word on every option, an example and the exit codes."""
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "160", "TERM": "dumb"})
    assert result.exit_code == 0
    for word in ("--dry-run", "--remove", "--sure-only", "--show-token", "Example", "Exit code"):
        assert word in result.stdout
    assert TOKEN_PLACEHOLDER not in result.stdout


def test_importing_the_command_imports_no_client() -> None:
    """Neither functions.s3.clients nor the command import boto3, botocore or minio until a client is asked for."""
    code = (
        "import sys, functions.s3.clients, infra.commands.connect; "
        "print(sorted({'boto3', 'botocore', 'minio', 'urllib3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"


def test_clients_follow_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, region and credentials come from the settings; a custom endpoint gets SigV4 and path addressing."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    environment = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
        "AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:9324",
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "session",
    }
    settings = load(environment).settings
    s3: Any = storage.client("s3", settings, read_timeout_seconds=7.0)
    sqs: Any = storage.client("sqs", settings)
    assert (s3.meta.endpoint_url, sqs.meta.endpoint_url) == ("http://127.0.0.1:9000", "http://127.0.0.1:9324")
    assert s3.meta.region_name == "eu-west-1"
    assert (s3.meta.config.read_timeout, s3.meta.config.connect_timeout) == (7.0, storage.CONNECT_TIMEOUT_SECONDS)
    assert s3.meta.config.retries["total_max_attempts"] == storage.MAX_ATTEMPTS
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "firmware", "Key": "k"})
    assert url.startswith("http://127.0.0.1:9000/firmware/k?X-Amz-Algorithm=AWS4-HMAC-SHA256")
    assert "X-Amz-Security-Token=session" in url
    other: Any = storage.client("s3", settings, endpoint_url="http://127.0.0.1:9100")
    assert other.meta.endpoint_url == "http://127.0.0.1:9100"


def test_without_an_endpoint_the_clients_are_aws_own() -> None:
    """Where no endpoint is set, S3 is AWS's, with the bucket in the host name."""
    settings = load({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}).settings
    s3: Any = storage.client("s3", settings)
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "firmware", "Key": "k"})
    assert url.startswith("https://firmware.s3.")
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url


def clients_of_aws() -> Clients:
    """Clients that would talk to AWS, for a Stubber to answer."""
    settings = load({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}).settings
    sqs = storage.client("sqs", settings)
    return Clients(storage.client("s3", settings), lambda: sqs, storage.region(settings).name)


def queue_plan(*steps: Change) -> Plan:
    """A plan for an existing queue, with rules to write."""
    wish = Wish("firmware", PREFIXES, Doors("http://h", sure_only=False, queue_directory="/q", token=None), "q")
    queue = Queue("bucketbell-firmware", "https://sqs/q", QUEUE_ARN)
    return Plan(wish, KINDS["sqs"], {}, {"QueueConfigurations": []}, steps, queue=queue)


def test_s3_is_given_time_to_learn_of_a_new_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 refuses a queue whose policy is seconds old: the rules, read again, are put until it takes them."""
    monkeypatch.setattr(queues, "PROPAGATION_POLL_SECONDS", 0.001)
    clients = clients_of_aws()
    empty = {"ResponseMetadata": {"HTTPHeaders": {"server": "AmazonS3"}}}
    topic = {"Id": "new", "TopicArn": "arn:aws:sns:x:1:t", "Events": ["s3:ObjectRemoved:*"]}
    said: list[str] = []
    with Stubber(clients.s3) as s3, Stubber(clients.sqs()) as sqs:
        sqs.add_response("set_queue_attributes", {})
        s3.add_response("get_bucket_notification_configuration", dict(empty))
        s3.add_client_error("put_bucket_notification_configuration", "InvalidArgument", "Unable to validate", 400)
        s3.add_response("get_bucket_notification_configuration", {**empty, "TopicConfigurations": [topic]})
        plan = queue_plan(Change("allow", queues.allow))
        wanted = list(plan.wish.rules({"queue": QUEUE_ARN}))
        rules = {"TopicConfigurations": [topic], "QueueConfigurations": wanted}
        put = {"Bucket": "firmware", "NotificationConfiguration": rules}
        s3.add_response("put_bucket_notification_configuration", {}, put)
        carry_out(clients, plan, said.append)
        s3.assert_no_pending_responses()
        sqs.assert_no_pending_responses()
    assert len(said) == 1


def test_s3_is_not_asked_again_when_the_policy_is_old() -> None:
    """A refusal that time cannot cure is reported at once."""
    clients = clients_of_aws()
    with Stubber(clients.s3) as s3:
        s3.add_response("get_bucket_notification_configuration", {"ResponseMetadata": {"HTTPHeaders": {}}})
        s3.add_client_error("put_bucket_notification_configuration", "InvalidArgument", "Unable to validate", 400)
        with pytest.raises(ConnectError, match="Unable to validate"):
            carry_out(clients, queue_plan(), print)


def test_of_cameras_events_only_the_documents_ring() -> None:
    """The picture is uploaded before its document, and would only be skipped."""
    wanted = documents.wanted_rules(MINIO, {**PREFIXES, "events": "events/"})
    filters = {rule["Id"]: rule["Filter"]["Key"]["FilterRules"] for rule in wanted}
    for door in MINIO:
        assert filters[f"bucketbell-{door}-events"] == [
            {"Name": "prefix", "Value": "events/"},
            {"Name": "suffix", "Value": ".json"},
        ]
        assert filters[f"bucketbell-{door}-assets"] == [{"Name": "prefix", "Value": "assets/"}]
    merged = documents.merge({}, wanted)
    assert documents.merge(merged, wanted) == merged
    without = documents.merge(merged, documents.wanted_rules(MINIO, PREFIXES))
    assert [rule["Id"] for rule in without["QueueConfigurations"]] == [
        rule["Id"] for rule in wanted if not rule["Id"].endswith("events")
    ]


@pytest.mark.parametrize(
    ("filters", "meets"),
    [
        ([("Prefix", "events/"), ("Suffix", ".jpg")], False),
        ([("Prefix", "events/"), ("Suffix", "x.json")], True),
        ([("Prefix", "events/cam/")], True),
        ([("Suffix", "on")], True),
        ([("Suffix", ".jpg")], False),
        ([("Prefix", "other/")], False),
    ],
)
def test_another_rule_is_in_the_way_where_a_key_can_match_both(filters: list[tuple[str, str]], *, meets: bool) -> None:
    """By prefix and suffix together, as S3 judges it: a rule for the pictures may stay."""
    rule = {
        "Id": "theirs",
        "QueueArn": "arn:aws:sqs:eu-west-1:123456789012:theirs",
        "Events": ["s3:ObjectCreated:*"],
        "Filter": {"Key": {"FilterRules": [{"Name": name, "Value": value} for name, value in filters]}},
    }
    wanted = documents.wanted_rules({"queue": QUEUE_ARN}, {"events": "events/"})
    assert bool(documents.overlapping({"QueueConfigurations": [rule]}, wanted)) is meets


def test_what_a_sweep_costs_on_aws_is_told_with_the_assumed_price() -> None:
    """One call for each 1,000 objects of each prefix; 2,592,000 s / 3,600 s sweeps a month."""
    s3 = clients_of_aws().s3
    with Stubber(s3) as stub:
        for is_last in (False, True):
            page = {"IsTruncated": not is_last, "Contents": [{"Key": f"configs/{n}"} for n in range(1000)]}
            stub.add_response("list_objects_v2", page)
        stub.add_response("list_objects_v2", {"IsTruncated": False})
        proposal = propose(s3, "firmware", PREFIXES, "queue", 0)
    assert proposal.variables == {"BUCKET": "firmware", "SWEEP_SECONDS": "3600"}
    assert (proposal.calls_a_month, proposal.dollars_a_month) == (2160, 0.01)
    assert "2,160 a month. This costs $0.01, assuming S3 Standard in us-east-1 at $0.005 for 1,000" in proposal.text


def test_a_bucket_that_cannot_be_counted_gets_a_proposal_all_the_same() -> None:
    """Whoever sets rules up need not have the right to list; the reason is told."""
    s3 = clients_of_aws().s3
    with Stubber(s3) as stub:
        stub.add_client_error("list_objects_v2", "AccessDenied", "Access Denied", 403)
        proposal = propose(s3, "firmware", PREFIXES, "kept", 0)
    assert (proposal.proposed_seconds, proposal.count) == (300, None)
    assert "could not be counted: Access Denied (AccessDenied)" in proposal.text
    assert proposal.document["list_calls_a_month"] is None


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"server": "MinIO"}, "minio"),
        ({"server": "AmazonS3"}, "sqs"),
        ({"server": "SeaweedFS 30GB 4.53"}, "seaweedfs"),
        ({"server": "VERSITYGW"}, "versitygw"),
        ({"server": "Ceph Object Gateway (squid)"}, "ceph"),
        ({"x-amz-request-id": "tx00000b9d919dbd0ffd96a-006b0d9e44-1012-default"}, "ceph"),
        ({"x-amz-request-id": "18ECDE5D5A84D9ABBB79FBFF"}, None),
        ({}, None),
    ],
)
def test_a_store_is_recognised_by_its_headers(headers: dict[str, str], name: str | None) -> None:
    """By its name, and Ceph also by how it numbers requests; nothing is guessed."""
    kind = recognise(headers)
    assert (kind and kind.name) == name


def test_several_nodes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """MinIO tries the directory and the host on one node only: the others are left to a person."""
    doors = Doors("http://h:8080", sure_only=False, queue_directory="/q", token="t")
    plan = Plan(Wish("firmware", PREFIXES, doors, "q"), KINDS["minio"])
    seen = MinioTargets(dict.fromkeys(doors.values(), "online"), doors.environment(), workers=64)
    monkeypatch.setattr(targets, "look_at_targets", lambda _: seen)
    assert targets.rest(clients_of_aws(), plan).todo == ()
    monkeypatch.setattr(targets, "look_at_targets", lambda _: replace(seen, nodes=3))
    (todo,) = targets.rest(clients_of_aws(), plan).todo
    assert "MinIO has 3 nodes: look whether each of them may write /q, and reaches http://h:8080" in todo
    monkeypatch.setattr(targets, "look_at_targets", lambda _: replace(seen, workers=2))
    (todo,) = targets.rest(clients_of_aws(), plan).todo
    assert todo.endswith("\n\nGOMAXPROCS=64")


def test_doors_do_not_show_their_token() -> None:
    """Neither their own words nor a plan's hold it; a URL holds it encoded."""
    doors = Doors("http://h:8080", sure_only=False, queue_directory="/q", token="se+cret/&?")
    assert "cret" not in repr(Plan(Wish("firmware", PREFIXES, doors, "q"), KINDS["minio"]))
    assert doors.url_with_query == "http://h:8080/events?token=se%2Bcret%2F%26%3F"
    assert doors.url_with_user == "http://bucketbell:se%2Bcret%2F%26%3F@h:8080/events"
    assert doors.without_token.url_with_query == f"http://h:8080/events?token={TOKEN_PLACEHOLDER}"
