"""What `template.yaml` makes and how the parts are joined; options, permissions and watching have their own files."""

from __future__ import annotations

import copy
import importlib
import re
import tomllib
from graphlib import CycleError
from typing import Any

import pytest

from functions.admin.openapi import API, PATH
from functions.mqtt.broker import BrokerConfig
from functions.s3 import clients as storage
from functions.settings import Settings, load
from infra.connect.documents import (
    DEAD_LETTER_RETENTION_SECONDS,
    EVENTS,
    MAX_RECEIVE_COUNT,
    QUEUE_LONG_POLL_SECONDS,
    QUEUE_RETENTION_SECONDS,
    QUEUE_VISIBILITY_SECONDS,
)
from tests.template import (
    ACCOUNT,
    BROKER_SECRET,
    BUCKET,
    EVERYTHING,
    KEY,
    REGION,
    ROOT,
    STACK,
    Stack,
    accepts,
    order,
    references,
    source,
    transformed,
)

MOST_WINDOW_SECONDS = 5
HTTP_API_TIMEOUT_SECONDS = 30
MAX_DESCRIPTION_CHARACTERS = 256  # AWS::Lambda::Version
# Read by Powertools, which our own settings know nothing of.
NOT_OURS = {"POWERTOOLS_SERVICE_NAME", "PYDANTIC_DISABLE_PLUGINS"}


def test_a_failed_record_comes_back_alone() -> None:
    """The queue's batches report partial failures; without that, what failed would be deleted with the rest."""
    stack = Stack(BatchSize="7", BatchWindowSeconds="3", MaxConcurrency="4")
    assert stack.of("AWS::Lambda::EventSourceMapping") == {
        "NotifyUploads": {
            "EventSourceArn": "EventQueue.Arn",
            "FunctionName": "NotifyFunction",
            "FunctionResponseTypes": ["ReportBatchItemFailures"],
            "BatchSize": "7",
            "MaximumBatchingWindowInSeconds": "3",
            "ScalingConfig": {"MaximumConcurrency": "4"},
        }
    }


def test_a_message_stays_hidden_for_as_long_as_it_is_worked_on() -> None:
    """Six times the function's timeout and the longest window (AWS Lambda, "Creating and configuring an SQS queue")."""
    queue, function = Stack()["EventQueue"], Stack()["NotifyFunction"]
    assert queue["VisibilityTimeout"] == QUEUE_VISIBILITY_SECONDS
    assert queue["VisibilityTimeout"] >= 6 * function["Timeout"] + MOST_WINDOW_SECONDS
    assert accepts("BatchWindowSeconds", str(MOST_WINDOW_SECONDS))
    assert not accepts("BatchWindowSeconds", str(MOST_WINDOW_SECONDS + 1))
    assert queue["ReceiveMessageWaitTimeSeconds"] == QUEUE_LONG_POLL_SECONDS


def test_the_functions_answer_before_they_are_cut_off() -> None:
    """Longer than the broker is waited for; shorter than the HTTP API waits."""
    functions = Stack(**EVERYTHING).of("AWS::Lambda::Function")
    defaults = load({}).settings
    assert functions["NotifyFunction"]["Timeout"] > defaults.mqtt_publish_timeout_seconds + 1
    for name in functions.keys() - {"NotifyFunction"}:
        assert 10 < functions[name]["Timeout"] < HTTP_API_TIMEOUT_SECONDS


