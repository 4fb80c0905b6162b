"""What the host serves, by path, method and where a request comes from."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator, Mapping
from http import HTTPStatus

import pytest

from functions.devices.api import router as devices_router
from functions.devices.downloads import Downloads
from functions.events.routes import Routes
from functions.mqtt.broker import BrokerConfig
from functions.settings import load
from functions.web.messages import Problem, Reply, Request
from functions.web.router import Route, Router, unforeseen
from infra.host.bell import Bell
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.publisher import HostPublisher
from infra.host.web.door import door_for
from infra.host.web.entrance import SIGNATURE, Entrance, Gate, StoreGate
from infra.host.web.limited_router import LimitedRouter
from infra.host.web.origin import TrustedProxies
from infra.host.web.site import MAX_BODY_BYTES, MAX_SIGNED_BYTES, HostSite
from tests.hosts import TOKEN, event, on_uvloop

KEY = f"k:{base64.b64encode(bytes(32)).decode()}"
ADMIN = "an-administrators-token-0123456789"
OTHER = "another-token-of-thirty-two-letters"
DOORS = ("/events", "/events/fast")
HOME, ABROAD = "192.0.2.1", "203.0.113.9"


def site(
    *tokens: str,
    routers: tuple[LimitedRouter[None], ...] = (),
    proxies: TrustedProxies | None = None,
    broker: BrokerConfig | None = None,
    settings: Mapping[str, str] | None = None,
) -> HostSite:
    """A host's site, not started: without a broker, or with one that is down."""
    telemetry = PrometheusTelemetry()
    publisher = HostPublisher(broker, telemetry)
    bell = Bell(publisher, Routes(), telemetry, patience_seconds=1.0)
    stores = StoreGate(tokens, Entrance(tokens))
    downloads = Downloads.of(load(settings or {}).settings)
    return HostSite(bell, publisher, telemetry, stores=stores, downloads=downloads, routers=routers, proxies=proxies)


def ask(where: HostSite, request: Request) -> Reply:
    """What is answered at once."""
    replies: list[Reply] = []
    try:
        door_for(request, where).enter(request, replies.append)
    except Problem as problem:
        return problem.reply
    (reply,) = replies
    return reply


def detail(reply: Reply) -> str:
    """What a problem says."""
    assert reply.content_type == "application/problem+json"
    document = json.loads(reply.body)
    assert (document["status"], document["title"]) == (reply.status, reply.status.phrase)
    return str(document["detail"])


@on_uvloop
async def test_without_a_broker_events_are_accepted_and_nothing_is_done() -> None:
    """A store must not repeat them for ever."""
    sure = ask(site(), Request("POST", "/events", body=event()))
    assert (sure.status, sure.body) == (200, '{"outcomes": []}')
    assert ask(site(), Request("POST", "/events/fast", body=event())).status == 202


@on_uvloop
async def test_what_is_for_watching_answers_without_a_token() -> None:
    """Alive, ready where nothing is to be connected, and metrics; a HEAD as a GET."""
    where = site(TOKEN)
    for method in ("GET", "HEAD"):
        alive, ready, metrics = (ask(where, Request(method, path)) for path in ("/healthz", "/readyz", "/metrics"))
        assert json.loads(alive.body) == {"alive": True, "mqtt": {"configured": False}}
        assert json.loads(ready.body) == {"ready": True, "mqtt": {"configured": False}}
        assert metrics.content_type.startswith("text/plain")


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"BUCKET": "devices", "DEVICE_TOKEN_KEYS": KEY}, ""),
        ({"BUCKET": "devices", "ADMIN_TOKENS": ADMIN}, ""),
        ({"ADMIN_TOKENS": ADMIN}, ""),
        ({}, "BUCKET"),
        ({"DEVICE_TOKEN_KEYS": KEY}, "BUCKET"),
        ({"DEVICE_TOKEN_KEYS": KEY, "ADMIN_TOKENS": ADMIN}, "BUCKET"),
        ({"BUCKET": "devices"}, "DEVICE_TOKEN_KEYS"),
    ],
)
def test_a_broker_that_is_down_takes_no_downloads_out_of_a_balancer(settings: dict[str, str], missing: str) -> None:
    """`?for=downloads` goes by the settings of downloads, or else of the administration, and names what is missing."""
    for broker in (None, BrokerConfig("127.0.0.1", 9)):
        where = site(TOKEN, broker=broker, settings=settings)
        assert ask(where, Request("GET", "/readyz")).status == (503 if broker else 200)
        for method in ("GET", "HEAD"):
            reply = ask(where, Request(method, "/readyz", "for=downloads"))
            assert reply.status == (503 if missing else 200)
            assert json.loads(reply.body)["ready"] is not bool(missing)
            assert missing in str(reply.body)


