"""Pure: where a request comes from: whose address it is, and whether a strange web page made a browser send it.

Headers are by name in lower case; the values of a repeated one are joined by commas.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from urllib.parse import urlsplit

Headers = Mapping[str, str]

MAX_HOPS = 20
IPV6_NETWORK_BITS = 64  # what one subscriber has for itself, at least (RFC 6177)
DEFAULT_PORTS = {"http": 80, "https": 443}
_REMEMBERED_PEERS = 1024
_FOR = re.compile(r'(?:^|[;,])\s*for\s*=\s*("[^"]*"|[^;,\s]*)', re.IGNORECASE)  # RFC 7239 §4


class TrustedProxies:
    """The proxies whose word is believed when they say for whom they ask."""

    def __init__(self, networks: Sequence[str] = ()) -> None:
        """`networks`: addresses and networks (CIDR), as in TRUSTED_PROXIES."""
        self._networks = tuple(ipaddress.ip_network(text, strict=False) for text in networks)
        self._trusted = lru_cache(_REMEMBERED_PEERS)(self._is_trusted)

    def client(self, peer: str, headers: Headers) -> str:
        """Return the address of whoever asks: `peer`, or the last one that its proxies did not vouch for themselves.

        Where `Forwarded` and `X-Forwarded-For` are both there and do not agree, one of them is the client's own
        invention that a proxy passed on: neither is believed.
        """
        if not self._networks or not self._trusted(peer):
            return peer
        forwarded, forwarded_for = headers.get("forwarded", ""), headers.get("x-forwarded-for", "")
        said = {
            self._walk(peer, chain)
            for chain in (
                [found[1].strip('"') for found in _FOR.finditer(forwarded)],
                forwarded_for.split(",") if forwarded_for else [],
            )
            if chain
        }
        return said.pop() if len(said) == 1 else peer

    def _walk(self, peer: str, chain: Sequence[str]) -> str:
        """From the nearest proxy outwards, for as long as it is ours who speak."""
        client = peer
        for hop in reversed(chain[-MAX_HOPS:]):
            address = _address(hop)
            if address is None:
                return client
            client = address
            if not self._trusted(client):
                return client
        return client

    def _is_trusted(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        return any(address in network for network in self._networks)


@lru_cache(_REMEMBERED_PEERS)
def neighbourhood(address: str) -> bytes:
    """Return what is counted as one: an IPv4 address, or the network in which one IPv6 client has its addresses."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address.encode()
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return parsed.packed[: IPV6_NETWORK_BITS // 8]  # of IPv4: all of it


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def foreign_page(headers: Headers, public_base_url: str | None = None) -> str:
    """Tell why a request is one that a browser sends on behalf of a page that is not ours; "" where it is not.

    Whoever is not a browser sends none of these fields but `Host`, with a name that leads here. A page whose own name
    is made to lead here (DNS rebinding) shows by that name.
    """
    public = _authority(public_base_url) if public_base_url else None
    host = _authority(f"http://{headers['host']}") if "host" in headers else None
    if "host" in headers and (host is None or not (is_loopback(host[0]) or (public and host[0] == public[0]))):
        return "Host is neither this machine's nor PUBLIC_BASE_URL's"
    if "origin" in headers and _authority(headers["origin"]) not in [one for one in (host, public) if one is not None]:
        return "Origin is another page's"
    if "cross-site" in map(str.strip, headers.get("sec-fetch-site", "").lower().split(",")):
        return "Sec-Fetch-Site is cross-site"
    return ""


def _authority(url: str) -> tuple[str, int] | None:
    """Return name and port, None where it has none."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:
        return None
    if not parts.hostname or "," in parts.netloc:  # several headers: a browser sends one
        return None
    return parts.hostname.removesuffix("."), port


def _address(hop: str) -> str | None:
    """Return the address of `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`."""
    text = hop.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