def test_what_cannot_be_announced_is_kept_for_a_person() -> None:
    """The dead-letter queue keeps events longer than the queue, whose age they bring along; only ours may fill it."""
    stack = Stack()
    queue, dead = stack["EventQueue"], stack["DeadLetterQueue"]
    assert queue["RedrivePolicy"] == {
        "deadLetterTargetArn": "DeadLetterQueue.Arn",
        "maxReceiveCount": MAX_RECEIVE_COUNT,
    }
    assert Stack(MaxReceiveCount="2")["EventQueue"]["RedrivePolicy"]["maxReceiveCount"] == "2"
    assert queue["MessageRetentionPeriod"] == QUEUE_RETENTION_SECONDS
    assert dead["MessageRetentionPeriod"] == DEAD_LETTER_RETENTION_SECONDS > QUEUE_RETENTION_SECONDS
    assert dead["RedriveAllowPolicy"] == {
        "redrivePermission": "byQueue",
        "sourceQueueArns": [f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue['QueueName']}"],
    }
    assert all(one["SqsManagedSseEnabled"] is True for one in stack.of("AWS::SQS::Queue").values())


@pytest.mark.parametrize(("snap_start", "qualifier"), [("false", "$LATEST"), ("true", "snapshot")])
def test_a_direct_invocation_that_fails_is_kept_too(snap_start: str, qualifier: str) -> None:
    """Two retries, then a queue of its own: Lambda's record of it is no message that a redrive could deliver."""
    stack = Stack(SnapStart=snap_start)
    (config,) = stack.of("AWS::Lambda::EventInvokeConfig").values()
    assert config == {
        "FunctionName": "NotifyFunction",
        "Qualifier": qualifier,
        "MaximumRetryAttempts": 2,
        "DestinationConfig": {"OnFailure": {"Destination": "FailedInvocations.Arn"}},
    }
    assert stack["FailedInvocations"]["MessageRetentionPeriod"] == DEAD_LETTER_RETENTION_SECONDS
    assert ("sqs:SendMessage", "FailedInvocations.Arn") in stack.permissions("NotifyRole")


@pytest.mark.parametrize("prefixes", [("configs/", "assets/"), ("fleet/c/", "firmware/")])
def test_the_bucket_tells_of_uploads_below_the_two_prefixes(prefixes: tuple[str, str]) -> None:
    """One rule for each prefix and way of uploading, and for nothing else: no tagging, no removal."""
    notifications = Stack(ConfigsPrefix=prefixes[0], AssetsPrefix=prefixes[1])["Bucket"]["NotificationConfiguration"]
    assert set(notifications) == {"QueueConfigurations"}
    rules = notifications["QueueConfigurations"]
    assert len(rules) == len(EVENTS) * 2
    for event in EVENTS:
        for prefix in prefixes:
            rule = {"Name": "prefix", "Value": prefix}
            assert {"Event": event, "Queue": "EventQueue.Arn", "Filter": {"S3Key": {"Rules": [rule]}}} in rules


