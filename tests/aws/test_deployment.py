"""The stack on moto: what moto makes of the template, what is done by hand, and that nothing is missing unnoticed."""

from __future__ import annotations

import io
import json
import zipfile

import pytest

from infra.connect.documents import EVENTS
from infra.local.stores import MotoServer
from tests.aws import deployment
from tests.aws.deployment import deploy

PACKAGE = io.BytesIO()
with zipfile.ZipFile(PACKAGE, "w") as _archive:
    _archive.writestr("functions/__init__.py", "")


def test_what_moto_leaves_out_is_put_right_by_the_template_s_own_words(moto: MotoServer) -> None:
    """Rules, versioning and the queue's policy are in force with references resolved; moto's own mapping is off."""
    moto.reset()
    stack = deploy(moto, "bell", PACKAGE.getvalue(), {"MaxReceiveCount": "2", "ConfigsPrefix": "fleet/"})
    bucket, s3 = stack.outputs["BucketName"], moto.client()
    rules = s3.get_bucket_notification_configuration(Bucket=bucket)["QueueConfigurations"]
    told = {(one["Events"][0], one["Filter"]["Key"]["FilterRules"][0]["Value"]) for one in rules}
    assert told == {(event, prefix) for event in EVENTS for prefix in ("fleet/", "assets/")}
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"

    queue = moto.client("sqs").get_queue_attributes(QueueUrl=stack.outputs["QueueUrl"], AttributeNames=["All"])
    attributes = queue["Attributes"]
    (statement,) = json.loads(attributes["Policy"])["Statement"]
    assert statement["Resource"] == attributes["QueueArn"] == rules[0]["QueueArn"]
    assert statement["Condition"]["ArnEquals"]["aws:SourceArn"] == f"arn:aws:s3:::{bucket}"
    assert json.loads(attributes["RedrivePolicy"])["maxReceiveCount"] == 2

    (mapping,) = moto.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    assert (mapping["State"], mapping["FunctionResponseTypes"]) == ("Disabled", ["ReportBatchItemFailures"])


def test_a_resource_that_moto_drops_without_a_word_is_noticed(
    moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is known, and listed."""
    moto.reset()
    monkeypatch.setattr(deployment, "LEFT_OUT", deployment.LEFT_OUT - {"AWS::Lambda::Alias"})
    with pytest.raises(AssertionError, match=r"moto made none of .*AWS::Lambda::Alias"):
        deploy(moto, "bell", PACKAGE.getvalue(), {})