@pytest.mark.parametrize("query", ["for=", "for=uploads", "for=Downloads", "for=downloads&for=downloads", "for=%ff"])
def test_readiness_for_what_nobody_knows_is_no_question(query: str) -> None:
    """400: a misspelt probe would be answered for something else, for years."""
    reply = ask(site(TOKEN), Request("GET", "/readyz", query))
    assert reply.status == 400
    assert detail(reply)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/events", "POST, HEAD, OPTIONS"),
        ("PUT", "/events/fast", "POST, HEAD, OPTIONS"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_there_are(method: str, path: str, allow: str) -> None:
    """405 with Allow, before a token is asked for."""
    reply = ask(site(TOKEN), Request(method, path))
    assert (reply.status, reply.headers["Allow"]) == (405, allow)
    assert allow in detail(reply)


@pytest.mark.parametrize("path", ["/", "/nowhere", "/events/", "/events/slow", "//events", "/metrics/x", "*"])
def test_what_is_nowhere_is_told_where_to_look(path: str) -> None:
    """404."""
    reply = ask(site(), Request("POST", path))
    assert reply.status == 404
    assert "/events" in detail(reply)


@pytest.mark.parametrize("door", ["/events", "/events/fast"])
def test_a_store_without_a_token_is_refused_before_its_body_is_read(door: str) -> None:
    """401, and the connection ends; with one, so much is read."""
    where = site(TOKEN)
    for headers in ({}, {"authorization": "Bearer wrong"}):
        request = Request("POST", door, headers=headers)
        assert door_for(request, where).max_body_bytes == 0
        reply = ask(where, request)
        assert (reply.status, reply.headers["WWW-Authenticate"], reply.closes) == (401, "Bearer", True)
        assert "WEBHOOK_TOKENS" in detail(reply)
    let_in = Request("POST", door, headers={"authorization": f"Bearer {TOKEN}"})
    assert door_for(let_in, where).max_body_bytes == MAX_BODY_BYTES


@pytest.mark.parametrize("door", DOORS)
def test_a_token_in_the_address_opens_the_doors(door: str) -> None:
    """For stores that can only be told an address; beside a header it does not count."""
    where = site(TOKEN)
    assert door_for(Request("POST", door, f"token={TOKEN}"), where).max_body_bytes == MAX_BODY_BYTES
    for authorization in ("Bearer wrong", "Basic", "Digest x", ""):
        wrong = Request("POST", door, f"token={TOKEN}", {"authorization": authorization})
        assert ask(where, wrong).status == 401


def signed(body: bytes, token: str = TOKEN, **headers: str) -> dict[str, str]:
    """As Backblaze B2 signs."""
    return {SIGNATURE: f"v1={hmac.digest(token.encode(), body, 'sha256').hex()}"} | headers


@on_uvloop
async def test_a_signed_body_is_let_in_once_it_is_there() -> None:
    """By any of the tokens; of a body that nobody has verified less is read."""
    where, body = site(TOKEN, OTHER), event()
    for token in (TOKEN, OTHER):
        for path, status in zip(DOORS, (200, 202), strict=True):
            request = Request("POST", path, headers=signed(body, token), body=body)
            door = door_for(request, where)
            assert (door.max_body_bytes, door.is_strangers) == (MAX_SIGNED_BYTES, True)
            assert ask(where, request).status == status


@pytest.mark.parametrize(
    "signature",
    [
        "v1=" + "0" * 64,
        "v1=",
        "v1",
        "=",
        "\xff",
        "{right}=",
        "v2={digest}",
        "{digest}",
        "v1={digest},v1={digest}",
        "v1={other}",
    ],
)
def test_a_forged_signature_is_refused_in_clear_words(signature: str) -> None:
    """401, and the connection ends. What is right is not told."""
    body = event()
    digest, other = (signed(one)[SIGNATURE].partition("=")[2] for one in (body, body + b" "))
    value = signature.format(digest=digest, other=other, right=f"v1={digest}")
    reply = ask(site(TOKEN), Request("POST", "/events", headers={SIGNATURE: value}, body=body))
    assert (reply.status, reply.headers["WWW-Authenticate"], reply.closes) == (401, "Bearer", True)
    assert "WEBHOOK_TOKENS" in detail(reply)
    assert digest not in str(reply)


@on_uvloop
async def test_a_signature_does_not_make_good_a_wrong_header_nor_does_it_spoil_a_right_one() -> None:
    """Where a store sends both, the header decides; and no token in the address helps a wrong signature."""
    body, wrong = event(), {SIGNATURE: "v1=" + "0" * 64}
    for headers, query, status in (
        (signed(body, authorization="Bearer wrong"), "", 401),
        (wrong | {"authorization": f"Bearer {TOKEN}"}, "", 200),
        (wrong, f"token={TOKEN}", 401),
    ):
        assert ask(site(TOKEN), Request("POST", "/events", query, headers, body)).status == status
    assert ask(site(), Request("POST", "/events", headers=wrong, body=body)).status == 200  # nothing is asked for


def test_a_signature_may_be_upper_case_and_one_alone() -> None:
    """Hexadecimal digits have no case."""
    body = event()
    headers = {SIGNATURE: "v1=" + signed(body)[SIGNATURE][3:].upper()}
    StoreGate([TOKEN], Entrance([TOKEN])).admit_signed(headers[SIGNATURE], body, HOME)


@pytest.mark.parametrize("tokens", [(), (TOKEN,)], ids=["open", "tokens"])
@pytest.mark.parametrize("query", ["", f"token={TOKEN}", "token=wrong"])
def test_a_probe_is_answered_and_learns_nothing(tokens: tuple[str, ...], query: str) -> None:
    """HEAD at the doors and at the origin, OPTIONS at the doors: whoever asks, whatever it presents."""
    for headers in ({}, {"authorization": f"Bearer {TOKEN}"}, {"authorization": "Bearer wrong"}):
        for path in (*DOORS, "/"):
            reply = ask(site(*tokens), Request("HEAD", path, query, headers))
            assert (reply.status, reply.headers, reply.body) == (200, {}, "")
        asking = headers | {"webhook-request-origin": "store.example", "webhook-request-rate": "120"}
        for path in DOORS:
            reply = ask(site(*tokens), Request("OPTIONS", path, query, asking))
            allowed = {"WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "*"}
            assert (reply.status, reply.headers, reply.body) == (200, {"Allow": "POST, HEAD, OPTIONS"} | allowed, "")


def test_nothing_else_answers_at_the_origin() -> None:
    """What is served there is others' business."""
    for method in ("GET", "POST", "OPTIONS"):
        assert ask(site(TOKEN), Request(method, "/")).status == 404


def test_where_no_token_is_asked_for_a_strange_page_is_refused() -> None:
    """At any path, since it shows what only this machine may see; with tokens, those decide."""
    page = {"host": "evil.example"}
    for method, path in (
        ("POST", "/events"),
        ("POST", "/metrics"),
        ("POST", "/nowhere"),
        ("OPTIONS", "/events"),
        ("HEAD", "/"),
    ):
        reply = ask(site(), Request(method, path, headers=page))
        assert (reply.status, reply.closes) == (403, True)
        assert "WEBHOOK_TOKENS" in detail(reply)
    assert ask(site(TOKEN), Request("GET", "/healthz", headers=page)).status == 200


@pytest.fixture
def public() -> Iterator[LimitedRouter[None]]:
    """A router that answers anybody, once a minute."""
    routes: tuple[Route[None], ...] = (
        Route(("GET",), "/files/*", lambda *_: Reply(HTTPStatus.OK, {}), is_public=True),
    )
    router = Router("sample", routes, admit=lambda _: None, hint="", explain=unforeseen)
    limited = LimitedRouter(router, Gate(Entrance(), lambda _: None), requests_per_minute=1)
    yield limited
    limited.close()


def test_a_trusted_proxys_clients_have_shares_of_their_own(public: LimitedRouter[None]) -> None:
    """By the address that the proxy names; what somebody else says of itself is not believed."""
    where = site(TOKEN, routers=(public,), proxies=TrustedProxies([HOME]))

    def status(client: str, peer: str = HOME) -> int:
        return ask(where, Request("GET", "/files/a", headers={"x-forwarded-for": client}, address=peer)).status.value

    assert [status("198.51.100.1"), status("198.51.100.2")] == [200, 200]
    assert status("198.51.100.1") == 429
    assert [status(f"203.0.113.{number}", ABROAD) for number in range(2)] == [200, 429]


def test_a_store_behind_a_trusted_proxy_is_known_by_its_own_address() -> None:
    """One that guesses short tokens shuts out nobody else."""
    short = "sixteen-letters."
    where = site(short, proxies=TrustedProxies([HOME]))

    def status(token: str, client: str) -> int:
        headers = {"authorization": f"Bearer {token}", "x-forwarded-for": client}
        return ask(where, Request("POST", "/events", headers=headers, address=HOME)).status.value

    assert {status("wrong", "198.51.100.1") for _ in range(30)} == {401}
    assert status("wrong", "198.51.100.1") == 429
    right = {"authorization": f"Bearer {short}", "x-forwarded-for": "198.51.100.2"}
    assert door_for(Request("POST", "/events", headers=right, address=HOME), where).max_body_bytes == MAX_BODY_BYTES


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/configs/x", True),
        ("/assets/x", True),
        ("/assets", True),
        ("/thumbnails/a/b.jpg", True),
        ("/manifest", True),
        ("/", False),
        ("/configs", False),
        ("/events", False),
        ("//assets/x", False),
        ("/metrics", False),
        ("assets/x", False),
    ],
)
def test_only_paths_of_files_are_the_devices(path: str, *, expected: bool) -> None:
    """The rest is the host's own."""
    assert devices_router(Downloads.of(load({}).settings)).takes(path) is expected
