"""`make release`: makes what is published of one commit, and tries each part in a clean environment.

`dist/` is written only when all of it works. Two builds of one commit are the same to the byte: the wheel is built from
the sdist, the sdist from what git has (not from what else lies in the folder), and both by the build backend that
`make setup` has installed, with the commit's time.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.local.process import PartError
from infra.sam.engine import docker

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
LOCK = Path("infra/requirements.txt")  # what the package needs, and what that needs
IMAGE_FILE = Path("infra/deploy/container/Dockerfile")
IMAGE_BASE = "python:3.13-slim"  # as that file and compose.yaml say
GIT_SECONDS = 30.0
BUILD_SECONDS = 120.0
INSTALL_SECONDS = 300.0
TRY_SECONDS = 120.0


class ReleaseError(Exception):
    """Something could not be made, or does not work; the message is for a person."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a release is made of: the files of one commit in a folder of their own, and its time."""

    tree: Path
    epoch: int


def source_of_head(directory: Path) -> Source:
    """Unpack the current commit into `directory`. Raises `ReleaseError` where files differ from it."""
    if changed := _run(["git", "status", "--porcelain", "--untracked-files=no"], ROOT, GIT_SECONDS):
        raise ReleaseError(f"A release is made of a commit, and these files differ from it:\n{changed}")
    archive = directory / "tree.tar"
    _run(["git", "archive", "--output", str(archive), "HEAD"], ROOT, GIT_SECONDS)
    _unpack(archive, directory / "tree")
    committed = os.environ.get("SOURCE_DATE_EPOCH") or _run(["git", "log", "-1", "--format=%ct"], ROOT, GIT_SECONDS)
    return Source(directory / "tree", int(committed))


def packages(source: Source, directory: Path) -> list[Path]:
    """Build the sdist, and the wheel from it."""
    with tempfile.TemporaryDirectory(prefix="bucketbell-build-") as temporary:
        made, again = Path(temporary, "made"), Path(temporary, "again")
        _build("sdist", source.tree, made, source.epoch)
        (named,) = made.iterdir()
        sdist = directory / named.name
        _without_time_and_place(named, sdist, source.epoch)
        _unpack(sdist, again)
        (tree,) = again.iterdir()
        _build("wheel", tree, directory, source.epoch)
    return [*directory.glob("*.whl"), sdist]


def bill_of_materials(source: Source, directory: Path) -> list[Path]:
    """Write what an installation consists of (CycloneDX), and the same as a list that pip installs from."""
    bill, lock = directory / "bucketbell.cdx.json", directory / "requirements.txt"
    shutil.copyfile(source.tree / LOCK, lock)
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "--output-reproducible", "--of", "JSON"]
    described = ["--pyproject", str(source.tree / "pyproject.toml"), "--mc-type", "application"]
    _run([*command, *described, "-o", str(bill), str(lock)], source.tree, BUILD_SECONDS, _dated(source.epoch))
    return [bill, lock]


def image(source: Source, directory: Path) -> list[Path]:
    """Write the container image for this machine's architecture, which `docker load` reads; none without an engine.

    It is the one part that is not the same to the byte when it is made again: the engine writes times into it.
    """
    base = os.environ.get("PYTHON_IMAGE", IMAGE_BASE)
    try:
        docker("image", "inspect", base, deadline_seconds=TRY_SECONDS)
    except PartError as error:
        print(f"No image archive: it needs a Docker engine that has {base} (docker pull). {error}")
        return []
    version = next(directory.glob("*.whl")).name.split("-")[1]
    architecture = docker("version", "--format", "{{.Server.Arch}}", deadline_seconds=TRY_SECONDS)
    name, archive = f"bucketbell:{version}", directory / f"bucketbell-{version}-image-{architecture}.tgz"
    words = ("--network", "host", "--build-arg", f"BASE={base}", "--file", str(source.tree / IMAGE_FILE), "--tag", name)
    try:
        docker("build", *words, str(source.tree), deadline_seconds=INSTALL_SECONDS)
        said = docker(
            "run", "--rm", "--read-only", "--network", "none", name, "--version", deadline_seconds=TRY_SECONDS
        )
        if said.split()[-1] != version:
            raise ReleaseError(f"The image of {version} says that it is {said}")
        docker("save", "--output", str(archive.with_suffix(".tar")), name, deadline_seconds=INSTALL_SECONDS)
    except PartError as error:
        raise ReleaseError(str(error)) from error
    _gzip(archive.with_suffix(".tar"), archive, source.epoch)
    archive.with_suffix(".tar").unlink()
    return [archive]


