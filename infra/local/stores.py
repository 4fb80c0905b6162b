"""Runs real S3 servers on loopback: MinIO, moto's server (S3 and SQS in memory), Versity Gateway."""

from __future__ import annotations

import http.client
import importlib
import os
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.local.install import find_minio, find_versitygw
from infra.local.process import PartError, Process, free_port

PROBE_TIMEOUT_SECONDS = 1.0
CLIENT_CONNECT_TIMEOUT_SECONDS = 2.0
CLIENT_READ_TIMEOUT_SECONDS = 10.0
STORE_START_TIMEOUT_SECONDS = 60.0
REGION = "us-east-1"
LOOPBACK = "127.0.0.1"

# Known to everybody, for servers that only this machine and its containers can reach.
LOCAL_CREDENTIALS = ("bucketbell", "bucketbell-local")


class Store(Process):
    """What the stores have in common: an endpoint (by https where `ca_file` is to verify it), credentials, a client."""

    def __init__(
        self,
        name: str,
        command: list[str],
        directory: Path,
        *,
        host: str = LOOPBACK,
        port: int,
        credentials: tuple[str, str],
        ready_path: str,
        environment: Mapping[str, str],
        without: tuple[str, ...],
        ca_file: Path | None = None,
    ) -> None:
        super().__init__(
            name,
            command,
            directory,
            environment=environment,
            without=without,
            start_timeout_seconds=STORE_START_TIMEOUT_SECONDS,
            advice=f"Is another program listening on port {port}? Is there room in {directory}?",
        )
        self.host = host
        self.port = port
        self.access_key, self.secret_key = credentials
        self.region = REGION
        self._ready_path = ready_path
        self._ca_file = ca_file
        self.tls = None if ca_file is None else ssl.create_default_context(cafile=str(ca_file))

    @property
    def endpoint_url(self) -> str:
        """`http://host:port`, or with https."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def is_ready(self) -> bool:
        """Whether its health page answers 200."""
        return self._ask("GET", self._ready_path) == http.HTTPStatus.OK

    def client(self, service: str = "s3", *, attempts: int = 2, credentials: tuple[str, str] | None = None) -> Any:  # noqa: ANN401 - boto3 makes a client's methods at run time
        """A boto3 client of this store: `s3`, and with moto `sqs` and others; short time-outs, one retry.

        `credentials` are somebody else's than the store's own.
        """
        boto3 = importlib.import_module("boto3")
        config = importlib.import_module("botocore.config")
        access_key, secret_key = credentials or (self.access_key, self.secret_key)
        return boto3.session.Session().client(
            service,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name=self.region,
            verify=None if self._ca_file is None else str(self._ca_file),
            config=config.Config(
                signature_version="s3v4" if service == "s3" else None,
                s3={"addressing_style": "path"},
                connect_timeout=CLIENT_CONNECT_TIMEOUT_SECONDS,
                read_timeout=CLIENT_READ_TIMEOUT_SECONDS,
                retries={"total_max_attempts": attempts, "mode": "standard"},
                # Empty rather than absent: a proxy named in the environment has no business on loopback.
                proxies={},
            ),
        )

    def connection(self, timeout_seconds: float) -> http.client.HTTPConnection:
        """For requests without a client; it is opened by the first."""
        if self.tls is not None:
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_seconds, context=self.tls)
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_seconds)

    def _ask(self, method: str, path: str) -> int | None:
        """The status of one request, None when nobody answers."""
        connection = self.connection(PROBE_TIMEOUT_SECONDS)
        try:
            connection.request(method, path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


class Minio(Store):
    """MinIO on one directory. `environment` adds MinIO's own variables (webhook targets, GOMAXPROCS, …).

    It may be replaced between two starts: `minio.environment = {…}; minio.restart()`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        host: str = LOOPBACK,
        port: int = 0,
    ) -> None:
        binary = find_minio()
        if binary is None:
            raise PartError("MinIO is not here: run `make minio`")
        port = port or free_port()
        self.data = directory / "data"
        super().__init__(
            "minio",
            [
                *(str(binary), "server", str(self.data)),
                *("--address", f"{host}:{port}", "--console-address", f"127.0.0.1:{free_port()}"),
            ],
            directory,
            host=host,
            port=port,
            credentials=LOCAL_CREDENTIALS,
            ready_path="/minio/health/ready",
            environment=environment or {},
            without=("MINIO_",),
        )

    def prepare(self) -> None:
        """Makes the data directory."""
        self.data.mkdir(parents=True, exist_ok=True)

    def variables(self) -> Mapping[str, str]:
        """Credentials, no web console, no look for updates on the network; then the caller's."""
        return {
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_REGION": self.region,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            **self.environment,
        }


class MotoServer(Store):
    """moto's S3 and SQS (and the rest of its AWS) in a process of its own; a restart forgets everything."""

    def __init__(self, directory: Path, *, host: str = LOOPBACK, port: int = 0) -> None:
        port = port or free_port()
        super().__init__(
            "moto",
            [sys.executable, "-P", "-m", "moto.server", "-H", host, "-p", str(port)],
            directory,
            host=host,
            port=port,
            credentials=("testing", "testing"),
            ready_path="/moto-api/data.json",
            # moto itself builds boto3 sessions: they must not find a person's real account or endpoint.
            environment={
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": REGION,
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            },
            without=("AWS_",),
        )

    def reset(self) -> None:
        """Forgets all buckets, queues and the rest; PartError when moto does not answer."""
        if self._ask("POST", "/moto-api/reset") != http.HTTPStatus.OK:
            raise PartError("moto did not reset: is it running?")


class VersityGateway(Store):
    """Versity's S3 gateway over a directory (its file system must have extended attributes)."""

    def __init__(self, directory: Path, *, event_webhook_url: str | None = None, port: int = 0) -> None:
        binary = find_versitygw()
        if binary is None:
            raise PartError("Versity Gateway is not here: run `make versitygw`")
        port = port or free_port()
        self.data = directory / "data"
        webhook = ("--event-webhook-url", event_webhook_url) if event_webhook_url else ()
        super().__init__(
            "versitygw",
            [
                *(str(binary), "--port", f"127.0.0.1:{port}", "--region", REGION, "--health", "/health"),
                *webhook,
                *("posix", str(self.data)),
            ],
            directory,
            port=port,
            credentials=LOCAL_CREDENTIALS,
            ready_path="/health",
            environment={},
            without=("VGW_", "ROOT_", "WEBHOOK", "LOGFILE"),
        )

    def prepare(self) -> None:
        """Makes the data directory."""
        self.data.mkdir(parents=True, exist_ok=True)

    def variables(self) -> Mapping[str, str]:
        """The credentials: on the command line every user of the machine could read them."""
        return {
            "ROOT_ACCESS_KEY_ID": self.access_key,
            "ROOT_SECRET_ACCESS_KEY": self.secret_key,
            **self.environment,
        }
