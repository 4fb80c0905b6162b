"""`bucketbell doctor` on a whole installation, MinIO with its two doors: each planted fault is named first."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from functions.settings import load
from infra.cli import app
from infra.connect import documents
from infra.connect.minio import Doors
from infra.doctor import doors, minio, sweepers
from infra.doctor.checks import NotCheckedError
from infra.doctor.database import DatabaseLeg
from infra.doctor.downloads import DownloadsLeg
from infra.doctor.host import HostLeg
from infra.doctor.store import StoreLeg
from infra.host.sweep.marker import KEY as SWEEP_KEY
from infra.http_client import Web
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stack import OURS
from infra.local.stores import Minio
from tests.conftest import missing
from tests.doctor import (
    ADMIN,
    OTHER_TOKEN,
    USERS,
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
from tests.e2e.world import ASSETS, BUCKET, CONFIGS, TOKEN, World, fresh, fresh_config
from tests.fakes.meddling_proxy import MeddlingProxy
from tests.fakes.rights import restricted
from tests.fakes.s3_front import GARAGE, S3Front
from tests.hosts import Host, eventually

ALL_TOPICS = "user bell\ntopic write iotsupport/#\n\nuser ear\ntopic read #\n"
NO_ASSETS = f"user bell\ntopic write {CONFIGS}\n\nuser ear\ntopic read #\n"
PROCESS_SECONDS = 60.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, minio_binary: Path, mosquitto_binary: Path) -> Iterator[World]:
    """All is well in it, and two files were uploaded."""
    del minio_binary, mosquitto_binary
    directory = tmp_path_factory.mktemp("doctor")
    broker = Mosquitto(directory / "mosquitto", users=USERS, acl=ALL_TOPICS)
    settings = {
        "MQTT_USERNAME": "bell",
        "MQTT_PASSWORD": USERS["bell"],
        "ADMIN_TOKENS": ADMIN,
        "SWEEP_SECONDS": "3600",
        "DEVICE_TOKEN_KEYS": f"k1:{'A' * 43}=",
    }
    ears = {"username": "ear", "password": USERS["ear"]}
    built = World("minio", directory, broker=broker, mqtt=settings, ears=ears)
    try:
        built.start()
        let_the_canary_fly(built)
        show_token(built, "aa-bb-cc-dd-ee-ff")
        built.put("assets/first.bin")
        built.hear("first.bin")
        config = fresh_config()
        built.put(f"configs/{config}", b"{}")
        built.hear(config, topic=CONFIGS)
        eventually(lambda: SWEEP_KEY in [one["Key"] for one in built.s3.list_objects_v2(Bucket=BUCKET)["Contents"]])
        yield built
    finally:
        built.stop()


def test_a_healthy_installation_is_ok_everywhere(world: World) -> None:
    """Exit 0, and the broker's rights are known by what the host published before."""
    found = examined(world)
    assert [one for one in found["checks"] if one["health"] != "ok"] == []
    assert found["ok"] is True
    assert found["first"] is None


def test_a_file_that_is_named_rings_again(world: World) -> None:
    """By the way that all events go."""
    assert examined(world, "--ring", "assets/first.bin")["ok"] is True
    world.hear("first.bin", topic=ASSETS)


