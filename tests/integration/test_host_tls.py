"""The host that serves HTTPS itself: the real process, with certificates of an authority of our own."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from infra.host.web.site import MAX_BODY_BYTES
from infra.local.certificates import Certificates, make_certificates, renew_server
from infra.local.mosquitto import Mosquitto
from tests.hosts import TOKEN, Host, environment, event, eventually
from tests.timing import PATIENCE_SECONDS

SCRIPT = Path(sys.executable).with_name("bucketbell")
ADMIN = "an-administrators-token-0123456789"
HURRIED = "from infra.host.web import protocol, tls\ntls.CHECK_SECONDS = 0.0\n"
DEADLINE_SECONDS = 0.5  # in place of the host's own
IMPATIENT = f"{HURRIED}protocol.HEADER_SECONDS = {DEADLINE_SECONDS}\n"


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    """A certificate for 127.0.0.1 and localhost."""
    return make_certificates(tmp_path / "certificates")


def pair(files: Certificates) -> dict[str, str]:
    """The settings that name it."""
    return {"HOST_CERT_FILE": str(files.server_cert), "HOST_KEY_FILE": str(files.server_key)}


@contextmanager
def serving(directory: Path, files: Certificates, mqtt_url: str | None = None, patch: str = "") -> Iterator[Host]:
    """A host that speaks TLS."""
    key = base64.b64encode(bytes(32)).decode()
    downloads = {"BUCKET": "devices", "DEVICE_TOKEN_KEYS": f"k:{key}", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    variables = environment(mqtt_url, ADMIN_TOKENS=ADMIN, **downloads, **pair(files))
    with Host(directory, variables, ready=mqtt_url is not None, ca_file=files.ca_file, patch=patch) as host:
        yield host


def connected(host: Host, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A TLS connection to it."""
    raw = socket.create_connection(("127.0.0.1", host.port), PATIENCE_SECONDS)
    return context.wrap_socket(raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False)


def trusting(files: Certificates) -> ssl.SSLContext:
    """A client's context that trusts our authority alone."""
    return ssl.create_default_context(cafile=files.ca_file)


def serial(host: Host, files: Certificates) -> int:
    """The number of the certificate that a new connection gets."""
    with connected(host, trusting(files)) as client:
        return x509.load_der_x509_certificate(client.getpeercert(binary_form=True) or b"").serial_number


def serial_of(file: Path) -> int:
    """The number of the certificate in this file."""
    return x509.load_pem_x509_certificate(file.read_bytes()).serial_number


def closed_after(client: socket.socket) -> float:
    """How long it takes until the other end closes."""
    begun_at = time.monotonic()
    client.settimeout(PATIENCE_SECONDS)
    while True:
        try:
            if not client.recv(65536):
                break
        except (ConnectionError, ssl.SSLEOFError):
            break
    return time.monotonic() - begun_at


def test_everything_is_served_over_tls(tmp_path: Path, files: Certificates, mosquitto: Mosquitto) -> None:
    """Small answers and large bodies, over a kept connection; the log says https."""
    with serving(tmp_path, files, mosquitto.url) as host:
        assert host.http.get("/healthz").json()["alive"] is True
        assert f'"url":"https://127.0.0.1:{host.port}"' in host.log
        assert host.post(event()).json() == {"outcomes": ["no_subscribers"]}
        assert host.post(b" " * 1_000_000 + event()).status_code == 200
        assert host.post(b" " * (MAX_BODY_BYTES + 1)).status_code == 413
        assert "strangers_total" in host.http.get("/metrics").text
        host.stop()


def test_nothing_older_than_tls_1_2_is_spoken(tmp_path: Path, files: Certificates) -> None:
    """1.2 and 1.3 are; 1.1 is refused, also where both ends could speak it."""
    with serving(tmp_path, files) as host:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(files)
            context.minimum_version = context.maximum_version = version
            with connected(host, context) as client:
                assert client.version() == version.name.replace("_", ".")
        old = trusting(files)
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connected(host, old)


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path, files: Certificates) -> None:
    """The next connection gets it. What cannot be used is told once, and the last good one stays."""
    with serving(tmp_path, files, patch=HURRIED) as host:
        first = serial(host, files)
        assert first == serial_of(files.server_cert)
        renew_server(files)
        eventually(lambda: serial(host, files) == serial_of(files.server_cert) != first)
        second = serial_of(files.server_cert)
        files.server_key.write_bytes(files.client_key.read_bytes())
        assert {serial(host, files) for _ in range(3)} == {second}
        (told,) = host.lines("WARNING")
        assert (told["message"], told["variable"]) == (
            "the new certificate cannot be used; the old one stays",
            "HOST_KEY_FILE",
        )
        files.server_key.unlink()
        assert {serial(host, files) for _ in range(3)} == {second}
        assert len(host.lines("WARNING")) == 2
        renew_server(files)
        eventually(lambda: serial(host, files) == serial_of(files.server_cert) != second)
        assert host.http.get("/healthz").status_code == 200


