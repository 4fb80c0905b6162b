"""Pure: addresses and topics as people write them into settings."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
NATS_PORTS = {"nats": 4222, "tls": 4222}
DATABASE_SCHEMES = frozenset({"sqlite", "postgresql", "postgresql+psycopg"})
MAX_PORT = 65535
MAX_HOST_CHARACTERS = 253  # RFC 1035 §2.3.4

_PATH = re.compile("(?:/[A-Za-z0-9._~-]+)*")  # what botocore signs as it is sent: it encodes and shortens the rest
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?", re.DOTALL)  # RFC 3986 §3.2
# The part behind the two slashes. PostgreSQL without a host: a Unix socket, which `?host=` may name. No `@` in the name
# of the database: it would come from a password, and what stands before it would be shown as an address.
_SQLITE_FILE = re.compile(r"/[^\x00?#]*[^\x00?#/]")
_POSTGRESQL = re.compile(
    r"(?:[^@/\s]*@)?(?:(?:\[[0-9A-Fa-f:.]+\]|[^@/:\[\]?#\s]+)(?::[0-9]{1,5})?)?/[^/?#@\s]+(?:\?\S*)?"
)
_LABEL = re.compile("(?!-)[a-z0-9_-]{1,63}(?<!-)")
_BUCKET_LABEL = re.compile("(?!-)[a-z0-9-]{3,63}(?<!-)")
_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")
_ZONE = re.compile("[a-z0-9._~-]*")  # RFC 6874 §2, unescaped


def parse_mqtt_url(url: str) -> tuple[bool, str, int]:
    """Split `mqtt(s)://host[:port]` into (tls, host, port); the path is ignored.

    Raises `ValueError` with what would be right, and never repeats the URL: it may hold a password.
    """
    scheme, host, port = _parse_server(url, DEFAULT_PORTS, "MQTT_USERNAME and MQTT_PASSWORD", "broker.local")
    return scheme == "mqtts", host, port


def parse_nats_url(url: str) -> tuple[bool, str, int]:
    """Split `nats://host[:port]` or `tls://host[:port]` into (tls, host, port), as `parse_mqtt_url` does."""
    words = "NATS_USERNAME and NATS_PASSWORD, or NATS_TOKEN"
    scheme, host, port = _parse_server(url, NATS_PORTS, words, "nats.local")
    return scheme == "tls", host, port


def is_tls(nats_url: str) -> bool:
    """Whether what `parse_nats_url` takes is `tls://`."""
    return nats_url.lower().startswith("tls:")


def _parse_server(url: str, ports: Mapping[str, int], variables: str, example: str) -> tuple[str, str, int]:
    """`ports` are the schemes and their ports; `variables` are where credentials belong."""
    first, second = ports
    right = f"{first}://{example}:{ports[first]}"
    # Not urlsplit: what it raises quotes the URL, and it drops line ends from inside it.
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ports:
        raise ValueError(f"must start with {first}:// or {second}://, e.g. {right}")
    if "@" in rest:  # anywhere: a password with a slash in it looks like a path
        raise ValueError(f"must not hold credentials: put them in {variables}")
    parts = _AUTHORITY.fullmatch(re.split("[/?#]", rest, maxsplit=1)[0])
    try:
        host = parse_host(parts["host"] if parts else "")
    except ValueError:
        raise ValueError(
            f"must name a host (in ASCII) or an address, e.g. {first}://{example}, {first}://192.0.2.7 or "
            f"{first}://[::1]:{ports[first]}"
        ) from None
    port = (parts and parts["port"]) or str(ports[scheme])
    if re.fullmatch("[0-9]{1,5}", port) is None or not 0 < int(port) <= MAX_PORT:
        raise ValueError(f"the port must be a number from 1 to 65535, e.g. {right}")
    return scheme, host, int(port)


def parse_host(text: str) -> str:
    """Return a host name or an address as it is dialled: in lower case, IPv6 without brackets.

    Names are ASCII labels of at most 63 characters, 253 in all (RFC 1035 §2.3.4); underscores are allowed, as in the
    names of containers. What ends in a number is an IPv4 address or nothing (WHATWG URL §3.5), so that no second
    spelling of an address exists. Raises `ValueError`.
    """
    host = text.lower()
    if ":" in host or "[" in host:
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if _ZONE.fullmatch(host.partition("%")[2]) is not None:
            ipaddress.IPv6Address(host)
            return host
    elif len(host) <= MAX_HOST_CHARACTERS and all(map(_LABEL.fullmatch, host.removesuffix(".").split("."))):
        if _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]) is not None:
            ipaddress.IPv4Address(host)
        return host
    raise ValueError("must be a host name in ASCII or an address, e.g. broker.local, 192.0.2.7 or ::1")


def parse_http_url(url: str) -> str:
    """Return an http(s) URL with scheme and host in lower case: a signature holds the host as a browser sends it.

    Raises `ValueError` with what would be right, and never repeats the URL: it may hold a password.
    """
    right = "e.g. http://127.0.0.1:9000"
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in {"http", "https"}:
        raise ValueError(f"must be an http:// or https:// URL, {right}")
    if "@" in rest:
        raise ValueError(f"must be an http:// or https:// URL without credentials, {right}")
    if {"?", "#"} & set(rest):
        raise ValueError(f"must be an http:// or https:// URL without ? and #, {right}")
    authority, slash, path = rest.partition("/")
    parts = _AUTHORITY.fullmatch(authority)
    try:
        host = parse_host(parts["host"] if parts and parts["host"] else ".")
    except ValueError:
        raise ValueError(
            f"must name a host in ASCII (others as xn--…) or an address behind http:// or https://, {right}"
        ) from None
    port = parts["port"] if parts else None
    if port is not None and (re.fullmatch("[1-9][0-9]{0,4}", port) is None or int(port) > MAX_PORT):
        raise ValueError(f"the port must be a number from 1 to {MAX_PORT}, {right}")
    if not path.isprintable() or " " in path:
        raise ValueError(f"must be an http:// or https:// URL without blanks, {right}")
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}{'' if port is None else f':{port}'}{slash}{path}"


def parse_endpoint(url: str) -> str:
    """Return an http(s) URL that boto3 takes for a service's endpoint, without a slash at its end.

    Raises `ValueError` as `parse_http_url` does.
    """
    url = parse_http_url(url).rstrip("/")
    authority, slash, path = url.partition("://")[2].partition("/")
    if "_" in authority:
        raise ValueError(
            "must name a host without an underscore, which boto3 does not take: give the store another name, "
            "e.g. a network alias of its container, or use its address"
        )
    if _PATH.fullmatch(slash + path) is None:
        raise ValueError("must have no path, or one of letters, digits and . _ ~ - between single slashes")
    return url


def can_be_virtual(bucket: str, endpoints: Iterable[str]) -> bool:
    """Whether botocore puts `bucket` before the host of each of what `parse_endpoint` returned; else it is the path."""
    names = [re.split("[:/]", url.partition("://")[2], maxsplit=1)[0] for url in endpoints]
    return _BUCKET_LABEL.fullmatch(bucket) is not None and all(re.match("[^[]*[a-z]", name) for name in names)


def path_of(url: str | None) -> str:
    """The path of what `parse_endpoint` returned."""
    return (url or "").partition("://")[2].partition("/")[2]


def parse_topic_prefix(text: str, *, allows_spaces: bool = True) -> str:
    """Return the levels that topics begin with, without a slash at the end (MQTT 5 §4.7.1 to §4.7.3).

    Raises `ValueError` with what is wrong.
    """
    levels = text.rstrip("/")
    if not levels or levels.startswith(("/", "$")):
        raise ValueError("begins with / or $")
    if {"+", "#"} & set(levels) or not levels.isprintable() or (" " in levels and not allows_spaces):
        raise ValueError(f"holds +, #{'' if allows_spaces else ', a space'} or a control character")
    return levels


def check_database_url(url: str) -> None:
    """Raise `ValueError`, with what would be right, where a database URL is not one that the store can use.

    It never repeats the URL: it may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in DATABASE_SCHEMES:
        raise ValueError(
            "must start with sqlite:/// or postgresql://, e.g. sqlite:////var/lib/bucketbell/settings.db "
            "or postgresql://user:password@db.local/bucketbell"
        )
    if scheme == "sqlite":
        # Without a file it would all be forgotten at the end of the process.
        if _SQLITE_FILE.fullmatch(rest) is None or rest == "/:memory:":
            raise ValueError(
                "must name a file, e.g. sqlite:////var/lib/bucketbell/settings.db (four slashes: absolute)"
            )
    elif _POSTGRESQL.fullmatch(rest) is None:
        raise ValueError(
            "must name host and database, e.g. postgresql://user:password@db.local:5432/bucketbell, "
            "with what is special in a password percent-encoded"
        )
