"""Whose address a request comes from, and whose web page."""

from __future__ import annotations

import pytest

from infra.host.web.origin import Headers, TrustedProxies, foreign_page

PROXY, OUTER, CLIENT = "10.0.0.1", "10.0.0.2", "198.51.100.7"
PROXIES = TrustedProxies(["10.0.0.0/8", "2001:db8:1::/48"])


def fields(**values: str) -> Headers:
    """Headers, with dashes for underscores."""
    return {name.replace("_", "-"): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        (PROXY, fields(), PROXY),
        (PROXY, fields(x_forwarded_for=CLIENT), CLIENT),
        (PROXY, fields(x_forwarded_for=f"{CLIENT}:4711"), CLIENT),
        (PROXY, fields(x_forwarded_for=f"192.0.2.9, {CLIENT}"), CLIENT),  # the first is what the client says itself
        (PROXY, fields(x_forwarded_for=f"{CLIENT}, {OUTER}"), CLIENT),
        (PROXY, fields(x_forwarded_for=OUTER), OUTER),
        (PROXY, fields(x_forwarded_for=f"{CLIENT}, unknown"), PROXY),
        (PROXY, fields(x_forwarded_for=f"{CLIENT}, unknown, {OUTER}"), OUTER),
        (PROXY, fields(x_forwarded_for=""), PROXY),
        (PROXY, fields(x_forwarded_for="2001:db8::9"), "2001:db8::9"),
        (PROXY, fields(x_forwarded_for="[2001:db8::9]:443"), "2001:db8::9"),
        (PROXY, fields(forwarded=f"for={CLIENT};proto=https;by={OUTER}"), CLIENT),
        (PROXY, fields(forwarded=f'proto=https;For="[2001:db8::9]:1", for={OUTER}'), "2001:db8::9"),
        (PROXY, fields(forwarded="for=_hidden"), PROXY),
        (PROXY, fields(forwarded=f"for={CLIENT}", x_forwarded_for=CLIENT), CLIENT),
        (PROXY, fields(forwarded="for=192.0.2.9", x_forwarded_for=CLIENT), PROXY),  # one of them was made up
        ("2001:db8:1::5", fields(x_forwarded_for=CLIENT), CLIENT),
        (f"::ffff:{PROXY}", fields(x_forwarded_for=CLIENT), CLIENT),
        ("203.0.113.5", fields(x_forwarded_for=CLIENT), "203.0.113.5"),
        ("", fields(x_forwarded_for=CLIENT), ""),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str, headers: Headers, expected: str) -> None:
    """From the nearest one outwards, up to the first address that is none of them."""
    assert PROXIES.client(peer, headers) == expected


def test_several_lines_of_a_header_are_one_chain() -> None:
    """In their order."""
    assert PROXIES.client(PROXY, fields(x_forwarded_for=f"192.0.2.9,{CLIENT}")) == CLIENT
    assert PROXIES.client(PROXY, fields(forwarded=f"for=192.0.2.9,for={CLIENT}")) == CLIENT


def test_without_trusted_proxies_nobody_is_believed() -> None:
    """Not even who comes from this machine."""
    assert TrustedProxies().client("127.0.0.1", fields(x_forwarded_for=CLIENT)) == "127.0.0.1"


OWN = [
    fields(),
    fields(host="127.0.0.1:8080"),
    fields(host="localhost"),
    fields(host="LOCALHOST.:8080"),
    fields(host="[::1]:8080"),
    fields(host="bell.example"),
    fields(host="127.0.0.1:8080", origin="http://127.0.0.1:8080"),
    fields(host="127.0.0.1:8080", origin="https://bell.example", sec_fetch_site="same-site"),
    fields(host="localhost:8080", sec_fetch_site="same-origin"),
    fields(host="localhost:8080", sec_fetch_site="none"),
]
FOREIGN = [
    fields(host="evil.example"),
    fields(host="evil.example:8080", origin="http://evil.example:8080", sec_fetch_site="same-origin"),  # rebinding
    fields(host="localhost.evil.example"),
    fields(host="192.0.2.1"),
    fields(host="["),
    fields(host=""),
    fields(host="evil.example@localhost@evil.example"),
    fields(host="localhost:8080", origin="https://evil.example"),
    fields(host="localhost:8080", origin="http://localhost:3000", sec_fetch_site="same-site"),
    fields(host="localhost:8080", origin="null"),
    fields(host="localhost:8080", origin="http://["),
    fields(host="localhost:8080", origin=""),
    fields(host="localhost:8080", sec_fetch_site="cross-site"),
    fields(host="localhost:8080", sec_fetch_site="Cross-Site"),
    fields(host="localhost:8080", sec_fetch_site="same-origin, cross-site"),
    fields(host="localhost,evil.example"),
    fields(host="[::1],evil.example"),
    fields(host="127.0.0.1:80,evil.example"),
]


@pytest.mark.parametrize("headers", OWN, ids=str)
def test_this_machines_programs_and_the_own_page_are_not_foreign(headers: Headers) -> None:
    """Loopback's names, and PUBLIC_BASE_URL's."""
    assert foreign_page(headers, "https://bell.example/api") == ""


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_what_a_strange_page_makes_a_browser_send_shows(headers: Headers) -> None:
    """By where it is sent, or by where it comes from."""
    assert foreign_page(headers, "https://bell.example/api")


def test_without_a_public_address_only_loopback_is_own() -> None:
    """As at a first start."""
    assert foreign_page(fields(host="bell.example"))
    assert not foreign_page(fields(host="localhost"))
