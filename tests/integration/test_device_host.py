"""The reference device at a real host, at the host's own defaults, with a real store behind it."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import httpx
import pytest

from functions.web.tokens import Keyring
from infra.local.stores import MotoServer, Store, VersityGateway
from tests.fakes.device_rig import MAC
from tests.hosts import Host, environment
from tests.integration.test_device import DeviceProcess

KEY = base64.b64encode(bytes(range(32))).decode()
TOKEN = Keyring.parse([f"k:{KEY}"]).mint(MAC)
FILES = 150  # more than a minute's requests


def knowing(store: Store, bucket: str, **more: str) -> dict[str, str]:
    """What a host must be told to hand out this bucket's files, and nothing else."""
    return environment(
        None,
        BUCKET=bucket,
        AWS_ENDPOINT_URL=store.endpoint_url,
        AWS_ACCESS_KEY_ID=store.access_key,
        AWS_SECRET_ACCESS_KEY=store.secret_key,
        DEVICE_TOKEN_KEYS=f"k:{KEY}",
        **more,
    )


def device_of(directory: Path, host: Host) -> DeviceProcess:
    """A device that catches up once."""
    return DeviceProcess(directory, host.url, "--once", environment={"DEVICE_TOKEN": TOKEN})


def ask(host: Host, path: str, **headers: str) -> httpx.Response:
    """Ask as the device."""
    return host.http.get(path, headers={"Authorization": f"Bearer {TOKEN}"} | headers)


def test_a_first_sync_is_granted_twice(moto: MotoServer, tmp_path: Path) -> None:
    """More files than a minute's requests are all here in one run, and again in another folder, without one 429."""
    s3 = moto.client()
    s3.create_bucket(Bucket="many")
    for number in range(FILES):
        s3.put_object(Bucket="many", Key=f"assets/{number}.bin", Body=b"%d" % number)
    with Host(tmp_path, knowing(moto, "many"), ready=False) as host:
        for run in ("first", "second"):
            device = device_of(tmp_path / run, host)
            assert device.run() == 0
            assert device.named("failed") == []
            assert len(device.named("verified")) == FILES


def test_beyond_what_is_granted_a_device_waits(moto: MotoServer, tmp_path: Path) -> None:
    """With a host that grants less, `--once` keeps `Retry-After`, and still has everything in the end."""
    s3 = moto.client()
    s3.create_bucket(Bucket="few")
    for number in range(12):
        s3.put_object(Bucket="few", Key=f"assets/{number}.bin", Body=b"%d" % number)
    with Host(tmp_path, knowing(moto, "few", DEVICE_REQUESTS_PER_MINUTE="240"), ready=False) as host:
        while ask(host, "/assets/0.bin").status_code != 429:
            pass
        device = device_of(tmp_path, host)
        assert device.run() == 0
        assert {said["reason"] for said in device.named("failed")} == {"rate_limited"}
        assert None not in {said["retry_in_ms"] for said in device.named("failed")}
        assert len(device.named("verified")) == 12


def test_files_copied_into_a_stores_folder_are_handed_out(versitygw: VersityGateway, tmp_path: Path) -> None:
    """Versity Gateway knows no ETag for them: `null` in manifest and answer, no header, and the device has them."""
    config, asset = f"configs/{MAC}.json", "assets/copied.bin"
    bodies = {config: b'{"interval": 5}', asset: os.urandom(100_000), "assets/put.bin": b"with an ETag"}
    s3 = versitygw.client()
    s3.create_bucket(Bucket="copies")
    s3.put_object(Bucket="copies", Key="assets/put.bin", Body=bodies["assets/put.bin"])
    folder = versitygw.data / "copies"
    (folder / "configs").mkdir()
    for key in (config, asset):
        (folder / key).write_bytes(bodies[key])
    with Host(tmp_path, knowing(versitygw, "copies"), ready=False) as host:
        listed = {entry["filename"]: entry["etag"] for entry in ask(host, "/manifest").json()["objects"]}
        assert listed == {f"{MAC}.json": None, "copied.bin": None, "put.bin": listed["put.bin"]}
        assert listed["put.bin"]
        for path in (f"/{config}", f"/{asset}"):
            for accept in ("application/json", "*/*"):
                answer = ask(host, path, Accept=accept)
                assert answer.status_code == (200 if accept == "application/json" else 307)
                assert "etag" not in answer.headers
                assert ask(host, path, Accept=accept, **{"If-None-Match": '""'}).status_code == answer.status_code
            found = ask(host, path, Accept="application/json").json()
            assert found["etag"] is None
            assert found["last_modified"].startswith("20")
            described = host.http.head(path, headers={"Authorization": f"Bearer {TOKEN}"})
            assert described.status_code == 200
            assert "etag" not in described.headers
        device = device_of(tmp_path, host)
        assert device.run() == 0
        assert {key: device.content(key) for key in bodies} == bodies
        assert device.run() == 0
        assert device.named("caught_up")[0] == device.named("caught_up")[0] | {"unchanged": 3, "wanted": 0}
        os.utime(folder / asset, (2_000_000_000, 2_000_000_000))
        (folder / config).write_bytes(b'{"interval": 55}')
        assert device.run() == 0
        assert len(device.named("verified")) == 2
        assert device.content(config) == b'{"interval": 55}'


def test_a_file_copied_over_an_object_is_named_as_what_it_is(versitygw: VersityGateway, tmp_path: Path) -> None:
    """Versity Gateway keeps the ETag of the object that was there: the device says so, and keeps what it had."""
    asset, first, second = "assets/over.bin", b"uploaded", b"copied over it"
    s3 = versitygw.client()
    s3.create_bucket(Bucket="stale")
    etag = s3.put_object(Bucket="stale", Key=asset, Body=first)["ETag"]
    with Host(tmp_path, knowing(versitygw, "stale"), ready=False) as host:
        device = device_of(tmp_path, host)
        assert device.run() == 0
        (versitygw.data / "stale" / asset).write_bytes(second)
        assert s3.head_object(Bucket="stale", Key=asset)["ETag"] == etag
        assert device.run() == 1
        assert [said["reason"] for said in device.named("failed")] == ["corrupt", "stale_etag"]
        assert "Upload it through S3" in device.named("failed")[-1]["detail"]
        assert device.content(asset) == first
        s3.put_object(Bucket="stale", Key=asset, Body=second)
        assert device.run() == 0
        assert device.content(asset) == second


@pytest.mark.parametrize("status", [200, 304])
def test_the_manifest_says_how_much_it_lists(moto: MotoServer, tmp_path: Path, status: int) -> None:
    """In a header, also where nothing has changed: the host grants requests by it."""
    bucket = f"listed-{status}"
    s3 = moto.client()
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="assets/a", Body=b"a")
    with Host(tmp_path, knowing(moto, bucket), ready=False) as host:
        answer = ask(host, "/manifest")
        if status == 304:
            answer = ask(host, "/manifest", **{"If-None-Match": answer.headers["etag"]})
        assert (answer.status_code, answer.headers["bucketbell-listed"]) == (status, "1")
