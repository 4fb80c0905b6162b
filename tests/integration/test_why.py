"""`bucketbell why` and `bucketbell ring`: the real host before a real MinIO and a real Mosquitto."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stores import Minio
from infra.subscriber import Subscriber
from tests.fakes.real_store import emptied
from tests.hosts import Host, environment, event, eventually, exactly, record
from tests.timing import PATIENCE_SECONDS

BUCKET, ADMIN = "whybucket", "admin-token-0123456789"
SCRIPT = Path(sys.executable).with_name("bucketbell")
SECONDS = 60.0
ASSETS, CONFIGS = "iotsupport/updates/assets", "iotsupport/updates/configs"
RETRY_SECONDS = 2
CONFIGS_ONLY = f"topic read #\ntopic write {CONFIGS}\n"
ALL = "topic readwrite #\n"


@pytest.fixture
def store(minio: Minio) -> Minio:
    """A MinIO with an empty bucket."""
    return emptied(minio, BUCKET)


def started(
    tmp_path: Path, mqtt_url: str | None, store: Minio | None, more: Mapping[str, str] = {}, *, ready: bool = True
) -> Host:
    """A host with an administrator, and with the bucket of `store`."""
    known = {"ADMIN_TOKENS": ADMIN, "DEVICE_REQUESTS_PER_MINUTE": "0", "EVENT_RETRY_SECONDS": str(RETRY_SECONDS)}
    if store is not None:
        known |= {
            "BUCKET": BUCKET,
            "AWS_ENDPOINT_URL": store.endpoint_url,
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
        }
    host = Host(
        tmp_path, environment(mqtt_url, **known | {"MQTT_PUBLISH_TIMEOUT_SECONDS": "2"} | dict(more)), ready=ready
    )
    host.http.headers["Authorization"] = f"Bearer {ADMIN}"
    return host


def put(store: Minio, key: str, body: bytes = b"content") -> bytes:
    """Upload a file; returns what MinIO tells of it."""
    etag = store.client().put_object(Bucket=BUCKET, Key=key, Body=body)["ETag"]
    return told(key, etag)


def told(key: str, etag: str = "4d22") -> bytes:
    """What MinIO tells of an upload of now."""
    one = record(key, eTag=etag.strip('"'))
    one["s3"]["bucket"]["name"] = BUCKET
    one["eventTime"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event(one)


def why(host: Host, key: str) -> dict[str, Any]:
    """What the host answers."""
    answer = host.http.get("/api/v1/why", params={"key": key})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ring(host: Host, key: str) -> httpx.Response:
    """Have a file announced again."""
    return host.http.post("/api/v1/ring", json={"key": key})


def run(host: Host, *arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    """A command as a person runs it; it never prints the token."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BUCKETBELL_")}
    given = {"BUCKETBELL_SERVER": host.url, "BUCKETBELL_TOKEN": ADMIN}
    done = subprocess.run(
        [SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={name: value for name, value in (inherited | given | more).items() if value},
        cwd=host.log_file.parent,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    assert ADMIN not in done.stdout + done.stderr
    return done


def doors(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Where each event came in, and what became of it."""
    return [(one["door"], one["outcome"]) for one in found["events"]]


def test_an_upload_that_rang_is_told_from_the_bucket_to_the_broker(
    store: Minio, mosquitto: Mosquitto, ear: Subscriber, tmp_path: Path
) -> None:
    """With both doors, the second as a repeat; the id is the message's own; the command tells it in order of time."""
    with started(tmp_path, mosquitto.url, store) as host:
        body = put(store, "assets/dir/x.bin")
        assert host.post(body, "/events/fast").status_code == 202
        assert host.post(body).status_code == 200
        message = ear.next()
        found = why(host, "assets/dir/x.bin")
        assert doors(found) == [("fast", "delivered"), ("sure", "repeated")]
        assert {one["id"] for one in found["events"]} == {dict(message.user_properties)["id"]}
        assert (found["verdict"], found["well"], found["in_the_way"]) == ("announced", True, [])
        assert found["object"]["state"] == "present"
        assert found["object"]["etag"] == found["events"][0]["etag"] == dict(message.user_properties)["etag"]
        assert (found["object"]["size"], found["route"]["topic"]) == (7, ASSETS)
        moments = [one["at"] for one in found["story"]]
        assert moments == sorted(filter(None, moments)) + [None] * moments.count(None)
        lines = run(host, "why", "dir/x.bin").stdout.splitlines()
        assert lines[0] == "assets/dir/x.bin"
        assert "uploaded: 7 bytes" in lines[1]
        assert "by POST /events/fast: announced, and the broker confirmed it" in lines[2]
        assert "by POST /events: a repeat" in lines[3]
        assert lines[-1].startswith("It was announced at ")
        assert json.loads(run(host, "why", "assets/dir/x.bin", "--json").stdout)["verdict"] == "announced"


def test_nobody_listens_is_told(store: Minio, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """The broker's word, not ours. Exit code 1: no device has heard it."""
    with started(tmp_path, mosquitto.url, store) as host:
        body = put(store, "configs/a1-b2-c3-d4-e5-f6.json")
        eventually(lambda: host.post(body).json()["outcomes"] != ["unconfirmed"])
        for asked in ("A1:B2:C3:D4:E5:F6", "a1b2c3d4e5f6", "a1-b2-c3-d4-e5-f6.json"):
            found = why(host, asked)
            assert found["key"] == "configs/a1-b2-c3-d4-e5-f6.json"
            assert (found["verdict"], found["well"]) == ("nobody_listens", False)
        assert "nobody listens" in run(host, "why", "a1-b2-c3-d4-e5-f6", code=1).stdout.splitlines()[-1]


def test_a_forbidden_topic_is_refused_then_given_up_then_announced(
    store: Minio, tmp_path: Path, mosquitto_binary: Path
) -> None:
    """With the reason code, the cause and its age; when the right is back, it is told that it rang."""
    del mosquitto_binary
    with (
        Mosquitto(tmp_path / "guarded", acl=CONFIGS_ONLY) as broker,
        Subscriber(broker.url, ["#"]) as ear,
        started(tmp_path, broker.url, store) as host,
    ):
        body = put(store, "assets/x.bin")
        assert host.post(body).status_code == 503
        found = why(host, "assets/x.bin")
        assert (found["verdict"], found["events"][-1]["reason_code"]) == ("refused", 0x87)
        assert "0x87" in found["answer"]
        assert "broker's rules" in found["answer"]
        (way,) = found["in_the_way"]
        assert ASSETS in way
        refused = ring(host, "assets/x.bin").json()
        assert (refused["ok"], refused["outcome"], refused["reason_code"]) == (False, "refused", 0x87)
        assert "0x87" in run(host, "ring", "x.bin", code=1).stdout
        eventually(lambda: host.post(body).status_code == 200)
        found = why(host, "assets/x.bin")
        assert found["verdict"] == "given_up"
        assert doors(found) == [("sure", "refused"), ("ring", "refused"), ("ring", "refused"), *doors(found)[3:]]
        assert doors(found)[-1] == ("sure", "gave_up")
        assert "until that ends" in found["in_the_way"][0]
        broker.set_acl(ALL)
        broker.reload()
        assert ring(host, "assets/x.bin").json()["ok"]
        eventually(lambda: doors(why(host, "assets/x.bin"))[-1] == ("again", "delivered"))
        found = why(host, "assets/x.bin")
        assert (found["verdict"], found["in_the_way"]) == ("announced", [])
        assert len({dict(one.user_properties)["id"] for one in exactly(2, ear)}) == 2


def test_a_broker_that_is_down_is_what_an_upload_waits_for(store: Minio, tmp_path: Path) -> None:
    """Before an event came, while it is on its way, and after it could not be confirmed; many tries are one line."""
    with started(tmp_path, f"mqtt://127.0.0.1:{free_port()}", store, ready=False) as host:
        body = put(store, "assets/x.bin")
        assert host.post(body, "/events/fast").status_code == 202
        found = why(host, "assets/x.bin")
        assert found["verdict"] == "waiting"
        assert any("on its way" in one["text"] for one in found["story"])
        assert [host.post(body).status_code for _ in range(2)] == [503, 503]
        eventually(lambda: ("fast", "unconfirmed") in doors(why(host, "assets/x.bin")))
        found = why(host, "assets/x.bin")
        assert ("sure", "unconfirmed") in doors(found)
        assert (found["verdict"], found["well"]) == ("waiting", False)
        assert "refused" in found["answer"].lower()  # the connection was: why it is not there
        assert "is not connected" in found["in_the_way"][0]
        refused = ring(host, "assets/x.bin")
        assert (refused.status_code, "not connected" in refused.json()["detail"]) == (409, True)
        assert "not connected" in run(host, "ring", "x.bin", code=1).stderr


def test_without_a_broker_or_a_bucket_it_says_what_is_not_set(tmp_path: Path) -> None:
    """Nothing is checked, and nothing pretends to be."""
    with started(tmp_path, None, None) as host:
        found = why(host, "assets/x.bin")
        assert (found["verdict"], found["object"]) == (
            "no_broker",
            {**found["object"], "state": "not_checked", "detail": "BUCKET is not set"},
        )
        assert "MQTT_URL" in found["answer"]
        for answer in (ring(host, "x.bin"), host.http.get("/api/v1/ring", params={"since": "2026-01-01T00:00:00Z"})):
            assert (answer.status_code, "BUCKET" in answer.json()["detail"]) == (409, True)


def test_a_key_that_rings_no_bell_is_told_with_the_remedy(store: Minio, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """Whether or not its event has come; nor is it announced by hand."""
    cases = [
        ("firmware/x.bin", "unmapped", "assets/<path>"),
        ("configs/kitchen.json", "bad_config_name", "configs/a1-b2-c3-d4-e5-f6.json"),
        ("assets/dir/", "folder_marker", "Upload a file"),
        ("assets/a\x01b", "bad_asset_name", "another name"),
    ]
    with started(tmp_path, mosquitto.url, store) as host:
        for key, reason, remedy in cases:
            for heard in ([], [("sure", reason)]):
                found = why(host, key)
                assert (found["key"], found["verdict"], found["route"]["reason"]) == (key, "not_announced", reason)
                assert remedy in found["answer"]
                assert doors(found) == heard
                assert host.post(told(key)).status_code == 200
            refused = ring(host, key)
            assert (refused.status_code, remedy in refused.json()["detail"]) == (409, True)
            shown = run(host, "why", key, code=1).stdout
            assert all(one.isprintable() for line in shown.splitlines() for one in line)


def test_a_file_of_which_no_event_came_is_told_from_one_that_is_not_there(
    store: Minio, mosquitto: Mosquitto, ear: Subscriber, tmp_path: Path
) -> None:
    """Uploaded before the host's memory begins: not known. After: the store is silent. A new content is not the old."""
    put(store, "assets/before.bin")
    time.sleep(1.1)  # a HEAD dates by the second
    with started(tmp_path, mosquitto.url, store) as host:
        assert why(host, "before.bin")["verdict"] == "unknown"
        assert why(host, "never.bin")["verdict"] == "no_file"
        time.sleep(1.1)
        host.post(put(store, "assets/x.bin"))
        ear.next()
        assert why(host, "x.bin")["well"]
        put(store, "assets/x.bin", b"other")
        found = why(host, "x.bin")
        assert (found["verdict"], found["well"], len(found["events"])) == ("unheard", False, 1)
        assert "older content" in found["answer"]
        assert "bucketbell connect" in found["answer"]
        store.client().delete_object(Bucket=BUCKET, Key="assets/x.bin")
        assert "not in the bucket any more" in why(host, "x.bin")["answer"]


def test_what_the_sweep_rang_or_counts_is_told_and_a_ring_by_hand_counts_as_rung(
    store: Minio, mosquitto: Mosquitto, ear: Subscriber, tmp_path: Path
) -> None:
    """Counted before the first sweep, rung after, told from its record after a restart; by hand: once, not twice."""
    put(store, "assets/old.bin")
    time.sleep(1.1)
    swept = {"SWEEP_SECONDS": "1", "SWEEP_STATE_FILE": str(tmp_path / "state")}

    def after_sweeps(host: Host) -> None:
        begin = host.metric("sweep_seconds_count")
        eventually(lambda: host.metric("sweep_seconds_count") >= begin + 3)

    with started(tmp_path, mosquitto.url, store, swept) as host:
        eventually(lambda: why(host, "old.bin")["verdict"] == "counted")
        assert "bucketbell ring assets/old.bin" in why(host, "old.bin")["answer"]
        put(store, "assets/new.bin")
        assert json.loads(ear.next().payload) == {"filename": "new.bin"}
        found = why(host, "new.bin")
        assert (doors(found), found["verdict"]) == ([("sweep", "delivered")], "announced")
        rung = ring(host, "old.bin").json()
        assert (rung["ok"], rung["outcome"], rung["topic"]) == (True, "delivered", ASSETS)
        assert dict(ear.next().user_properties)["id"] == rung["id"]
        after_sweeps(host)
        assert ear.silence(0.2) == []
        assert (doors(why(host, "old.bin")), why(host, "old.bin")["sweep"]) == ([("ring", "delivered")], "announced")
        host.stop()
    with started(tmp_path, mosquitto.url, store, swept) as host:
        after_sweeps(host)
        for name in ("old.bin", "new.bin"):
            found = why(host, name)
            assert (found["events"], found["verdict"], found["sweep"]) == ([], "announced", "announced")
        assert ear.silence(0.2) == []


def test_after_a_rollback_a_ring_tells_devices_of_the_version_that_came_back(
    minio: Minio, mosquitto: Mosquitto, ear: Subscriber, tmp_path: Path
) -> None:
    """By a new id, with that version's ETag and version id; each ring is another one; the sweep adds nothing."""
    s3, bucket = minio.client(), "versioned-why"
    s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    swept = {"SWEEP_SECONDS": "1", "SWEEP_STATE_FILE": str(tmp_path / "state"), "BUCKET": bucket}
    with started(tmp_path, mosquitto.url, minio, swept) as host:
        eventually(lambda: host.metric("sweep_seconds_count") >= 1)
        first = s3.put_object(Bucket=bucket, Key="assets/fw.bin", Body=b"one")
        ear.next()
        time.sleep(1.1)
        second = s3.put_object(Bucket=bucket, Key="assets/fw.bin", Body=b"two")
        ear.next()
        s3.delete_object(Bucket=bucket, Key="assets/fw.bin", VersionId=second["VersionId"])
        found = why(host, "fw.bin")
        assert (found["verdict"], found["well"]) == ("rolled_back", False)
        assert "bucketbell ring assets/fw.bin" in found["answer"]
        ids = []
        for _ in range(2):
            assert "announced" in run(host, "ring", "assets/fw.bin").stdout.lower()
            said = dict(ear.next().user_properties)
            assert (said["etag"], said["versionid"]) == (first["ETag"].strip('"'), first["VersionId"])
            ids.append(said["id"])
            assert why(host, "fw.bin")["verdict"] == "announced"
        assert len(set(ids)) == 2
        begin = host.metric("sweep_seconds_count")
        eventually(lambda: host.metric("sweep_seconds_count") >= begin + 2)
        assert ear.silence(0.2) == []


def test_since_announces_what_was_modified_and_asks_before_many(
    store: Minio, mosquitto: Mosquitto, ear: Subscriber, tmp_path: Path
) -> None:
    """The oldest first, nothing that is older or not announced; over 100 only with --yes; paced by the host's limit."""
    put(store, "assets/old.bin")
    time.sleep(2.1)
    since = datetime.now(UTC) - timedelta(seconds=1)
    names = ["assets/b.bin", "assets/dir/ä b%2F.bin", "configs/a1-b2-c3-d4-e5-f6.json"]
    for key in (*names, "configs/kitchen.json", "firmware/x.bin"):
        put(store, key)
    with started(tmp_path, mosquitto.url, store, {"DEVICE_REQUESTS_PER_MINUTE": "600"}) as host:
        done = run(host, "ring", "--since", since.isoformat(), "--json")
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert sorted(one["key"] for one in answers) == sorted(names)
        assert {one["outcome"] for one in answers} == {"delivered"}
        assert sorted(dict(one.user_properties)["id"] for one in exactly(3, ear)) == sorted(
            one["id"] for one in answers
        )
        assert run(host, "ring", "--since", "0s").stdout == ""
        for number in range(101):
            put(store, f"assets/many/{number}")
        assert "--yes" in run(host, "ring", "--since", "1h", code=1).stderr
        assert ear.silence(0.2) == []
        assert len(run(host, "ring", "--since", "1h", "--yes").stdout.splitlines()) == 105
        assert len(ear.wait_for(105, 2 * PATIENCE_SECONDS)) == 105


def test_a_broker_that_goes_away_ends_many_rings(
    store: Minio, mosquitto: Mosquitto, ear: Subscriber, tmp_path: Path
) -> None:
    """After a few in a row that were not announced, it says how many files are left. The list goes on behind a key."""
    for number in range(9):
        put(store, f"assets/{number}")
    with started(tmp_path, mosquitto.url, store) as host:
        listed = host.http.get("/api/v1/ring", params={"since": "2026-01-01T00:00:00Z"}).json()
        assert [one["key"] for one in listed["files"]] == [f"assets/{number}" for number in range(9)]
        rest = host.http.get("/api/v1/ring", params={"since": "2026-01-01T00:00:00Z", "after": "assets/6"}).json()
        assert [one["key"] for one in rest["files"]] == ["assets/7", "assets/8"]
        assert len(run(host, "ring", "--since", "1h").stdout.splitlines()) == 9
        assert len(ear.wait_for(9)) == 9
        mosquitto.stop()
        eventually(lambda: host.http.get("/readyz").status_code == 503)
        done = run(host, "ring", "--since", "1h", code=1)
        assert "4 files were not tried" in done.stderr
        assert done.stdout == ""


def test_who_asks_needs_a_token_and_gets_it_from_the_hosts_own_settings(
    store: Minio, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """Wrong or none: 401 and exit 1. Without BUCKETBELL_TOKEN the first of ADMIN_TOKENS is taken, also from `.env`."""
    with started(tmp_path, mosquitto.url, store) as host:
        for token in ("", "Bearer wrong-token-0123456789"):
            headers = {"Authorization": token}
            answers = (
                host.http.get("/api/v1/why?key=assets/x.bin", headers=headers),
                host.http.post("/api/v1/ring", json={"key": "assets/x.bin"}, headers=headers),
                host.http.get("/api/v1/ring?since=2026-01-01T00:00:00Z", headers=headers),
            )
            assert [one.status_code for one in answers] == [401] * 3
        assert "401" in run(host, "why", "x.bin", code=1, BUCKETBELL_TOKEN="wrong-token-0123456789").stderr
        assert "ADMIN_TOKENS" in run(host, "why", "x.bin", code=1, BUCKETBELL_TOKEN="").stderr
        (tmp_path / ".env").write_text(f"ADMIN_TOKENS={ADMIN},another-token-0123456789\n")
        assert "assets/x.bin" in run(host, "why", "x.bin", code=1, BUCKETBELL_TOKEN="").stdout
        assert "--since" in run(host, "ring", code=2).stderr
        assert "2h" in run(host, "ring", "--since", "yesterday", code=2).stderr


HOSTILE = [
    "assets/../configs/a1-b2-c3-d4-e5-f6.json",
    "assets/" + "ä" * 508,
    "assets/" + "x" * 1017,
    "assets/%2e%2e%2fx.bin",
    "assets/a\nb\x1b[31m.bin",
    "assets//x.bin",
    "/",
    "..",
    "\N{RIGHT-TO-LEFT OVERRIDE}.bin",
    "assets/+&=?#%00 .bin",
]


def test_hostile_keys_are_answered_cleanly(store: Minio, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """200 or a problem document; no 5xx, no trace, nothing unprintable on a terminal, and no key taken for another."""
    with started(tmp_path, mosquitto.url, store) as host:
        for key in HOSTILE:
            assert why(host, key)["key"].endswith(key.lstrip("/"))
            assert ring(host, key).status_code in {404, 409, 503}
        for key in ("", "x" * 1025, "ä" * 513, "a\0b"):
            answers = host.http.get("/api/v1/why", params={"key": key}), ring(host, key)
            assert [one.status_code for one in answers] == [422, 422]
            assert all(one.headers["Content-Type"] == "application/problem+json" for one in answers)
        for query in ("key=%ff", "key=a&key=b", "key=%ed%a0%80"):
            assert host.http.get(f"/api/v1/why?{query}").status_code == 400
        for query in ("why", "ring", "ring?since=2026-01-01", "ring?since=2026-01-01T00:00:00Z&after=%00"):
            assert host.http.get(f"/api/v1/{query}").status_code == 422
        for body in (b"[]", b"{}", b'{"key": 1}', b'{"key": "a", "more": 1}', b'{"key": "\\ud800"}'):
            answer = host.http.post("/api/v1/ring", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in {400, 422}, (body, answer.text)
        for key in HOSTILE:
            shown = run(host, "why", "--", key, code=1).stdout
            assert all(one.isprintable() for line in shown.splitlines() for one in line)
        assert "Traceback" not in host.log
        assert host.lines("ERROR") == []
