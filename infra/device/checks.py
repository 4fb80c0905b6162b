"""Pure: which proof there is that a file is whole, and what a file comes to.

The best is the SHA-256 that the server tells. Else the store's response says something. An ETag is the MD5 of the
content only for an object uploaded in one piece and not encrypted by KMS or with the client's key (S3, "Checking object
integrity"): 32 hex digits, no dash, and no such header. A multipart object's is something else; then the size decides,
unless the response carries a checksum of the whole object.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from typing import Literal
from urllib.parse import parse_qs

By = Literal["sha256", "sha1", "crc32", "md5", "size"]

CHUNK_BYTES = 256 * 1024
CHECKSUM_MODE = "x-amz-checksum-mode"

_PLAIN_MD5 = re.compile("[0-9a-fA-F]{32}")
# With SSE-S3 (`AES256`) the ETag stays an MD5; with `aws:kms`, `aws:kms:dsse` and others it does not.
_ENCRYPTION, _CLIENTS_KEY = "x-amz-server-side-encryption", "x-amz-server-side-encryption-customer-algorithm"
# The strongest first. CRC32C and CRC64NVME are not in Python's standard library.
_CHECKSUM_BYTES: dict[By, int] = {"sha256": 32, "sha1": 20, "crc32": 4}


@dataclass(frozen=True, slots=True)
class Check:
    """What the whole file must come to: `value` is hex, empty where only the size can be compared."""

    by: By
    value: str = ""


def choose(etag: str, headers: Mapping[str, str]) -> Check:
    """The best proof in a response of the store; `headers` must ignore case."""
    # moto gives a checksum of the parts' checksums without saying so, where it looks like one of the whole.
    assumed = "COMPOSITE" if "-" in etag else "FULL_OBJECT"
    if headers.get("x-amz-checksum-type", assumed) == "FULL_OBJECT":
        for by, length_bytes in _CHECKSUM_BYTES.items():
            value = _decoded(headers.get(f"x-amz-checksum-{by}", ""))
            # A composite one, made of the parts' checksums, ends in `-<parts>`, which is not base64.
            if len(value) == length_bytes:
                return Check(by, value.hex())
    plain = headers.get(_ENCRYPTION, "AES256") == "AES256" and headers.get(_CLIENTS_KEY) is None
    return Check("md5", etag.lower()) if plain and _PLAIN_MD5.fullmatch(etag) else Check("size")


def digest(check: Check, file: FileIO) -> str:
    """What the file from its beginning comes to, to be compared with the check's value."""
    file.seek(0)
    if check.by == "size":
        return check.value
    if check.by == "crc32":
        crc = 0
        while chunk := file.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
        return f"{crc:08x}"
    return hashlib.file_digest(file, lambda: hashlib.new(check.by, usedforsecurity=False)).hexdigest()


def checksum_headers(url: str) -> dict[str, str]:
    """The header that asks for the object's checksum, where the URL was signed for it.

    AWS refuses an `x-amz-…` header that is not among the signed ones.
    """
    # Not urlsplit, which raises if it is not a URL: the request will tell that.
    signed = parse_qs(url.partition("?")[2]).get("X-Amz-SignedHeaders", [""])[0].split(";")
    return {CHECKSUM_MODE: "ENABLED"} if CHECKSUM_MODE in signed else {}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
