"""R2's events out of a Cloudflare Queue, through the host, to a real Mosquitto; the queue's API is a fake."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from infra.device.trouble import FetchError
from infra.host.cloudflare import CloudflareQueue, QueueError
from infra.host.poller import QueuedMessage
from infra.http_client import Web
from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber
from tests.fakes.cloudflare import TOKEN, CloudflareQueueApi
from tests.hosts import MAC_KEY, STOP_SECONDS, TOPICS, Host, environment, eventually

# Kept messages come at once, so that a test need not wait for them.
AWHILE_SECONDS = 1.0  # of which every pause would be a fetch
AT_ONCE = """
from infra.host import cloudflare
cloudflare.PAUSE_SECONDS = cloudflare.CloudflareQueue.pause_seconds = 0.05
cloudflare.FIRST_RETRY_SECONDS = cloudflare.LONGEST_RETRY_SECONDS = 0.4
"""


@pytest.fixture
def api() -> Iterator[CloudflareQueueApi]:
    """A queue of this test alone."""
    with CloudflareQueueApi() as running:
        yield running


def put(key: str = MAC_KEY, bucket: str = "devices", **changes: object) -> dict[str, Any]:
    """What R2 tells of an upload."""
    document = {
        "account": "3f4b7e3dcab231cb",
        "action": "PutObject",
        "bucket": bucket,
        "object": {"key": key, "size": 16, "eTag": "4d223466f5825ae8a7e082efc9f7aef2"},
        "eventTime": "2026-11-30T08:23:49.379Z",
    }
    return document | changes


def started(tmp_path: Path, api: CloudflareQueueApi, broker: Mosquitto, *, ready: bool = True, **more: str) -> Host:
    """A host that polls this queue, for the bucket `devices`."""
    known = environment(broker.url, BUCKET="devices", **api.environment(), **more)
    return Host(tmp_path, known, patch=AT_ONCE, ready=ready)


def test_an_upload_to_r2_rings_and_its_message_is_acknowledged(
    api: CloudflareQueueApi, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """In base64, as JSON is handed out, or plain; a removal is acknowledged in silence, a repeat too."""
    with Subscriber(mosquitto.url, TOPICS) as listener, started(tmp_path, api, mosquitto) as host:
        api.send(put())
        api.send(json.dumps(put("assets/a b+c%2F.bin")), "text")
        api.send(put("assets/old.bin", action="DeleteObject"))
        heard = {json.loads(message.payload)["filename"] for message in listener.wait_for(2)}
        assert heard == {"aa-bb-cc-dd-ee-ff.json", "a b+c%2F.bin"}
        eventually(lambda: api.depth() == 0)
        api.send(put())
        eventually(lambda: api.depth() == 0)
        assert listener.drain() == []
        outcomes = {name: host.metric("events_total", source="r2", outcome=name) for name in ("delivered", "removed")}
        assert outcomes == {"delivered": 2, "removed": 1}
        assert host.metric("events_total", source="r2", outcome="repeated") == 1
        assert not host.lines("ERROR")
        assert not host.lines("WARNING")
        (asked,) = {(one["batch_size"], one["visibility_timeout_ms"]) for one in api.pulls}
        assert asked == (50, 40_000)  # the broker's 10 s, and a margin
        assert TOKEN not in host.log
        assert host.stop() < STOP_SECONDS


def test_other_peoples_messages_are_left_to_the_queue(
    api: CloudflareQueueApi, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """They are never acknowledged: the queue's retries end in its own dead-letter queue. It is said once, ours ring."""
    api.max_retries = 3
    others = [
        put(bucket="somebody-elses"),
        put(bucket="somebody-elses", action="DeleteObject"),
        {"type": "cf.r2.bucket.created", "payload": {"name": "x"}},
        {"action": "resize", "bucket": "devices"},
        put(account=None, object={"key": ""}),
    ]
    with Subscriber(mosquitto.url, TOPICS) as listener, started(tmp_path, api, mosquitto) as host:
        for number, other in enumerate(others):
            api.send(other)
            api.send(put(f"assets/{number}"))
        api.send("hello", "text")
        listener.wait_for(len(others))
        eventually(lambda: api.depth() == 0 and len(api.dead) == len(others) + 1)
        assert {one.attempts for one in api.dead} == {4}
        assert listener.drain() == []
        (warning,) = host.lines("WARNING")
        assert "no events of our bucket" in warning["message"]
        assert {line["message"] for line in host.lines("ERROR")} == {"malformed event"}
        acknowledged = [one for asked in api.acks for one in asked["acks"]]
        assert len(acknowledged) == len(others)