def test_the_bucket_is_private_encrypted_and_versioned() -> None:
    """It keeps older versions, cleans up broken uploads, and outlives the stack."""
    stack = Stack()
    bucket = stack["Bucket"]
    assert bucket["BucketName"] == BUCKET
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption == {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    blocks = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
    assert bucket["PublicAccessBlockConfiguration"] == dict.fromkeys(blocks, True)
    (lifecycle,) = bucket["LifecycleConfiguration"]["Rules"]
    assert lifecycle["Status"] == "Enabled"
    assert lifecycle["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert not {name for name in lifecycle if "Expiration" in name}
    assert stack.resources["Bucket"]["DeletionPolicy"] == "RetainExceptOnCreate"
    assert stack.resources["Bucket"]["UpdateReplacePolicy"] == "Retain"


def test_an_existing_bucket_is_used_and_left_alone() -> None:
    """No bucket is made and no policy put on it; functions and outputs name it, and one command connects it."""
    stack = Stack(ExistingBucket="firmware.example", ConfigsPrefix="c/")
    assert not [name for name, one in stack.resources.items() if one["Type"].startswith("AWS::S3::")]
    assert not {"Bucket", "BucketPolicy"} & set(references([*stack.resources.values()]))
    assert BUCKET not in str(stack.resources)
    for function in stack.of("AWS::Lambda::Function"):
        assert stack.environment(function)["BUCKET"] == "firmware.example"
    assert stack.outputs["BucketName"] == "firmware.example"
    assert stack.outputs["ConnectBucket"] == (
        f"AWS_REGION={REGION} CONFIGS_PREFIX=c/ ASSETS_PREFIX=assets/ "
        "bucketbell connect --store sqs --bucket firmware.example --queue-url EventQueue"
    )
    assert "ConnectBucket" not in Stack().outputs


def test_the_functions_are_given_settings_that_exist() -> None:
    """A misspelt variable would be ignored by the function, silently."""
    stack = Stack(**EVERYTHING)
    known = {name.upper() for name in Settings.model_fields} | NOT_OURS
    for function in stack.of("AWS::Lambda::Function"):
        assert stack.environment(function).keys() <= known


def test_the_settings_take_what_the_functions_are_given() -> None:
    """With nothing filled in, MQTT is off and no device may download; with a broker, each value arrives."""
    bare = Stack()
    assert BrokerConfig.of(load(bare.environment("NotifyFunction")).settings) is None
    assert load(bare.environment("DownloadFunction")).settings.device_token_keys == ()
    for existing, bucket in (("", BUCKET), ("firmware.example", "firmware.example")):
        given = {name: EVERYTHING[name] for name in ("MqttUrl", "MqttAlpn")}
        stack = Stack(ExistingBucket=existing, LogLevel="DEBUG", TopicPrefix="plant/a", **given)
        for function in stack.of("AWS::Lambda::Function"):
            settings = load(stack.environment(function)).settings
            assert (settings.bucket, settings.configs_prefix, settings.assets_prefix) == (bucket, "configs/", "assets/")
            assert settings.log_level == "DEBUG"
        settings = load(stack.environment("NotifyFunction")).settings
        broker = BrokerConfig.of(settings)
        assert broker is not None
        assert broker.url == EVERYTHING["MqttUrl"]
        assert (settings.mqtt_alpn, settings.topic_prefix) == ("x-amzn-mqtt-ca", "plant/a")


@pytest.mark.parametrize("function", ["NotifyFunction", "DownloadFunction", "IntegrationFunction"])
def test_a_handler_is_where_the_template_says(function: str) -> None:
    """The build keeps the package's folder, so that the handler's dotted name can be imported."""
    declared = source()["Resources"][function]
    module, _, name = declared["Properties"]["Handler"].rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    code = ROOT / source()["Globals"]["Function"]["CodeUri"]
    assert (code / "requirements.txt").is_file()
    assert code.name == module.partition(".")[0]
    assert declared["Metadata"]["BuildProperties"] == {"ParentPackageMode": "explicit", "ParentPackages": code.name}
    for architecture in ("x86_64", "arm64"):
        deployed = Stack(Architecture=architecture, StoredSettings="true")[function]
        assert (deployed["Runtime"], deployed["Architectures"]) == ("python3.13", [architecture])
    assert Stack(StoredSettings="true")[function]["Architectures"] == ["x86_64"]


def test_a_snapshot_is_used_where_it_is_asked_for() -> None:
    """Without SnapStart, the queue's events go to the function as it is; with it, to the alias of its last version."""
    without, with_it = Stack(), Stack(SnapStart="true")
    assert without["NotifyUploads"]["FunctionName"] == "NotifyFunction"
    assert without["NotifyFunction"]["SnapStart"] == {"ApplyOn": "None"}
    ((alias, properties),) = with_it.of("AWS::Lambda::Alias").items()
    (version,) = with_it.of("AWS::Lambda::Version")
    assert with_it["NotifyUploads"]["FunctionName"] == alias
    assert with_it["NotifyFunction"]["SnapStart"] == {"ApplyOn": "PublishedVersions"}
    assert properties == {"Name": "snapshot", "FunctionName": "NotifyFunction", "FunctionVersion": f"{version}.Version"}
    assert with_it.resources[version]["DeletionPolicy"] == "Delete"
    assert "SnapStart" not in with_it["DownloadFunction"]


OTHER_VALUES = EVERYTHING | {
    "BucketPrefix": "other",
    "ConfigsPrefix": "c/",
    "AssetsPrefix": "a/",
    "TopicPrefix": "plant/a",
    "DeviceTopics": "only",
    "Architecture": "arm64",
    "LogLevel": "DEBUG",
}


@pytest.mark.parametrize("cameras", [{}, {"EventsPrefix": "cameras/", "BrokerSecret": "bell"}], ids=["off", "on"])
@pytest.mark.parametrize("parameter", sorted(OTHER_VALUES.keys() - {"SnapStart"}))
def test_a_new_value_of_a_parameter_makes_a_new_snapshot(parameter: str, cameras: dict[str, str]) -> None:
    """The version is replaced exactly when the function's settings change: a description is all that it can differ in.

    An unchanged description would leave the old settings in force; a changed one without a change of the function
    would fail, because Lambda publishes nothing that it has published already.
    """
    given = {"SnapStart": "true", "SubnetIds": "subnet-1a", "SecurityGroupIds": "sg-3c", **cameras}
    before, after = Stack(**given), Stack(**(given | {parameter: OTHER_VALUES[parameter]}))
    (old,), (new,) = (stack.of("AWS::Lambda::Version").values() for stack in (before, after))
    assert (old != new) == (before["NotifyFunction"] != after["NotifyFunction"])


def test_the_buckets_region_is_told_where_it_is_another() -> None:
    """To every function, by a setting that wins over Lambda's own variable; the stack's own is that variable."""
    abroad, at_home = Stack(ExistingBucket="firmware.example", BucketRegion="af-south-1"), Stack()
    for name in ("NotifyFunction", "DownloadFunction"):
        told = {stack: load(stack.environment(name) | {"AWS_REGION": REGION}).settings for stack in (abroad, at_home)}
        assert storage.region(told[abroad]) == ("af-south-1", "S3_REGION")
        assert storage.region(told[at_home]) == (REGION, "AWS_REGION")
    assert abroad.outputs["TryUpload"].endswith("--region af-south-1")
    assert at_home.outputs["TryUpload"].endswith(f"--region {REGION}")


def test_new_code_makes_a_new_snapshot() -> None:
    """SAM gives the version another name, and everything there is fits into its description."""
    named = [
        next(name for name, one in transformed(code)["Resources"].items() if one["Type"] == "AWS::Lambda::Version")
        for code in ("one", "two")
    ]
    assert named[0] != named[1]
    (version,) = Stack(**EVERYTHING).of("AWS::Lambda::Version").values()
    assert len(version["Description"]) < MAX_DESCRIPTION_CHARACTERS
    assert "Description" not in next(iter(Stack().of("AWS::Lambda::Version").values()))


FILES = ("/configs/{name}", "/assets", "/assets/{proxy+}")
THUMBNAILS = ("/thumbnails", "/thumbnails/{proxy+}")


@pytest.mark.parametrize("cameras", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_the_http_api_has_a_route_for_each_request(*, cameras: bool, stored: bool) -> None:
    """Files, the manifest, the next token; more where it is asked for; each in payload format 2.0."""
    stack = Stack(EventsPrefix="events/" if cameras else "", StoredSettings=str(stored).lower(), BrokerSecret="bell")
    (api,) = stack.of("AWS::ApiGatewayV2::Api").values()
    routes = {
        (method.upper(), path): route["x-amazon-apigateway-integration"]
        for path, methods in api["Body"]["paths"].items()
        for method, route in methods.items()
    }
    files = (*FILES, *THUMBNAILS) if cameras else FILES
    downloads = {
        ("GET", "/manifest"),
        ("POST", "/token"),
        *((method, path) for method in ("GET", "HEAD") for path in files),
    }
    any_method = "X-AMAZON-APIGATEWAY-ANY-METHOD"
    administration = {(any_method, API + "/{proxy+}"), ("GET", PATH), ("POST", "/report")} if stored else set()
    assert routes.keys() == downloads | administration
    for route, integration in routes.items():
        assert integration["payloadFormatVersion"] == "2.0"
        function = "IntegrationFunction" if route in administration else "DownloadFunction"
        assert f"{function}.Arn" in integration["uri"]


def test_each_part_of_a_path_is_declared() -> None:
    """As SAM itself would: warnings are errors when the API is made."""
    (api,) = Stack(**EVERYTHING).of("AWS::ApiGatewayV2::Api").values()
    assert api["FailOnWarnings"] is True
    for path, methods in api["Body"]["paths"].items():
        for route in methods.values():
            assert re.findall(r"\{(.*?)\}", path) == [one["name"] for one in route.get("parameters", ())]


def test_the_http_api_is_throttled() -> None:
    """A fleet that asks all at once is told to come again, and does not empty the account's concurrency."""
    (stage,) = Stack(RequestsPerSecond="7", RequestBurst="9").of("AWS::ApiGatewayV2::Stage").values()
    assert stage["DefaultRouteSettings"] == {"ThrottlingRateLimit": "7", "ThrottlingBurstLimit": "9"}


@pytest.mark.parametrize("parameters", [{}, EVERYTHING], ids=["as is", "everything"])
def test_no_resource_waits_for_itself(parameters: dict[str, str]) -> None:
    """The queue's policy must not refer to the bucket, which waits for it; the check would see it if it did."""
    resources = transformed(**parameters)["Resources"]
    made = order(resources)
    assert made.index("EventQueuePolicy") < made.index("Bucket")
    circular = copy.deepcopy(resources)
    statement = circular["EventQueuePolicy"]["Properties"]["PolicyDocument"]["Statement"][0]
    statement["Condition"]["ArnEquals"]["aws:SourceArn"] = {"Fn::GetAtt": ["Bucket", "Arn"]}
    with pytest.raises(CycleError):
        order(circular)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({}, ()),
        (EVERYTHING, ()),
        ({"AssetsPrefix": "configs/"}, ("ConfigsPrefix", "AssetsPrefix")),
        ({"EventsPrefix": "events/"}, ()),
        ({"EventsPrefix": "configs/"}, ("EventsPrefix", "ConfigsPrefix", "AssetsPrefix")),
        ({"EventsPrefix": "assets/"}, ("EventsPrefix", "ConfigsPrefix", "AssetsPrefix")),
        ({"StoredSettings": "true"}, ("StoredSettings", "BrokerSecret", "DATABASE_URL")),
        ({"StoredSettings": "true", "BrokerSecret": "bell"}, ()),
        ({"SubnetIds": "subnet-1a"}, ("SubnetIds", "SecurityGroupIds")),
        ({"SecurityGroupIds": "sg-3c"}, ("SubnetIds", "SecurityGroupIds")),
        ({"MqttAlpn": "mqtt"}, ("MqttAlpn", "MqttUrl", "BrokerSecret")),
        ({"MqttAlpn": "mqtt", "BrokerSecret": "bell"}, ()),
        ({"SecretsKeyArn": KEY}, ("SecretsKeyArn", "BrokerSecret", "DownloadSecret")),
        ({"SecretsKeyArn": KEY, "DownloadSecret": "bell"}, ()),
        ({"AlarmEmail": "a@b", "AlarmTopicArn": "arn:aws:sns:x:1:y"}, ("AlarmEmail", "AlarmTopicArn")),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(parameters: dict[str, str], named: tuple[str, ...]) -> None:
    """Before anything is made, and by a sentence that names them."""
    broken = Stack(**parameters).broken_rules
    assert len(broken) == bool(named)
    assert all(name in sentence for sentence in broken for name in named)


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ("BucketPrefix", ["b", "a" * 34], ["", "-b", "B", "a.b", "a" * 35]),
        (
            "ExistingBucket",
            ["", "abc", "firmware.example"],
            ["ab", "Firmware", "s3://firmware", "arn:aws:s3:::firmware"],
        ),
        (
            "BucketRegion",
            ["", "eu-central-1", "us-gov-west-1", "us-isob-east-1"],
            ["eu-central-1a", "aws-global", "EU-Central-1", "eu", "https://s3.eu-central-1.amazonaws.com"],
        ),
        ("ConfigsPrefix", ["c/", "fleet/configs/"], ["", "/", "/c/", "c", "c//", "a b/"]),
        ("EventsPrefix", ["", "events/", "plant/cameras/"], ["/", "/e/", "events", "e//", "a b/"]),
        ("StoredSettings", ["true", "false"], ["", "yes"]),
        (
            "MqttUrl",
            ["", "mqtt://b", "mqtts://b:8883", "mqtt://[::1]:1883"],
            ["b", "http://b", "mqtt://u:p@b", "mqtt://"],
        ),
        ("MqttAlpn", ["", "x-amzn-mqtt-ca", "mqtt"], ["two words", "a,b", "a" * 65]),
        ("TopicPrefix", ["iotsupport", "a/b"], ["", "/a", "$SYS", "a/#", "+"]),
        ("DeviceTopics", ["off", "on", "only"], ["", "yes", "ON"]),
        ("BrokerSecret", ["", "bell/mqtt", BROKER_SECRET], ["two words", '{"MQTT_PASSWORD": "x"}', BROKER_SECRET[:-7]]),
        ("DownloadSecret", ["bell"], ["k1:" + "A" * 43 + "=", "{{resolve:secretsmanager:x}}"]),
        ("SecretsKeyArn", ["", KEY], ["1234abcd", "alias/bell"]),
        ("CorsOrigins", ["", "*", "https://a,http://b:8080"], ["a.example", "https://a, https://b", "https://a/path"]),
        ("SubnetIds", ["", "subnet-1a", "subnet-1a,subnet-2b"], ["vpc-1a", "subnet-1a, subnet-2b"]),
        ("MaxConcurrency", ["2", "1000"], ["1", "1001"]),
        ("SnapStart", ["true", "false"], ["", "yes"]),
        ("AlarmEmail", ["", "ops@fleet.example"], ["ops"]),
        (
            "AlarmTopicArn",
            ["", f"arn:aws:sns:{REGION}:{ACCOUNT}:ops"],
            ["ops", f"arn:aws:sns:{REGION}:{ACCOUNT}:o.fifo"],
        ),
    ],
)
def test_a_parameter_is_judged_before_anything_is_made(parameter: str, good: list[str], bad: list[str]) -> None:
    """CloudFormation refuses what the functions, S3 or Lambda would refuse later."""
    assert [value for value in good if not accepts(parameter, value)] == []
    assert [value for value in bad if accepts(parameter, value)] == []


def test_every_parameter_explains_itself() -> None:
    """It has a default that it would accept, a description, a place in the console, and a use."""
    parameters = source()["Parameters"]
    groups = source()["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    placed = [name for group in groups for name in group["Parameters"]]
    assert sorted(placed) == sorted(parameters)
    used = set(references([source()[section] for section in ("Resources", "Conditions", "Globals")]))
    for name, declared in parameters.items():
        assert declared["Description"].strip().endswith(".")
        assert accepts(name, str(declared["Default"])), name
        assert "AllowedPattern" not in declared or declared["ConstraintDescription"]
        assert name in used
    assert all(accepts(name, value) for name, value in EVERYTHING.items())


def test_the_outputs_are_what_a_person_needs_next() -> None:
    """Where to upload, where to ask, how to try it, and where to look when it goes wrong."""
    api = f"https://DownloadApi.execute-api.{REGION}.amazonaws.com"
    assert Stack().outputs == {
        "BucketName": BUCKET,
        "ApiUrl": api,
        "Publishing": "off: give MqttUrl or BrokerSecret",
        "Downloading": "off, the API answers 503: give DownloadSecret",
        "TryUpload": f"echo '{{}}' | aws s3 cp - s3://{BUCKET}/configs/02-00-00-00-00-01.json --region {REGION}",
        "TryDownload": (
            f'curl --location --header "Authorization: Bearer $TOKEN" {api}/configs/02-00-00-00-00-01.json'
        ),
        "Logs": f"aws logs tail NotifyLogs --follow --region {REGION}",
        "QueueUrl": "EventQueue",
        "DeadLetterQueueUrl": "DeadLetterQueue",
        "Redrive": f"aws sqs start-message-move-task --source-arn DeadLetterQueue.Arn --region {REGION}",
        "FailedInvocationsUrl": "FailedInvocations",
        "NotifyFunctionName": "NotifyFunction",
        "DashboardUrl": (
            f"https://{REGION}.console.aws.amazon.com/cloudwatch/home?region={REGION}#dashboards/dashboard/Dashboard"
        ),
    }


@pytest.mark.parametrize(
    ("parameters", "publishing", "downloading"),
    [
        ({"MqttUrl": "mqtt://b"}, True, False),
        ({"BrokerSecret": "bell"}, True, False),
        ({"DownloadSecret": "bell"}, False, True),
    ],
)
def test_what_was_left_out_is_told_by_an_output(
    parameters: dict[str, str], *, publishing: bool, downloading: bool
) -> None:
    """No broker and no download secret are legal; nobody should have to guess why nothing happens."""
    outputs = Stack(**parameters).outputs
    assert (outputs["Publishing"] == "on", outputs["Downloading"] == "on") == (publishing, downloading)


def configuration() -> dict[str, Any]:
    """`samconfig.toml`, by environment."""
    document = tomllib.loads((ROOT / "samconfig.toml").read_text(encoding="utf-8"))
    return {name: one for name, one in document.items() if name != "version"}


def test_no_command_needs_flags_in_any_environment() -> None:
    """`samconfig.toml` gives each environment a stack and a bucket of its own, and parameters that exist."""
    environments = configuration()
    assert environments.keys() == {"default", "dev", "prod"}
    stacks, buckets = set(), set()
    for commands in environments.values():
        assert commands["validate"]["parameters"]["lint"] is True
        deploy = commands["deploy"]["parameters"]
        assert deploy["resolve_s3"] is True
        assert deploy["capabilities"] == "CAPABILITY_IAM"  # enough for roles without names
        overrides = dict(one.split("=", 1) for one in deploy.get("parameter_overrides", ()))
        assert all(accepts(name, value) for name, value in overrides.items())
        stacks.add(commands["global"]["parameters"]["stack_name"])
        buckets.add(Stack(**overrides)["Bucket"]["BucketName"])
    assert len(stacks) == len(buckets) == len(environments)
    assert not any("RoleName" in one for one in Stack(**EVERYTHING).of("AWS::IAM::Role").values())


def test_two_stacks_of_one_account_do_not_collide() -> None:
    """Every name that we choose holds the stack's name, or is the bucket's, which has a prefix of its own."""
    chosen = re.compile(r"(QueueName|LogGroupName|DashboardName|LayerName|RoleName|FunctionName|TopicName|AlarmName)")
    for kind in ("AWS::SQS::Queue", "AWS::Logs::LogGroup", "AWS::CloudWatch::Dashboard", "AWS::Lambda::LayerVersion"):
        for properties in Stack(**EVERYTHING).of(kind).values():
            assert all(STACK in value for name, value in properties.items() if chosen.fullmatch(name))
    for kind in ("AWS::Lambda::Function", "AWS::SNS::Topic", "AWS::CloudWatch::Alarm", "AWS::IAM::Role"):
        for properties in Stack(**EVERYTHING).of(kind).values():
            assert not [name for name in properties if chosen.fullmatch(name)]
