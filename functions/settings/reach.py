"""Pure: what the broker of an administrator may be: some addresses never, and others where a list names them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from functions.settings.addresses import parse_host

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Where clouds keep credentials for their machines, beside the link-local 169.254.169.254: Amazon, Google, Oracle (two),
# Scaleway, Alibaba; and Azure's wire server.
_METADATA: tuple[Network, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "fd00:ec2::/32",
            "fd20:ce::254/128",
            "fd00:c1::a9fe:a9fe/128",
            "192.0.0.192/32",
            "fd00:42::42/128",
            "100.100.100.200/32",
            "168.63.129.16/32",
        ),
    )
)
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215: where the IPv4 address is in it, its network decides
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052 §2.1: the IPv4 address is the last 32 bits
# So it is in these: IPv4-compatible (RFC 4291 §2.5.5.1) and IPv4-translated (RFC 2765 §2.1).
_LAST_32_BITS = (ipaddress.IPv6Network("::/96"), ipaddress.IPv6Network("::ffff:0:0:0/96"))
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})  # RFC 5214 §6.1: before those 32 bits, behind any prefix
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122 §3.2.1.3
_BROADCAST = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class Targets:
    """Which hosts may be connected to: any where nothing is named, and some never."""

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> Targets:
        """Take names, addresses and networks (CIDR): MQTT_TEST_ALLOWED_HOSTS. Raises ValueError."""
        names, networks = set[str](), list[Network]()
        for entry in entries:
            try:
                if "/" in entry or as_address(entry) is not None:
                    networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
                else:
                    names.add(_plain(parse_host(entry)))
            except ValueError:
                raise ValueError(
                    "must be names, addresses and networks, comma-separated, e.g. broker.local,192.0.2.0/24"
                ) from None
        return cls(frozenset(names), tuple(networks))

    def allow(self, host: str, address: Address) -> bool:
        """Tell whether `host`, which is at `address`, may be connected to."""
        if any(map(_is_forbidden, _faces(address))):
            return False
        if not self.names and not self.networks:
            return True
        return _plain(host) in self.names or any(one in net for one in _aliases(address) for net in self.networks)

    def may_allow(self, host: str) -> bool:
        """Tell what is known of `host` before it is looked up: False is certain."""
        if (address := as_address(host)) is not None:
            return self.allow(host, address)
        return not self.names or bool(self.networks) or _plain(host) in self.names


def as_address(text: str) -> Address | None:
    """Return the address that this is, None for a name."""
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _plain(name: str) -> str:
    return name.casefold().removesuffix(".")


def _last_32_bits(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)


def _aliases(address: Address) -> Iterator[Address]:
    """Yield the address, and the IPv4 address that a packet to it reaches."""
    yield address
    if isinstance(address, IPv6Address):
        if (embedded := address.ipv4_mapped or address.sixtofour) is not None:
            yield embedded
        elif address in _NAT64:
            yield _last_32_bits(address)


def _faces(address: Address) -> Iterator[Address]:
    """Yield the address, and each IPv4 address that some network could take it for."""
    yield from _aliases(address)
    if isinstance(address, IPv6Address) and not address.is_loopback:
        yield from address.teredo or ()
        is_isatap = int(address) >> 32 & 0xFFFFFFFF in _ISATAP
        if is_isatap or any(address in network for network in _LAST_32_BITS):
            yield _last_32_bits(address)


def _is_forbidden(address: Address) -> bool:
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address == _BROADCAST
        or address in _THIS_NETWORK
        or address in _LOCAL_NAT64
        or any(address in network for network in _METADATA)
    )
