"""Makes throw-away TLS certificates for brokers and clients on this machine."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_FOR = dt.timedelta(days=2)
CLOCK_SKEW = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files. `stranger_ca_file` signed none of them: a client that trusts only it must refuse the server."""

    ca_file: Path
    ca_key: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    stranger_ca_file: Path


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_certificates(
    directory: Path,
    *,
    client_name: str = "bucketbell-client",
    complete_authority: bool = True,
    authority_valid_for: dt.timedelta = VALID_FOR,
) -> Certificates:
    """Writes an authority, a server certificate for localhost, 127.0.0.1 and ::1, and a client certificate.

    They are valid for two days from now, the authority for `authority_valid_for`; keys are readable by their owner
    only. What was there is replaced.
    Not `complete_authority`: without key usage, as people make them by hand.
    """
    directory.mkdir(parents=True, exist_ok=True)
    authority = _authority("bucketbell local authority", key_usage=complete_authority, valid_for=authority_valid_for)
    stranger = _authority("bucketbell stranger")
    files = Certificates(
        ca_file=directory / "ca.pem",
        ca_key=directory / "ca.key",
        server_cert=directory / "server.pem",
        server_key=directory / "server.key",
        client_cert=directory / "client.pem",
        client_key=directory / "client.key",
        stranger_ca_file=directory / "stranger-ca.pem",
    )
    _write_certificate(files.ca_file, authority.certificate)
    _write_certificate(files.stranger_ca_file, stranger.certificate)
    _write_key(files.ca_key, authority.key)
    _issue_server(files, authority, VALID_FOR)
    client, client_key = _issue(authority, client_name, ExtendedKeyUsageOID.CLIENT_AUTH, None)
    _write_certificate(files.client_cert, client)
    _write_key(files.client_key, client_key)
    return files


def renew_server(files: Certificates, *, valid_for: dt.timedelta = VALID_FOR) -> None:
    """Replaces the server's certificate by one of the same authority; it has expired where `valid_for` is negative.

    Valid from an hour ago, which `valid_for` must not go behind.
    """
    certificate = x509.load_pem_x509_certificate(files.ca_file.read_bytes())
    key = serialization.load_pem_private_key(files.ca_key.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{files.ca_key} is not a key of ours")
    _issue_server(files, _Authority(certificate, key), valid_for)


def _issue_server(files: Certificates, authority: _Authority, valid_for: dt.timedelta) -> None:
    loopback = x509.SubjectAlternativeName(
        [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.IPAddress(ipaddress.ip_address("::1")),
        ]
    )
    certificate, key = _issue(authority, "localhost", ExtendedKeyUsageOID.SERVER_AUTH, loopback, valid_for)
    _write_certificate(files.server_cert, certificate)
    _write_key(files.server_key, key)


def _authority(name: str, *, key_usage: bool = True, valid_for: dt.timedelta = VALID_FOR) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    constraints = x509.BasicConstraints(ca=True, path_length=0 if key_usage else None)
    builder = _builder(name, key, valid_for).issuer_name(_named(name)).add_extension(constraints, critical=True)
    if key_usage:
        builder = builder.add_extension(_key_usage(authority=True), critical=True)
    return _Authority(builder.sign(key, hashes.SHA256()), key)


def _issue(
    authority: _Authority,
    name: str,
    purpose: x509.ObjectIdentifier,
    names: x509.SubjectAlternativeName | None,
    valid_for: dt.timedelta = VALID_FOR,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    # Python 3.13 verifies strictly (RFC 5280): key identifiers and basic constraints must be there.
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(name, key, valid_for)
        .issuer_name(authority.certificate.subject)
        .add_extension(issuer_key, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority.key, hashes.SHA256()), key


def _builder(name: str, key: ec.EllipticCurvePrivateKey, valid_for: dt.timedelta) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + valid_for)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_certificate(file: Path, certificate: x509.Certificate) -> None:
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    file.touch(mode=0o600)
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