def test_files_that_cannot_be_used_are_refused_by_name(tmp_path: Path, files: Certificates) -> None:
    """At the start: one line, no question on the terminal, nothing of the key."""
    key = serialization.load_pem_private_key(files.server_key.read_bytes(), password=None)
    locked, junk = tmp_path / "locked.key", tmp_path / "junk.pem"
    sealed = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed))
    junk.write_text("nothing of the kind")
    good = pair(files)
    for changes, variable, words in (
        ({"HOST_KEY_FILE": str(files.client_key)}, "HOST_KEY_FILE", "key of the certificate in HOST_CERT_FILE"),
        ({"HOST_KEY_FILE": str(locked)}, "HOST_KEY_FILE", "without a password"),
        ({"HOST_KEY_FILE": str(junk)}, "HOST_KEY_FILE", "PEM file with the private key"),
        ({"HOST_CERT_FILE": str(junk)}, "HOST_CERT_FILE", "PEM file with the certificate"),
        ({"HOST_KEY_FILE": "/nowhere"}, "HOST_KEY_FILE", "must be the path of a file"),
        ({"HOST_KEY_FILE": ""}, "HOST_KEY_FILE", "goes together with HOST_CERT_FILE"),
        ({"HOST_CERT_FILE": ""}, "HOST_KEY_FILE", "goes together with HOST_CERT_FILE"),
    ):
        done = subprocess.run(
            [SCRIPT, "host", "--port", "18080"],
            env={"PATH": os.environ["PATH"], "WEBHOOK_TOKENS": TOKEN, **good, **changes},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, ""), changes
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith(f"{variable}: "), done.stderr
        assert words in done.stderr


def test_a_client_that_never_shakes_hands_costs_a_bounded_time(tmp_path: Path, files: Certificates) -> None:
    """Silence, half a hello, plain HTTP and a handshake without a request all end; others are served meanwhile."""
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        trusting(files).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1").do_handshake()
    half = hello.read()[:100]
    with serving(tmp_path, files, patch=IMPATIENT) as host:
        for said in (b"", half, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x00" * 3):
            with socket.create_connection(("127.0.0.1", host.port), PATIENCE_SECONDS) as client:
                client.sendall(said)
                assert host.http.get("/healthz").status_code == 200
                assert closed_after(client) < PATIENCE_SECONDS
        with connected(host, trusting(files)) as client:
            assert closed_after(client) < PATIENCE_SECONDS
        assert "Traceback" not in host.log
        assert not host.lines("ERROR")


def test_the_end_is_told_by_tls(tmp_path: Path, files: Certificates) -> None:
    """A client sees a clean end, and not a cut that could hide a part of the answer."""
    with serving(tmp_path, files) as host, connected(host, trusting(files)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = b""
        while came := client.recv(65536):  # raises ssl.SSLEOFError if TLS does not say that it ends
            said += came
        assert said.startswith(b"HTTP/1.1 200 ")


def test_commands_reach_a_host_with_a_private_authority(tmp_path: Path, files: Certificates) -> None:
    """`bucketbell mqtt` trusts it by BUCKETBELL_CA_FILE, `bucketbell device` by DEVICE_CA_FILE, and not without."""
    with serving(tmp_path, files) as host:
        known = {"PATH": os.environ["PATH"], "BUCKETBELL_SERVER": host.url, "BUCKETBELL_TOKEN": ADMIN}
        device = {"DEVICE_MAC": "aa-bb-cc-dd-ee-ff", "DEVICE_TOKEN": "x", "DEVICE_SERVER": host.url}
        device["DEVICE_DIRECTORY"] = str(tmp_path / "device")
        for trusts in (False, True):
            ca = {name: str(files.ca_file) for name in ("BUCKETBELL_CA_FILE", "DEVICE_CA_FILE") if trusts}
            for arguments in (("mqtt", "status"), ("device", "--once", "--json")):
                done = subprocess.run(
                    [SCRIPT, *arguments],
                    env=known | device | ca,
                    cwd=tmp_path,
                    capture_output=True,
                    text=True,
                    timeout=2 * PATIENCE_SECONDS,
                    check=False,
                )
                said = done.stdout + done.stderr
                assert done.returncode == 1
                assert ("certificate" in said) is not trusts, said
                assert ("no broker is configured" in said or "unauthorized" in said) is trusts, said
