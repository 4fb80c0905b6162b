"""What `template.yaml` deploys, read after the same transformation that AWS applies to it."""

from __future__ import annotations

import copy
import importlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from boto3.session import Session

# aws-sam-translator brings no types.
from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]
from samtranslator.translator.translator import Translator  # type: ignore[import-untyped]
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-untyped]

from functions.settings import Settings, load
from infra.connect.documents import (
    DEAD_LETTER_RETENTION_SECONDS,
    EVENTS,
    MAX_RECEIVE_COUNT,
    QUEUE_LONG_POLL_SECONDS,
    QUEUE_RETENTION_SECONDS,
    QUEUE_VISIBILITY_SECONDS,
    allow_bucket,
)

ROOT = Path(__file__).parents[2]
ACCOUNT, REGION = "123456789012", "eu-central-1"
NOTHING = object()
PSEUDO: dict[str, object] = {
    "AWS::AccountId": ACCOUNT,
    "AWS::NoValue": NOTHING,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackName": "stack",
    "AWS::URLSuffix": "amazonaws.com",
}
BUCKET = f"bucketbell-{ACCOUNT}-{REGION}"
VARIABLE = re.compile(r"\$\{([^}]+)\}")
MOST_WINDOW_SECONDS = 5
HTTP_API_TIMEOUT_SECONDS = 30
SECRET = re.compile(r"\{\{resolve:secretsmanager:([^{}]+)\}\}")

EVERYTHING = {
    "MqttUrl": "mqtts://broker.example",
    "MqttUsername": "bell",
    "MqttPasswordSecret": "bell/mqtt",
    "DeviceTokenKeysSecret": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:bell-AbCdEf:SecretString:keys",
    "AdminTokensSecret": "bell/admin",
    "DeviceTokensRevoked": "one,two",
    "SubnetIds": "subnet-1a,subnet-2b",
    "SecurityGroupIds": "sg-3c",
}
SECRET_VALUES = {
    "MQTT_PASSWORD": "correct horse",
    "DEVICE_TOKEN_KEYS": "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "ADMIN_TOKENS": "0123456789abcdef",
}


@cache
def source() -> dict[str, Any]:
    """The template as written, with its intrinsic functions in their long form."""
    document: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text(encoding="utf-8"))
    return document


@cache
def transformed() -> dict[str, Any]:
    """The CloudFormation document that AWS makes of the template."""
    document = copy.deepcopy(source())
    document["Globals"]["Function"]["CodeUri"] = "s3://artefacts/functions"  # as `sam deploy` does
    translator = Translator({}, Parser(), boto_session=Session(region_name=REGION))
    result: dict[str, Any] = json.loads(json.dumps(translator.translate(document, {})))
    return result


