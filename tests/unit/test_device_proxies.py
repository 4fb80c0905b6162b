from __future__ import annotations

import pytest

from infra.proxies import Proxies, ProxyError

PROXY = "http://proxy.local:3128"
S3 = "https://s3.example.com/x"


def way(url: str, **environment: str) -> str | None:
    """The proxy's URL, None for the direct way."""
    proxy = Proxies(environment).of(url)
    return None if proxy is None else proxy.url


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        (S3, {}, None),
        (S3, {"HTTPS_PROXY": PROXY}, PROXY),
        (S3, {"https_proxy": PROXY}, PROXY),
        (S3, {"https_proxy": PROXY, "HTTPS_PROXY": "http://other:1"}, PROXY),
        (S3, {"HTTP_PROXY": PROXY}, None),
        (S3, {"ALL_PROXY": PROXY}, PROXY),
        (S3, {"HTTPS_PROXY": "  "}, None),
        ("http://s3.example.com/x", {"HTTP_PROXY": PROXY}, PROXY),
        ("http://s3.example.com/x", {"http_proxy": "proxy.local:3128"}, PROXY),
        ("http://s3.example.com/x", {"HTTP_PROXY": "https://proxy.local"}, "https://proxy.local:443"),
        ("http://s3.example.com/x", {"HTTP_PROXY": "http://[fd00::1]:8080/"}, "http://[fd00::1]:8080"),
        ("http://127.0.0.1:8080/x", {"HTTP_PROXY": PROXY}, None),
        ("http://localhost:8080/x", {"HTTP_PROXY": PROXY}, None),
        ("http://[::1]:8080/x", {"HTTP_PROXY": PROXY}, None),
        ("http://[/x", {"HTTP_PROXY": PROXY}, None),
        ("http://a:b/x", {"HTTP_PROXY": PROXY}, None),
    ],
)
def test_the_variables_that_curl_reads_name_the_proxy(url: str, environment: dict[str, str], proxy: str | None) -> None:
    """By the URL's scheme, in lower case first; loopback has none."""
    assert way(url, **environment) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("*", S3, True),
        ("example.com", S3, True),
        (".example.com", S3, True),
        ("*.example.com", S3, True),
        ("S3.Example.com", S3, True),
        ("a.local, s3.example.com", S3, True),
        ("a.local s3.example.com", S3, True),
        ("ample.com", S3, False),
        ("s3.example.com.evil", S3, False),
        ("s3.example.com:443", S3, True),
        ("s3.example.com:8443", S3, False),
        ("s3.example.com:9000", "http://s3.example.com:9000/x", True),
        ("10.0.0.0/8", "http://10.1.2.3/x", True),
        ("10.0.0.0/8", "http://11.1.2.3/x", False),
        ("10.1.2.3", "http://10.1.2.3:9000/x", True),
        ("10.1.2.3:9000", "http://10.1.2.3:9000/x", True),
        ("10.1.2.3:80", "http://10.1.2.3:9000/x", False),
        ("10.0.0.0/8", S3, False),
        ("fd00::/8", "http://[fd00::1]/x", True),
        ("[fd00::1]", "http://[fd00::1]:9000/x", True),
        ("[fd00::1]:9000", "http://[fd00::1]:9000/x", True),
        ("[fd00::1]:9000", "http://[fd00::1]/x", False),
        ("nonsense/99", "http://10.1.2.3/x", False),
        (",, :", S3, False),
        ("s3.example.com", "https://s3.example.com./x", True),
    ],
)
def test_no_proxy_names_what_is_reached_directly(no_proxy: str, url: str, direct: bool) -> None:  # noqa: FBT001 - a parameter
    """A name and all below it, an address, a network; with a port only that one."""
    for variable in ("NO_PROXY", "no_proxy"):
        assert (way(url, ALL_PROXY=PROXY, **{variable: no_proxy}) is None) is direct


def test_a_password_is_kept_out_of_sight() -> None:
    """It is decoded for the proxy, and stands in no address and no repr."""
    proxy = Proxies({"HTTPS_PROXY": "http://me:p%40ss@proxy.local:3128"}).of(S3)
    assert proxy is not None
    assert (proxy.url, proxy.credentials) == (PROXY, "me:p@ss")
    assert "p@ss" not in repr(proxy)


@pytest.mark.parametrize(
    "value", ["socks5://me:s3cret@proxy:1080", "http://", "http://proxy:s3cret", "http://[x", "://"]
)
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(value: str) -> None:
    """And not by what it holds: that may be a password."""
    with pytest.raises(ProxyError, match="HTTPS_PROXY must be http://host:port") as refused:
        Proxies({"HTTPS_PROXY": value})
    assert "s3cret" not in str(refused.value)
