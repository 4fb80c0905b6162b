"""The reference device renews its token at a real host, and is never without one that works."""

from __future__ import annotations

import base64
import json
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import jwt
import pytest

from functions.web.tokens import DAY_SECONDS, Keyring
from infra.device import loop
from infra.device.held_token import HeldToken
from infra.device.server import DownloadServer
from infra.device.store import DeviceStore
from infra.http_client import Web
from infra.local.stores import MotoServer
from tests.fakes.device_rig import MAC
from tests.hosts import Host, environment, eventually
from tests.integration.test_device import DeviceProcess
from tests.timing import PATIENCE_SECONDS

OLD_KEY, NEW_KEY = (f"{kid}:{base64.b64encode(kid.encode() * 16).decode()}" for kid in ("k1", "k2"))
ASSET, BODY = "assets/firmware.bin", b"new"
# A host of a release that does not know the route yet.
EARLIER = """
from dataclasses import replace
from functions.devices import api
made = api.router
def router(*arguments):
    known = made(*arguments)
    return replace(known, routes=tuple(route for route in known.routes if route.path != "/token"))
api.router = router
"""


def minted(days_ago: float = 200) -> str:
    """A token of the old key, as old as that."""
    return Keyring.parse([OLD_KEY]).mint(MAC, now=time.time() - days_ago * DAY_SECONDS)


def host_of(store: MotoServer, directory: Path, *keys: str, patch: str = "", **more: str) -> Host:
    """A host with these keys, that hands out one asset."""
    s3 = store.client()
    s3.create_bucket(Bucket="renewals")
    s3.put_object(Bucket="renewals", Key=ASSET, Body=BODY)
    known = environment(
        None,
        BUCKET="renewals",
        AWS_ENDPOINT_URL=store.endpoint_url,
        AWS_ACCESS_KEY_ID=store.access_key,
        AWS_SECRET_ACCESS_KEY=store.secret_key,
        DEVICE_TOKEN_KEYS=",".join(keys),
        **more,
    )
    return Host(directory, known, ready=False, patch=patch)


def run(directory: Path, host: Host, token: str) -> DeviceProcess:
    """A device that has caught up once with that token; it must have got everything."""
    device = DeviceProcess(directory, host.url, "--once", environment={"DEVICE_TOKEN": token})
    assert device.run() == 0, device.new_log_text()
    assert device.content(ASSET) == BODY
    return device


def kept(device: DeviceProcess) -> list[str]:
    """The keys of the tokens that it keeps, by their names."""
    tokens = json.loads((device.files / ".bucketbell" / "token.json").read_bytes())["tokens"]
    return [jwt.get_unverified_header(token)["kid"] for token in tokens]


def test_a_device_moves_to_the_new_key_by_itself(moto: MotoServer, tmp_path: Path) -> None:
    """With the same DEVICE_TOKEN all the time, also after the old key is gone; one id revokes old and new."""
    token = minted()
    with host_of(moto, tmp_path, NEW_KEY, OLD_KEY) as host:
        device = run(tmp_path, host, token)
        assert [said["expires_at"][:2] for said in device.named("token_renewed")] == ["20"]
        assert kept(device) == ["k2"]  # the file was asked for with it, in the same run
        assert host.metric("device_tokens_renewed_total") == 1
        device = run(tmp_path, host, token)
        assert device.named("token_renewed") == []
        renewed = json.loads((device.files / ".bucketbell" / "token.json").read_bytes())["tokens"][0]
        for secret in (token, renewed):
            assert secret.split(".")[2] not in host.log + device.new_log_text()
        jti = jwt.decode(token, options={"verify_signature": False})["jti"]
        assert host.log.count(jti) == 1
    with host_of(moto, tmp_path, NEW_KEY) as host:
        run(tmp_path, host, token)
    with host_of(moto, tmp_path, NEW_KEY, OLD_KEY, DEVICE_TOKENS_REVOKED=jti) as host:
        for one in (token, renewed):
            assert host.http.get("/manifest", headers={"Authorization": f"Bearer {one}"}).status_code == 401


def test_a_host_that_does_not_know_the_new_key_gets_the_old_token(moto: MotoServer, tmp_path: Path) -> None:
    """One of several that is behind: the device steps back at once, and loses nothing."""
    token = minted()
    with host_of(moto, tmp_path, NEW_KEY, OLD_KEY) as host:
        run(tmp_path, host, token)
    with host_of(moto, tmp_path, OLD_KEY) as host:
        device = run(tmp_path, host, token)
        assert device.named("failed") == []
        assert len(device.named("token_renewed")) == 1
        assert kept(device) == ["k1", "k1"]  # nothing was asked for with the second yet
    with host_of(moto, tmp_path, NEW_KEY, OLD_KEY) as host:
        assert kept(run(tmp_path, host, token)) == ["k1"]


@pytest.mark.parametrize(
    ("token", "patch", "reason"),
    [
        (minted(), EARLIER, "gone"),
        (Keyring.parse([OLD_KEY]).mint(MAC, expires_seconds=DAY_SECONDS, now=time.time() - 20 * 3600), "", "forbidden"),
    ],
    ids=["an earlier release", "a token for a day"],
)
def test_a_host_that_does_not_renew_is_no_trouble(
    moto: MotoServer, tmp_path: Path, token: str, patch: str, reason: str
) -> None:
    """The device says so once for each catch-up, keeps its token, and gets its files."""
    with host_of(moto, tmp_path, OLD_KEY, patch=patch) as host:
        device = run(tmp_path, host, token)
        assert [said["reason"] for said in device.named("token_kept")] == [reason]
        assert not (device.files / ".bucketbell" / "token.json").exists()


def test_a_device_that_hears_nothing_catches_up_and_renews_all_the_same(
    moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a day, here a tenth of a second: so its token never runs out in silence."""
    monkeypatch.setattr(loop, "QUIET_SECONDS", 0.1)
    now, said = [time.time()], list[str]()

    def report(event: str, /, **_: object) -> None:
        said.append(event)

    with (
        host_of(moto, tmp_path, OLD_KEY) as host,
        closing(DeviceStore(tmp_path / "files")) as store,
        closing(Web()) as web,
    ):
        device = loop.Device(
            MAC,
            {},
            web=web,
            server=DownloadServer(web, host.url, HeldToken(minted(days_ago=1), store, clock=lambda: now[0])),
            store=store,
            report=report,
        )
        running = threading.Thread(target=device.run, daemon=True)
        running.start()
        device.listening()
        try:
            eventually(lambda: said.count("caught_up") >= 3)
            assert "token_renewed" not in said
            now[0] += 200 * DAY_SECONDS
            eventually(lambda: "token_renewed" in said)
        finally:
            device.stop()
            running.join(PATIENCE_SECONDS)


def test_a_token_that_is_young_is_not_renewed(moto: MotoServer, tmp_path: Path) -> None:
    """Nobody is asked; but whoever asks gets one, at any time, and the same one all day."""
    token = minted(days_ago=1)
    with host_of(moto, tmp_path, OLD_KEY) as host:
        device = run(tmp_path, host, token)
        assert device.named("token_renewed") == device.named("token_kept") == []
        assert host.metric("device_tokens_renewed_total") == 0

        def renew() -> httpx.Response:
            return host.http.post("/token", headers={"Authorization": f"Bearer {token}"})

        first, second = renew(), renew()
        assert first.status_code == second.status_code == 200
        assert first.headers["cache-control"] == "no-store"
        # Only at midnight they differ.
        assert first.json() == second.json() or time.time() % DAY_SECONDS < 60
