"""Who is let in, and when; what stores present; how much many may hold together. Time is the test's own."""

from __future__ import annotations

import base64
import hmac
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


def asked(authorization: str, path: str = "/manifest", query: str = "", address: str = HOME) -> Request:
    """A GET with that header."""
    headers = {"host": "x"} | ({"authorization": authorization} if authorization else {})
    return Request("GET", path, query, headers, address=address)


def admitted(gate: StoreGate, token: str, address: str = HOME) -> bool:
    """Whether a store with this token is let in."""
    try:
        gate.admit(token, address)
    except Problem:
        return False
    return True


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
            gate.admit(asked(f"Bearer {token}" if token else "", path, query))
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
        asked("Bearer good"),
        asked(" bearer   good ", address=ABROAD),
        asked("", "/thumbnails/a/b.jpg", "token=good", address=ABROAD),
    ]
    assert len({gate.admit(request) for request in requests}) == 1
    assert gate.admit(asked("Bearer other")) != gate.admit(requests[0])


def basic(text: str) -> str:
    """As in `Authorization: Basic …`."""
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"Bearer {LONG}", LONG),
        (f"bearer  {LONG} ", LONG),
        (basic(f"anybody:{LONG}"), LONG),
        (basic(f":{LONG}"), LONG),
        (basic(f"a:b:{LONG}"), f"b:{LONG}"),
        (basic(LONG), ""),
        ("Basic !", ""),
        ("Basic \xe9", ""),
        ("Basic", ""),
        (f"Digest {LONG}", ""),
        (LONG, ""),
        ("", ""),
    ],
)
def test_a_store_presents_its_token_as_bearer_or_as_password(value: str, expected: str) -> None:
    """The user of `Basic` does not matter (RFC 7617: the first colon ends it)."""
    assert offered(asked(value)) == expected


def test_two_tokens_are_no_token() -> None:
    """A header that comes twice is joined by a comma: neither of the two tokens is left."""
    gate = StoreGate((LONG,), entrance(LONG))
    for both in (f"Bearer {LONG},Bearer {LONG}", f"{basic(LONG)},{basic(LONG)}"):
        assert not admitted(gate, offered(asked(both)))


@pytest.mark.parametrize(
    ("query", "token", "rest"),
    [
        ("", "", ""),
        ("token=abc", "abc", ""),
        ("a=1&token=abc&b=2", "abc", "a=1&b=2"),
        ("token=a%2Bb+c/d==", "a+b+c/d==", ""),
        ("%74oken=abc", "abc", ""),
        ("token=a&token=b", "", ""),
        ("token", "", ""),
        ("Token=abc&xtoken=abc", "", "Token=abc&xtoken=abc"),
        ("token=%ff%zz", "\ufffd%zz", ""),
    ],
)
def test_a_token_in_an_address_is_taken_out_of_it(query: str, token: str, rest: str) -> None:
    """However it is written, and whether it is one that counts or not."""
    assert take_token(query) == (token, rest)


def test_stores_are_let_in_by_any_of_the_tokens() -> None:
    """And by none of what is nearly one; where there are none, all are."""
    shared = entrance(LONG, SHORT)
    gate = StoreGate((LONG, SHORT), shared)
    assert (admitted(gate, LONG), admitted(gate, SHORT), gate.is_open) == (True, True, False)
    assert not any(admitted(gate, one) for one in (LONG[:-1], LONG + "l", "", "\xff", "\ud800"))
    opened = StoreGate((), shared)
    assert (opened.is_open, admitted(opened, ""), admitted(opened, "x")) == (True, True, True)


def test_a_store_that_guesses_is_told_to_wait_and_one_without_a_token_is_not() -> None:
    """401 as long as it may try, then 429 for what is short; no token is no try. The connection ends each time."""
    gate = StoreGate((LONG, SHORT), entrance(LONG, SHORT))

    def refused(token: str) -> Problem:
        with pytest.raises(Problem) as problem:
            gate.admit(token, HOME)
        assert problem.value.closes
        return problem.value

    for _ in range(40):
        assert refused("").status == 401
    for _ in range(30):
        assert (refused("x").status, refused("").headers) == (401, {"WWW-Authenticate": "Bearer"})
    assert (refused(SHORT).status, refused(SHORT).headers) == (429, {"Retry-After": "61"})
    assert refused("").status == 401
    assert admitted(gate, LONG)
    assert admitted(gate, SHORT, ABROAD)


def test_a_store_that_guesses_signatures_is_told_to_wait() -> None:
    """As one that guesses tokens: what a short one has signed is not verified any more, what a long one has is."""
    gate = StoreGate((LONG, SHORT), entrance(LONG, SHORT))

    def status(signature: str, address: str = HOME) -> int:
        try:
            gate.admit_signed(signature, b"body", address)
        except Problem as problem:
            return problem.status.value
        return 200

    by = {token: "v1=" + hmac.digest(token.encode(), b"body", "sha256").hex() for token in (LONG, SHORT)}
    assert (status(by[LONG]), status(by[SHORT])) == (200, 200)
    assert [status("v1=" + "0" * 64) for _ in range(30)] == [401] * 30
    assert [status(one) for one in (by[LONG], by[SHORT], "v1=0")] == [200, 429, 429]
    assert [admitted(gate, one) for one in (LONG, SHORT)] == [True, False]
    assert status(by[SHORT], ABROAD) == 200


def test_so_many_signed_bodies_are_awaited_a_second() -> None:
    """From addresses that have failed fewer; then 429."""
    gate = StoreGate((LONG,), entrance(LONG))
    with pytest.raises(Problem):
        gate.admit_signed("v1=0", b"", HOME)
    for address, number in ((HOME, 1000), (ABROAD, 1000)):
        for _ in range(number):
            gate.await_signed(address)
        with pytest.raises(Problem) as problem:
            gate.await_signed(address)
        assert (problem.value.status, problem.value.headers) == (429, {"Retry-After": "1"})


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
