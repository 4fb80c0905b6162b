"""MiniStack, an emulated AWS in one process: IAM, signatures and TLS are in force, and functions are its children."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

from infra.local.certificates import make_certificates
from infra.local.process import STOP_TIMEOUT_SECONDS, PartError, free_port
from infra.local.stores import LOOPBACK, REGION, Store
from infra.sam.tool import ROOT

MINISTACK = ROOT / ".venv-ministack" / "bin" / "ministack"
PROBE_SECONDS = 2.0
AWS = "amazonaws.com"
"""The domain that it answers for, so that names look as they do on AWS."""

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def leave_the_network() -> None:
    """Have this process, and what it starts from now on, see nothing but a loopback interface of its own.

    MiniStack's IoT Core listens on 0.0.0.0, whatever it is told. PartError where that is not allowed.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise PartError(f"a network namespace cannot be made: {os.strerror(ctypes.get_errno())}: run it as root")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


class MiniStack(Store):
    """It forgets everything when it stops. Functions reach its IoT Core at `iot_host`, by a name as AWS has them.

    They alone know the name: a file of hosts lies over /etc/hosts where MiniStack and they look.
    """

    def __init__(self, directory: Path) -> None:
        if not MINISTACK.exists():
            raise PartError("MiniStack is not here: run `make aws-test`, which installs it into .venv-ministack")
        directory.mkdir(parents=True)
        files = make_certificates(directory / "certificates")
        hosts, port, self.iot_port = directory / "hosts", free_port(), free_port()
        self.iot_host = f"a1b2c3d4e5f6g7-ats.iot.{REGION}.{AWS}"
        hosts.write_text(f"{LOOPBACK} localhost {self.iot_host}\n")
        super().__init__(
            "ministack",
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                'mount --bind "$1" /etc/hosts && exec "$2"',
                "sh",
                str(hosts),
                str(MINISTACK),
            ],
            directory,
            port=port,
            credentials=("test", "test"),  # the account's root, whom IAM does not ask
            ready_path="/_ministack/health",
            environment={
                "AUTH": "true",
                "USE_SSL": "1",
                "MINISTACK_SSL_CERT": str(files.server_cert),
                "MINISTACK_SSL_KEY": str(files.server_key),
                "AWS_CA_BUNDLE": str(files.ca_file),  # the functions'
                "GATEWAY_PORT": str(port),
                "BIND_HOST": LOOPBACK,
                "IOT_MTLS_PORT": str(self.iot_port),
                "SFTP_ENABLED": "0",
                "MINISTACK_HOST": AWS,
                "MINISTACK_REGION": REGION,
                "LAMBDA_EXECUTOR": "local",
                "LAMBDA_ASYNC_RETRY_BASE_SECONDS": "1",
                "LAMBDA_ASYNC_RETRY_MAX_SECONDS": "2",
                "TMPDIR": str(directory),
            },
            without=("AWS_",),
            ca_file=files.ca_file,
        )

    def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """At once: in order it takes seconds, and there is nothing to keep."""
        del timeout_seconds
        self.kill()

    def iot_authority(self) -> str:
        """What signed the certificate of its IoT Core, in PEM."""
        connection = self.connection(PROBE_SECONDS)
        try:
            connection.request("GET", "/_ministack/iot/ca.pem")
            return connection.getresponse().read().decode()
        finally:
            connection.close()
