"""Who may post to the real process and read from it: stores by their tokens, and no web page of a stranger."""

from __future__ import annotations

import base64
import hmac
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.hosts import NEXT_TOKEN, TOKEN, Host, environment, eventually, upload
from tests.timing import PATIENCE_SECONDS

EVENTS = Path(__file__).parents[1] / "events"
SHORT = "s" * 19
FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Host": "evil.example"},
]
DOORS = ("/events", "/events/fast")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with tokens, and without a broker: 200 and 202 are all that its doors say."""
    with Host(tmp_path_factory.mktemp("host"), environment(None, LOG_LEVEL="DEBUG")) as running:
        yield running
        for token in (TOKEN, NEXT_TOKEN):
            assert token not in running.log
            assert token not in running.http.get("/metrics").text


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host on loopback without tokens."""
    known = environment(None, WEBHOOK_TOKENS="", PUBLIC_BASE_URL="https://bell.example/x", DEVICE_TOKEN_KEYS="")
    with Host(tmp_path_factory.mktemp("opened"), known) as running:
        yield running


def basic(password: str) -> dict[str, str]:
    """As Versity GW sends it, and Tigris."""
    return {"Authorization": "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()}


@pytest.mark.parametrize("door", DOORS)
def test_a_store_may_present_its_token_as_a_password(host: Host, door: str) -> None:
    """Whoever the user is; a wrong one is 401, as a wrong bearer token."""
    for password, statuses in ((TOKEN, {200, 202}), (NEXT_TOKEN, {200, 202}), (TOKEN[:-1], {401}), ("", {401})):
        assert host.http.post(door, content=upload(), headers=basic(password)).status_code in statuses


def test_a_token_in_the_address_opens_the_doors_alone(host: Host) -> None:
    """For stores that can send no header; the answer does not repeat it, whatever it says, nor does the log."""
    for method, path, status in (
        ("POST", f"/events?token={TOKEN}", 200),
        ("POST", f"/events?a=b&token={NEXT_TOKEN}", 200),
        ("POST", f"/events/fast?token={TOKEN}", 202),
        ("POST", f"/events?token={TOKEN}&token={TOKEN}", 401),
        ("POST", "/events?token=wrong", 401),
        ("POST", f"/events?Token={TOKEN}", 401),
        ("GET", f"/events?token={TOKEN}", 405),
        ("HEAD", f"/events?token={TOKEN}", 200),
        ("OPTIONS", f"/events/fast?token={TOKEN}", 200),
        ("POST", f"/metrics?token={TOKEN}", 405),
        ("GET", f"/metrics?token={TOKEN}", 200),
        ("GET", f"/healthz?token={TOKEN}", 200),
        ("GET", f"/readyz?for=%ff&token={TOKEN}", 400),
        ("POST", f"/nowhere?token={TOKEN}", 404),
        ("POST", f"/events/?token={TOKEN}", 404),
        ("GET", f"/manifest?token={TOKEN}", 503),
        ("GET", f"/assets/x?token={TOKEN}&%ff", 503),
        ("GET", f"/thumbnails/a/b.jpg?token={TOKEN}", 503),
        ("GET", f"/api/v1/why?key=x&token={TOKEN}", 503),
    ):
        answer = host.http.request(method, path, content=upload() if method == "POST" else None)
        assert answer.status_code == status, path
        assert TOKEN not in answer.text + str(answer.headers)
        assert NEXT_TOKEN not in answer.text + str(answer.headers)


def signed(body: bytes, token: str = TOKEN) -> dict[str, str]:
    """As Backblaze B2 signs."""
    return {"X-Bz-Event-Notification-Signature": f"v1={hmac.digest(token.encode(), body, 'sha256').hex()}"}


@pytest.mark.parametrize("door", DOORS)
def test_a_store_may_sign_with_its_token(host: Host, door: str) -> None:
    """Over exactly what is sent; a forged signature is 401, counted, and said once a minute."""
    body = (EVENTS / "b2-several.json").read_bytes()
    before = host.metric("events_total", outcome="unauthorised")
    for headers, sent, statuses in (
        (signed(body), body, {200, 202}),
        (signed(body, NEXT_TOKEN), body, {200, 202}),
        (signed(body, TOKEN[:-1]), body, {401}),
        (signed(body), body + b" ", {401}),
        ({"X-Bz-Event-Notification-Signature": "v1=" + "0" * 64}, body, {401}),
        (signed(b""), b"", {200, 202}),
        (signed(body), b"x" * 300_000, {413}),
    ):
        answer = host.http.post(door, content=sent, headers=headers)
        assert answer.status_code in statuses, headers
    assert host.metric("events_total", outcome="unauthorised") == before + 3


def test_signed_bodies_that_nobody_finishes_hold_little(host: Host) -> None:
    """Of strangers' bodies only so much is kept, however many bring one; those of stores are not counted among them."""
    lines = [f"Host: 127.0.0.1:{host.port}", *(f"{name}: {value}" for name, value in signed(b"").items())]
    head = "\r\n".join(["POST /events HTTP/1.1", *lines, "Content-Length: 262144", "", ""]).encode()
    with ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", host.port))) for _ in range(100)]
        for sock in crowd:
            with suppress(ConnectionError):
                sock.sendall(head + b"x" * 250_000)
        eventually(lambda: _let_go(crowd) > 20)
        assert _let_go(crowd) < len(crowd)
        body = upload()
        assert host.http.post("/events", content=body, headers=signed(body)).status_code == 200
        assert host.post(upload()).status_code == 200


def _let_go(crowd: list[socket.socket]) -> int:
    """On how many the host has hung up without a word."""
    count = 0
    for sock in crowd:
        sock.setblocking(False)  # noqa: FBT003 - socket's own
        with suppress(BlockingIOError):
            try:
                count += sock.recv(1, socket.MSG_PEEK) == b""
            except ConnectionError:
                count += 1
    return count


def test_probes_are_answered_by_the_process(host: Host) -> None:
    """RustFS asks for the origin's head; a sender of CloudEvents whether it may send."""
    assert host.http.head("/").status_code == 200
    for door in DOORS:
        assert host.http.head(door).status_code == 200
        handshake = host.http.options(door, headers={"WebHook-Request-Origin": "store.example"})
        assert (handshake.status_code, handshake.headers["WebHook-Allowed-Origin"]) == (200, "*")
        assert not [name for name in handshake.headers if name.lower().startswith("access-control")]


def test_a_header_goes_before_the_address(host: Host) -> None:
    """A wrong one is not made good by what is in the address."""
    assert host.http.post(f"/events?token={TOKEN}", content=upload(), headers=basic("wrong")).status_code == 401


@pytest.mark.parametrize("door", DOORS)
def test_short_webhook_tokens_are_not_asked_for_by_who_guesses(tmp_path: Path, door: str) -> None:
    """429 with the time to wait, which a store's queue keeps; the long one goes on, and the start has warned."""
    with Host(tmp_path, environment(None, WEBHOOK_TOKENS=f"{TOKEN},{SHORT}")) as host:
        assert host.post(upload(), door, SHORT).status_code in {200, 202}
        assert [host.post(upload(), door, f"guess-{number}").status_code for number in range(30)] == [401] * 30
        refused = host.post(upload(), door, SHORT)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        assert host.post(upload(), door, TOKEN).status_code in {200, 202}
        (warning,) = [line for line in host.lines("WARNING") if "short" in line["message"]]
        assert warning["variable"] == "WEBHOOK_TOKENS"
        assert SHORT not in host.log


def test_a_trusted_proxys_clients_are_told_apart(tmp_path: Path) -> None:
    """One that guesses shuts the short secret out for itself; the header of anybody else is not believed."""
    known = environment(None, WEBHOOK_TOKENS=SHORT, TRUSTED_PROXIES="127.0.0.0/8")

    def post(host: Host, client: str, token: str) -> int:
        headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": client}
        return host.http.post("/events", content=upload(), headers=headers).status_code

    with Host(tmp_path, known) as host:
        for number in range(30):
            assert post(host, "198.51.100.1", f"guess-{number}") == 401
        assert [post(host, client, SHORT) for client in ("198.51.100.1", "198.51.100.2")] == [429, 200]


def raw(host: Host, path: str, fields: dict[str, str], method: str = "POST") -> tuple[int, bytes]:
    """One answer to exactly these fields, sent in one piece as a store does."""
    body = upload() if method == "POST" else b""
    lines = [f"{name}: {value}" for name, value in ({"Host": f"127.0.0.1:{host.port}"} | fields).items()]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, f"Content-Length: {len(body)}"])
    with socket.create_connection(("127.0.0.1", host.port), timeout=PATIENCE_SECONDS) as sock:
        sock.sendall(head.encode() + b"\r\n\r\n" + body)
        answer = http.client.HTTPResponse(sock, method=method)
        answer.begin()
        return answer.status, answer.read()


