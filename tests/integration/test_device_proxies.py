from __future__ import annotations

import os
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra.device.trouble import FetchError
from infra.http_client import Web
from infra.local.certificates import make_certificates
from infra.local.process import free_port
from tests.fakes.forward_proxy import ForwardProxy
from tests.fakes.slow_store import TOKEN, SlowStore
from tests.integration.test_device import DeviceProcess

FILE, BODY = "assets/firmware.bin", os.urandom(100_000)
FAR = "store.example"


def port_of(world: SlowStore) -> int:
    """Where it listens."""
    port = urlsplit(world.url).port
    assert port is not None
    return port


def test_server_and_store_are_reached_through_the_proxy(tmp_path: Path) -> None:
    """A host that only the proxy can find: manifest, URL and file come; with `NO_PROXY` nobody asks the proxy."""
    with SlowStore() as world, ForwardProxy(port_of(world), credentials="me:p@ss") as proxy:
        world.put(FILE, BODY)
        world.ticket_changes = {"url": f"http://{FAR}:9000/bucket/{FILE}?X-Amz-SignedHeaders=host"}
        through = {"HTTP_PROXY": proxy.url.replace("//", "//me:p%40ss@")}
        device = DeviceProcess(tmp_path, f"http://{FAR}", "--once", environment=through)
        assert device.run() == 0, device.new_log_text()
        assert device.content(FILE) == BODY
        assert proxy.seen == [
            f"GET http://{FAR}/manifest",
            f"GET http://{FAR}/{FILE}",
            f"GET http://{FAR}:9000/bucket/{FILE}",
        ]
        proxy.seen.clear()
        (tmp_path / "files" / FILE).unlink()
        device.environment |= {"NO_PROXY": f"other.local,{FAR}", "HTTP_PROXY": through["HTTP_PROXY"]}
        assert device.run() == 1
        assert proxy.seen == []
        assert {said["reason"] for said in device.named("failed")} == {"unreachable"}


def test_https_goes_through_a_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy sees a name and bytes; the certificate is checked behind it."""
    monkeypatch.setattr("infra.proxies.is_loopback", lambda _url: False)  # the certificate is for localhost
    certificates = make_certificates(tmp_path / "certificates")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    with SlowStore(tls=context) as world, ForwardProxy(port_of(world)) as proxy:
        world.put(FILE, BODY)
        web = Web(ca_file=certificates.ca_file, environment={"HTTPS_PROXY": proxy.url})
        with web.get(f"https://localhost:9/bucket/{FILE}", {}) as answer:
            assert b"".join(answer.chunks()) == BODY
        with pytest.raises(FetchError) as refused, web.get(f"https://{FAR}/manifest", {}):
            pass
        assert refused.value.reason == "unreachable"
        assert "certificate" in str(refused.value)
        assert proxy.seen == ["CONNECT localhost:9", f"CONNECT {FAR}:443"]
        assert len(world.seen) == 1
        web.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_or_is_away_is_named(scheme: str) -> None:
    """A wrong password and a closed port are the proxy's fault, not the store's; no secret is told."""
    with SlowStore() as world, ForwardProxy(port_of(world), credentials="me:right") as proxy:
        wrong = proxy.url.replace("//", "//me:s3cret@")
        for url in (wrong, f"http://me:s3cret@127.0.0.1:{free_port()}"):
            web = Web(environment={"ALL_PROXY": url})
            with pytest.raises(FetchError) as refused, web.get(f"{scheme}://{FAR}/x", {"Authorization": TOKEN}):
                pass
            assert refused.value.reason == "unreachable"
            assert "proxy" in str(refused.value)
            assert "s3cret" not in str(refused.value)
            web.close()
        assert world.seen == []


def test_a_proxy_that_cannot_be_used_is_named_at_the_start(tmp_path: Path) -> None:
    """With its variable, and without its password."""
    device = DeviceProcess(
        tmp_path, "http://127.0.0.1:1", "--once", environment={"HTTPS_PROXY": "socks5://me:s3cret@proxy:1080"}
    )
    assert device.run() == 1
    assert "HTTPS_PROXY must be http://host:port" in device.new_log_text()
    assert "s3cret" not in device.new_log_text()
    assert "Traceback" not in device.new_log_text()
