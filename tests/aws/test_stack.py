"""The stack on MiniStack's CloudFormation: its rules, its resources, and what becomes of both when it changes."""

from __future__ import annotations

import json

import pytest
from botocore.exceptions import ClientError

from infra.subscriber import Subscriber
from tests.aws.cloud import EAR, EAR_PASSWORD, MAX_RECEIVE_COUNT
from tests.aws.ministack_cloud import MiniStackCloud


def test_a_rule_of_the_template_refuses_parameters(ministack: MiniStackCloud) -> None:
    """With its own words, and nothing is made."""
    refused = {"BucketPrefix": "wrong", "ConfigsPrefix": "same/", "AssetsPrefix": "same/"}
    with pytest.raises(ClientError, match="must not overlap"):
        ministack.deploy("wrong", refused)
    assert "wrong" not in {one["Name"].split("-")[0] for one in ministack.s3.list_buckets()["Buckets"]}


def test_cloudformation_makes_all_that_the_template_says(ministack: MiniStackCloud) -> None:
    """Queue with its policy and redrive, rules, versioning, the mapping, where failed invocations go."""
    arn = {"QueueUrl": ministack.queue_url, "AttributeNames": ["All"]}
    queue = ministack.sqs.get_queue_attributes(**arn)["Attributes"]
    assert int(json.loads(queue["RedrivePolicy"])["maxReceiveCount"]) == MAX_RECEIVE_COUNT
    assert [one["Sid"] for one in json.loads(queue["Policy"])["Statement"]] == ["OnlyThisBucket"]
    rules = ministack.s3.get_bucket_notification_configuration(Bucket=ministack.bucket)["QueueConfigurations"]
    assert len(rules) == 8
    assert ministack.s3.get_bucket_versioning(Bucket=ministack.bucket)["Status"] == "Enabled"
    mapping = ministack.functions.get_event_source_mapping(UUID=ministack.stack.resources["NotifyUploads"])
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": 10}
    assert mapping["BatchSize"] == 10
    failed = ministack.functions.get_function_event_invoke_config(
        FunctionName=ministack.stack.resources["NotifyFunction"], Qualifier="$LATEST"
    )
    assert failed["MaximumRetryAttempts"] == 2
    assert "OnFailure" in failed["DestinationConfig"]


def test_a_stack_is_updated_in_place_and_goes_but_its_bucket(ministack: MiniStackCloud) -> None:
    """With another topic, and with SnapStart, by whose alias the queue then invokes; uploads ring each time."""
    parameters = ministack.parameters | {"BucketPrefix": "changing"}
    stack = ministack.deploy("changing", parameters)
    bucket = stack.outputs["BucketName"]
    parameters |= {"TopicPrefix": "other"}
    assert ministack.deploy("changing", parameters, update=True).outputs["BucketName"] == bucket
    with Subscriber(ministack.broker.url, ["other/#"], username=EAR, password=EAR_PASSWORD) as ear:
        ministack.s3.put_object(Bucket=bucket, Key="assets/updated", Body=b"")
        assert ear.next().topic == "other/updates/assets"
        snapped = ministack.deploy("changing", parameters | {"SnapStart": "true"}, update=True)
        mapping = ministack.functions.get_event_source_mapping(UUID=snapped.resources["NotifyUploads"])
        assert mapping["FunctionArn"].endswith(":snapshot")
        ministack.s3.put_object(Bucket=bucket, Key="assets/snapped", Body=b"")
        assert json.loads(ear.next().payload) == {"filename": "snapped"}

    cloudformation = ministack.emulator.client("cloudformation")
    cloudformation.delete_stack(StackName="changing")
    ministack.wait(
        lambda: (
            "changing"
            not in {
                one["StackName"]
                for one in cloudformation.list_stacks()["StackSummaries"]
                if one["StackStatus"] != "DELETE_COMPLETE"
            }
        ),
        30,
    )
    ministack.s3.head_bucket(Bucket=bucket)
    ministack.ear.drain()