@pytest.mark.parametrize("fields", FOREIGN, ids=str)
@pytest.mark.parametrize(("method", "path"), [*(("POST", door) for door in DOORS), ("GET", "/metrics"), ("GET", "/x")])
def test_without_tokens_a_strange_web_page_is_refused(
    opened: Host, method: str, path: str, fields: dict[str, str]
) -> None:
    """Any page in that machine's browser could ring, or read, by another name that leads here."""
    before = opened.metric("strangers_total", reason="foreign_page")
    status, body = raw(opened, path, fields, method)
    assert status == 403
    assert "WEBHOOK_TOKENS" in json.loads(body)["detail"]
    assert opened.metric("strangers_total", reason="foreign_page") == before + 1


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "own", [{}, {"Host": "localhost"}, {"Host": "bell.example", "Origin": "https://bell.example"}, {"Host": "[::1]:80"}]
)
def test_without_tokens_this_machines_programs_are_let_in(opened: Host, door: str, own: dict[str, str]) -> None:
    """And whoever comes by PUBLIC_BASE_URL; on a kept connection too, where the fast door is short."""
    assert raw(opened, door, own)[0] in {200, 202}
    with httpx.Client(base_url=opened.url, trust_env=False) as client:
        assert [client.post(door, content=upload()).status_code in {200, 202} for _ in range(3)] == [True] * 3


def test_with_tokens_a_pages_origin_says_nothing(host: Host) -> None:
    """The token decides."""
    for fields in FOREIGN:
        assert raw(host, "/events", {**fields, "Authorization": f"Bearer {TOKEN}"})[0] == 200
        assert raw(host, "/events", fields)[0] == 401


def test_swagger_ui_is_there_with_an_administrator_only(opened: Host) -> None:
    """Without ADMIN_TOKENS there is nothing that it could be used for; the document itself is no secret."""
    for path in ("/docs", "/docs/swagger-ui-bundle.min.js", "/docs/start.js"):
        assert opened.http.get(path).status_code == 404
    assert opened.http.get("/openapi.json").status_code == 200
