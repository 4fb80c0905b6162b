"""Where one request ends and the next begins: nobody can make the host and others disagree, or lose an event by it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import time
from collections.abc import Iterator

import pytest

from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber
from tests.hostile.searching import FUZZ
from tests.hostile.wire import (
    AUTHORIZATION,
    LAST_STATUS,
    Answer,
    chunked,
    connected,
    hear,
    next_answer,
    post,
    request,
    statuses,
)
from tests.hosts import TOPICS, Host, environment, upload

SHORT = "from infra.host.web import protocol\nprotocol.BODY_SECONDS = protocol.HEADER_SECONDS = 1.0"
EVENT = b"POST /events HTTP/1.1"
CHUNKED = b"Transfer-Encoding: chunked"
SMUGGLED = request(b"GET /smuggled HTTP/1.1")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, broker: Mosquitto) -> Iterator[Host]:
    """A host whose log stays clean whatever is thrown at it."""
    with Host(tmp_path_factory.mktemp("host"), environment(broker.url), patch=SHORT) as running:
        yield running
        assert running.http.get("/healthz").status_code == 200
        assert not [line for line in running.lines("ERROR") if line.get("outcome") != "malformed"]  # `{}` is no event
        assert not [
            line for line in running.lines("WARNING") if "HTTP" in line["message"]
        ]  # else a log could be filled
        assert "Traceback" not in running.log


@pytest.fixture
def listener(broker: Mosquitto) -> Iterator[Subscriber]:
    """Hears both topics."""
    with Subscriber(broker.url, TOPICS) as subscriber:
        yield subscriber


REFUSED = [400]
ONE = [200, LAST_STATUS]  # one answer, and the connection is as good as before

_LENGTHS = {
    "twice the same": (b"Content-Length: 2\r\nContent-Length: 2", REFUSED),
    "twice": (b"Content-Length: 2\r\nContent-Length: 40", REFUSED),
    "a list": (b"Content-Length: 2, 2", REFUSED),
    "negative": (b"Content-Length: -2", REFUSED),
    "signed": (b"Content-Length: +2", REFUSED),
    "hexadecimal": (b"Content-Length: 0x2", REFUSED),
    "underscored": (b"Content-Length: 0_2", REFUSED),
    "a fraction": (b"Content-Length: 2.0", REFUSED),
    "empty": (b"Content-Length:", REFUSED),
    "beyond 64 bits": (b"Content-Length: 18446744073709551616", REFUSED),
    "with 5,000 zeros": (b"Content-Length: " + b"0" * 5000 + b"2", ONE),
    "blank before the colon": (b"Content-Length : 2", REFUSED),
    "folded": (b"Content-Length:\r\n 2", REFUSED),
    "behind a lone CR": (b"X: y\rContent-Length: 2", REFUSED),
    "behind a NUL": (b"X: y\0Content-Length: 2", REFUSED),
    "with chunks": (b"Content-Length: 2\r\nTransfer-Encoding: chunked", REFUSED),
    "behind chunks": (b"Transfer-Encoding: chunked\r\nContent-Length: 2", REFUSED),
}


@pytest.mark.parametrize(("fields", "expected"), _LENGTHS.values(), ids=_LENGTHS.keys())
def test_a_length_that_is_no_length_ends_the_connection(host: Host, fields: bytes, expected: list[int]) -> None:
    """400 and no word about what follows: whatever it is, it was never agreed to be a request."""
    assert (
        statuses(host, request(EVENT, AUTHORIZATION, fields, body=b"{}" + (SMUGGLED if expected == REFUSED else b"")))
        == expected
    )


def test_zeros_in_front_of_a_length_are_no_error_of_ours(host: Host) -> None:
    """Python reads no number of more than 4,300 digits: it was a 500 to anybody, without a token."""
    zeros = b"Content-Length: " + b"0" * 6000 + b"2"
    assert statuses(host, request(EVENT, zeros, body=b"{}")) == [401]


_CODINGS = {
    "unknown": (b"Transfer-Encoding: xchunked", REFUSED),
    "not chunked last": (b"Transfer-Encoding: chunked, identity", REFUSED),
    "not chunked at all": (b"Transfer-Encoding: gzip", REFUSED),
    "twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", REFUSED),
    "quoted": (b'Transfer-Encoding: "chunked"', REFUSED),
    "behind a vertical tab": (b"Transfer-Encoding: \x0bchunked", REFUSED),
    "a list with nothing": (b"Transfer-Encoding: chunked,", REFUSED),
    "blank before the colon": (b"Transfer-Encoding : chunked", REFUSED),
    "another case": (b"tRANSFER-eNCODING: cHUNKED", ONE),
}


@pytest.mark.parametrize(("field", "expected"), _CODINGS.values(), ids=_CODINGS.keys())
def test_only_chunks_are_chunks(host: Host, field: bytes, expected: list[int]) -> None:
    """Another server may read such a field otherwise: nothing behind it is read."""
    body = b"2\r\n{}\r\n0\r\n\r\n" + (SMUGGLED if expected == REFUSED else b"")
    assert statuses(host, request(EVENT, AUTHORIZATION, field, body=body)) == expected


_CHUNKS = {
    "prefixed": (b"0x2\r\n{}\r\n0\r\n\r\n", REFUSED),
    "signed": (b"+2\r\n{}\r\n0\r\n\r\n", REFUSED),
    "negative": (b"-2\r\n{}\r\n0\r\n\r\n", REFUSED),
    "blank in front": (b" 2\r\n{}\r\n0\r\n\r\n", REFUSED),
    "blank behind": (b"2 \r\n{}\r\n0\r\n\r\n", REFUSED),
    "no size": (b"\r\n{}\r\n0\r\n\r\n", REFUSED),
    "no hex": (b"g\r\n{}\r\n0\r\n\r\n", REFUSED),
    "beyond 64 bits": (b"FFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n", REFUSED),
    "too short": (b"1\r\n{}\r\n0\r\n\r\n", REFUSED),
    "ended by LF": (b"2\n{}\n0\n\n", REFUSED),
    "an extension ended by LF": (b"2;x\n{}\r\n0\r\n\r\n", REFUSED),
    "a trailer that is a length": (b"2\r\n{}\r\n0\r\nContent-Length: abc\r\n\r\n", REFUSED),
    "an extension": (b'2;name="value"\r\n{}\r\n0\r\n\r\n', ONE),
    "a long extension": (b"2;" + b"x" * 100_000 + b"\r\n{}\r\n0\r\n\r\n", ONE),
    "zeros in front": (b"0" * 5000 + b"2\r\n{}\r\n0\r\n\r\n", ONE),
    "a trailer": (b"2\r\n{}\r\n0\r\nX-Checksum: 1\r\n\r\n", ONE),
    "10,000 trailers": (b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 10_000 + b"\r\n", ONE),
    "2 MiB of trailers": (b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 350_000 + b"\r\n", None),
    "one endless trailer": (b"2\r\n{}\r\n0\r\na: " + b"b" * 3_000_000, None),
    "an endless extension": (b"2;" + b"x" * 3_000_000, None),
    "an endless size": (b"0" * 3_000_000, None),
}


@pytest.mark.parametrize(("body", "expected"), _CHUNKS.values(), ids=_CHUNKS.keys())
def test_chunks_are_what_the_rfc_says_and_no_bombs(host: Host, body: bytes, expected: list[int] | None) -> None:
    """RFC 9112 §7.1 to the letter; what holds no byte of the body is bounded (None: refused, once it is too much)."""
    heard = statuses(host, request(EVENT, AUTHORIZATION, CHUNKED, body=body))
    assert heard in ([expected] if expected else [REFUSED, []])


def test_a_chunk_of_eight_exabytes_is_408_in_time(host: Host) -> None:
    """Nothing is set aside for what was only announced."""
    heard = statuses(host, request(EVENT, AUTHORIZATION, CHUNKED, body=b"7FFFFFFFFFFFFFFF\r\n{}"))
    assert heard == [408]


def test_endless_chunks_are_413(host: Host) -> None:
    """However small: their sum is what counts."""
    body = b"400\r\n" + b"x" * 1024 + b"\r\n"
    with connected(host, request(EVENT, AUTHORIZATION, CHUNKED, body=body * 4200)) as sock:
        assert [answer.status for answer in hear(sock)] == [413]


def test_a_trailer_is_no_header(host: Host) -> None:
    """A token behind the body does not open a door."""
    assert statuses(host, request(EVENT, CHUNKED, body=b"2\r\n{}\r\n0\r\n" + AUTHORIZATION + b"\r\n\r\n")) == [401]


@pytest.mark.parametrize("lie", [-1, +1, +len(SMUGGLED)], ids=["one less", "one more", "the next request's"])
def test_a_wrong_length_costs_its_sender_only(host: Host, listener: Subscriber, lie: int) -> None:
    """Bytes too many are no request, bytes too few are waited for in vain; the next connection's event rings."""
    body = upload()
    said = request(EVENT, AUTHORIZATION, b"Content-Length: %d" % (len(body) + lie), body=body)
    with connected(host, said + (SMUGGLED if lie > 1 else b"")) as sock:
        if lie == -1:
            sock.sendall(b"\r\n" + SMUGGLED)
        elif lie > 1:
            sock.shutdown(socket.SHUT_WR)
        heard = [answer.status for answer in hear(sock)]
    # Half an event is none: it is acknowledged, or a store would send it for ever; "}" begins no request.
    assert heard in {-1: ([200, 400], [200]), 1: ([408],), len(SMUGGLED): ([200],)}[lie]
    assert statuses(host, post(upload("assets/next.bin"))) == ONE
    assert json.loads(listener.next().payload) == {"filename": "next.bin"}


