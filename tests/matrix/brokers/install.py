"""Brings the brokers: each into a folder beside MinIO's that bears its version, or from the system's packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from infra.local.install import (
    APT_SCRIPT,
    BUILD_TIMEOUT_SECONDS,
    SYSTEM_INSTALL_TIMEOUT_SECONDS,
    InstallError,
    Say,
    binary_cache,
    ensure_mosquitto,
    find_go,
    may_sudo,
    run_saying,
)

MOCHI_MODULE, MOCHI = "github.com/mochi-mqtt/server/v2", "2.7.9"
MOCHI_GO = (1, 21)
HIVEMQ = "2025.5"  # as in hivemq/pom.xml
ARTEMIS = "2.40.0"
DEBIAN = "trixie"  # the first whose RabbitMQ speaks MQTT 5
MAVEN_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"

POM = Path(__file__).with_name("hivemq") / "pom.xml"
EJABBERD = Path("/usr/sbin/ejabberdctl")


def cached(name: str) -> Path:
    """The folder of this program."""
    return binary_cache().parent / "brokers" / name


def mochi() -> Path:
    """The folder with the server that mochi's authors put into their container."""
    return cached(f"mochi-{MOCHI}")


def hivemq() -> Path:
    """The folder with HiveMQ's jars."""
    return cached(f"hivemq-{HIVEMQ}")


def artemis() -> Path:
    """Artemis' home."""
    return cached(f"artemis-{ARTEMIS}") / f"apache-artemis-{ARTEMIS}"


def debian() -> Path:
    """The root of a Debian with RabbitMQ."""
    return cached(f"debian-{DEBIAN}")


def bring_mochi(say: Say) -> None:
    """Build it with Go."""
    go = str(find_go("mochi", MOCHI_GO))
    module = f"{MOCHI_MODULE}/cmd/docker@v{MOCHI}"
    _into(mochi(), lambda folder: ([go, "install", module], {"GOBIN": str(folder)}), "building mochi", say)


def bring_hivemq(say: Say) -> None:
    """Fetch its jars with Maven."""
    _java(say)
    copy = ["mvn", "-q", "-B", "-f", str(POM), f"{MAVEN_PLUGIN}:copy-dependencies"]
    _into(hivemq(), lambda folder: ([*copy, f"-DoutputDirectory={folder}"], {}), "fetching HiveMQ CE", say)


def bring_artemis(say: Say) -> None:
    """Fetch and unpack it with Maven."""
    _java(say)
    artifact = f"-Dartifact=org.apache.activemq:apache-artemis:{ARTEMIS}:tar.gz:bin"
    unpack = ["mvn", "-q", "-B", f"{MAVEN_PLUGIN}:unpack", artifact]
    _into(
        artemis().parent,
        lambda folder: ([*unpack, f"-DoutputDirectory={folder}", f"-DmarkersDirectory={folder}/markers"], {}),
        "fetching Artemis",
        say,
    )


def bring_rabbitmq(say: Say) -> None:
    """Put a Debian beside ours whose RabbitMQ speaks MQTT 5: that of Debian 12 does not."""
    if os.geteuid() != 0:
        raise InstallError("RabbitMQ runs in a Debian of its own, which takes root to install and to start")
    _packages(say, "debootstrap", "debootstrap")
    bootstrap = ["debootstrap", "--variant=minbase", "--include=rabbitmq-server", DEBIAN]
    _into(debian(), lambda folder: ([*bootstrap, str(folder)], {}), f"installing RabbitMQ in Debian {DEBIAN}", say)


def bring_ejabberd(say: Say) -> None:
    """Install the system's package, starting no service."""
    if not EJABBERD.exists():
        _packages(say, "ejabberd", "ejabberd", service="ejabberd")


def bring_mosquitto(say: Say) -> None:
    """As `make run` does."""
    ensure_mosquitto(say)


BRING: Mapping[str, Callable[[Say], None]] = {
    "mosquitto": bring_mosquitto,
    "rabbitmq": bring_rabbitmq,
    "ejabberd": bring_ejabberd,
    "mochi": bring_mochi,
    "hivemq": bring_hivemq,
    "artemis": bring_artemis,
}


def _java(say: Say) -> None:
    _packages(say, "mvn", "maven")
    _packages(say, "javac", "default-jdk-headless")


def _packages(say: Say, program: str, package: str, *, service: str = "") -> None:
    """Install Debian's package of this program where it is missing."""
    if shutil.which(program):
        return
    by_hand = f"apt-get install --no-install-recommends {package}"
    if shutil.which("apt-get") is None or not (os.geteuid() == 0 or may_sudo()):
        raise InstallError(f"`{program}` is not here. On Debian or Ubuntu type: sudo {by_hand}")
    prefix: Sequence[str] = () if os.geteuid() == 0 else ("sudo", "-n")
    command = [*prefix, "/bin/sh", "-c", APT_SCRIPT, "sh", package, service]
    status, last_words = run_saying(
        command, f"installing {package}", say, timeout_seconds=SYSTEM_INSTALL_TIMEOUT_SECONDS
    )
    if status != 0:
        raise InstallError(f"apt-get could not install {package}:\n{last_words}\nType: {by_hand}")


def _into(folder: Path, command: Callable[[Path], tuple[list[str], dict[str, str]]], what: str, say: Say) -> None:
    """Fill the folder by a command; what a broken run leaves behind is not taken for the whole."""
    if folder.exists():
        say(f"it is there: {folder}")
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arguments, variables = command(partial)
    status, last_words = run_saying(arguments, what, say, timeout_seconds=BUILD_TIMEOUT_SECONDS, environment=variables)
    if status != 0:
        raise InstallError(f"`{' '.join(arguments)}` failed:\n{last_words}")
    partial.rename(folder)
    say(f"it is ready: {folder}")
