"""HTTP with every wait bounded; the only importer of urllib3.

It follows no redirect: the bearer token would go along to the store, which refuses two ways to authenticate.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import urllib3
from urllib3 import exceptions

from infra.device.trouble import Trouble

CONNECT_TIMEOUT_SECONDS = 5.0
STALL_TIMEOUT_SECONDS = 10.0  # without a single byte; a slow line may take as long as it needs
BODY_TIMEOUT_SECONDS = 20.0  # for a JSON answer as a whole
CHUNK_BYTES = 64 * 1024


class Answer:
    """One response; `headers` ignores case. Its body is taken once, by `chunks` or by `body`."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        """Nothing of the body is read yet."""
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives, as it was stored (an object may have a Content-Encoding)."""
        # Not read(): it waits for a whole chunk, and loses what it has of it when the connection is cut.
        while chunk := self._response.read1(CHUNK_BYTES, decode_content=False):
            yield chunk

    def body(self, limit_bytes: int) -> bytes:
        """The whole body; Trouble when it is longer, or takes longer than BODY_TIMEOUT_SECONDS."""
        until = time.monotonic() + BODY_TIMEOUT_SECONDS
        body = bytearray()
        for chunk in self.chunks():
            body += chunk
            if len(body) > limit_bytes:
                raise Trouble("protocol", f"the server's answer is longer than {limit_bytes:,} bytes")
            if time.monotonic() > until:
                raise Trouble("timed_out", f"the server's answer took longer than {BODY_TIMEOUT_SECONDS:g} s")
        return bytes(body)


class Web:
    """Connections, kept and shared: thread-safe, so that many devices of one process may use one.

    `ca_file` (PEM) is trusted besides the system's authorities. OSError when it cannot be read.
    """

    def __init__(self, *, ca_file: Path | None = None, connections: int = 2) -> None:
        """Opens nothing."""
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(str(ca_file))
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            ssl_context=context,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=STALL_TIMEOUT_SECONDS),
        )

    def get(self, url: str, headers: Mapping[str, str]) -> AbstractContextManager[Answer]:
        """Ask for `url`; whatever the network does inside the `with` is raised as Trouble."""
        return self.request("GET", url, headers)

    @contextmanager
    def request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Iterator[Answer]:
        """As `get`, with another method and perhaps a body."""
        response: urllib3.BaseHTTPResponse | None = None
        try:
            response = self._pool.request(
                method, url, body=body, headers=dict(headers), redirect=False, preload_content=False
            )
            yield Answer(response)
        except (exceptions.NewConnectionError, exceptions.SSLError) as error:  # urllib3 counts the first as a time-out
            raise Trouble("unreachable", _words(error)) from None
        except exceptions.TimeoutError as error:
            raise Trouble("timed_out", _words(error)) from None
        except (exceptions.LocationValueError, UnicodeError):
            raise Trouble("protocol", "the URL cannot be used") from None
        except (exceptions.HTTPError, ConnectionError) as error:
            raise Trouble("cut", _words(error)) from None
        finally:
            if response is not None:
                # Back to the pool if the body is at its end, closed otherwise: what is left of it could be long.
                if response.closed:
                    response.release_conn()
                else:
                    response.close()

    def close(self) -> None:
        """Close what is idle."""
        self._pool.clear()


def _words(error: Exception) -> str:
    """What urllib3 says, without the object that it names first."""
    return str(error).rpartition("object at 0x")[2].partition(": ")[2] or str(error)