_TARGETS = {
    b"/healthz": 200,
    b"http://elsewhere/healthz": 200,  # RFC 9112 §3.2.2
    b"http://elsewhere/healthz?x#y": 200,
    b"/healthz#fragment": 200,
    b"/%68ealthz": 200,
    b"*": 404,
    b"//healthz": 404,
    b"/healthz/": 404,
    b"/healthz/..": 404,
    b"/../healthz": 404,
    b"/healthz%00": 404,
    b"/healthz%0d%0aX-Y:%20z": 404,
    b"/%ff%fe": 404,
    b"/%": 404,
    b"/%zz": 404,
    b"/" + b"a/" * 30_000: 404,
    b"healthz": 400,
    b"?x": 400,
    b"http://elsewhere": 400,
    b"http://[::1/healthz": 400,
    b"http://x:99999/healthz": 400,
    b"elsewhere:80": 400,
    b"/a b": 400,
    b"/\xff": 400,
    b"/\0": 400,
    b"/a\tb": 400,
    b"": 400,
}


@pytest.mark.parametrize(("target", "status"), _TARGETS.items(), ids=lambda value: repr(value)[:24])
def test_a_target_is_a_path_or_nothing(host: Host, target: bytes, status: int) -> None:
    """Every form of RFC 9112 §3.2, and none beyond."""
    heard = statuses(host, request(b"GET %b HTTP/1.1" % target))
    assert heard == ([400] if status == 400 else [status, LAST_STATUS])