class Stack:
    """The template with these parameters, each `Ref`, `Sub` and `If` replaced by what it comes to.

    A resource's `Ref` becomes its logical name, an attribute `<name>.<attribute>`.
    """

    def __init__(self, **parameters: str) -> None:
        declared = transformed()["Parameters"]
        assert parameters.keys() <= declared.keys()
        self._values = PSEUDO | {name: one["Default"] for name, one in declared.items()} | parameters
        self.resources: dict[str, Any] = self.resolve(transformed()["Resources"])

    def __getitem__(self, name: str) -> dict[str, Any]:
        properties: dict[str, Any] = self.resources[name]["Properties"]
        return properties

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """The properties of every resource of a type, by logical name."""
        return {name: one["Properties"] for name, one in self.resources.items() if one["Type"] == kind}

    def permissions(self, role: str) -> set[tuple[str, str]]:
        """What a role may do: action and resource, one by one."""
        properties = self[role]
        assert "ManagedPolicyArns" not in properties
        statements = [one for policy in properties["Policies"] for one in policy["PolicyDocument"]["Statement"]]
        assert {one["Effect"] for one in statements} == {"Allow"}
        assert not any({"NotAction", "NotResource"} & one.keys() for one in statements)
        return {
            (action, resource)
            for one in statements
            for action in listed(one["Action"])
            for resource in listed(one["Resource"])
        }

    def environment(self, function: str) -> dict[str, str]:
        """A function's variables, as Lambda hands them on."""
        return {name: str(value) for name, value in self[function]["Environment"]["Variables"].items()}

    @property
    def broken_rules(self) -> list[str]:
        """What CloudFormation would refuse these parameters for."""
        return [
            assertion["AssertDescription"]
            for rule in transformed()["Rules"].values()
            if self.resolve(rule.get("RuleCondition", True))
            for assertion in rule["Assertions"]
            if not self.resolve(assertion["Assert"])
        ]

    def resolve(self, node: object) -> Any:  # noqa: ANN401 - what it comes to, no type tells
        """`node` without intrinsic functions; an unknown one is an error."""
        if isinstance(node, list):
            return [one for one in map(self.resolve, node) if one is not NOTHING]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((name, argument),) = node.items()
            if name == "Ref" or name.startswith("Fn::"):
                return self._functions[name](argument)
        resolved = {name: self.resolve(one) for name, one in node.items()}
        return {name: one for name, one in resolved.items() if one is not NOTHING}

    @property
    def _functions(self) -> dict[str, Callable[[Any], object]]:
        return {
            "Ref": lambda name: self._values.get(name, name),
            "Fn::GetAtt": ".".join,
            "Fn::Sub": self._sub,
            "Fn::If": lambda one: self.resolve(one[1 if self.resolve(transformed()["Conditions"][one[0]]) else 2]),
            "Fn::Equals": lambda two: str(self.resolve(two[0])) == str(self.resolve(two[1])),
            "Fn::And": lambda all_of: all(map(self.resolve, all_of)),
            "Fn::Not": lambda one: not self.resolve(one[0]),
            "Fn::Split": lambda two: self.resolve(two[1]).split(two[0]),
        }

    def _sub(self, argument: str | list[Any]) -> str:
        text, own = (argument, {}) if isinstance(argument, str) else argument
        names = self._values | self.resolve(own)
        return VARIABLE.sub(lambda found: str(names.get(found[1], found[1])), text)


def listed(value: str | list[str]) -> list[str]:
    """IAM's one-or-many as many."""
    return [value] if isinstance(value, str) else value


def references(node: object) -> Iterator[str]:
    """The names that a resource's declaration refers to: what CloudFormation makes before it."""
    if isinstance(node, list):
        for one in node:
            yield from references(one)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in {"Ref", "DependsOn"}:
                yield from listed(value)
            elif name == "Fn::GetAtt":
                yield value[0]
            elif name == "Fn::Sub":
                text = value if isinstance(value, str) else value[0]
                yield from (found.partition(".")[0] for found in VARIABLE.findall(text))
            yield from references(value)


def order(resources: dict[str, Any]) -> list[str]:
    """An order in which the resources can be made; CycleError when there is none."""
    return list(TopologicalSorter({name: set(references(one)) for name, one in resources.items()}).static_order())


def accepts(parameter: str, value: str) -> bool:
    """Whether CloudFormation would take this value for a parameter."""
    declared: dict[str, Any] = source()["Parameters"][parameter]
    if "AllowedValues" in declared:
        return value in [str(one) for one in declared["AllowedValues"]]
    if declared["Type"] == "Number":
        return bool(declared["MinValue"] <= float(value) <= declared.get("MaxValue", float("inf")))
    fits = declared.get("MinLength", 0) <= len(value) <= declared.get("MaxLength", 4096)
    return bool(fits) and re.fullmatch(declared.get("AllowedPattern", ".*"), value) is not None


def test_every_function_has_a_role_of_our_own() -> None:
    """SAM makes none: those that it makes read every queue and write every log of the account."""
    stack = Stack()
    assert set(stack.of("AWS::IAM::Role")) == {"NotifyRole", "DownloadRole"}
    roles = {name: one["Role"] for name, one in stack.of("AWS::Lambda::Function").items()}
    assert roles == {"NotifyFunction": "NotifyRole.Arn", "DownloadFunction": "DownloadRole.Arn"}
    assert not {"AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"} & {one["Type"] for one in stack.resources.values()}


