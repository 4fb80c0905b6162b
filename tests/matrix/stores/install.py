"""Brings the stores that only the matrix needs: `python -m tests.matrix.stores.install seaweedfs|garage|ceph`.

SeaweedFS is built with Go, Garage with Cargo, both into the cache that MinIO is built into. Ceph is installed by apt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infra.local.install import (
    APT_SCRIPT,
    BUILD_TIMEOUT_SECONDS,
    SYSTEM_INSTALL_TIMEOUT_SECONDS,
    InstallError,
    Say,
    binary_cache,
    find_go,
    find_program,
    may_sudo,
    run_saying,
)

SEAWEEDFS_MODULE = "github.com/seaweedfs/seaweedfs"
SEAWEEDFS_VERSION = "v0.0.0-20261109003541-7506e5f91cd6"  # 4.53: its tags are not versions in Go's sense
SEAWEEDFS_GO = (1, 26)
GARAGE_VERSION = "2.5.0"
SLOW_BUILD_TIMEOUT_SECONDS = 3 * BUILD_TIMEOUT_SECONDS

CEPH_PROGRAMS = ("ceph-mon", "ceph-osd", "ceph", "monmaptool", "radosgw", "radosgw-admin")
CEPH_PACKAGES = "radosgw ceph-mon ceph-osd ceph-mgr ceph-common"
CEPH_UNITS = "ceph.target ceph-mon.target ceph-osd.target ceph-mgr.target ceph-radosgw.target ceph-crash.service"
_CEPH_DIRECTORIES = ("/usr/bin", "/usr/sbin")


def find_weed() -> Path | None:
    """SeaweedFS on the PATH, else the one built into the cache."""
    return find_program("weed", (str(binary_cache()),))


def find_garage() -> Path | None:
    """Garage on the PATH, else the one built into the cache."""
    return find_program("garage", (str(binary_cache()), str(Path.home() / ".cargo/bin")))


def find_ceph() -> dict[str, Path] | None:
    """Ceph's programs by name; None where one is missing."""
    found = {name: path for name in CEPH_PROGRAMS if (path := find_program(name, _CEPH_DIRECTORIES))}
    return found if len(found) == len(CEPH_PROGRAMS) else None


def build_seaweedfs(say: Say) -> Path:
    """Builds SeaweedFS into the cache unless it is there; InstallError says what is missing."""
    if found := find_weed():
        say(f"SeaweedFS is there: {found}")
        return found
    go = find_go("SeaweedFS", SEAWEEDFS_GO)
    with tempfile.TemporaryDirectory(prefix="bucketbell-seaweedfs-") as scratch:
        # `go install` refuses a module whose go.mod has a `replace`, and Go's module cache is read-only.
        source = Path(scratch) / "source"
        shutil.copytree(_downloaded(go, scratch), source, copy_function=shutil.copyfile)
        for folder in (source, *(path for path in source.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        binary_cache().mkdir(parents=True, exist_ok=True)
        built = binary_cache() / "weed"
        build = ("build", "-C", str(source), "-trimpath", "-ldflags", "-s -w", "-o", str(built), "./weed")
        status, last_words = run_saying(
            [str(go), *build],
            f"building SeaweedFS {SEAWEEDFS_VERSION} (5 to 20 minutes)",
            say,
            timeout_seconds=SLOW_BUILD_TIMEOUT_SECONDS,
        )
    if status != 0 or not built.exists():
        raise InstallError(f"Go could not build SeaweedFS:\n{last_words}")
    say(f"SeaweedFS is built: {built}")
    return built


def _downloaded(go: Path, directory: str) -> Path:
    """The module's folder in Go's cache."""
    asked = subprocess.run(
        [str(go), "mod", "download", "-json", f"{SEAWEEDFS_MODULE}@{SEAWEEDFS_VERSION}"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_SECONDS,
        check=False,
    )
    try:
        answer = json.loads(asked.stdout)
    except ValueError:
        answer = {"Error": asked.stderr.strip()}
    if "Dir" not in answer:
        raise InstallError(f"Go could not download SeaweedFS: {answer.get('Error')}")
    return Path(answer["Dir"])


def build_garage(say: Say) -> Path:
    """Builds Garage into the cache unless it is there; InstallError says what is missing."""
    if found := find_garage():
        say(f"Garage is there: {found}")
        return found
    cargo = find_program("cargo", (str(Path.home() / ".cargo/bin"),))
    if cargo is None:
        raise InstallError(
            "Garage is built from source, and Cargo is not here: install Rust (rustup.rs), then try again"
        )
    root = binary_cache().parent
    status, last_words = run_saying(
        [str(cargo), "install", "garage", "--version", GARAGE_VERSION, "--locked", "--root", str(root)],
        f"building Garage {GARAGE_VERSION} (15 to 50 minutes)",
        say,
        timeout_seconds=SLOW_BUILD_TIMEOUT_SECONDS,
        # A store that is only tried need not be the fastest: half the time, and half the memory, to build it.
        environment={
            "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1",
            "CARGO_PROFILE_RELEASE_LTO": "off",
            "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
            "CARGO_PROFILE_RELEASE_DEBUG": "0",
        },
    )
    built = root / "bin" / "garage"
    if status != 0 or not built.exists():
        raise InstallError(f"Cargo could not build Garage:\n{last_words}")
    say(f"Garage is built: {built}")
    return built


def install_ceph(say: Say) -> Path:
    """Installs Ceph's packages where they are missing, starting no service; InstallError with what to type."""
    if found := find_ceph():
        say(f"Ceph is there: {found['radosgw']}")
        return found["radosgw"]
    by_hand = f"Type: sudo apt-get install {CEPH_PACKAGES}"
    if find_program("apt-get") is None:
        raise InstallError("Ceph is brought by apt only, and this system has no apt: install radosgw, mon, osd and mgr")
    is_root = os.geteuid() == 0
    if not is_root and not may_sudo():
        raise InstallError(f"Ceph is not here. {by_hand}")
    status, last_words = run_saying(
        [*(() if is_root else ("sudo", "-n")), "/bin/sh", "-c", APT_SCRIPT, "sh", CEPH_PACKAGES, CEPH_UNITS],
        "installing Ceph with apt-get",
        say,
        timeout_seconds=SYSTEM_INSTALL_TIMEOUT_SECONDS,
    )
    found = find_ceph()
    if status != 0 or found is None:
        raise InstallError(f"apt-get could not install Ceph:\n{last_words}\n{by_hand}")
    say(f"Ceph is installed: {found['radosgw']}")
    return found["radosgw"]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    stores = {"seaweedfs": build_seaweedfs, "garage": build_garage, "ceph": install_ceph}
    parser = argparse.ArgumentParser(prog="python -m tests.matrix.stores.install", description=__doc__)
    parser.add_argument("store", choices=stores)
    try:
        stores[parser.parse_args(arguments).store](_say)
    except InstallError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
