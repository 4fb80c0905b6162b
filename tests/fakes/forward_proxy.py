"""An HTTP proxy (RFC 9110 §7.6, §9.3.6) on loopback that sends every host to one address; `seen` says who asked."""

from __future__ import annotations

import base64
import contextlib
import http.client
import select
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 64 * 1024
IDLE_SECONDS = 30.0


class ForwardProxy:
    """Listens on `url`; with `credentials` (`user:password`) it wants those."""

    def __init__(self, port: int, *, credentials: str | None = None) -> None:
        self.target = ("127.0.0.1", port)
        self.seen: list[str] = []
        self.wanted = None if credentials is None else f"Basic {base64.b64encode(credentials.encode()).decode()}"
        self._http = _Listener(("127.0.0.1", 0), _Handler)
        self._http.proxy = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: ForwardProxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def do_GET(self) -> None:
        """Pass on a request in absolute form."""
        if not self._may():
            return
        parts = urlsplit(self.path)
        onward = http.client.HTTPConnection(*self.server.proxy.target, timeout=IDLE_SECONDS)
        with contextlib.closing(onward):
            headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
            onward.request("GET", urlunsplit(("", "", parts.path, parts.query, "")), headers=headers)
            answer = onward.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def do_CONNECT(self) -> None:
        """Open a tunnel."""
        if not self._may():
            return
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(self.server.proxy.target) as onward:
            ways = {self.connection: onward, onward: self.connection}
            while True:
                for source in select.select(list(ways), [], [], IDLE_SECONDS)[0]:
                    if not (chunk := source.recv(CHUNK_BYTES)):
                        self.close_connection = True
                        return
                    ways[source].sendall(chunk)

    def _may(self) -> bool:
        proxy = self.server.proxy
        proxy.seen.append(f"{self.command} {self.path.partition('?')[0]}")
        if proxy.wanted is None or self.headers.get("Proxy-Authorization") == proxy.wanted:
            return True
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's signature
        """Say nothing."""
