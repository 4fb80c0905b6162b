"""HTTP with every wait bounded, by urllib3.

It follows no redirect: the bearer token would go along to the store, which refuses two ways to authenticate.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from pathlib import Path

import urllib3
from urllib3 import exceptions

from infra.device.trouble import FetchError
from infra.proxies import Proxies, Proxy

CONNECT_TIMEOUT_SECONDS = 5.0
STALL_TIMEOUT_SECONDS = 10.0  # without a single byte; a slow line may take as long as it needs
BODY_TIMEOUT_SECONDS = 20.0  # for a JSON answer as a whole
CHUNK_BYTES = 64 * 1024
MAX_RETRY_AFTER_SECONDS = 300.0


class Response:
    """One response; `headers` ignores case. Its body is taken once, by `chunks` or by `body`."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        """Nothing of the body is read yet."""
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    @property
    def retry_after_seconds(self) -> float | None:
        """What `Retry-After` asks for, bounded.

        The date that RFC 9110 §10.2.3 also allows would need a right clock, which few devices have.
        """
        text = self.headers.get("Retry-After", "")
        return min(float(text), MAX_RETRY_AFTER_SECONDS) if re.fullmatch("[0-9]{1,9}", text) else None

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives, as it was stored (an object may have a Content-Encoding)."""
        # Not read(): it waits for a whole chunk, and loses what has come of it when the connection is cut.
        while chunk := self._response.read1(CHUNK_BYTES, decode_content=False):
            yield chunk

    def body(self, limit_bytes: int) -> bytes:
        """The whole body; FetchError when it is longer, or takes longer than BODY_TIMEOUT_SECONDS."""
        until = time.monotonic() + BODY_TIMEOUT_SECONDS
        body = bytearray()
        for chunk in self.chunks():
            body += chunk
            if len(body) > limit_bytes:
                raise FetchError("protocol", f"the server's answer is longer than {limit_bytes:,} bytes")
            if time.monotonic() > until:
                raise FetchError("timed_out", f"the server's answer took longer than {BODY_TIMEOUT_SECONDS:g} s")
        return bytes(body)

    def beginning(self, limit_bytes: int) -> bytes:
        """What can be had of the body: for a response whose status says enough."""
        until = time.monotonic() + BODY_TIMEOUT_SECONDS
        body = bytearray()
        try:
            for chunk in self.chunks():
                body += chunk
                if len(body) >= limit_bytes or time.monotonic() > until:
                    break
        except (exceptions.HTTPError, ConnectionError):
            pass
        return bytes(body[:limit_bytes])


class Web:
    """Connections, kept and shared: thread-safe, so that many devices of one process may use one.

    `ca_file` (PEM) is trusted besides the system's authorities. OSError when it cannot be read. `environment` names
    the proxies; ProxyError when it does not.
    """

    def __init__(
        self, *, ca_file: Path | None = None, connections: int = 2, environment: Mapping[str, str] | None = None
    ) -> None:
        """Opens nothing."""
        self._context = ssl.create_default_context()
        if ca_file is not None:
            self._context.load_verify_locations(str(ca_file))
        self._connections = connections
        self._proxies = Proxies(environment or {})
        self._lock = threading.Lock()
        self._pools: dict[Proxy | None, urllib3.PoolManager] = {}

    def get(self, url: str, headers: Mapping[str, str]) -> AbstractContextManager[Response]:
        """Ask for `url`; every failure of the network inside the `with` is raised as FetchError."""
        return self.request("GET", url, headers)

    @contextmanager
    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Iterator[Response]:
        """As `get`, with another method and perhaps a body."""
        response: urllib3.BaseHTTPResponse | None = None
        try:
            response = self._pool(url).request(
                method, url, body=body, headers=dict(headers), redirect=False, preload_content=False
            )
            if response.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                raise FetchError("unreachable", "the proxy wants a user and a password: http://user:password@host:port")
            yield Response(response)
        except (exceptions.NewConnectionError, exceptions.SSLError) as error:  # urllib3 counts the first as a time-out
            raise FetchError("unreachable", _words(error)) from None
        except exceptions.ProxyError as error:
            raise FetchError("unreachable", f"the proxy: {_words(error.original_error)}") from None
        except exceptions.TimeoutError as error:
            raise FetchError("timed_out", _words(error)) from None
        except (exceptions.LocationValueError, UnicodeError):
            raise FetchError("protocol", "the URL cannot be used") from None
        except (exceptions.HTTPError, ConnectionError) as error:
            raise FetchError("cut", _words(error)) from None
        finally:
            if response is not None:
                # Back to the pool if the body is at its end, closed otherwise: what is left of it could be long.
                if response.closed:
                    response.release_conn()
                else:
                    response.close()

    def close(self) -> None:
        """Close what is idle."""
        for pool in self._pools.values():
            pool.clear()

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = self._proxies.of(url)
        with self._lock:
            if (pool := self._pools.get(proxy)) is None:
                pool = self._pools[proxy] = self._new_pool(proxy)
            return pool

    def _new_pool(self, proxy: Proxy | None) -> urllib3.PoolManager:
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=STALL_TIMEOUT_SECONDS)
        if proxy is None:
            return urllib3.PoolManager(
                maxsize=self._connections, ssl_context=self._context, retries=False, timeout=timeout
            )
        return urllib3.ProxyManager(
            proxy.url,
            proxy_headers=urllib3.make_headers(proxy_basic_auth=proxy.credentials) if proxy.credentials else None,
            proxy_ssl_context=self._context,
            maxsize=self._connections,
            ssl_context=self._context,
            retries=False,
            timeout=timeout,
        )


def _words(error: Exception) -> str:
    """What urllib3 says, without the object that it names first."""
    return str(error).rpartition("object at 0x")[2].partition(": ")[2] or str(error)
