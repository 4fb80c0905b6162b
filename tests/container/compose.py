"""Finds or builds Docker Compose, and runs `infra/deploy/container/compose.yaml` with the stand-ins of bases.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO

from infra.local.install import BUILD_TIMEOUT_SECONDS, binary_cache, run_saying
from infra.local.process import PartError
from infra.sam.engine import answers, docker
from tests.container.bases import GO, MOSQUITTO, PYTHON

ROOT = Path(__file__).parents[2]
FILE = ROOT / "infra/deploy/container/compose.yaml"
HOST_IMAGE, MINIO_IMAGE = "bucketbell-test/host", "bucketbell-test/minio"
VERSION = "v5.6.0"
BUILD_SECONDS = 400.0
UP_SECONDS = 120.0
RUN_SECONDS = 60.0
ADDRESS = "127.77.0.1"
"""Of loopback too, where nobody else has these ports."""

# The engine's own network leads nowhere (infra.sam.engine), and pip wants the package index.
_OVER = """
services:
  secrets: &network { build: { network: host } }
  connect: *network
  host: *network
  upload: *network
"""
_STAND_INS = {
    "PYTHON_IMAGE": PYTHON,
    "MOSQUITTO_IMAGE": MOSQUITTO,
    "GO_IMAGE": GO,
    "BUCKETBELL_IMAGE": HOST_IMAGE,
    "MINIO_IMAGE": MINIO_IMAGE,
    "BIND": ADDRESS,
    "STORE_URL": f"http://{ADDRESS}:9000",
    "BROKER_FILES": "4096",  # a machine of the cloud may allow no more
    # Without buildx, which a machine without a registry cannot have either, there is only the classic builder.
    "DOCKER_BUILDKIT": "0",
}


@cache
def program() -> tuple[str, ...]:
    """`docker compose` where that is installed, else Compose built from its Go module into the cache."""
    if answers():
        try:
            docker("compose", "version", deadline_seconds=RUN_SECONDS)
        except PartError:
            pass
        else:
            return ("docker", "compose")
    if (built := binary_cache() / "docker-compose").exists():
        return (str(built),)
    if shutil.which("go") is None:
        raise PartError("Docker Compose is neither installed, nor is Go here to build it")
    binary_cache().mkdir(parents=True, exist_ok=True)
    # Not `go install`: its go.mod excludes versions, which only a module that depends on it may have.
    script = f"""
        printf 'module compose\\n' > go.mod
        go get github.com/docker/compose/v5@{VERSION}
        CGO_ENABLED=0 go build -mod=mod -trimpath -ldflags=-s -o '{built}' github.com/docker/compose/v5/cmd
    """
    with tempfile.TemporaryDirectory() as directory:
        status, last_words = run_saying(
            ["/bin/sh", "-ec", f"cd {directory}\n{script}"],
            f"building Docker Compose {VERSION}",
            print,
            timeout_seconds=BUILD_TIMEOUT_SECONDS,
        )
    if status != 0:
        raise PartError(f"Go could not build Docker Compose:\n{last_words}")
    return (str(built),)


@dataclass(frozen=True, slots=True)
class Composition:
    """The composition under a name of its own, as a person runs it."""

    directory: Path
    name: str = "bucketbell-test"
    environment: dict[str, str] = field(default_factory=lambda: dict(_STAND_INS))

    def run(self, *words: str, seconds: float = RUN_SECONDS, stdin: IO[bytes] | None = None) -> str:
        """What Compose said to stdout. Raises `PartError` with all that it said."""
        over = self.directory / "over.yaml"
        over.write_text(_OVER)
        try:
            done = subprocess.run(
                [*program(), "--project-name", self.name, "--file", str(FILE), "--file", str(over), *words],
                env={**os.environ, **self.environment},
                stdin=stdin or subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PartError(f"`compose {words[0]}` took longer than {seconds:g} s") from error
        if done.returncode != 0:
            raise PartError(f"`compose {words[0]}` failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def up(self) -> None:
        """Start all of it, and wait until it is well. Raises `PartError` with the logs."""
        try:
            self.run("up", "--detach", "--wait", seconds=UP_SECONDS)
        except PartError as error:
            raise PartError(f"{error}\n{self.run('logs', '--tail', '30')}") from None

    def secret(self, name: str) -> str:
        """One of the host's secrets."""
        return self.run("exec", "--no-TTY", "host", "cat", f"/run/secrets/{name}").strip()

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.run("ps", "--all", "--quiet", service).strip()
