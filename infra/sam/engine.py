"""A Docker engine for the tests in containers: the machine's own where one answers, else one that ends with its user.

`python -m infra.sam.engine` keeps one running until it is interrupted, for several test runs one after the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from infra.local.install import APT_SCRIPT, SYSTEM_INSTALL_TIMEOUT_SECONDS, Say, run_saying
from infra.local.process import PartError, Process

ANSWER_SECONDS = 20.0
RUN_SECONDS = 60.0
START_SECONDS = 60.0
STOP_SECONDS = 20.0
HOST = "host.docker.internal"
"""What the containers call this machine, given `ADD_HOST`."""
ADD_HOST = f"{HOST}:host-gateway"


@contextlib.contextmanager
def engine(say: Say = print) -> Iterator[None]:
    """An engine for the length of the block: one that runs is used and left alone, one of ours is stopped at the end.

    Installs Debian's docker.io where there is none and that is allowed. Raises `PartError` with what to type.
    """
    with contextlib.ExitStack() as stack:
        if not answers():
            stack.enter_context(_ours(say, socket_group=None))
        yield


def answers() -> bool:
    """Whether `docker` is here and its engine answers."""
    try:
        docker("version", deadline_seconds=ANSWER_SECONDS)
    except PartError:
        return False
    return True


def docker(*arguments: str, deadline_seconds: float, stdin: IO[bytes] | None = None) -> str:
    """What `docker` said to stdout, stripped. Raises `PartError` with what it said to stderr."""
    program = _client()
    if program is None:
        raise PartError(_by_hand())
    what = f"docker {arguments[0]}"
    try:
        done = subprocess.run(  # noqa: S603 - an argument list of our own, no shell
            [program, *arguments],
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PartError(f"`{what}` took longer than {deadline_seconds:g} s") from None
    if done.returncode != 0:
        raise PartError(f"`{what}` failed: {done.stderr.strip()}")
    return done.stdout.strip()


def host_address(image: str) -> str:
    """An address of this machine, where servers that containers reach as `HOST` listen. `image` is one with a `cat`.

    A container is asked for it: in an engine's first life its network's configuration names no gateway. Loopback where
    what the container says is not on this machine: Docker Desktop forwards to it.
    """
    cat = ("run", "--rm", "--add-host", ADD_HOST, "--entrypoint", "cat", image, "/etc/hosts")
    lines = map(str.split, docker(*cat, deadline_seconds=RUN_SECONDS).splitlines())
    for address in (words[0] for words in lines if HOST in words[1:]):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, 0))
            return address
    return "127.0.0.1"


@contextlib.contextmanager
def _ours(say: Say, *, socket_group: str | None) -> Iterator[None]:
    if elsewhere := os.environ.get("DOCKER_HOST"):
        raise PartError(f"The Docker engine that DOCKER_HOST names ({elsewhere}) does not answer")
    if os.geteuid() != 0 or sys.platform != "linux":
        raise PartError(_by_hand())
    command = [
        _installed(say),
        # Containers then reach this machine and nothing beyond, and its firewall and routing stay as they are.
        *("--iptables=false", "--ip-forward=false", "--ip-masq=false"),
        *(("--group", socket_group) if socket_group else ()),
    ]
    with tempfile.TemporaryDirectory(prefix="bucketbell-docker-") as directory:
        daemon = Process(
            "dockerd",
            command,
            Path(directory),
            ready=answers,
            start_timeout_seconds=START_SECONDS,
            advice="Is another Docker engine starting or stopping?",
        )
        daemon.start()
        say("A Docker engine of our own runs.")
        try:
            yield
        finally:
            daemon.stop(STOP_SECONDS)


def _installed(say: Say) -> str:
    """The daemon, installed now where it or the client is missing. Raises `PartError`."""
    # Later Debians keep the client in a package of its own, which docker.io only recommends.
    for package, is_here in (("docker.io", _dockerd), ("docker-cli", _client)):
        if is_here():
            continue
        if shutil.which("apt-get") is None:
            raise PartError("There is no Docker engine here: install Docker (docs.docker.com/engine/install)")
        status, last_words = run_saying(
            ["/bin/sh", "-c", APT_SCRIPT, "sh", package, "docker.service docker.socket"],
            f"installing {package} with apt-get",
            say,
            timeout_seconds=SYSTEM_INSTALL_TIMEOUT_SECONDS,
        )
        if status != 0 or not is_here():
            raise PartError(f"{package} could not be installed:\n{last_words}\nType: apt-get install {package}")
    return _dockerd() or "dockerd"


def _dockerd() -> str | None:
    return shutil.which("dockerd") or shutil.which("dockerd", path="/usr/sbin:/usr/local/sbin")


def _client() -> str | None:
    return shutil.which("docker")


def _by_hand() -> str:
    return (
        "No Docker engine answers. Start Docker, or have one for as long as this runs:\n"
        f"  sudo {sys.executable} -m infra.sam.engine"
    )


def main() -> int:
    """Keep an engine running until SIGINT or SIGTERM; the exit status."""
    if answers():
        print("A Docker engine runs already.")
        return 0
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    try:
        # The socket belongs to root and to the user who typed sudo.
        with _ours(print, socket_group=os.environ.get("SUDO_GID")):
            print("A Docker engine runs until this is interrupted (Ctrl-C).", flush=True)
            over.wait()
    except PartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
