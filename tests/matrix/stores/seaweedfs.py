"""SeaweedFS: master, volume server, filer and S3 gateway in one process."""

from __future__ import annotations

import json
from pathlib import Path

from infra.local.process import PartError, free_port
from infra.local.stores import LOCAL_CREDENTIALS, LOOPBACK, Store
from tests.matrix.stores.install import find_weed

NOTIFICATION = """\
[notification.webhook]
enabled = true
endpoint = "{url}/events"
bearer_token = "{token}"
event_types = ["create", "update"]
path_prefixes = ["/buckets/{bucket}/"]
"""


class SeaweedFS(Store):
    """Posts each change of its filer to `host_url`, with `token`."""

    def __init__(self, directory: Path, *, host_url: str, token: str, bucket: str) -> None:
        binary = find_weed()
        if binary is None:
            raise PartError("SeaweedFS is not here: run `make seaweedfs`")
        directory = directory.absolute()
        self._bucket = bucket
        self._host_url = host_url
        self._token = token
        self._data = directory / "data"
        self._identities_file = directory / "s3.json"
        port = free_port()
        ports = {"s3.port": port}
        # 0: its Iceberg and Lance catalogues are not asked for.
        unused = {"s3.port.iceberg": 0, "s3.port.lance": 0}
        for part in ("master", "volume", "filer"):
            ports[f"{part}.port"] = free_port()
        grpc = {f"{name}.grpc": free_port() for name in ports}
        options = {
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "dir": str(self._data),
            "volume.max": 100,
            "master.volumeSizeLimitMB": 64,
            "master.telemetry": "false",
            "s3.config": str(self._identities_file),
        }
        given = [f"-{name}={value}" for name, value in (options | ports | grpc | unused).items()]
        super().__init__(
            "weed",
            [str(binary), f"-logdir={directory}", "server", "-s3", *given],
            directory,
            port=port,
            credentials=LOCAL_CREDENTIALS,
            ready_path="/healthz",
            environment={},
            without=("WEED_", "AWS_"),
        )
        self._working_directory = directory  # where it looks for notification.toml

    def prepare(self) -> None:
        """Writes who may do what, and where events go."""
        self._data.mkdir(parents=True, exist_ok=True)
        account = {
            "name": "matrix",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        self._identities_file.write_text(json.dumps({"identities": [account]}))
        toml = NOTIFICATION.format(url=self._host_url, token=self._token, bucket=self._bucket)
        (self.directory / "notification.toml").write_text(toml)
