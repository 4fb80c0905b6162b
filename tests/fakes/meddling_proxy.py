"""A reverse proxy in front of a store, as people configure them wrongly."""

from __future__ import annotations

import http.client
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Self
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 10.0
_OWN = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


class MeddlingProxy:
    """Passes requests on to `target`. What has `refused` in its query gets a 501. `host`: what it makes of `Host`."""

    def __init__(self, target: str, *, host: str | None = None, refused: str | None = None) -> None:
        place = urlsplit(target)
        assert place.hostname is not None

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if refused is not None and refused in urlsplit(self.path).query:
                    self._answer(501, {}, b"<Error><Code>NotImplemented</Code><Message>No.</Message></Error>")
                    return
                line = http.client.HTTPConnection(str(place.hostname), place.port, timeout=TIMEOUT_SECONDS)
                try:
                    headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
                    headers |= {} if host is None else {"Host": host}
                    line.request(self.command, self.path, body, headers)
                    answer = line.getresponse()
                    self._answer(answer.status, dict(answer.getheaders()), answer.read())
                finally:
                    line.close()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - http.server looks for these names

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in _OWN:
                        self.send_header(name, value)
                self.send_header("Content-Length", headers.get("Content-Length", str(len(body))))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join(TIMEOUT_SECONDS)
        self._http.server_close()
