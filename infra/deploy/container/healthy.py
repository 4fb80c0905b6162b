"""The images' HEALTHCHECK: exits 0 when the server on a port of loopback answers 200 to `GET` of a path.

`healthy.py [PORT [PATH]]`. It has a TLS server answer too, and imports little: it runs every few seconds.
"""

import socket
import sys

SECONDS = 2.0  # for each protocol


def answer(port: int, path: str, *, tls: bool) -> bytes:
    """Return the first bytes of the answer, which are none where the other end expects the other protocol."""
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        if tls:
            import ssl  # noqa: PLC0415 - most hosts speak HTTP

            context = ssl.create_default_context()
            context.check_hostname = False  # it asks itself: the name and who signed for it do not matter
            context.verify_mode = ssl.CERT_NONE
            connection = context.wrap_socket(connection)  # noqa: PLW2901 - the same connection
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return connection.recv(16)


def main(port: str = "8080", path: str = "/healthz") -> int:
    """Return the exit status."""
    for tls in (False, True):
        try:
            if b" 200" in answer(int(port), path, tls=tls):
                return 0
        except OSError:
            continue
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
