"""Finds or fetches the programs that the local parts need.

`python -m infra.local.install mosquitto` uses the system's package manager, `… minio`, `… versitygw` and
`… kustomize` build with Go, `… micropython` unpacks Debian's package. Standard library only, so that it works before
any package is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.local.process import LAST_LOG_LINES

SYSTEM_INSTALL_TIMEOUT_SECONDS = 300.0
BUILD_TIMEOUT_SECONDS = 1200.0
QUESTION_TIMEOUT_SECONDS = 10.0
PROGRESS_AFTER_SECONDS = 1.0
PROGRESS_EVERY_SECONDS = 5.0
POLL_SECONDS = 0.05

# Below Go 1.21 the `go` command cannot fetch the newer toolchain that a module asks for.
OLDEST_GO = (1, 21)

_SYSTEM_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/bin", "/usr/local/bin")
_GO_DIRECTORIES = ("/usr/local/go/bin", "/opt/homebrew/bin", "/usr/lib/go/bin")

Say = Callable[[str], None]


class InstallError(RuntimeError):
    """A program could not be installed; the message says what to type or install."""


@dataclass(frozen=True, slots=True)
class GoProgram:
    """A program built from source: its package path, pinned version, and the Go its module asks for."""

    name: str
    package: str
    version: str
    needs_go: tuple[int, int]


MINIO = GoProgram("minio", "github.com/minio/minio", "v0.0.0-20260212201848-7aac2a2c5b7c", (1, 24))
KUSTOMIZE = GoProgram("kustomize", "sigs.k8s.io/kustomize/kustomize/v5", "v5.7.1", (1, 22))
VERSITYGW = GoProgram("versitygw", "github.com/versity/versitygw/cmd/versitygw", "v1.8.0", (1, 25))

# Installs the packages named first; their units, named second where there are any, stay off. Debian and Ubuntu start
# what they install, now and at every boot. 101 is policy-rc.d's "forbidden" (invoke-rc.d(8)). Somebody else's policy
# stays as it is.
APT_SCRIPT = """
guard=/usr/sbin/policy-rc.d
if [ ! -e "$guard" ]; then
    trap 'rm -f "$guard"' EXIT
    printf '#!/bin/sh\\nexit 101\\n' > "$guard" && chmod 755 "$guard" || exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends $1 || exit 1
if [ -n "$2" ] && [ -d /run/systemd/system ]; then systemctl --quiet disable $2; fi
"""

# Debian 12 has no MicroPython. Debian 13's is unpacked here and brings the libraries that it is linked with: nothing
# is installed, and no root is needed. It comes from the machine's own mirror; apt checks Debian's signature.
MICROPYTHON_SCRIPT = """
set -e
cd "$1"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null | grep -v '^ *#' \\
    | grep -oE '[a-z]+://[^ ]+/debian/?( |$)' | head -n 1)
