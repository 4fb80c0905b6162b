"""PEM text comes out well-formed, whatever a variable has done to its line ends."""

from __future__ import annotations

import pytest

from functions.settings.pem import certificates, private_key

LINES = ("A" * 64, "B" * 64, "Cw==")
CERTIFICATE = "\n".join(("-----BEGIN CERTIFICATE-----", *LINES, "-----END CERTIFICATE-----", ""))
KEY = CERTIFICATE.replace("CERTIFICATE", "PRIVATE KEY")


@pytest.mark.parametrize(
    "line_end",
    ["\n", "\r\n", r"\n", r"\r\n", " ", "  \n\t", ""],
    ids=["LF", "CRLF", "\\n", "\\r\\n", "space", "mixed", "none"],
)
def test_line_ends_are_put_right(line_end: str) -> None:
    """The console of Secrets Manager makes them spaces, environment files a backslash and an n."""
    assert certificates(CERTIFICATE.replace("\n", line_end)) == CERTIFICATE
    assert private_key(KEY.replace("\n", line_end)) == KEY


def test_a_chain_keeps_its_order_and_loses_what_is_around_it() -> None:
    """Comments and keys are nothing that a list of certificates should hold."""
    second = CERTIFICATE.replace(LINES[0], "Z" * 64)
    assert certificates(f"subject=CN\n{CERTIFICATE}{KEY}# and\n{second}") == CERTIFICATE + second
    assert private_key(f"{CERTIFICATE}{KEY}") == KEY


@pytest.mark.parametrize("kind", ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"])
def test_every_kind_of_key_is_one(kind: str) -> None:
    """PKCS 8 and what OpenSSL wrote before it; its parameters are left out."""
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert private_key(parameters + KEY.replace("PRIVATE KEY", kind)) == KEY.replace("PRIVATE KEY", kind)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        KEY.replace("END", "FIN"),
        KEY.replace("A", "!"),
        CERTIFICATE.replace("END CERT", "END X"),
        "/a.pem",
    ],
)
def test_what_is_no_pem_is_refused_without_being_repeated(text: str) -> None:
    """With what would be right."""
    for read in (certificates, private_key):
        with pytest.raises(ValueError, match=r"must be PEM text.*-----BEGIN") as caught:
            read(text)
        assert "AAAA" not in str(caught.value)


@pytest.mark.parametrize("headers", ["Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n", ""])
def test_a_key_with_a_password_is_refused(headers: str) -> None:
    """There is nobody to ask for it."""
    kind = "RSA PRIVATE KEY" if headers else "ENCRYPTED PRIVATE KEY"
    text = KEY.replace("PRIVATE KEY", kind).replace(LINES[0], headers + LINES[0])
    with pytest.raises(ValueError, match="without a password"):
        private_key(text)
