"""The administration's API over HTTP, with a real broker and a real database behind it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from functions.admin.api import MAX_BODY_BYTES
from functions.admin.openapi import BASE, document
from functions.admin.probe import PROBE_SECONDS
from infra.host.web.protocol import LINGER_SECONDS
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from tests.admin import ADMIN, administered
from tests.fakes.broker import FakeBroker
from tests.hosts import Host, eventually
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

CONFIG, STATUS, TEST = f"{BASE}/config", f"{BASE}/status", f"{BASE}/test"
USER, PASSWORD = "camera", "s3cret-of-the-camera"


def settings_of(broker: Mosquitto, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    """What a person stores for this broker."""
    known = {"broker_host": "127.0.0.1", "broker_port": broker.port, "topic_prefix": "unifi"}
    return known | {"username": USER, "password": PASSWORD} | changes


@pytest.fixture
def guarded(tmp_path: Path, mosquitto_binary: Path) -> Iterator[Mosquitto]:
    """A Mosquitto with a password file."""
    del mosquitto_binary
    with Mosquitto(tmp_path / "guarded", users={USER: PASSWORD}) as broker:
        yield broker


def connected(host: Host) -> bool:
    """What the status says."""
    return bool(host.http.get(STATUS).json()["connected"])


def test_a_stranger_points_it_at_a_broker_with_the_api_alone(host: Host, guarded: Mosquitto) -> None:
    """Test, store, connected; then a bad broker is stored and reported, and the service goes on."""
    assert host.http.get(CONFIG).json()["source"] == "environment"
    assert host.http.post(TEST, json=settings_of(guarded, password="wrong")).json()["outcome"] == "not_authorized"
    assert host.http.post(TEST, json=settings_of(guarded)).json()["ok"] is True
    assert host.http.get(CONFIG).json()["source"] == "environment"
    stored = host.http.put(CONFIG, json=settings_of(guarded), headers={"If-Match": '"0"'})
    assert (stored.status_code, stored.headers["etag"], stored.json()["credentials"]) == (200, '"1"', "ok")
    eventually(lambda: connected(host))
    status = host.http.get(STATUS).json()
    assert (status["scope"], status["broker"]) == ("host", f"mqtt://127.0.0.1:{guarded.port}")
    assert status["last_connected_at"] is not None
    without = {name: value for name, value in settings_of(guarded).items() if name != "password"}
    assert host.http.post(TEST, json=without).json()["password"] == "stored"
    bad = host.http.put(CONFIG, json=settings_of(guarded, broker_port=free_port()), headers={"If-Match": '"1"'})
    assert bad.status_code == 200
    eventually(lambda: not connected(host) and host.http.get(STATUS).json()["last_error"] is not None)
    assert host.http.get("/healthz").status_code == 200
    assert host.http.put(CONFIG, json=settings_of(guarded), headers={"If-Match": '"1"'}).status_code == 412
    assert host.http.put(CONFIG, json=settings_of(guarded), headers={"If-Match": '"2"'}).status_code == 200
    eventually(lambda: connected(host))


def test_a_test_leaves_the_live_connection_alone(host: Host, guarded: Mosquitto) -> None:
    """The broker sees another client come and go, and ours stays."""
    host.http.put(CONFIG, json=settings_of(guarded))
    eventually(lambda: connected(host))
    before = len(guarded.log_text())
    assert host.http.post(TEST, json=settings_of(guarded)).json()["ok"] is True
    eventually(lambda: "Received DISCONNECT" in guarded.log_text()[before:])
    said = guarded.log_text()[before:]
    assert (said.count("New client connected"), said.count("Received DISCONNECT")) == (1, 1)
    assert connected(host)
    assert host.http.get(CONFIG).json()["version"] == 1


def test_what_is_not_right_touches_nothing(host: Host, guarded: Mosquitto) -> None:
    """422 with the field, over HTTP too; the connection and the row stay."""
    host.http.put(CONFIG, json=settings_of(guarded))
    eventually(lambda: connected(host))
    before = len(guarded.log_text())
    for field, value in (("qos", 3), ("broker_port", "1883"), ("broker_host", "a..b"), ("x", 1), ("password", "a\0")):
        refused = host.http.put(CONFIG, json=settings_of(guarded, **{field: value}))
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field)
    assert host.http.get(CONFIG).json()["version"] == 1
    assert connected(host)
    assert "disconnect" not in guarded.log_text()[before:].lower()


def test_settings_for_another_broker_need_its_password(host: Host, guarded: Mosquitto) -> None:
    """422 with the field: the stored one would be sent there, in the clear. That broker hears nothing."""
    host.http.put(CONFIG, json=settings_of(guarded))
    without = {name: value for name, value in settings_of(guarded).items() if name != "password"}
    with FakeBroker() as other:
        refused = host.http.put(CONFIG, json={**without, "broker_port": other.port})
        assert (refused.status_code, [one["field"] for one in refused.json()["errors"]]) == (422, ["password"])
        assert host.http.get(CONFIG).json()["version"] == 1
        assert host.http.put(CONFIG, json={**without, "qos": 2}).json()["has_password"] is True
        assert not other.connects


def test_a_name_that_leads_to_a_forbidden_address_shows_in_the_status_and_is_not_asked(tmp_path: Path) -> None:
    """Otherwise what is stored, and the status after it, would tell of hosts that must not be tested."""
    name, told = "metadata.example", "('169.254.169.254', 0)"
    patch = f"""
