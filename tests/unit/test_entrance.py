"""Who is let in, and when; what stores present; how much many may hold together. Time is the test's own."""

from __future__ import annotations

import base64
from http import HTTPStatus

import pytest

from functions.web.messages import Problem, Request, unauthorised
from infra.host.web import entrance as module
from infra.host.web.allowance import Allowance
from infra.host.web.entrance import Entrance, Gate, StoreGate, offered, take_token

HOME, ABROAD = "192.0.2.1", "198.51.100.1"
SHORT, LONG = "s" * 19, "l" * 20
UNKNOWN = "unknown.token.with-a-known-key"


class Clock:
    """Time that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def entrance(*secrets: str, clock: Clock | None = None) -> Entrance:
    """Where `UNKNOWN` costs a signature."""
    return Entrance(secrets, lambda token: token == UNKNOWN, clock=clock or Clock())


# Signatures.


def test_so_many_unknown_tokens_are_verified_a_second_and_known_ones_always() -> None:
    """Beyond that, 429 with a second to wait; then as many again. What is told without a signature costs nothing."""
    clock = Clock()
    door = entrance(clock=clock)
    for _ in range(2):
        assert [door.wait_seconds(UNKNOWN, HOME, signed=True) for _ in range(module.SIGNATURES_PER_SECOND)].count(
            0
        ) == 2000
        assert door.wait_seconds(UNKNOWN, HOME, signed=True) == 1
        assert door.wait_seconds(UNKNOWN, ABROAD, signed=True) == 1
        assert [door.wait_seconds(token, HOME, signed=True) for token in ("remembered", "malformed", LONG)] == [0] * 3
        assert door.wait_seconds(UNKNOWN, HOME) == 0  # where it is compared, not verified
        clock.now += 1.0


def test_addresses_that_have_failed_are_the_first_to_wait() -> None:
    """Half of the signatures are kept for those that have not failed within a minute."""
    clock = Clock()
    door = entrance(clock=clock)
    door.failed(HOME)
    answers = [door.wait_seconds(UNKNOWN, HOME, signed=True) for _ in range(1500)]
    assert answers == [0] * 1000 + [1] * 500
    assert [door.wait_seconds(UNKNOWN, ABROAD, signed=True) for _ in range(1000)] == [0] * 1000
    assert door.wait_seconds(UNKNOWN, ABROAD, signed=True) == 1
    clock.now += 60.0
    assert [door.wait_seconds(UNKNOWN, HOME, signed=True) for _ in range(2000)] == [0] * 2000


# Secrets.


def test_short_secrets_are_refused_to_who_guesses_until_the_minute_is_over() -> None:
    """Right or wrong; long ones are not, nor is another address."""
    clock = Clock()
    door = entrance(SHORT, LONG, clock=clock)
    for _ in range(30):
        assert door.wait_seconds("x", HOME) == 0
        door.failed(HOME)
    clock.now += 45.0
    assert [door.wait_seconds(token, HOME) for token in ("x", SHORT, LONG)] == [16, 16, 0]
    assert door.wait_seconds(SHORT, ABROAD) == 0
    clock.now += 15.0
    assert door.wait_seconds(SHORT, HOME) == 0


def test_where_all_secrets_are_long_nobody_waits() -> None:
    """They are safe by their length."""
    door = entrance(LONG)
    for _ in range(100):
        door.failed(HOME)
    assert [door.wait_seconds(token, HOME) for token in ("x", SHORT, LONG)] == [0, 0, 0]


def test_one_who_has_a_network_of_addresses_is_one() -> None:
    """An IPv6 client has 2⁶⁴ of them; an IPv4 address in IPv6's clothes is itself."""
    door = entrance(SHORT)
    for number in range(30):
        door.failed(f"2001:db8::{number:x}")
        door.failed(f"::ffff:{HOME}")
    for address in ("2001:db8::ffff:1", HOME):
        assert door.wait_seconds(SHORT, address) > 0
    for address in ("2001:db8:0:1::1", ABROAD, "", "nonsense"):
        assert door.wait_seconds(SHORT, address) == 0


# The gates.


def test_a_gate_says_whose_share_it_is_and_counts_who_is_turned_away() -> None:
    """A token's once it was checked; a wrong one counts against its address, none at all does not."""
    seen: list[str] = []
    shared = entrance(SHORT)

    def check(request: Request) -> None:
        if request.token == "off":
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "not_configured", "Set it.")
        if request.token != "good":
            raise unauthorised("malformed")

    gate = Gate(shared, check, seen.append)

    def status(token: str, path: str = "/manifest", query: str = "") -> int:
        try:
            gate.admit(Request("GET", path, query, f"Bearer {token}" if token else ""), HOME)
        except Problem as problem:
            return problem.status.value
        return 200

    assert [status(token) for token in ("good", "bad", "off", "")] == [200, 401, 503, 401]
    assert status("", "/thumbnails/a/b.jpg", "token=good") == 200
    assert status("", "/assets/a", "token=good") == 401
    assert seen == ["bad_token", "no_token", "no_token"]
    assert [status("bad") for _ in range(30)] == [401] * 29 + [429]
    assert seen[-1] == "too_many"