def test_people_read_a_line_for_each_check(world: World) -> None:
    """The remedy is in the line below what is wrong, and the last line says where to begin."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith(OURS)}
    with contextlib.chdir(world.directory):
        more = {"BUCKET": "elsewhere"}
        options = ["doctor", "--host-url", world.host.url]
        done = CliRunner().invoke(app, options, env={**ours, **variables(world, more)})
    lines = done.stdout.splitlines()
    at = lines.index(next(line for line in lines if line.startswith("wrong        bucket ")))
    assert "connect --create" in lines[at + 1]
    assert lines[-1] == "First mend: bucket. Then run this again."
    assert done.exit_code == 1


def test_wrong_settings_come_first(world: World) -> None:
    """Nothing else is looked at."""
    found = examined(world, MQTT_URL="broker.local")
    assert first(found)[0] == "settings"
    assert "MQTT_URL" in first(found)[1]
    assert health(found) == {"settings": "wrong", "all else": "not checked"}


@pytest.mark.parametrize(
    ("more", "name", "detail", "remedy"),
    [
        ({"MQTT_PASSWORD": "not-the-password"}, "broker's login", "refuses the user bell", "MQTT_PASSWORD"),
        (
            {"S3_REGION": "eu-west-1"},
            "region",
            "S3_REGION is eu-west-1, but the store signs for us-east-1",
            "S3_REGION=us-east-1",
        ),
        ({"BUCKET": "elsewhere"}, "bucket", "no bucket elsewhere", "connect --create"),
        ({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, "store credentials", "not accept", "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "store", "does not answer", "AWS_ENDPOINT_URL"),
        ({"WEBHOOK_TOKENS": OTHER_TOKEN}, "webhook token", "runs with other tokens", "the same WEBHOOK_TOKENS"),
        ({"MQTT_URL": "mqtt://127.0.0.1:9"}, "broker's port", "refused", "Start the broker"),
        ({"MQTT_URL": "mqtt://nowhere.invalid"}, "broker's name", "unknown", "MQTT_URL"),
        ({"PUBLIC_BASE_URL": "http://127.0.0.1:9"}, "PUBLIC_BASE_URL", "Nobody answers", "PUBLIC_BASE_URL"),
        ({"S3_PUBLIC_ENDPOINT_URL": "http://127.0.0.1:9"}, "download link", "Nobody", "S3_PUBLIC_ENDPOINT_URL"),
    ],
)
def test_what_the_settings_have_wrong_is_named_first(
    more: dict[str, str], name: str, detail: str, remedy: str, world: World
) -> None:
    """With what to do, and exit 1."""
    said = first(examined(world, **more))
    assert said[0] == name
    assert detail in said[1]
    assert remedy in said[2]


def test_what_depends_on_something_wrong_is_not_checked(world: World) -> None:
    """Nor is it called well."""
    found = health(examined(world, BUCKET="elsewhere"))
    for name in ("s3:ListBucket", "s3:GetObject", "versioning", "s3:PutObject", "notification rules", "store's queue"):
        assert found[name] == "not checked"
    assert found["broker's login"] == "ok"


def run(world: World, before: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    """The doctor in a process of its own, with `--json`; `before` are the words before the command."""
    command = ["-c", "from infra.cli import app; app()", "doctor", "--host-url", world.host.url, "--json"]
    return subprocess.run(
        [*before, sys.executable, *command],
        cwd=world.directory,
        env=variables(world, {"PYTHONPATH": str(Path(__file__).parents[2]), **more}),
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=False,
    )


def test_a_script_gets_the_document_and_nothing_else(world: World) -> None:
    """The host's own code would log that the region is wrong, on standard output."""
    done = run(world, [], S3_REGION="eu-west-1")
    assert first(told(done.stdout, done.returncode, world))[0] == "region"
    assert done.stderr == ""


def test_a_clock_that_is_five_minutes_off_is_named_first(world: World) -> None:
    """By the store's `Date`."""
    faketime = shutil.which("faketime") or missing("faketime", "install the package `faketime`")
    done = run(world, [faketime, "-f", "+300s"], FAKETIME_DONT_FAKE_MONOTONIC="1")
    name, detail, remedy = first(told(done.stdout, done.returncode, world))
    assert name == "clock"
    assert "ahead of" in detail
    assert "NTP" in remedy


@pytest.mark.parametrize(
    ("denied", "action"),
    [
        ((BUCKET,), "s3:ListBucket"),
        ((f"{BUCKET}/assets/*",), "s3:GetObject"),
        ((f"{BUCKET}/.bucketbell/*",), "s3:PutObject"),
    ],
)
def test_a_missing_right_is_named_first(denied: tuple[str, ...], action: str, world: World) -> None:
    """By the call that needs it."""
    assert isinstance(world.store, Minio)
    name, detail, remedy = first(examined(world, **restricted(world.store, *denied, action=action)))
    assert name == action
    assert "may not use" in detail
    assert f"Allow {action} on arn:aws:s3:::{denied[0]}" in remedy


def test_rules_that_may_not_be_read_are_not_checked(world: World) -> None:
    """The host does not need that right."""
    assert isinstance(world.store, Minio)
    found = examined(world, **restricted(world.store, BUCKET, action="s3:GetBucketNotification"))
    assert found["ok"] is True
    assert health(found)["notification rules"] == "not checked"


