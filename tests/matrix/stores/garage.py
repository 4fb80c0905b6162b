"""Garage: one node, one copy, one bucket."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

from infra.local.process import PartError, free_port
from infra.local.stores import LOOPBACK, Store
from tests.matrix.stores.install import find_garage

COMMAND_SECONDS = 30.0
REGION = "garage"  # its default; it refuses any other in a signature

CONFIGURATION = """\
metadata_dir = "{directory}/meta"
data_dir = "{directory}/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc_port}"
rpc_public_addr = "127.0.0.1:{rpc_port}"
rpc_secret = "{secret}"
[s3_api]
s3_region = "{region}"
api_bind_addr = "127.0.0.1:{port}"
root_domain = ".s3.garage.localhost"
[admin]
api_bind_addr = "127.0.0.1:{admin_port}"
"""


class Garage(Store):
    """It makes `bucket` itself at its first start: keys and buckets are the business of its command line."""

    def __init__(self, directory: Path, *, bucket: str) -> None:
        binary = find_garage()
        if binary is None:
            raise PartError("Garage is not here: run `make garage`")
        directory = directory.absolute()
        self._bucket = bucket
        self._configuration_file = directory / "garage.toml"
        self._garage = [str(binary), "-c", str(self._configuration_file)]
        super().__init__(
            "garage",
            [*self._garage, "server"],
            directory,
            port=free_port(),
            credentials=(f"GK{secrets.token_hex(12)}", secrets.token_hex(32)),
            ready_path="/",
            environment={"RUST_LOG": "garage=warn"},
            without=("GARAGE_",),
        )
        self.region = REGION
        self._has_bucket = False

    def prepare(self) -> None:
        """Writes the configuration, once."""
        if self._configuration_file.exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        text = CONFIGURATION.format(
            directory=self.directory,
            rpc_port=free_port(),
            admin_port=free_port(),
            port=self.port,
            secret=secrets.token_hex(32),
            region=REGION,
        )
        self._configuration_file.write_text(text)
        self._configuration_file.chmod(0o600)

    def is_ready(self) -> bool:
        """It answers strangers with 403, and everybody with 503 before it has a layout."""
        return self._ask("GET", "/") is not None

    def start(self) -> Garage:
        """The first time also layout, key and bucket."""
        super().start()
        if not self._has_bucket:
            node = self._run("node", "id", "-q").partition("@")[0]
            self._run("layout", "assign", "-z", LOOPBACK, "-c", "10G", node)
            self._run("layout", "apply", "--version", "1")
            self._run("key", "import", "--yes", "-n", "matrix", self.access_key, self.secret_key)
            self._run("bucket", "create", self._bucket)
            self._run("bucket", "allow", "--read", "--write", "--owner", self._bucket, "--key", "matrix")
            self._has_bucket = True
        return self

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._garage, *arguments], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )
        if done.returncode != 0:
            raise PartError(f"`garage {' '.join(arguments[:2])} …` failed: {(done.stdout + done.stderr)[-1000:]}")
        return done.stdout.strip()
