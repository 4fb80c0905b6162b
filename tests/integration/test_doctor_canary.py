"""`bucketbell doctor` sends a file of its own the whole way, and takes it away: a real MinIO, an SQS queue, a host."""

from __future__ import annotations

import contextlib
import http.server
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from functions.events.names import CANARY_KEY
from infra.doctor.hosts import HostsLeg
from infra.local.stores import Minio
from tests.doctor import (
    ADMIN,
    detail,
    examined,
    first,
    health,
    let_the_canary_fly,
    other_minio,
    other_rules,
    rules_of,
    show_token,
    told,
    variables,
)
from tests.e2e.world import BUCKET, World, eventually
from tests.fakes.rights import restricted

BOTH_DOORS = re.compile(r"POST /events/fast after \d+ ms, POST /events after \d+ ms")
DOCTOR = (sys.executable, "-c", "from infra.cli import app; app()", "doctor", "--json", "--host-url")
PROCESS_SECONDS = 60.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, minio_binary: Path, mosquitto_binary: Path) -> Iterator[World]:
    """All is well in it, and nothing was uploaded. Its bucket has versions."""
    del minio_binary, mosquitto_binary
    settings = {"ADMIN_TOKENS": ADMIN, "DEVICE_TOKEN_KEYS": f"k1:{'A' * 43}="}
    built = World("minio", tmp_path_factory.mktemp("canary"), mqtt=settings)
    try:
        built.start()
        built.s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        let_the_canary_fly(built)
        yield built
    finally:
        built.stop()


def nothing_is_left(world: World) -> bool:
    """Whether the bucket holds nothing of the canary: no version, and no delete marker."""
    found = world.s3.list_object_versions(Bucket=BUCKET, Prefix=CANARY_KEY)
    return not found.get("Versions") and not found.get("DeleteMarkers")


def test_the_canary_is_seen_at_each_door(world: World) -> None:
    """With its milliseconds; no version of it stays, nothing rings, and no upload is counted."""
    before = {one: value for one, value in world.samples().items() if one[0] == "events_total"}
    found = examined(world)
    assert BOTH_DOORS.fullmatch(detail(found, "canary")), found
    assert nothing_is_left(world)
    after = {one: value for one, value in world.samples().items() if one[0] == "events_total"}
    changed = {dict(labels)["outcome"] for (_, labels), value in after.items() if value != before.get((_, labels), 0.0)}
    assert changed <= {"test_event"}  # which the check of the token sends
    world.assert_silent()


