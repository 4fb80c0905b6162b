"""Pure: addresses as people write them into settings."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
MAX_PORT = 65535
MAX_HOST_CHARACTERS, MAX_LABEL_CHARACTERS = 253, 63  # RFC 1035 §2.3.4

_HTTP_URL = re.compile(r"https?://[^\s/@?#]+(?:/[^\s@?#]*)?")
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?", re.DOTALL)  # RFC 3986 §3.2


def parse_mqtt_url(url: str) -> tuple[bool, str, int]:
    """Split `mqtt(s)://host[:port]` into (tls, host, port); the path is ignored.

    Raises `ValueError` with what would be right, and never repeats the URL: it may hold a password.
    """
    # Not urlsplit: what it raises quotes the URL, and it drops line ends from inside it.
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in DEFAULT_PORTS:
        raise ValueError("must start with mqtt:// or mqtts://, e.g. mqtt://broker.local:1883")
    if "@" in rest:  # anywhere: a password with a slash in it looks like a path
        raise ValueError("must not hold credentials: put them in MQTT_USERNAME and MQTT_PASSWORD")
    parts = _AUTHORITY.fullmatch(re.split("[/?#]", rest, maxsplit=1)[0])
    if parts is None or not _is_host(host := parts["host"].lower()):
        raise ValueError(
            "must name a host (in ASCII) or an address, e.g. mqtt://broker.local, mqtt://192.0.2.7 or mqtt://[::1]:1883"
        )
    port = parts["port"] or str(DEFAULT_PORTS[scheme])
    if re.fullmatch("[0-9]{1,5}", port) is None or not 0 < int(port) <= MAX_PORT:
        raise ValueError("the port must be a number from 1 to 65535, e.g. mqtt://broker.local:1883")
    return scheme == "mqtts", host.strip("[]"), int(port)


def _is_host(host: str) -> bool:
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        return True
    labels = host.removesuffix(".").split(".")
    return len(host) <= MAX_HOST_CHARACTERS and all(
        0 < len(label) <= MAX_LABEL_CHARACTERS and label.replace("-", "").replace("_", "").isalnum() and label.isascii()
        for label in labels
    )


def is_http_url(url: str) -> bool:
    """Whether this is an http(s) URL without credentials, query or fragment, and with a port that exists if any."""
    try:
        return _HTTP_URL.fullmatch(url) is not None and urlsplit(url).port != 0
    except ValueError:  # a port beyond 65535, or half an IPv6 address
        return False
