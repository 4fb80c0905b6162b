"""Pure: which proxy leads to a URL, by the variables that curl reads too."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

from functions.s3.clients import is_loopback

_DEFAULT_PORTS = {"http": 80, "https": 443}


class ProxyError(ValueError):
    """A variable names no proxy that can be used; the message names the variable, and not what it holds."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's URL without credentials, and those, as `user:password`."""

    url: str
    credentials: str | None = field(default=None, repr=False)


class Proxies:
    """The proxies of an environment: `HTTPS_PROXY`, `HTTP_PROXY`, else `ALL_PROXY`; `NO_PROXY` names what goes without.

    The names in lower case win. This machine's loopback always goes without: no proxy could reach it.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Raises ProxyError."""
        everything = _proxy(environment, "ALL_PROXY")
        self._by_scheme = {
            scheme: _proxy(environment, f"{scheme.upper()}_PROXY") or everything for scheme in _DEFAULT_PORTS
        }
        _, direct = _variable(environment, "NO_PROXY")
        self._direct = tuple(direct.lower().replace(",", " ").split())

    def of(self, url: str) -> Proxy | None:
        """The proxy for this URL, None to go there directly."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port or _DEFAULT_PORTS.get(parts.scheme)
        except ValueError:  # not a URL: the request will tell that
            return None
        proxy = self._by_scheme.get(parts.scheme)
        if proxy is None or is_loopback(url) or any(_matches(one, host, port) for one in self._direct):
            return None
        return proxy


def _variable(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """The variable that counts, in lower or upper case, and its value."""
    for spelling in (name.lower(), name):
        if value := environment.get(spelling, "").strip():
            return spelling, value
    return name, ""


def _proxy(environment: Mapping[str, str], name: str) -> Proxy | None:
    name, value = _variable(environment, name)
    if not value:
        return None
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        if parts.scheme in _DEFAULT_PORTS and parts.hostname:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            url = urlunsplit((parts.scheme, f"{host}:{parts.port or _DEFAULT_PORTS[parts.scheme]}", "", "", ""))
            user, password = unquote(parts.username or ""), unquote(parts.password or "")
            return Proxy(url, f"{user}:{password}" if parts.username is not None else None)
    except ValueError:
        pass
    raise ProxyError(f"{name} must be http://host:port or https://host:port (SOCKS is not supported)")


def _matches(pattern: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY means that host: a name and all below it, an address or a network, maybe a port."""
    if pattern == "*":
        return True
    name, _, number = pattern.rpartition(":")
    if name and number.isdigit() and (":" not in name or name.endswith("]")):
        if int(number) != port:
            return False
        pattern = name
    pattern = pattern.strip("[]").strip(".").removeprefix("*.")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return bool(pattern) and (host == pattern or host.endswith(f".{pattern}"))
    try:
        return address in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return False
