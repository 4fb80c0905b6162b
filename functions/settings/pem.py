"""Pure: PEM text (RFC 7468) as people get it into a variable."""

from __future__ import annotations

import re

LINE_CHARACTERS = 64  # RFC 7468 §2

_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----([A-Za-z0-9+/=\s]+)-----END \1-----")


def certificates(text: str) -> str:
    """Return the certificates of `text`, each line where it belongs. Raises ValueError where there is none."""
    if found := _blocks(text, "CERTIFICATE"):
        return found
    raise ValueError("must be PEM text, -----BEGIN CERTIFICATE----- ... -----END CERTIFICATE-----")


def private_key(text: str) -> str:
    """Return the private key of `text`. Raises ValueError where there is none, or one that wants a password."""
    if (found := _blocks(text, "PRIVATE KEY")) and "ENCRYPTED" not in found:
        return found
    raise ValueError("must be PEM text of a key without a password, -----BEGIN PRIVATE KEY----- ...")


def _blocks(text: str, label: str) -> str:
    """Return the blocks whose label ends with `label`.

    Line ends may be missing, be spaces (the console of Secrets Manager makes them that) or a written-out backslash and
    `n` (as in many an environment file): neither base64 nor a label holds a backslash, and base64 no space.
    """
    plain = re.sub(r"\\[rn]", "\n", text)
    return "".join(
        f"-----BEGIN {found[1]}-----\n{_wrapped(found[2])}-----END {found[1]}-----\n"
        for found in _BLOCK.finditer(plain)
        if found[1].endswith(label)
    )


def _wrapped(base64: str) -> str:
    whole = "".join(base64.split())
    return "".join(whole[at : at + LINE_CHARACTERS] + "\n" for at in range(0, len(whole), LINE_CHARACTERS))
