"""A name server on loopback that knows one address, and can refuse to answer or keep silent."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from typing import Literal, Self

PORT = 53  # resolv.conf knows no other
STOP_SECONDS = 2.0
MAX_BYTES = 512  # RFC 1035 §4.2.1
_ANSWERED, _SERVFAIL = 0x8180, 0x8182  # RFC 1035 §4.1.1: response, recursion available; 2 is "server failure"
_A, _IN, _TTL_SECONDS = 1, 1, 0


class FakeDns:
    """Answers every A query with 127.0.0.1 (RFC 1035), from entering until leaving. Port 53 needs root.

    `mode` may be changed at any time: "well", "failing" (SERVFAIL at once), "silent".
    """

    def __init__(self) -> None:
        """Bind an address of 127.0.0.0/8 that nobody else uses."""
        self.mode: Literal["well", "failing", "silent"] = "well"
        self.queries = 0
        self.address = ".".join(str(part) for part in (127, *(1 + secrets.randbelow(254) for _ in range(3))))
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((self.address, PORT))
        self._thread = threading.Thread(target=self._serve, name="fake-dns", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A datagram wakes the thread: closing a socket under recvfrom does not.
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(STOP_SECONDS)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(MAX_BYTES)
            if not query:
                return
            self.queries += 1
            if self.mode != "silent":
                self._socket.sendto(self._answer(query), asker)

    def _answer(self, query: bytes) -> bytes:
        question_end = query.index(b"\0", 12) + 5
        question = query[12:question_end]
        (kind,) = struct.unpack("!H", question[-4:-2])
        if self.mode == "failing":
            return query[:2] + struct.pack("!5H", _SERVFAIL, 1, 0, 0, 0) + question
        if kind != _A:
            return query[:2] + struct.pack("!5H", _ANSWERED, 1, 0, 0, 0) + question
        record = struct.pack("!HHHIH4s", 0xC00C, _A, _IN, _TTL_SECONDS, 4, socket.inet_aton("127.0.0.1"))
        return query[:2] + struct.pack("!5H", _ANSWERED, 1, 1, 0, 0) + question + record