def test_notify_may_read_its_queue_and_nothing_else() -> None:
    """It cannot read objects, other queues or other logs."""
    assert Stack().permissions("NotifyRole") == {
        ("sqs:ReceiveMessage", "EventQueue.Arn"),
        ("sqs:DeleteMessage", "EventQueue.Arn"),
        ("sqs:GetQueueAttributes", "EventQueue.Arn"),
        ("logs:CreateLogStream", "NotifyLogs.Arn"),
        ("logs:PutLogEvents", "NotifyLogs.Arn"),
    }


def test_download_may_read_the_two_prefixes_and_list_the_bucket() -> None:
    """It cannot write, and it cannot read what else is in the bucket."""
    assert Stack(ConfigsPrefix="a/b/").permissions("DownloadRole") == {
        *((f"s3:{do}", f"arn:aws:s3:::{BUCKET}/a/b/*") for do in ("GetObject", "GetObjectVersion")),
        *((f"s3:{do}", f"arn:aws:s3:::{BUCKET}/assets/*") for do in ("GetObject", "GetObjectVersion")),
        *((f"s3:{do}", f"arn:aws:s3:::{BUCKET}") for do in ("ListBucket", "ListBucketVersions")),
        ("logs:CreateLogStream", "DownloadLogs.Arn"),
        ("logs:PutLogEvents", "DownloadLogs.Arn"),
    }