def test_rights_at_minio_alone_are_no_fault(world: World) -> None:
    """Without an administrator's rights, what only MinIO's administration tells is not checked."""
    assert isinstance(world.store, Minio)
    found = examined(world, **restricted(world.store, f"{BUCKET}/nothing"))
    assert found["ok"] is True
    assert {name for name, one in health(found).items() if one == "not checked"} == {
        "store reaches host",
        "store's token",
        "store's queue",
    }


def test_a_right_to_publish_that_is_missing_on_one_topic_is_named_first(world: World) -> None:
    """By ringing; and afterwards by what the host met."""
    world.broker.set_acl(NO_ASSETS)
    world.broker.reload()
    try:
        for options in (("--ring", "assets/first.bin"), ()):
            name, detail, remedy = first(examined(world, *options))
            assert name == "publish rights"
            assert f"not let the user bell publish on {ASSETS}" in detail
            assert f"topic write {ASSETS}" in remedy
    finally:
        world.broker.set_acl(ALL_TOPICS)
        world.broker.reload()
    world.ear.drain()
    assert examined(world, "--ring", "assets/first.bin")["ok"] is True
    world.ear.drain()


@pytest.mark.parametrize("kept", [0, 3])
def test_a_missing_rule_is_named_first(kept: int, world: World) -> None:
    """All of them, or one."""
    rules = rules_of(world)[:4]
    with other_rules(world, rules[:kept]):
        name, detail, remedy = first(examined(world))
    assert name == "notification rules"
    missing_rules = (
        f"A rule is missing: {rules[-1]['Id']}: " if kept else "4 rules are missing: bucketbell-fast-configs: "
    )
    assert detail.startswith(missing_rules)
    assert detail.count("\N{RIGHTWARDS ARROW}") == (1 if kept else 0)
    assert "bucketbell connect" in remedy


def test_a_rule_for_another_prefix_is_named_first(world: World) -> None:
    """And which one is wanted."""
    wrong = documents.wanted_rules(world.doors.targets, {"configs": "configs/", "assets": "firmware/"})
    with other_rules(world, list(wrong)):
        name, detail, remedy = first(examined(world))
    assert name == "notification rules"
    assert "bucketbell-sure-assets: firmware/*" in detail
    assert "Wanted: bucketbell-fast-assets: assets/*" in detail
    assert "bucketbell connect" in remedy


def test_a_target_that_minio_does_not_know_is_named_first(world: World) -> None:
    """Its lines have gone from MinIO's environment."""
    lines = {name: None for name in world.doors.environment() if "BUCKETBELLSURE" in name}
    with other_minio(world, **lines):
        name, detail, remedy = first(examined(world))
    assert name == "notification rules"
    assert "does not know BUCKETBELLSURE" in detail
    assert "connect --dry-run" in remedy


def test_targets_that_connect_has_configured_are_well(world: World) -> None:
    """MinIO's environment does not have them then: nothing is missing, and what cannot be seen is not wrong."""
    with other_minio(world, **dict.fromkeys(world.doors.environment())):
        done = world.connect("--configure", "--queue-dir", str(world.queue_directory))
        assert done.exit_code == 0, done.output
        try:
            found = examined(world)
            assert found["ok"], found
            assert health(found)[doors.REACHES] == "ok"
        finally:
            assert world.connect("--remove", "--configure").exit_code == 0
    assert world.connect().exit_code == 0


def test_a_host_that_minio_cannot_reach_is_named_first(world: World) -> None:
    """`connect` was told an address that means something else there."""
    doors = Doors(
        f"http://127.0.0.1:{free_port()}", sure_only=False, queue_directory=str(world.queue_directory), token=TOKEN
    )
    with other_minio(world, **doors.environment()):
        name, detail, remedy = first(examined(world))
    assert name == "store reaches host"
    assert "BUCKETBELLFAST and BUCKETBELLSURE" in detail
    assert doors.host_url in detail
    assert "--host-url" in remedy


