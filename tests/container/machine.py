"""A small Debian whose process 1 is systemd, in a container, with bucketbell installed as docs/self-hosting.md says."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infra.sam.engine import docker
from tests.container.bases import systemd_base
from tests.container.compose import BUILD_SECONDS, ROOT, RUN_SECONDS
from tests.hosts import eventually

IMAGE = "bucketbell-test/machine"
SECRETS = "/etc/bucketbell/secrets"
SETTINGS = "/etc/bucketbell/bucketbell.env"
_PAGE = ROOT / "docs/self-hosting.md"

# What would change the machine beneath, or ask who sits before it.
_MASKED = (
    "systemd-firstboot systemd-logind systemd-modules-load systemd-networkd systemd-random-seed systemd-remount-fs "
    "systemd-resolved systemd-sysctl systemd-timesyncd systemd-udevd console-getty getty.target"
)
_FILE = f"""
FROM {{base}}
COPY LICENSE README.md pyproject.toml /src/
COPY functions /src/functions
COPY infra /src/infra
RUN echo /usr/local/lib > /etc/ld.so.conf && ldconfig && systemctl mask {_MASKED}
WORKDIR /root
RUN python3 -m pip wheel --quiet --no-deps --wheel-dir . /src
RUN {{install}}
"""
# What systemd expects of whoever starts it: control groups that it may write to (below /sys/fs/cgroup, of version 1 or
# 2), and mounts that are shared, so that a service sees the credentials that were mounted for it.
_BOOT = """
for place in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do mount -o remount,rw $place; done
mount --make-rshared /
exec /lib/systemd/systemd
"""
# SYS_ADMIN to mount, SYS_PTRACE to give a service users of its own (PrivateUsers). Its processes have neither.
_RIGHTS = (
    *("--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--cgroupns", "private"),
    *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
    *("--security-opt", "systempaths=unconfined"),
)


def commands() -> list[str]:
    """What the page has root type."""
    section = _PAGE.read_text().split("### With systemd", 1)[1].split("\n### ", 1)[0]
    return re.findall(r"^# (.+)$", section, re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Machine:
    """One that runs."""

    name: str

    def run(self, *words: str, seconds: float = RUN_SECONDS) -> str:
        """What root's command says there. Raises `PartError` where it fails."""
        return docker("exec", self.name, *words, deadline_seconds=seconds)

    def write(self, path: str, text: str) -> None:
        """Write a file, for root alone."""
        self.run("sh", "-c", 'umask 077; mkdir -p "$(dirname "$1")"; printf %s "$2" > "$1"', "sh", path, text)

    def shows(self, name: str) -> str:
        """What systemd knows of the service: one property of it."""
        return self.run("systemctl", "show", "--value", "--property", name, "bucketbell")

    def journal(self, *words: str) -> str:
        """The service's log, as the page has one read it."""
        return self.run("journalctl", "--unit", "bucketbell", "--no-pager", *words)


def build() -> None:
    """Make its image."""
    *before, start = commands()
    assert start.startswith("systemctl enable --now ")
    with tempfile.NamedTemporaryFile("w", suffix=".Dockerfile") as file:
        file.write(_FILE.format(base=systemd_base().name, install=" && ".join(before)))
        file.flush()
        words = ("--network", "host", "--file", file.name, "--tag", IMAGE)
        docker("build", *words, str(ROOT), deadline_seconds=BUILD_SECONDS)


@contextmanager
def booted(name: str = "bucketbell-test-machine") -> Iterator[Machine]:
    """The machine, from its start to its end."""
    remove = ("rm", "--force", name)
    docker(*remove, deadline_seconds=RUN_SECONDS)  # what a killed run has left
    words = ("--detach", "--name", name, *_RIGHTS, "--tmpfs", "/run", "--env", "container=docker")
    machine = Machine(name)
    state = ("sh", "-c", "systemctl is-system-running || true")
    try:
        docker("run", *words, IMAGE, "/bin/sh", "-c", _BOOT, deadline_seconds=RUN_SECONDS)
        eventually(lambda: machine.run(*state) == "running")
        yield machine
    finally:
        docker(*remove, deadline_seconds=RUN_SECONDS)