import socket
real = socket.getaddrinfo
def lookup(host, *rest, **more):
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", {told})] if host == {name!r} else real(host, *rest, **more)
socket.getaddrinfo = lookup
"""
    with administered(tmp_path, patch=patch) as host:
        assert host.http.put(CONFIG, json={"broker_host": name, "topic_prefix": "x"}).status_code == 200
        eventually(lambda: "MQTT_TEST_ALLOWED_HOSTS" in str(host.http.get(STATUS).json()["last_error"]))
        assert host.http.post(TEST, json={"broker_host": name, "topic_prefix": "x"}).status_code == 403


def test_the_password_is_in_no_answer_and_no_log(host: Host, guarded: Mosquitto) -> None:
    """Through storing, testing, and a broker that refuses."""
    answers = [
        host.http.put(CONFIG, json=settings_of(guarded)),
        host.http.post(TEST, json=settings_of(guarded)),
        host.http.put(CONFIG, json=settings_of(guarded, username="other")),
        host.http.put(CONFIG, json=settings_of(guarded, qos=PASSWORD)),
        host.http.get(CONFIG),
        host.http.get(STATUS),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 422, 200, 200]
    said = "\n".join([*(answer.text for answer in answers), host.log])
    assert "broker settings stored" in said
    assert PASSWORD not in said
    assert ADMIN not in said


def test_without_the_database_it_reads_on_and_stores_nothing(tmp_path: Path, guarded: Mosquitto) -> None:
    """The file is gone and no new one can be made: the last good settings with a header, 503 for a change."""
    directory = tmp_path / "database"
    directory.mkdir()
    with administered(directory) as host:
        host.http.put(CONFIG, json=settings_of(guarded))
        eventually(lambda: connected(host))
        assert "bucketbell-stale" not in host.http.get(CONFIG).headers
        away = directory.rename(tmp_path / "away")
        (tmp_path / "database").write_text("no directory")
        shown = host.http.get(CONFIG)
        assert (shown.status_code, shown.json()["version"]) == (200, 1)
        assert shown.headers["bucketbell-stale"].startswith("20")
        refused = host.http.put(CONFIG, json=settings_of(guarded, qos=2))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert connected(host)
        (tmp_path / "database").unlink()
        away.rename(directory)
        eventually(lambda: "bucketbell-stale" not in host.http.get(CONFIG).headers)
        assert host.http.put(CONFIG, json=settings_of(guarded, qos=2)).json()["version"] == 2


# Bodies.


def raw(host: Host, head: str, body: bytes = b"", *, timeout_seconds: float = PATIENCE_SECONDS) -> tuple[int, bytes]:
    """Status and rest of the answer to a request that is written by hand; nothing of `body` may have been taken."""
    port = int(host.url.rpartition(":")[2])
    with closing(socket.create_connection(("127.0.0.1", port), timeout=timeout_seconds)) as line:
        line.sendall(head.replace("\n", "\r\n").encode() + body)
        received = b""
        while b"\r\n\r\n" not in received and (part := line.recv(65536)):
            received += part
    return int(received.split(b" ", 2)[1]), received


def head(*fields: str, token: str = ADMIN) -> str:
    """The head of a PUT of settings."""
    lines = [f"PUT {CONFIG} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", "Content-Type: application/json"]
    return "\n".join([*lines, *fields, "", ""])


def test_a_gigabyte_that_is_announced_is_refused_without_reading_it(host: Host) -> None:
    """413 at once, and with `Expect: 100-continue` before a byte of it is sent."""
    for fields in (["Content-Length: 1073741824", "Expect: 100-continue"], ["Content-Length: 1073741824"]):
        began_at = time.monotonic()
        status, answer = raw(host, head(*fields))
        assert status == 413
        assert b"application/problem+json" in answer
        assert time.monotonic() - began_at < LINGER_SECONDS + SLACK_SECONDS


def test_chunks_are_read_up_to_the_limit(host: Host) -> None:
    """A small body in chunks is as good as any; one without end is 413."""
    good = json.dumps({"broker_host": "broker.local", "topic_prefix": "unifi"}).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (good[:10], good[10:])) + b"0\r\n\r\n"
    assert raw(host, head("Transfer-Encoding: chunked"), chunks)[0] == 200
    endless = b"1000\r\n" + b" " * 4096 + b"\r\n"
    assert raw(host, head("Transfer-Encoding: chunked"), endless * (MAX_BODY_BYTES // 4096 + 2))[0] == 413
    assert host.http.get(CONFIG).json()["version"] == 1


def test_a_body_that_does_not_come_is_408(tmp_path: Path) -> None:
    """Within its deadline."""
    with administered(tmp_path, patch="import infra.host.web.protocol as http\nhttp.BODY_SECONDS = 0.3") as host:
        assert raw(host, head("Content-Length: 10"))[0] == 408


def test_a_body_of_another_kind_is_refused(host: Host) -> None:
    """415 for a form; 400 for bytes that are no text."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert host.http.put(CONFIG, content="a=b", headers=form).status_code == 415
    binary = {"Content-Type": "application/json"}
    assert host.http.put(CONFIG, content=b"\xff\xfe\x00", headers=binary).status_code == 400
    assert host.http.get(CONFIG).json()["version"] == 0