def test_a_host_behind_a_firewall_is_named_first(world: World) -> None:
    """MinIO itself waits for 5 s until it says so, for each target."""
    with contextlib.ExitStack() as parts:
        # A full queue of connections: the kernel drops what comes then, as a firewall does.
        listener = parts.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = parts.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003 - socket's own
            filler.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        doors = Doors(url, sure_only=False, queue_directory=str(world.queue_directory), token=TOKEN)
        with other_minio(world, **doors.environment()):
            name, detail, _ = first(examined(world))
    assert name == "store reaches host"
    assert url in detail


def test_a_token_of_minio_that_differs_is_named_first(world: World) -> None:
    """Neither is shown."""
    doors = Doors(world.host.url, sure_only=False, queue_directory=str(world.queue_directory), token=OTHER_TOKEN)
    with other_minio(world, **doors.environment()):
        name, detail, remedy = first(examined(world))
    assert name == "store's token"
    assert "none of WEBHOOK_TOKENS" in detail
    assert "--show-token" in remedy


def test_a_torn_file_in_minios_queue_is_named_first(world: World) -> None:
    """MinIO stops at it for ever."""
    place = next(path for path in world.queue_directory.rglob("*") if path.is_dir() and "BUCKETBELLSURE" in path.name)
    torn = place / "00000000-0000-0000-0000-000000000000.event"
    torn.write_bytes(b'{"EventName":"s3:Obj')
    try:
        with other_minio(world):
            name, detail, remedy = first(examined(world))
    finally:
        torn.unlink(missing_ok=True)
    assert name == "store's queue"
    assert "stands still" in detail
    assert "*.event" in remedy