def test_while_the_broker_is_away_nothing_is_fetched(
    api: CloudflareQueueApi, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """Each fetch counts as a try, and after so many the queue drops a message."""
    api.max_retries = 2
    with started(tmp_path, api, mosquitto, MQTT_PUBLISH_TIMEOUT_SECONDS="0.3") as host:
        eventually(lambda: api.pulls)
        mosquitto.stop()
        eventually(lambda: host.http.get("/readyz").status_code == 503)
        api.send(put())
        before = len(api.pulls)
        time.sleep(AWHILE_SECONDS)
        assert len(api.pulls) - before <= 1, "one may have been under way"
        assert api.messages[0].attempts <= 1
        mosquitto.start()
        with Subscriber(mosquitto.url, TOPICS) as listener:
            listener.next()
            eventually(lambda: api.depth() == 0)
            assert listener.drain() == []
        assert not api.dead


def test_a_queue_that_refuses_is_said_and_waited_for(
    api: CloudflareQueueApi, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """One WARNING that says what to do; the doors are unharmed; when the queue answers again, so does the poller."""
    api.answer = 403, json.dumps({"success": False, "errors": [{"message": "Authentication error"}]}).encode()
    with Subscriber(mosquitto.url, TOPICS) as listener, started(tmp_path, api, mosquitto) as host:
        eventually(lambda: host.lines("WARNING"))
        (warning,) = host.lines("WARNING")
        assert "Authentication error" in warning["reason"]
        assert "Queues: Edit" in warning["reason"]
        assert host.post(json.dumps(put("assets/door")).encode()).json() == {"outcomes": ["delivered"]}
        listener.next()
        api.answer = None
        api.send(put())
        listener.next()
        eventually(lambda: "the queue is polled again" in host.log)
        assert TOKEN not in host.log


def queue(api: CloudflareQueueApi, token: str = TOKEN) -> CloudflareQueue:
    """A client of it."""
    return CloudflareQueue(Web(), api.url, SecretStr(token), patience_seconds=5.0)


def test_what_is_kept_comes_later_each_time(api: CloudflareQueueApi) -> None:
    """From ten seconds to an hour: a queue's tries are few."""
    polled = queue(api)
    delays: list[float] = []
    for tries in (1, 2, 5, 10, 100, 0, -1):
        api.send(put())
        (one,) = polled.receive()
        polled.settle([], [one._replace(tries=tries)])
        delays.append(api.acks[-1]["retries"][0]["delay_seconds"])
        api.messages.clear()
    for delay, (least, most) in zip(
        delays, [(5, 10), (10, 20), (80, 160), (1800, 3600), (1800, 3600), (5, 10), (5, 10)], strict=True
    ):
        assert least <= delay <= most
    assert len(api.acks) == len(delays)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"", "R2_QUEUE_TOKEN right"),
        (404, b"<html>", "both ids in R2_QUEUE_URL"),
        (400, b'{"errors": [{"message": "no http consumer"}]}', "wrangler queues consumer http add"),
        (429, b"[]", "answered 429"),
        (500, b'{"errors": {}}', "answered 500: no reason"),
        (200, b'{"success": false, "errors": [{"message": "a\\u0000b"}]}', "answered 200: a\ufffdb"),
        (200, b"{", "answered 200"),
        (200, b"[" * 100_000, "answered 200"),
        (200, b"null", "answered 200"),
        (307, b"", "answered 307"),
    ],
)
def test_an_answer_that_is_none_says_what_to_do(api: CloudflareQueueApi, status: int, body: bytes, said: str) -> None:
    """With what Cloudflare says itself, printable, and never the token."""
    api.answer = status, body
    with pytest.raises(QueueError) as error:
        queue(api).receive()
    assert said in str(error.value)
    assert str(error.value).isprintable()
    assert TOKEN not in str(error.value)


def test_a_queue_that_is_not_there_is_no_answer() -> None:
    """The reason is the network's."""
    with CloudflareQueueApi() as api:
        gone = queue(api)
    with pytest.raises(FetchError):
        gone.receive()


@pytest.mark.parametrize(
    "result",
    [
        None,
        [],
        {},
        {"messages": None},
        {"messages": [7, None, {}, {"lease_id": 7}, {"body": "x"}]},
    ],
)
def test_an_odd_answer_is_nothing_to_do(api: CloudflareQueueApi, result: object) -> None:
    """A message without a lease cannot be acknowledged: the queue brings it again."""
    api.answer = 200, json.dumps({"success": True, "result": result}).encode()
    assert queue(api).receive() == []


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ({"a": 1}, '{"a": 1}'),
        ("eyJhIjogMX0=", '{"a": 1}'),
        ("hello", "hello"),
        ("/w==", "/w=="),
        ("\u00fc", "\u00fc"),
        (None, "null"),
        (7, "null"),
        ("", "null"),
    ],
)
def test_a_body_is_taken_as_it_was_put_there(api: CloudflareQueueApi, sent: object, body: str) -> None:
    """JSON and bytes come in base64, text as it is; what is none is kept for a person."""
    message = {"lease_id": "l", "body": sent, "attempts": "x"}
    api.answer = 200, json.dumps({"success": True, "result": {"messages": [message]}}).encode()
    (one,) = queue(api).receive()
    assert isinstance(one, QueuedMessage)
    assert (one.message.body, one.receipt, one.tries) == (body, "l", 1)