def test_a_blackhole_is_answered_in_time(host: Host) -> None:
    """Within the probe's deadline, the whole request."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)  # noqa: FBT003 - socket's own
            one.connect_ex(("127.0.0.1", port))
        began_at = time.monotonic()
        target = {"broker_host": "127.0.0.1", "broker_port": port, "topic_prefix": "unifi"}
        assert host.http.post(TEST, json=target).json()["outcome"] == "silent"
        assert PROBE_SECONDS - 0.5 < time.monotonic() - began_at < PROBE_SECONDS + SLACK_SECONDS
        for one in waiting:
            one.close()


# The document, and Swagger UI.


def test_swagger_ui_comes_from_the_host_itself(host: Host) -> None:
    """Page, script, style and document: nothing from elsewhere, and the browser is told so."""
    page = host.http.get("/docs", headers={"Authorization": ""})
    assert page.status_code == 200
    assert "http" not in page.text.replace("<!DOCTYPE html>", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("docs/swagger-ui.min.css", "docs/swagger-ui-bundle.min.js", "docs/start.js"):
        assert name in page.text
        assert host.http.get(f"/{name}").status_code == 200
    assert "SwaggerUIBundle" in host.http.get("/docs/swagger-ui-bundle.min.js").text
    assert host.http.get("/openapi.json", headers={"Authorization": ""}).json() == document()
    assert host.http.get("/docs/../../etc/passwd").status_code == 404
    assert host.http.get("/docs/x").status_code == 404
    refused = host.http.post("/docs")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_without_a_token_nothing_is_told(host: Host) -> None:
    """401 over HTTP, and the path of events is still the host's own."""
    for method, path in (("GET", CONFIG), ("PUT", CONFIG), ("GET", STATUS), ("POST", TEST)):
        assert host.http.request(method, path, headers={"Authorization": ""}).status_code == 401
    assert host.http.get("/healthz").status_code == 200