@pytest.mark.parametrize(("later", "said"), [((5.0, 104.0), "ok"), ((9.0, 104.0), "wrong"), ((0.0, 100.0), "ok")])
def test_a_queue_that_is_busy_is_well(
    later: tuple[float, float], said: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many wait as before, and they are others; with each new one in it, it stands still."""
    figures = iter([(5.0, 100.0), later])

    def told_by_minio(*_: object) -> dict[str, dict[str, float]]:
        waiting, total = next(figures)
        return {"BUCKETBELLSURE": {"queue_length": waiting, "total_events": total}}

    monkeypatch.setattr(minio, "target_metrics", told_by_minio)
    monkeypatch.setattr(doors, "METRICS_SECONDS", 0.0)
    assert health(examined(world))["store's queue"] == said


def test_a_queue_that_is_full_is_named_first(world: World) -> None:
    """What did not fit is lost, long after it has room again."""
    with other_minio(world, MINIO_NOTIFY_WEBHOOK_QUEUE_LIMIT_BUCKETBELLSURE="1"):
        world.host.stop()
        try:
            for _ in range(4):
                world.put(f"assets/{fresh()}")
        finally:
            world.host.start()
        name, detail, remedy = first(examined(world))
        world.ear.drain()
    assert name == "store's queue"
    assert "events were lost" in detail
    assert "QUEUE_LIMIT" in remedy


def test_a_proxy_that_rewrites_host_is_named_first(world: World) -> None:
    """A link for the inner address, fetched through it, proves it."""
    with MeddlingProxy(world.store.endpoint_url, host=world.store.endpoint_url.partition("//")[2]) as proxy:
        name, detail, remedy = first(examined(world, S3_PUBLIC_ENDPOINT_URL=proxy.url))
    assert name == "download link"
    assert "changes `Host`" in detail
    assert "proxy_set_header Host $http_host" in remedy


def test_a_proxy_that_changes_nothing_is_well(world: World) -> None:
    """So the test above sees what is wrong, and not that there is a proxy."""
    with MeddlingProxy(world.store.endpoint_url) as proxy:
        assert examined(world, S3_PUBLIC_ENDPOINT_URL=proxy.url)["ok"] is True


@pytest.mark.parametrize("inner", ["elsewhere.example", "another"])
def test_a_public_endpoint_that_is_not_the_one_that_signs_is_named_first(inner: str, world: World) -> None:
    """The store sees a third name; or what answers there is no store at all."""
    with MeddlingProxy(world.store.endpoint_url, host=inner) as proxy:
        where = proxy.url if inner != "another" else world.host.url
        name, detail, remedy = first(examined(world, S3_PUBLIC_ENDPOINT_URL=where))
    assert name == "download link"
    assert ("refuses the signature" if inner != "another" else "is not the store that signs") in detail
    assert "S3_PUBLIC_ENDPOINT_URL" in remedy


def test_an_address_of_a_machine_around_the_container_is_no_fault() -> None:
    """Loopback for devices, and a store with another name for the host: where that port leads is not seen from here."""
    place = f"http://127.0.0.1:{free_port()}"
    keys = {"AWS_ACCESS_KEY_ID": "bell", "AWS_SECRET_ACCESS_KEY": "secret-of-bell", "AWS_REGION": "us-east-1"}
    settings = load({"AWS_ENDPOINT_URL": "http://store:9000", "S3_PUBLIC_ENDPOINT_URL": place, **keys}).settings
    web = Web()
    store = StoreLeg(settings, BUCKET)
    store.keys["assets"] = "assets/first.bin"
    host = HostLeg(DatabaseLeg(settings), web, "http://127.0.0.1:8080", broker="", is_default=True)
    (link,) = DownloadsLeg(settings, store, host, web).checks()
    with closing(web), pytest.raises(NotCheckedError, match=f"{place} is not the store from here"):
        link.look()


def test_a_public_endpoint_of_another_region_is_named_first(world: World) -> None:
    """The store itself has a region of its own."""
    front = S3Front(world.store, GARAGE)
    try:
        name, detail, remedy = first(examined(world, S3_PUBLIC_ENDPOINT_URL=front.endpoint_url))
    finally:
        front.stop()
    assert name == "download link"
    assert "AWS_REGION is us-east-1, but the store signs for garage" in detail
    assert remedy == "Set S3_REGION=garage for the host."


def test_a_store_that_sends_no_events_needs_the_sweep(world: World) -> None:
    """With it, nothing is wrong."""
    with MeddlingProxy(world.store.endpoint_url, refused="notification") as proxy:
        name, detail, remedy = first(examined(world, AWS_ENDPOINT_URL=proxy.url, SWEEP_SECONDS="0"))
        assert name == "notification rules"
        assert "sends no events" in detail
        assert "SWEEP_SECONDS=2" in remedy
        assert examined(world, AWS_ENDPOINT_URL=proxy.url)["ok"] is True


def test_two_sweepers_are_named_first(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both keep their state in the bucket, and take turns there; one that was restarted is no second one."""
    monkeypatch.setattr(sweepers, "TOGETHER_SECONDS", 1)
    at_once = "import infra.host.sweep.state as s; s.SAVE_SECONDS = 0.0"
    shared = {name: value for name, value in world.host.environment.items() if name != "PUBLIC_BASE_URL"}
    with Host(tmp_path, shared, patch=at_once) as one:
        one.stop()
    with Host(tmp_path, shared, patch=at_once) as one:
        rings(one, world, count=2)
        assert health(examined(world))["sweeper"] == "ok"
        with Host(tmp_path, shared, patch=at_once) as other:
            for _ in range(2):
                rings(one, world, count=1)
                rings(other, world, count=1)
                time.sleep(1.1)  # the times are in seconds
            name, detail, remedy = first(examined(world))
    world.ear.drain()
    assert name == "sweeper"
    assert detail.startswith("Two hosts sweep this bucket: ")
    assert "SWEEP_SECONDS=0" in remedy


def rings(host: Host, world: World, count: int) -> None:
    """This host announces a file, by a door of its own, and has stored that."""
    for _ in range(count):
        before = world.s3.head_object(Bucket=BUCKET, Key=SWEEP_KEY)["ETag"]
        found = examined(world, "--ring", "assets/first.bin", "--host-url", host.url)
        assert health(found)["publish rights"] == "ok"
        eventually(lambda before=before: world.s3.head_object(Bucket=BUCKET, Key=SWEEP_KEY)["ETag"] != before)  # type: ignore[misc]  # the default binds it


def test_a_host_that_is_not_there_is_named_first(world: World) -> None:
    """Or another program at its address."""
    with contextlib.chdir(world.directory):
        for url, said in (
            (f"http://127.0.0.1:{free_port()}", "does not answer"),
            (world.store.endpoint_url, "not a bucketbell host"),
        ):
            done = CliRunner().invoke(app, ["doctor", "--host-url", url, "--json"], env=variables(world, {}))
            name, detail, remedy = first(told(done.stdout, done.exit_code, world))
            assert name == "host"
            assert said in detail
            assert "--host-url" in remedy