[ -n "$mirror" ] || { echo "no mirror of Debian is named in /etc/apt" >&2; exit 1; }
echo "deb [signed-by=$keys] $mirror trixie main" > sources
mkdir -p lists/partial cache/archives/partial
apt() {
    apt-get -qq -o APT::Sandbox::User=root -o Dir::State::lists="$1/lists" -o Dir::Cache="$1/cache" \
        -o Dir::State::status=/dev/null -o Dir::Etc::sourceparts=- -o Dir::Etc::sourcelist="$1/sources" $2
}
apt "$1" update
apt "$1" "download libc6 libffi8 libmbedcrypto16 libmbedtls21 libmbedx509-7 micropython"
for package in *.deb; do dpkg-deb -x "$package" "$2"; done
loader=$(ls "$2"/usr/lib/*/ld-linux*.so.*)
printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' \
    "$loader" "${loader%/*}" "$2/usr/bin/micropython" > micropython
chmod 755 micropython
mv micropython "$3"
"""


@dataclass(frozen=True, slots=True)
class _PackageManager:
    command: str
    install: str
    script: str
    as_root: bool = True


_PACKAGE_MANAGERS = (
    _PackageManager("apt-get", "apt-get install mosquitto", APT_SCRIPT),
    _PackageManager("dnf", "dnf install mosquitto", "dnf install -y -q mosquitto"),
    _PackageManager("apk", "apk add mosquitto", "apk add --quiet mosquitto"),
    _PackageManager("pacman", "pacman -S mosquitto", "pacman -S --noconfirm --needed mosquitto"),
    _PackageManager("zypper", "zypper install mosquitto", "zypper --quiet --non-interactive install mosquitto"),
    _PackageManager("brew", "brew install mosquitto", "brew install --quiet mosquitto", as_root=False),
)


def find_mosquitto() -> Path | None:
    """The broker, which Debian keeps in a directory that users do not have on their PATH."""
    return find_program("mosquitto", _SYSTEM_DIRECTORIES)


def find_mosquitto_passwd() -> Path | None:
    """The broker's password tool, of the same package."""
    return find_program("mosquitto_passwd", (*_SYSTEM_DIRECTORIES, "/opt/homebrew/bin"))


def find_nats_server() -> Path | None:
    """NATS' server, of the package of that name."""
    return find_program("nats-server", _SYSTEM_DIRECTORIES)


def find_minio() -> Path | None:
    """MinIO on the PATH, else the one built into the cache."""
    return find_program(MINIO.name, (str(binary_cache()),))


def find_versitygw() -> Path | None:
    """Versity Gateway on the PATH, else the one built into the cache."""
    return find_program(VERSITYGW.name, (str(binary_cache()),))


def find_kustomize() -> Path | None:
    """Kustomize on the PATH, else the one built into the cache."""
    return find_program(KUSTOMIZE.name, (str(binary_cache()),))


def find_micropython() -> Path | None:
    """MicroPython on the PATH, else the one unpacked into the cache."""
    return find_program("micropython", (str(binary_cache()),))


def binary_cache() -> Path:
    """`$BUCKETBELL_CACHE/bin`, else `$XDG_CACHE_HOME/bucketbell/bin`, else `~/.cache/bucketbell/bin`."""
    if own := os.environ.get("BUCKETBELL_CACHE"):
        return Path(own).absolute() / "bin"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "bucketbell" / "bin"


def ensure_mosquitto(say: Say) -> Path:
    """Installs Mosquitto where it is missing, starting no service; InstallError with the command to type."""
    if found := find_mosquitto():
        say(f"Mosquitto is there: {found}")
        return found
    manager = _package_manager()
    if manager.as_root and os.geteuid() != 0:
        if not may_sudo():
            raise InstallError(f"Mosquitto is not here. Type: {_by_hand(manager)}")
        prefix: Sequence[str] = ("sudo", "-n")
    else:
        prefix = ()
    status, last_words = run_saying(
        [*prefix, "/bin/sh", "-c", manager.script, "sh", "mosquitto", "mosquitto"],
        f"installing Mosquitto with {manager.command}",
        say,
        timeout_seconds=SYSTEM_INSTALL_TIMEOUT_SECONDS,
    )
    found = find_mosquitto()
    if status != 0 or found is None:
        raise InstallError(f"{manager.command} could not install Mosquitto:\n{last_words}\nType: {_by_hand(manager)}")
    say(f"Mosquitto is installed: {found}")
    return found


def ensure_parts(say: Say) -> None:
    """Installs nothing: all that a demonstration needs is here, or InstallError with the command that brings it."""
    if find_mosquitto() is None:
        raise InstallError(f"Mosquitto is not here. Type: {_by_hand(_package_manager())}")
    if find_minio() is None and importlib.util.find_spec("moto") is None:
        raise InstallError(
            "There is no object store here. Install bucketbell with its extra `demo`, "
            "e.g. pipx install './bucketbell-….whl[demo]'"
        )
    say(f"Mosquitto is there: {find_mosquitto()}")


def _package_manager() -> _PackageManager:
    for manager in _PACKAGE_MANAGERS:
        if shutil.which(manager.command):
            return manager
    raise InstallError("Mosquitto is not here, and no package manager that this knows: install the package `mosquitto`")


def _by_hand(manager: _PackageManager) -> str:
    return f"sudo {manager.install}" if manager.as_root and os.geteuid() != 0 else manager.install


def build_minio(say: Say) -> Path:
    """Builds MinIO into the cache unless it is there; InstallError says what is missing."""
    return _build(MINIO, find_minio, say)


def build_versitygw(say: Say) -> Path:
    """Builds Versity Gateway into the cache unless it is there; InstallError says what is missing."""
    return _build(VERSITYGW, find_versitygw, say)


def build_kustomize(say: Say) -> Path:
    """Builds Kustomize into the cache unless it is there; InstallError says what is missing."""
    return _build(KUSTOMIZE, find_kustomize, say)


def _build(program: GoProgram, find: Callable[[], Path | None], say: Say) -> Path:
    if found := find():
        say(f"{program.name} is there: {found}")
        return found
    go = find_go(program.name, program.needs_go)
    cache = binary_cache()
    cache.mkdir(parents=True, exist_ok=True)
    status, last_words = run_saying(
        [str(go), "install", f"{program.package}@{program.version}"],
        f"building {program.name} {program.version} (two minutes or so)",
        say,
        timeout_seconds=BUILD_TIMEOUT_SECONDS,
        environment={"GOBIN": str(cache)},
    )
    built = cache / program.name
    if status != 0 or not built.exists():
        remedy = _go_remedy(program.needs_go)
        raise InstallError(f"Go could not build {program.name}:\n{last_words}\nShould Go be too old: {remedy}")
    say(f"{program.name} is built: {built}")
    return built


def unpack_micropython(say: Say) -> Path:
    """Unpacks Debian's MicroPython into the cache unless it is there; InstallError says what is missing."""
    if found := find_micropython():
        say(f"MicroPython is there: {found}")
        return found
    if not shutil.which("apt-get"):
        raise InstallError("MicroPython is not here, and this is not Debian: install the package `micropython`")
    unpacked = binary_cache() / "micropython"
    root = unpacked.parent.parent / "micropython"
    for folder in (unpacked.parent, root):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        status, last_words = run_saying(
            ["/bin/sh", "-c", MICROPYTHON_SCRIPT, "sh", work, str(root), str(unpacked)],
            "unpacking Debian's MicroPython",
            say,
            timeout_seconds=SYSTEM_INSTALL_TIMEOUT_SECONDS,
        )
    if status != 0 or not unpacked.exists():
        raise InstallError(
            f"Debian's MicroPython could not be unpacked:\n{last_words}\n"
            "It needs apt and a `debian-archive-keyring` of 2023 or later. Or install the package `micropython`."
        )
    say(f"MicroPython is unpacked: {unpacked}")
    return unpacked


def find_go(name: str, needs: tuple[int, int]) -> Path:
    """The `go` command that builds the program `name`; InstallError says what to install."""
    go = find_program("go", _GO_DIRECTORIES)
    if go is None:
        raise InstallError(f"{name} is built from source, and Go is not here: {_go_remedy(needs)}")
    if (version := _go_version(go)) < OLDEST_GO:
        raise InstallError(f"{go} is Go {version[0]}.{version[1]}, too old to build {name}: {_go_remedy(needs)}")
    return go


def _go_remedy(needs: tuple[int, int]) -> str:
    return f"install Go {needs[0]}.{needs[1]} or newer (go.dev/dl), then try again"


def find_program(name: str, directories: Sequence[str] = ()) -> Path | None:
    """The program on the PATH, else in one of these directories."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(directories))
    return Path(found) if found else None


def _go_version(go: Path) -> tuple[int, int]:
    said = subprocess.run(
        [str(go), "version"], capture_output=True, text=True, timeout=QUESTION_TIMEOUT_SECONDS, check=False
    )
    match = re.search(r"\bgo(\d+)\.(\d+)", said.stdout)
    if match is None:
        raise InstallError(f"`{go} version` says nothing useful: {(said.stdout + said.stderr).strip()!r}")
    return int(match[1]), int(match[2])


def may_sudo() -> bool:
    """Whether `sudo` works here without a password."""
    sudo = shutil.which("sudo")
    if sudo is None:
        return False
    asked = subprocess.run([sudo, "-n", "true"], capture_output=True, timeout=QUESTION_TIMEOUT_SECONDS, check=False)
    return asked.returncode == 0


def run_saying(
    command: Sequence[str],
    what: str,
    say: Say,
    *,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Runs quietly, says `what` and for how long once it takes a while; the exit status and last lines."""
    started = time.monotonic()
    said_at = started + PROGRESS_AFTER_SECONDS - PROGRESS_EVERY_SECONDS
    with tempfile.TemporaryFile() as output:
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
        status: int | None = None
        timed_out = False
        try:
            while (status := running.poll()) is None:
                now = time.monotonic()
                if now - started > timeout_seconds:
                    timed_out = True
                    break
                if now - said_at >= PROGRESS_EVERY_SECONDS:
                    say(f"{what} … {now - started:.0f} s")
                    said_at = now
                time.sleep(POLL_SECONDS)
        finally:
            # Terminated rather than killed: the shell's trap still removes its guard file.
            if status is None:
                running.terminate()
                status = running.wait(QUESTION_TIMEOUT_SECONDS)
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()[-LAST_LOG_LINES:]
    if timed_out:
        lines.append(f"`{shlex.join(command[:3])}` took longer than {timeout_seconds:g} s")
    return status, "\n".join(f"  {line}" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m infra.local.install mosquitto|minio|versitygw|kustomize|micropython`; the exit status."""
    programs = {
        "mosquitto": ensure_mosquitto,
        "minio": build_minio,
        "versitygw": build_versitygw,
        "kustomize": build_kustomize,
        "micropython": unpack_micropython,
    }
    parser = argparse.ArgumentParser(
        prog="python -m infra.local.install",
        description="Finds or fetches a program that the local parts need.",
    )
    parser.add_argument("program", choices=programs)
    chosen = parser.parse_args(arguments).program
    try:
        programs[chosen](lambda line: print(line, flush=True))
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