def test_a_door_that_has_not_seen_it_is_named_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes the events in the host's place answers as a host does, and MinIO calls its target well.

    Where hosts share a database, another one may have been that.
    """
    with swallowing() as sink, other_minio(world, MINIO_NOTIFY_WEBHOOK_ENDPOINT_BUCKETBELLSURE=f"{sink}/events"):
        name, said, remedy = first(examined(world))
        monkeypatch.setattr(HostsLeg, "count", lambda _: 2)
        shared = examined(world)
    assert health(shared)["canary"] == "not checked"
    assert "other hosts share the database" in detail(shared, "canary")
    assert name == "canary"
    assert re.search(r"at POST /events within 6 s, although it has at POST /events/fast after \d+ ms", said)
    assert "the store's log and its queue" in remedy
    assert nothing_is_left(world)


def test_a_bucket_that_an_older_release_connected_is_not_checked(world: World) -> None:
    """It has no rule for the canary, which is no fault."""
    with other_rules(world, rules_of(world)[:4]):
        found = examined(world)
    assert found["ok"] is True
    assert health(found)["notification rules"] == "ok"
    assert health(found)["canary"] == "not checked"
    assert "run `bucketbell connect` again" in detail(found, "canary")


@pytest.mark.parametrize("tokens", ["", "another-administrators-token-0123"])
def test_only_an_administrator_is_told(world: World, tokens: str) -> None:
    """Otherwise nothing is written."""
    found = examined(world, ADMIN_TOKENS=tokens)
    assert health(found)["canary"] == "not checked"
    assert "ADMIN_TOKENS" in detail(found, "canary")


def test_a_host_that_may_not_write_need_not(world: World) -> None:
    """Then the canary stays at home."""
    assert isinstance(world.store, Minio)
    found = examined(world, **restricted(world.store, f"{BUCKET}/.bucketbell/*", action="s3:PutObject"))
    assert found["ok"] is True
    assert "may not write .bucketbell/canary" in detail(found, "canary")


def test_what_cannot_be_removed_is_said(world: World) -> None:
    """Somebody has to do it by hand."""
    assert isinstance(world.store, Minio)
    found = examined(world, **restricted(world.store, f"{BUCKET}/.bucketbell/*", action="s3:DeleteObjectVersion"))
    assert found["ok"] is True
    assert "stays in the bucket" in detail(found, "canary")
    versions = world.s3.list_object_versions(Bucket=BUCKET, Prefix=CANARY_KEY)["Versions"]
    for one in versions:
        world.s3.delete_object(Bucket=BUCKET, Key=CANARY_KEY, VersionId=one["VersionId"])
    assert len(versions) == 1


def test_two_doctors_do_not_disturb_each_other(world: World) -> None:
    """Each knows its own canary by its ETag, and removes its own version."""
    doctors = [started(world) for _ in range(2)]
    for one in doctors:
        output, _ = one.communicate(timeout=PROCESS_SECONDS)
        assert BOTH_DOORS.fullmatch(detail(told(output, one.returncode, world), "canary"))
    assert nothing_is_left(world)


def test_an_impatient_person_leaves_nothing_behind(world: World) -> None:
    """Ctrl-C, while the canary is in the bucket."""
    with other_minio(world, MINIO_NOTIFY_WEBHOOK_ENDPOINT_BUCKETBELLSURE="http://127.0.0.1:9/events"):
        doctor = started(world)
        assert eventually(lambda: not nothing_is_left(world))
        doctor.send_signal(signal.SIGINT)
        doctor.communicate(timeout=PROCESS_SECONDS)
    assert nothing_is_left(world)


def test_devices_whose_tokens_end_soon_are_named(world: World) -> None:
    """Of each the last that it has shown: who has a newer one needs none."""
    assert "no device has shown" in detail(examined(world), "tokens' end")
    show_token(world, "a1-00-00-00-00-01")
    show_token(world, "a1-00-00-00-00-02", days=29)
    show_token(world, "a1-00-00-00-00-02")
    assert health(examined(world))["tokens' end"] == "ok"
    show_token(world, "a1-00-00-00-00-03", days=29)
    name, said, remedy = first(examined(world))
    assert name == "tokens' end"
    assert "a1-00-00-00-00-03 on 20" in said
    assert "a1-00-00-00-00-0" not in said.replace("a1-00-00-00-00-03", "")
    assert "bucketbell token" in remedy


def test_the_canary_goes_through_a_queue(tmp_path: Path, mosquitto_binary: Path) -> None:
    """To the host that polls it; and where another one has taken the event, the queue is named."""
    del mosquitto_binary
    world = World("moto", tmp_path, mqtt={"ADMIN_TOKENS": ADMIN})
    try:
        world.start()
        let_the_canary_fly(world)
        assert re.fullmatch(r"SQS_QUEUE_URL after \d+ ms", detail(examined(world), "canary"))
        assert "Contents" not in world.s3.list_objects_v2(Bucket=BUCKET, Prefix=CANARY_KEY)
        with other_rules(world, [*rules_of(world)[:2], elsewhere(world)]):
            name, said, remedy = first(examined(world))
        assert name == "canary"
        assert "at SQS_QUEUE_URL within 6 s" in said
        assert "somebody else takes them" in remedy
    finally:
        world.stop()


def elsewhere(world: World) -> dict[str, object]:
    """The canary's rule, with a queue that nobody polls."""
    with contextlib.closing(world.store.client("sqs")) as sqs:
        url = sqs.create_queue(QueueName="nobodys")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    return {**rules_of(world)[-1], "QueueArn": arn}


def test_a_store_without_rules_may_tell_all_the_same(
    tmp_path: Path, versitygw_binary: Path, mosquitto_binary: Path
) -> None:
    """Versity Gateway posts what its command line says; whether to us, only the canary shows."""
    del versitygw_binary, mosquitto_binary
    world = World("versitygw", tmp_path, mqtt={"ADMIN_TOKENS": ADMIN, "WEBHOOK_TOKENS": ""})
    try:
        world.start()
        found = examined(world)
        assert re.fullmatch(r"POST /events after \d+ ms", detail(found, "canary")), found
    finally:
        world.stop()


def started(world: World) -> subprocess.Popen[str]:
    """A doctor in a process of its own."""
    return subprocess.Popen(
        [*DOCTOR, world.host.url],
        cwd=world.directory,
        env=variables(world, {"PYTHONPATH": str(Path(__file__).parents[2])}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextlib.contextmanager
def swallowing() -> Iterator[str]:
    """An address that takes whatever is posted, and does nothing with it."""

    class Sink(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # http.server's own name
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
