"""Installs what the Node host needs, pinned by hash, into the cache: `python -m infra.bench.node.install`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from infra.bench.figures import NotMeasuredError
from infra.local.install import binary_cache

HERE = Path(__file__).parent
PACKAGES = ("package.json", "package-lock.json")
NPM_SECONDS = 120.0
LAST_WORDS_CHARACTERS = 600


def find_node() -> str:
    """The program `node`. Raises `NotMeasuredError`."""
    node = shutil.which("node")
    if node is None:
        raise NotMeasuredError("install nodejs")
    return node


def modules() -> Path:
    """The `node_modules` of package-lock.json, installed unless it is there. Raises `NotMeasuredError`."""
    find_node()
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in PACKAGES)).hexdigest()
    place = binary_cache().parent / "node" / digest[:16]
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as directory:
            fresh = Path(directory) / "fresh"
            _install(fresh)
            fresh.rename(place)  # all of it or nothing
    return place / "node_modules"


def _install(directory: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise NotMeasuredError("install npm")
    directory.mkdir()
    for name in PACKAGES:
        shutil.copy(HERE / name, directory)
    # `ci` takes what the lock file says and checks its hashes; nobody's scripts are run.
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(  # noqa: S603 - npm, with an argument list of our own
            command, cwd=directory, capture_output=True, text=True, timeout=NPM_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotMeasuredError(f"npm took longer than {NPM_SECONDS:g} s") from None
    if done.returncode:
        raise NotMeasuredError(f"npm could not install: {(done.stdout + done.stderr)[-LAST_WORDS_CHARACTERS:].strip()}")


if __name__ == "__main__":
    try:
        print(modules())
    except NotMeasuredError as problem:
        sys.exit(str(problem))
