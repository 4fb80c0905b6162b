"""Makes a stack of the transformed template; on a moto server it does by hand what moto silently leaves out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.local.stores import Store
from tests.template import Stack, transformed

CODE_BUCKET = "artefacts"  # where tests.template says that the code is
CODE_KEY, LAYER_KEY = "package.zip", "layer"
CREATE_SECONDS = 60.0
POLL_SECONDS = 0.05

# What moto 5.2 does not make, and says nothing about. The queue's policy is applied below, the API's routes are read
# from the template by the tests that call them.
LEFT_OUT = frozenset(
    {
        "AWS::ApiGatewayV2::Api",
        "AWS::ApiGatewayV2::Stage",
        "AWS::CloudWatch::Alarm",
        "AWS::CloudWatch::Dashboard",  # it names the alarms by their ARNs, so that moto would refuse the whole stack
        "AWS::Lambda::Alias",
        "AWS::Lambda::EventInvokeConfig",
        "AWS::S3::BucketPolicy",  # it denies what does not come by TLS: moto's server speaks none
        "AWS::SQS::QueuePolicy",
    }
)
NOTHING = {"Ref": "AWS::NoValue"}


@dataclass(frozen=True, slots=True)
class Deployment:
    """A stack as it stands: its outputs, and the physical id of each resource by logical name."""

    outputs: Mapping[str, str]
    resources: Mapping[str, str]


def put_code(emulator: Store, files: Mapping[str, bytes]) -> None:
    """Upload what the template is transformed to name, as `sam deploy` does."""
    s3 = emulator.client()
    s3.create_bucket(Bucket=CODE_BUCKET)
    for key, content in files.items():
        s3.put_object(Bucket=CODE_BUCKET, Key=key, Body=content)


def create(
    emulator: Store, name: str, parameters: Mapping[str, str], template: Mapping[str, str], *, update: bool = False
) -> Deployment:
    """Make the stack `name` of a template (its TemplateBody or TemplateURL), or update it; then it is there."""
    cloudformation = emulator.client("cloudformation")
    (cloudformation.update_stack if update else cloudformation.create_stack)(
        StackName=name,
        **template,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    deadline = time.monotonic() + CREATE_SECONDS
    while (described := cloudformation.describe_stacks(StackName=name)["Stacks"][0])["StackStatus"].endswith(
        "PROGRESS"
    ):
        assert time.monotonic() < deadline, described
        time.sleep(POLL_SECONDS)
    assert described["StackStatus"] == f"{'UPDATE' if update else 'CREATE'}_COMPLETE", described
    outputs = {one["OutputKey"]: one["OutputValue"] for one in described["Outputs"]}
    # Not describe_stack_resources, which breaks on what moto does not know.
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=name)
    listed = [one for page in pages for one in page["StackResourceSummaries"]]
    return Deployment(outputs, {one["LogicalResourceId"]: str(one["PhysicalResourceId"]) for one in listed})


def deploy(moto: Store, name: str, package: bytes, parameters: Mapping[str, str]) -> Deployment:
    """Create the stack `name`, whose functions are the zip file `package`.

    Raises AssertionError when moto did not make something that is not known to be left out.
    """
    s3 = moto.client()
    put_code(moto, {CODE_KEY: package})
    stack = Stack(**parameters)
    assert not stack.broken_rules
    document = decided(transformed(CODE_KEY, **parameters), stack.holds)
    wanted = {name: one["Type"] for name, one in document["Resources"].items()}
    del document["Resources"]["Dashboard"], document["Outputs"]["DashboardUrl"]
    bucket = document["Resources"]["Bucket"]["Properties"]
    gaps = Gaps()
    notifications = gaps.punch(bucket.pop("NotificationConfiguration"))
    queue_policy = gaps.punch(document["Resources"]["EventQueuePolicy"]["Properties"])

    body = json.dumps(document | {"Outputs": document["Outputs"] | gaps.outputs})
    made = create(moto, name, parameters, {"TemplateBody": body})
    outputs = made.outputs
    missing = {name: kind for name, kind in wanted.items() if name not in made.resources}
    assert set(missing.values()) <= LEFT_OUT, f"moto made none of {missing}"

    _stop_mappings(moto)
    _put_queue_policy(moto, gaps.fill(queue_policy, outputs))
    s3.put_bucket_versioning(Bucket=made.resources["Bucket"], VersioningConfiguration=bucket["VersioningConfiguration"])
    _put_notifications(moto, made.resources["Bucket"], gaps.fill(notifications, outputs))
    return Deployment({key: value for key, value in outputs.items() if key not in gaps.outputs}, made.resources)


def decided(document: Mapping[str, Any], holds: Callable[[str], bool]) -> dict[str, Any]:
    """The document without conditions: each `Fn::If` is what it comes to, and what is not to be made is not in it.

    Moto's CloudFormation leaves nulls in lists where AWS leaves nothing. References stay, for moto to resolve.
    """

    def walk(node: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(node, list):
            return [one for one in map(walk, node) if one != NOTHING]
        if not isinstance(node, dict):
            return node
        if node.keys() == {"Fn::If"}:
            condition, then, otherwise = node["Fn::If"]
            return walk(then if holds(condition) else otherwise)
        members = {name: walk(one) for name, one in node.items()}
        return {name: one for name, one in members.items() if one != NOTHING}

    def made(section: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: walk({key: part for key, part in one.items() if key != "Condition"})
            for name, one in section.items()
            if "Condition" not in one or holds(one["Condition"])
        }

    rest = {name: part for name, part in document.items() if name not in {"Conditions", "Rules"}}
    return rest | {section: made(document[section]) for section in ("Resources", "Outputs")}


class Gaps:
    """References in what moto leaves out, resolved by moto all the same: each becomes an output of the stack."""

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {}

    def punch(self, node: Any) -> Any:  # noqa: ANN401 - JSON
        """Put the name of an output in the place of each reference."""
        if isinstance(node, list):
            return [self.punch(one) for one in node]
        if not isinstance(node, dict):
            return node
        if len(node) == 1 and next(iter(node)).startswith(("Ref", "Fn::")):
            name = f"Gap{len(self.outputs)}"
            self.outputs[name] = {"Value": node}
            return {"Gap": name}
        return {name: self.punch(one) for name, one in node.items()}

    def fill(self, node: Any, outputs: Mapping[str, str]) -> Any:  # noqa: ANN401 - JSON
        """Put the outputs' values there."""
        if isinstance(node, list):
            return [self.fill(one, outputs) for one in node]
        if not isinstance(node, dict):
            return node
        if node.keys() == {"Gap"}:
            return outputs[node["Gap"]]
        return {name: self.fill(one, outputs) for name, one in node.items()}


def _stop_mappings(moto: Store) -> None:
    """Switch moto's own polling off: it is not Lambda's (see `mapping`)."""
    functions = moto.client("lambda")
    for mapping in functions.list_event_source_mappings()["EventSourceMappings"]:
        functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)


def _put_queue_policy(moto: Store, properties: Mapping[str, Any]) -> None:
    policy = json.dumps(properties["PolicyDocument"])
    for queue_url in properties["Queues"]:
        moto.client("sqs").set_queue_attributes(QueueUrl=queue_url, Attributes={"Policy": policy})


def _put_notifications(moto: Store, bucket: str, properties: Mapping[str, Any]) -> None:
    """In the words of S3's API, which are not CloudFormation's."""
    assert properties.keys() == {"QueueConfigurations"}, properties
    rules = [
        {
            "QueueArn": one["Queue"],
            "Events": [one["Event"]],
            "Filter": {"Key": {"FilterRules": one["Filter"]["S3Key"]["Rules"]}},
        }
        for one in properties["QueueConfigurations"]
    ]
    moto.client("s3").put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration={"QueueConfigurations": rules}
    )
