"""Ways into and out of the queue that MiniStack has and moto has not."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from tests.aws.cloud import EMPTY_SECONDS, FETCH_SECONDS
from tests.aws.ministack_cloud import MiniStackCloud

PART = bytes(5 << 20)
BURST = 50


def names(cloud: MiniStackCloud, count: int) -> list[str]:
    """The files of the next messages, sorted."""
    return sorted(json.loads(one.payload)["filename"] for one in cloud.hear(count))


def test_a_copy_a_multipart_upload_and_a_form_ring(ministack: MiniStackCloud) -> None:
    """Each once, with the size and ETag of the whole."""
    bucket, s3 = ministack.bucket, ministack.s3
    ministack.put("assets/original")
    assert names(ministack, 1) == ["original"]
    s3.copy_object(Bucket=bucket, Key="assets/copy", CopySource=f"{bucket}/assets/original")
    assert names(ministack, 1) == ["copy"]
    where = {"Bucket": bucket, "Key": "assets/parts"}
    upload = {**where, "UploadId": s3.create_multipart_upload(**where)["UploadId"]}
    parts = [
        {"PartNumber": number, "ETag": s3.upload_part(**upload, PartNumber=number, Body=PART)["ETag"]}
        for number in (1, 2)
    ]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    (message,) = ministack.hear()
    properties = dict(message.user_properties)
    assert properties["size"] == str(2 * len(PART))
    assert properties["etag"].endswith("-2")

    form = s3.generate_presigned_post(bucket, "assets/posted")
    fields = form["fields"] | {"file": "content"}
    body = "".join(
        f'--edge\r\nContent-Disposition: form-data; name="{name}"{"; filename=f" * (name == "file")}\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    request = urllib.request.Request(form["url"], f"{body}--edge--\r\n".encode(), headers)  # noqa: S310 - MiniStack's
    urllib.request.urlopen(request, timeout=FETCH_SECONDS, context=ministack.emulator.tls).close()  # noqa: S310 - as above
    assert names(ministack, 1) == ["posted"]


def test_tagging_other_folders_and_invalid_names_are_silent(ministack: MiniStackCloud) -> None:
    """What reaches the queue is done away with."""
    ministack.put("assets/tagged")
    ministack.hear()
    tags = {"TagSet": [{"Key": "a", "Value": "b"}]}
    ministack.s3.put_object_tagging(Bucket=ministack.bucket, Key="assets/tagged", Tagging=tags)
    for key in ("other/file", "configs/not-a-mac.json", "assets/a/../b"):
        ministack.put(key)
    ministack.wait_until_logged("object key is not announced: its name is not valid", times=2)
    ministack.settle()
    assert ministack.ear.silence(0.3) == []
    assert ministack.dead_letters() == []


def test_of_a_burst_nothing_is_lost_on_several_copies_of_the_function(ministack: MiniStackCloud) -> None:
    """Uploads by 16 people at once, in five batches; more than one copy publishes them."""
    before = ministack.broker.log_text().count("New client connected")
    expected = [f"burst-{number:03}" for number in range(BURST)]
    with ministack.paused(), ThreadPoolExecutor(16) as people:
        list(people.map(lambda name: ministack.put(f"assets/{name}"), expected))
    assert names(ministack, BURST) == expected
    ministack.settle()
    assert ministack.broker.log_text().count("New client connected") > before


def test_a_dead_letter_rings_when_it_is_moved_back(ministack: MiniStackCloud) -> None:
    """The output Redrive names the queue; MiniStack has no StartMessageMoveTask, so it is moved by hand."""
    ministack.lose_broker()
    with ministack.retrying():
        ministack.put("assets/redriven")
        ministack.wait(lambda: ministack.queued(ministack.dead_letter_queue_url), EMPTY_SECONDS)
    assert ministack.queued() == 0
    ministack.bring_broker_back()
    about = {"QueueUrl": ministack.dead_letter_queue_url, "AttributeNames": ["QueueArn"]}
    arn = ministack.sqs.get_queue_attributes(**about)["Attributes"]["QueueArn"]
    assert f"start-message-move-task --source-arn {arn} " in ministack.stack.outputs["Redrive"]
    with pytest.raises(ClientError, match="StartMessageMoveTask"):  # once it is there, it takes the place of the rest
        ministack.sqs.start_message_move_task(SourceArn=arn)
    (body,) = ministack.dead_letters()
    ministack.sqs.send_message(QueueUrl=ministack.queue_url, MessageBody=body)
    assert names(ministack, 1) == ["redriven"]


def test_direct_invocations_publish_or_end_in_a_queue_of_their_own(ministack: MiniStackCloud) -> None:
    """A synchronous one is answered; an asynchronous one is tried three times, and then kept with its event."""
    assert ministack.invoke(ministack.stack, "assets/direct") == {"published": 1, "skipped": 0, "failed": 0}
    assert names(ministack, 1) == ["direct"]

    ministack.lose_broker()
    ministack.invoke(ministack.stack, "assets/direct", InvocationType="Event")
    failed = ministack.stack.outputs["FailedInvocationsUrl"]
    ministack.wait(lambda: ministack.queued(failed), EMPTY_SECONDS)
    (message,) = ministack.sqs.receive_message(QueueUrl=failed)["Messages"]
    kept = json.loads(message["Body"])
    assert kept["requestPayload"] == ministack.event(ministack.bucket, "assets/direct")
    assert kept["requestContext"]["approximateInvokeCount"] == 3


def test_the_log_group_of_the_template_has_json_lines_and_metrics_and_no_secret(ministack: MiniStackCloud) -> None:
    """Among them CloudWatch's embedded metrics."""
    ministack.put("assets/logged")
    ministack.wait_until_logged("published", '"logged"')
    lines = ministack.log_text().splitlines()
    assert any("CloudWatchMetrics" in json.loads(line).get("_aws", {}) for line in lines if line.startswith("{"))
    said = ministack.log_text() + ministack.emulator.log_text()
    assert ministack.credentials.password not in said
    ministack.hear()