@pytest.mark.parametrize("parameters", [{}, EVERYTHING], ids=["as is", "everything"])
def test_no_function_may_do_everything_or_to_everything(parameters: dict[str, str]) -> None:
    """No `*` in an action; none as a resource, but for the network interfaces that Lambda makes in a VPC."""
    stack = Stack(**parameters)
    for role in stack.of("AWS::IAM::Role"):
        granted = stack.permissions(role)
        assert not [action for action, _ in granted if "*" in action]
        to_everything = {action.partition(":")[0] for action, resource in granted if resource == "*"}
        assert to_everything == ({"ec2"} if parameters and role == "NotifyRole" else set())
        trust = stack[role]["AssumeRolePolicyDocument"]["Statement"]
        assert trust == [
            {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ]


def test_the_network_is_a_vpc_where_one_is_named() -> None:
    """NotifyFunction is put into the named subnets, DownloadFunction never."""
    assert "VpcConfig" not in Stack()["NotifyFunction"]
    stack = Stack(**EVERYTHING)
    assert stack["NotifyFunction"]["VpcConfig"] == {
        "SubnetIds": ["subnet-1a", "subnet-2b"],
        "SecurityGroupIds": ["sg-3c"],
    }
    assert "VpcConfig" not in stack["DownloadFunction"]


def test_a_failed_record_comes_back_alone() -> None:
    """The queue's batches report partial failures; without that, what failed would be deleted with the rest."""
    stack = Stack(BatchSize="7", BatchWindowSeconds="3", MaxConcurrency="4")
    assert stack.of("AWS::Lambda::EventSourceMapping") == {
        "NotifyFunctionUploads": {
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
    functions = Stack().of("AWS::Lambda::Function")
    defaults = load({}).settings
    assert functions["NotifyFunction"]["Timeout"] > defaults.mqtt_publish_timeout_seconds + 1
    assert 10 < functions["DownloadFunction"]["Timeout"] < HTTP_API_TIMEOUT_SECONDS


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
    assert queue["SqsManagedSseEnabled"] is dead["SqsManagedSseEnabled"] is True


def test_only_this_bucket_of_this_account_may_fill_the_queue() -> None:
    """The policy is what `bucketbell connect` writes."""
    (policy,) = Stack().of("AWS::SQS::QueuePolicy").values()
    written = allow_bucket(None, bucket=BUCKET, queue_arn=f"arn:aws:sqs:{REGION}:{ACCOUNT}:events")
    assert written is not None
    (wanted,) = json.loads(written)["Statement"]
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert policy["Queues"] == ["EventQueue"]
    assert statement == wanted | {"Sid": statement["Sid"], "Resource": "EventQueue.Arn"}


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
    """It takes TLS only, keeps older versions, cleans up broken uploads, and outlives the stack."""
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
    (policy,) = stack.of("AWS::S3::BucketPolicy").values()
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert policy["Bucket"] == "Bucket"
    assert statement == {
        "Sid": "OnlyOverTls",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": ["Bucket.Arn", "Bucket.Arn/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def test_the_functions_are_given_settings_that_exist() -> None:
    """A misspelt variable would be ignored by the function, silently."""
    stack = Stack(**EVERYTHING)
    known = {name.upper() for name in Settings.model_fields}
    for function in stack.of("AWS::Lambda::Function"):
        assert stack.environment(function).keys() <= known


def test_the_settings_take_what_the_functions_are_given() -> None:
    """With nothing filled in, MQTT is off and no device may download; with everything, each value arrives."""
    bare, full = Stack(), Stack(**EVERYTHING)
    assert load(bare.environment("NotifyFunction")).settings.broker is None
    assert load(bare.environment("DownloadFunction")).settings.device_token_keys == ()

    notify = load(full.environment("NotifyFunction") | {"MQTT_PASSWORD": "correct horse"}).settings
    assert notify.broker is not None
    assert (notify.broker.url, notify.broker.username) == ("mqtts://broker.example:8883", "bell")
    given = full.environment("DownloadFunction")
    download = load({name: SECRET_VALUES.get(name, value) for name, value in given.items()}).settings
    assert download.device_tokens_revoked == ("one", "two")
    for settings in (notify, download):
        assert (settings.bucket, settings.configs_prefix, settings.assets_prefix) == (BUCKET, "configs/", "assets/")


def test_secrets_come_from_secrets_manager() -> None:
    """Every secret setting of a function is a dynamic reference to the secret that a parameter names."""
    stack = Stack(**EVERYTHING)
    found = {
        name: value
        for function in stack.of("AWS::Lambda::Function")
        for name, value in stack.environment(function).items()
        if "SecretStr" in str(Settings.model_fields[name.lower()].annotation)
    }
    assert found.keys() == SECRET_VALUES.keys()
    named = {reference[1] for value in found.values() if (reference := SECRET.fullmatch(value))}
    assert named == {EVERYTHING[name] for name in ("MqttPasswordSecret", "DeviceTokenKeysSecret", "AdminTokensSecret")}


@pytest.mark.parametrize("function", ["NotifyFunction", "DownloadFunction"])
def test_a_handler_is_where_the_template_says(function: str) -> None:
    """The build keeps the package's folder, so that the handler's dotted name can be imported."""
    declared = source()["Resources"][function]
    module, _, name = declared["Properties"]["Handler"].rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    code = ROOT / source()["Globals"]["Function"]["CodeUri"]
    assert (code / "requirements.txt").is_file()
    assert code.name == module.partition(".")[0]
    assert declared["Metadata"]["BuildProperties"] == {"ParentPackageMode": "explicit", "ParentPackages": code.name}
    deployed = Stack()[function]
    assert (deployed["Runtime"], deployed["Architectures"]) == ("python3.13", ["arm64"])


def test_logs_are_kept_for_a_while() -> None:
    """Each function writes to a group of the stack's own, which forgets."""
    stack = Stack(LogRetentionDays="7")
    groups = stack.of("AWS::Logs::LogGroup")
    used = {one["LoggingConfig"]["LogGroup"] for one in stack.of("AWS::Lambda::Function").values()}
    assert used == groups.keys() == {"NotifyLogs", "DownloadLogs"}
    assert {one["RetentionInDays"] for one in groups.values()} == {"7"}


def test_the_http_api_has_a_route_for_each_request_of_a_device() -> None:
    """GET and HEAD of files, GET of the manifest; each in payload format 2.0, and allowed to invoke the function."""
    stack = Stack()
    (api,) = stack.of("AWS::ApiGatewayV2::Api").values()
    routes = {
        (method.upper(), path): route["x-amazon-apigateway-integration"]
        for path, methods in api["Body"]["paths"].items()
        for method, route in methods.items()
    }
    files = ("/configs/{name}", "/assets", "/assets/{proxy+}")
    assert routes.keys() == {("GET", "/manifest"), *((method, path) for method in ("GET", "HEAD") for path in files)}
    for integration in routes.values():
        assert integration["payloadFormatVersion"] == "2.0"
        assert "DownloadFunction.Arn" in integration["uri"]
    permissions = stack.of("AWS::Lambda::Permission").values()
    assert {one["FunctionName"] for one in permissions} == {"DownloadFunction"}
    allowed = {tuple(one["SourceArn"].rpartition(":")[2].split("/", 3)[2:]) for one in permissions}
    assert allowed == {(method, re.sub(r"\{.*\}", "*", path[1:])) for method, path in routes}


def test_the_http_api_is_throttled() -> None:
    """A fleet that asks all at once is told to come again, and does not empty the account's concurrency."""
    (stage,) = Stack(RequestsPerSecond="7", RequestBurst="9").of("AWS::ApiGatewayV2::Stage").values()
    assert stage["DefaultRouteSettings"] == {"ThrottlingRateLimit": "7", "ThrottlingBurstLimit": "9"}


def test_no_resource_waits_for_itself() -> None:
    """The queue's policy must not refer to the bucket, which waits for it; the check would see it if it did."""
    resources = transformed()["Resources"]
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
        ({"MqttPasswordSecret": "bell/mqtt"}, ("MqttPasswordSecret", "MqttUsername")),
        ({"SubnetIds": "subnet-1a"}, ("SubnetIds", "SecurityGroupIds")),
        ({"SecurityGroupIds": "sg-3c"}, ("SubnetIds", "SecurityGroupIds")),
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
        ("ConfigsPrefix", ["c/", "fleet/configs/"], ["", "/", "/c/", "c", "c//", "a b/"]),
        (
            "MqttUrl",
            ["", "mqtt://b", "mqtts://b:8883", "mqtt://[::1]:1883"],
            ["b", "http://b", "mqtt://u:p@b", "mqtt://"],
        ),
        ("TopicPrefix", ["iotsupport", "a/b"], ["", "/a", "$SYS", "a/#", "+"]),
        ("MqttPasswordSecret", ["", *(EVERYTHING[one] for one in EVERYTHING if "Secret" in one)], ["two words"]),
        ("DeviceTokenKeysSecret", ["bell"], [SECRET_VALUES["DEVICE_TOKEN_KEYS"], "{{resolve:x}}"]),
        ("SubnetIds", ["", "subnet-1a", "subnet-1a,subnet-2b"], ["vpc-1a", "subnet-1a, subnet-2b"]),
        ("MaxConcurrency", ["2", "1000"], ["1", "1001"]),
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
    used = set(references([transformed()["Resources"], transformed()["Conditions"]]))
    for name, declared in parameters.items():
        assert declared["Description"].strip().endswith(".")
        assert accepts(name, str(declared["Default"])), name
        assert "AllowedPattern" not in declared or declared["ConstraintDescription"]
        assert name in used


def test_the_outputs_are_what_a_person_needs_next() -> None:
    """Where to upload, where to ask, and where to look when it goes wrong."""
    outputs = Stack().resolve(transformed()["Outputs"])
    assert {name: one["Value"] for name, one in outputs.items()} == {
        "BucketName": "Bucket",
        "ApiUrl": f"https://DownloadApi.execute-api.{REGION}.amazonaws.com",
        "QueueUrl": "EventQueue",
        "DeadLetterQueueUrl": "DeadLetterQueue",
    }


def test_no_command_needs_flags_in_any_environment() -> None:
    """`samconfig.toml` gives each environment a stack and a bucket of its own, and parameters that exist."""
    configuration = tomllib.loads((ROOT / "samconfig.toml").read_text(encoding="utf-8"))
    environments = {name: one for name, one in configuration.items() if name != "version"}
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
    assert not any("RoleName" in one for one in Stack().of("AWS::IAM::Role").values())