_STRANGERS = {
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(range(189)),
    "MQTT": bytes.fromhex("101000044d5154540502003c000000000000"),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "SOCKS": b"\x05\x01\x00",
    "PROXY": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET /healthz HTTP/1.1\r\n\r\n",
    "SMTP": b"EHLO bell\r\n",
    "NULs": b"\0" * 5000,
    "noise": hashlib.shake_256(b"noise").digest(20_000),
    "line ends": b"\r\n" * 5000,
    "LF only": b"GET /healthz HTTP/1.1\nHost: bell\n\n",
    "HTTP/0.9": b"GET /healthz\r\n",
    "HTTP/1.7": b"GET /healthz HTTP/1.7\r\nHost: bell\r\n\r\n",
    "an unknown method": b"RING /events HTTP/1.1\r\nHost: bell\r\n\r\n",
    "a method in lower case": b"get /healthz HTTP/1.1\r\nHost: bell\r\n\r\n",
    "CONNECT": b"CONNECT elsewhere:80 HTTP/1.1\r\nHost: bell\r\n\r\n",
    "CONNECT to a path": b"CONNECT /healthz HTTP/1.1\r\nHost: bell\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("said", _STRANGERS.values(), ids=_STRANGERS.keys())
def test_another_protocol_is_400_or_nothing(host: Host, said: bytes) -> None:
    """And the connection ends, at the latest with the time for a header."""
    assert statuses(host, said) in ([400], [])


@pytest.mark.parametrize(
    "fields",
    [
        [b"a: " + b"x" * (400 << 10)],
        [b"x" * (400 << 10) + b": a"],
        [b"a: b"] * 10_000,
        [b"a%d:" % n for n in range(300)],
    ],
    ids=["a long value", "a long name", "10,000 fields", "300 empty fields"],
)
def test_a_header_is_bounded(host: Host, fields: list[bytes]) -> None:
    """431, and what is being sent still does not reset the connection before that is read."""
    assert statuses(host, request(b"GET /manifest HTTP/1.1", *fields)) == [431]


@pytest.mark.parametrize("door", ["/events", "/events/fast"])
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.2"])
def test_an_upgrade_is_declined_and_its_body_stays_one(
    host: Host, listener: Subscriber, door: str, pieces: int, protocol: bytes
) -> None:
    """RFC 9110 §7.8. Java's client asks for h2c with its first request: the event was lost, acknowledged as empty.

    And what came in a second piece was taken for the next request.
    """
    name = f"{protocol.hex()}{door.replace('/', '-')}-{pieces}.bin"
    upgrade = [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + protocol, b"HTTP2-Settings: AAEAAEAAAAIAAAAB"]
    said = post(upload(f"assets/{name}"), door, *upgrade)
    parts = [said, SMUGGLED] if pieces == 1 else [said[:-40], said[-40:-7], said[-7:] + SMUGGLED]
    with connected(host) as sock:
        for part in parts:
            sock.sendall(part)
            time.sleep(0.02)
        sock.shutdown(socket.SHUT_WR)
        assert [answer.status for answer in hear(sock)] == [202 if "fast" in door else 200, 404]
    assert json.loads(listener.next().payload) == {"filename": name}
    assert listener.drain() == []


def test_what_follows_an_upgrade_in_the_same_piece_is_answered(host: Host) -> None:
    """It is as much a request as any other."""
    upgrade = request(b"GET /healthz HTTP/1.1", b"Connection: upgrade", b"Upgrade: websocket")
    assert statuses(host, upgrade + request(b"GET /metrics HTTP/1.1")) == [200, 200, LAST_STATUS]


def test_what_cannot_be_read_does_not_overtake_the_answers_before_it(host: Host, listener: Subscriber) -> None:
    """The events before it ring and are answered; then the connection ends. 400 came first, and the answers never."""
    good = [post(upload(f"assets/before-{n}.bin")) for n in range(3)]
    assert statuses(host, b"".join(good) + b"GARBAGE\r\n\r\n" + SMUGGLED) == [200] * 3
    broken = request(EVENT, AUTHORIZATION, CHUNKED, body=b"2\r\n{}\r\nzz\r\n")
    good = [post(upload(f"assets/before-{n}.bin")) for n in range(3, 6)]
    assert statuses(host, b"".join(good) + broken + SMUGGLED) == [200] * 3
    heard = [json.loads(message.payload)["filename"] for message in listener.wait_for(6)]
    assert heard == [f"before-{n}.bin" for n in range(6)]


def test_a_body_that_breaks_after_its_answer_gets_no_second_one(host: Host) -> None:
    """`/healthz` answers before the body is there: what is wrong with that only ends the connection."""
    with connected(host, request(b"GET /healthz HTTP/1.1", CHUNKED)) as sock, sock.makefile("rb") as stream:
        answer = next_answer(stream)
        assert answer is not None
        assert answer.status == 200
        sock.sendall(b"zz\r\n" + SMUGGLED)
        assert next_answer(stream) is None


def test_a_half_closed_connection_hears_its_answers(host: Host, listener: Subscriber) -> None:
    """A client that has said all it wants may still listen (RFC 9112 §9.6); one that broke off is not waited for."""
    said = post(upload("assets/half.bin")) + post(upload("assets/closed.bin"), "/events/fast")
    assert statuses(host, said, half_close=True) == [200, 202]
    assert {json.loads(message.payload)["filename"] for message in listener.wait_for(2)} == {"half.bin", "closed.bin"}
    begun_at = time.monotonic()
    for unfinished in (b"", b"POST /ev", said[:-3], request(EVENT, AUTHORIZATION, CHUNKED, body=b"5\r\nab")):
        assert statuses(host, unfinished, half_close=True) in ([], [200])
    assert time.monotonic() - begun_at < 8


@pytest.mark.parametrize("door", ["/events", "/events/fast"])
def test_a_large_body_in_front_is_no_part_of_the_next_header(host: Host, door: str) -> None:
    """Both arrived in one read, the header cut: it was refused as too large, by the bytes of the body."""
    large = post(upload() + b" " * 200_000, door)
    event = post(upload(), door)
    status = 202 if "fast" in door else 200
    for cut in (20, 60, 120):
        assert statuses(host, large + event[:cut], event[cut:])[:2] == [status, status]


def test_nothing_behind_the_last_request_is_read(host: Host, listener: Subscriber) -> None:
    """`Connection: close`, or HTTP/1.0, ends the connection, whatever else was said on it."""
    for last in (post(upload("assets/last.bin"), "/events", b"Connection: close"), b"GET /healthz HTTP/1.0\r\n\r\n"):
        with connected(
            host, last + post(upload("assets/late.bin")) + post(upload("assets/late.bin"), "/events/fast")
        ) as sock:
            (only,) = hear(sock)
        assert only.headers["connection"] == "close"
    assert [json.loads(message.payload)["filename"] for message in listener.silence(0.3)] == ["last.bin"]


def test_no_line_of_a_request_becomes_a_line_of_an_answer(host: Host) -> None:
    """Neither from a path, nor from a query, nor from a field."""
    injected = b"%0d%0aSet-Cookie:%20a=b"
    paths = [b"/" + injected, b"/assets/" + injected, b"/manifest?next=" + injected, b"/docs/" + injected]
    for path in paths:
        with connected(host, request(b"GET %b HTTP/1.1" % path, b"Accept: " + injected, b"Connection: close")) as sock:
            answers: list[Answer] = hear(sock)
        assert len(answers) == 1
        assert "set-cookie" not in answers[0].headers


@pytest.mark.parametrize("seed", range(max(4, FUZZ * 20)))
def test_pipelined_requests_are_answered_in_order_and_each_event_rings_once(
    host: Host, listener: Subscriber, seed: int
) -> None:
    """Both doors, refusals and questions mixed, in random framing, cut into random pieces."""
    chance = random.Random(f"{seed}-{os.getpid() if FUZZ else 0}")  # noqa: S311 - protects nothing
    said, expected, names = bytearray(), [], []
    for number in range(200):
        kind = chance.choice(
            ["/events", "/events", "/events/fast", "/events/fast", "lost", "wrong", "alive", "upgrade"]
        )
        if kind.startswith("/"):
            name = f"{seed}-{number:03}.bin"
            body = upload(f"assets/{name}")
            if chance.random() < 0.5:
                said += post(body, kind)
            else:
                framed = chunked(body, chance.randint(1, len(body)))
                said += request(b"POST %b HTTP/1.1" % kind.encode(), AUTHORIZATION, CHUNKED, body=framed)
            names.append(name)
            expected.append(200 if kind == "/events" else 202)
        elif kind == "upgrade":
            said += request(b"GET /metrics HTTP/1.1", b"Connection: upgrade", b"Upgrade: h2c")
            expected.append(200)
        else:
            line = {"lost": b"PUT /nowhere", "wrong": b"DELETE /events", "alive": b"HEAD /nowhere/either"}[kind]
            said += (
                request(line + b" HTTP/1.1", b"Content-Length: 5", body=b"hello")
                if kind != "alive"
                else request(b"GET /healthz HTTP/1.1")
            )
            expected.append({"lost": 404, "wrong": 405, "alive": 200}[kind])
    with connected(host) as sock:
        at = 0
        while at < len(said):
            size = chance.choice([1, 7, 100, 1_000, 20_000])
            sock.sendall(said[at : at + size])
            at += size
        sock.shutdown(socket.SHUT_WR)
        heard = [answer.status for answer in hear(sock)]
    assert heard == expected
    rung = [json.loads(message.payload)["filename"] for message in listener.wait_for(len(names))]
    assert sorted(rung) == sorted(names)
    assert listener.drain() == []