MAKERS: tuple[Callable[[Source, Path], list[Path]], ...] = (packages, bill_of_materials, image)


def checksums(files: Sequence[Path], directory: Path) -> Path:
    """Write SHA256SUMS, which `sha256sum --check` reads."""
    lines = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files))
    (directory / "SHA256SUMS").write_text("".join(lines))
    return directory / "SHA256SUMS"


def install(package: Path, directory: Path, *, extra: str = "", constraints: Path | None = None) -> Path:
    """Install a wheel or an sdist, as a person would, into an empty environment; where its programs are."""
    environment = directory / "environment"
    if not environment.exists():
        venv.create(environment, symlinks=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(environment / "bin/python"),
        "install",
        "--quiet",
        "--no-compile",
    ]
    held = ["--constraint", str(constraints)] if constraints else []
    _run([*pip, *held, f"{package}{extra}"], directory, INSTALL_SECONDS)
    return environment / "bin"


def check(package: Path) -> None:
    """Install a package in a clean environment, and see whether it works there. Raises `ReleaseError`."""
    with tempfile.TemporaryDirectory(prefix="bucketbell-check-") as temporary:
        directory = Path(temporary).resolve()
        elsewhere = directory / "elsewhere"
        elsewhere.mkdir()
        # Neither what this shell says of brokers and stores, nor the MinIO of this machine.
        clean = {"PATH": os.environ["PATH"], "HOME": str(elsewhere)}
        bucketbell = str(install(package, directory) / "bucketbell")
        version = _run([bucketbell, "--version"], elsewhere, TRY_SECONDS, clean)
        if version.rpartition(" ")[2] not in package.name:
            raise ReleaseError(f"{package.name} says that it is {version}")
        for words in (["--help"], ["config"], ["host", "--help"]):
            _run([bucketbell, *words], elsewhere, TRY_SECONDS, clean)
        database = {"DATABASE_URL": f"sqlite:///{elsewhere}/settings.db"}
        _run([bucketbell, "migrate"], elsewhere, TRY_SECONDS, clean | database)
        install(package, directory, extra="[demo]")
        _run([bucketbell, "demo", "--once"], elsewhere, TRY_SECONDS, clean)


def _build(what: str, tree: Path, directory: Path, epoch: int) -> None:
    command = [sys.executable, "-m", "build", f"--{what}", "--no-isolation", "--outdir", str(directory), str(tree)]
    _run(command, tree, BUILD_SECONDS, _dated(epoch))


def _dated(epoch: int) -> dict[str, str]:
    return {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}


def _without_time_and_place(sdist: Path, to: Path, epoch: int) -> None:
    """Write the same archive without what tells when, where and by whom it was made, which setuptools puts in."""
    content = io.BytesIO()
    with (
        tarfile.open(sdist) as read,
        tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as written,
    ):
        for member in sorted(read.getmembers(), key=lambda one: one.name):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime = member.type, member.size, epoch
            plain.mode = 0o755 if member.isdir() else 0o644
            written.addfile(plain, read.extractfile(member) if member.isfile() else None)
    with to.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed:
        packed.write(content.getvalue())


def _gzip(plain: Path, to: Path, epoch: int) -> None:
    with (
        plain.open("rb") as read,
        to.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, epoch) as packed,  # 9 takes four times as long for 1 % less
    ):
        shutil.copyfileobj(read, packed)


def _unpack(archive: Path, directory: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")


def _run(
    command: Sequence[str], directory: Path, deadline_seconds: float, environment: Mapping[str, str] | None = None
) -> str:
    """What a program says. Raises `ReleaseError` with its last words when it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline_seconds,
            check=False,
            umask=0o022,  # the files' rights are in the wheel
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReleaseError(str(error)) from error
    if done.returncode != 0:
        raise ReleaseError(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def main() -> int:
    """Make, check, and put it in `dist/`."""
    with tempfile.TemporaryDirectory(prefix="bucketbell-release-") as temporary:
        directory = Path(temporary).resolve()
        made = directory / "dist"
        made.mkdir()
        try:
            source = source_of_head(directory)
            files = [file for make in MAKERS for file in make(source, made)]
            files.append(checksums(files, made))
            for file in files:
                if file.name.endswith((".whl", ".tar.gz")):
                    begun_at = time.monotonic()
                    check(file)
                    print(f"{file.name} works in a clean environment ({time.monotonic() - begun_at:.0f} s)")
        except ReleaseError as error:
            print(error, file=sys.stderr)
            return 1
        shutil.rmtree(DIST, ignore_errors=True)
        shutil.copytree(made, DIST)
    for file in files:
        print(f"dist/{file.name}: {(DIST / file.name).stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