def test_a_token_has_one_share_however_it_comes() -> None:
    """In a link or in a header, in any case, with more blanks, from any address."""
    gate = Gate(entrance(), lambda _request: None)
    requests = [
        (Request("GET", "/manifest", authorization="Bearer good"), HOME),
        (Request("GET", "/manifest", authorization=" bearer   good "), ABROAD),
        (Request("GET", "/thumbnails/a/b.jpg", "token=good"), ABROAD),
    ]
    assert len({gate.admit(request, address) for request, address in requests}) == 1
    assert gate.admit(Request("GET", "/manifest", authorization="Bearer other"), HOME) != gate.admit(*requests[0])


def basic(text: str) -> bytes:
    """As in `Authorization: Basic …`."""
    return b"Basic " + base64.b64encode(text.encode())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"Bearer " + LONG.encode()], LONG),
        ([b"bearer  " + LONG.encode() + b" "], LONG),
        ([basic(f"anybody:{LONG}")], LONG),
        ([basic(f":{LONG}")], LONG),
        ([basic(f"a:b:{LONG}")], f"b:{LONG}"),
        ([basic(LONG)], ""),
        ([b"Basic !"], ""),
        ([b"Basic"], ""),
        ([b"Digest " + LONG.encode()], ""),
        ([LONG.encode()], ""),
        ([], ""),
        ([b"Bearer a", b"Bearer b"], ""),
    ],
)
def test_a_store_presents_its_token_as_bearer_or_as_password(values: list[bytes], expected: str) -> None:
    """Of `Basic` whoever the user is (RFC 7617: the first colon ends it); two headers are none."""
    assert offered([(b"host", b"x"), *((b"authorization", value) for value in values)]) == expected.encode()


@pytest.mark.parametrize(
    ("query", "token", "rest"),
    [
        (b"", b"", b""),
        (b"token=abc", b"abc", b""),
        (b"a=1&token=abc&b=2", b"abc", b"a=1&b=2"),
        (b"token=a%2Bb+c/d==", b"a+b+c/d==", b""),
        (b"%74oken=abc", b"abc", b""),
        (b"token=a&token=b", b"", b""),
        (b"token", b"", b""),
        (b"Token=abc&xtoken=abc", b"", b"Token=abc&xtoken=abc"),
        (b"token=%ff%zz", "\ufffd%zz".encode(), b""),
    ],
)
def test_a_token_in_an_address_is_taken_out_of_it(query: bytes, token: bytes, rest: bytes) -> None:
    """However it is written, and whether it is one that counts or not."""
    assert take_token(query) == (token, rest)


def test_stores_are_let_in_by_any_of_the_tokens() -> None:
    """And by none of what is nearly one; where there are none, all are."""
    gate = StoreGate((LONG, SHORT), entrance(LONG, SHORT))
    assert [gate.admits(one.encode()) for one in (LONG, SHORT)] == [True, True]
    assert not any(gate.admits(one.encode()) for one in (LONG[:-1], LONG + "l", "", "\xff"))
    for _ in range(30):
        gate.entrance.failed(HOME)
    assert [bool(gate.wait_seconds(one, HOME)) for one in (SHORT.encode(), LONG.encode(), b"")] == [True, False, False]
    opened = StoreGate((), gate.entrance)
    assert (opened.is_open, opened.admits(b""), opened.wait_seconds(SHORT.encode(), HOME)) == (True, True, 0)


# What many hold.


def test_who_holds_most_lets_go_first_and_among_equals_who_began_first() -> None:
    """And at once more than would do; who holds little, however long, keeps it."""
    allowance = Allowance[str](100)
    assert list(allowance.hold("slow", 5)) == []
    assert list(allowance.hold("a", 30)) == []
    assert list(allowance.hold("b", 30)) == []
    assert list(allowance.hold("c", 30)) == []
    assert list(allowance.hold("d", 30)) == ["a", "b"]
    assert allowance.total_bytes == 65
    assert list(allowance.hold("c", 31)) == []
    allowance.release("c")
    allowance.release("c")
    assert allowance.total_bytes == 35
    assert list(allowance.hold("huge", 1000)) == ["huge"]
    assert allowance.total_bytes == 35
