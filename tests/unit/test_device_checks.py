from __future__ import annotations

import base64
import hashlib
import io
import zlib
from pathlib import Path

import pytest

from infra.device.checks import Check, checksum_headers, choose, digest

BODY = b"firmware" * 1000
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
SHA256 = hashlib.sha256(BODY).digest()
SHA256_TEXT = base64.b64encode(SHA256).decode()
CRC32_TEXT = base64.b64encode(zlib.crc32(BODY).to_bytes(4, "big")).decode()


@pytest.mark.parametrize(
    ("etag", "headers", "check"),
    [
        (MD5, {}, Check("md5", MD5)),
        (MD5.upper(), {}, Check("md5", MD5)),
        (MD5, {"x-amz-server-side-encryption": "AES256"}, Check("md5", MD5)),
        (MD5, {"x-amz-server-side-encryption": "aws:kms"}, Check("size")),
        (MD5, {"x-amz-server-side-encryption": "aws:kms:dsse"}, Check("size")),
        (MD5, {"x-amz-server-side-encryption-customer-algorithm": "AES256"}, Check("size")),
        (f"{MD5}-3", {}, Check("size")),
        ("abc", {}, Check("size")),
        (f"{MD5}-3", {"x-amz-checksum-sha256": SHA256_TEXT}, Check("size")),  # moto's, of the parts' checksums
        (
            f"{MD5}-3",
            {"x-amz-checksum-sha256": SHA256_TEXT, "x-amz-checksum-type": "FULL_OBJECT"},
            Check("sha256", SHA256.hex()),
        ),
        (MD5, {"x-amz-checksum-sha256": SHA256_TEXT}, Check("sha256", SHA256.hex())),
        (MD5, {"x-amz-checksum-crc32": CRC32_TEXT}, Check("crc32", f"{zlib.crc32(BODY):08x}")),
        (f"{MD5}-3", {"x-amz-checksum-sha256": f"{SHA256_TEXT}-3"}, Check("size")),
        (f"{MD5}-3", {"x-amz-checksum-sha256": SHA256_TEXT, "x-amz-checksum-type": "COMPOSITE"}, Check("size")),
        (MD5, {"x-amz-checksum-sha256": "AAAA"}, Check("md5", MD5)),
        (MD5, {"x-amz-checksum-sha256": "é"}, Check("md5", MD5)),
        (MD5, {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}, Check("md5", MD5)),
    ],
)
def test_the_best_proof_that_holds_is_chosen(etag: str, headers: dict[str, str], check: Check) -> None:
    """A checksum of the whole object, else an ETag that is an MD5, else the size."""
    assert choose(etag, headers) == check


@pytest.mark.parametrize(
    "text",
    [SHA256_TEXT, base64.b64encode(hashlib.sha1(BODY, usedforsecurity=False).digest()).decode(), CRC32_TEXT, None],
)
def test_the_whole_file_is_checked(tmp_path: Path, text: str | None) -> None:
    """One wrong byte anywhere fails the proof, wherever the file was left off."""
    by = {44: "sha256", 28: "sha1", 8: "crc32"}.get(len(text or ""), "")
    check = choose(MD5, {f"x-amz-checksum-{by}": text} if text else {})
    assert check.by == (by or "md5")
    for body, well in ((BODY, True), (BODY[:-1] + b"?", False), (b"?" + BODY[1:], False), (b"", False)):
        (tmp_path / "f").write_bytes(body)
        with io.FileIO(tmp_path / "f") as file:
            file.seek(3)
            assert (digest(check, file) == check.value) is well


def test_a_checksum_is_asked_for_only_where_that_was_signed() -> None:
    """AWS refuses x-amz headers that are not among the signed ones."""
    assert checksum_headers("http://s/b/k?X-Amz-SignedHeaders=host%3Bx-amz-checksum-mode&a=b") == {
        "x-amz-checksum-mode": "ENABLED"
    }
    assert checksum_headers("http://s/b/k?X-Amz-SignedHeaders=host") == {}
    assert checksum_headers("http://s/b/k") == {}
