"""`make build`: what is deployed. `sam build`, then trimmed, compiled for the runtime, and the same wherever built.

Lambda cannot write .pyc files beside the code, so that each cold start would compile all that it imports. They are made
here, *unchecked* (PEP 552): the zip that `sam deploy` makes of the folder has other times than the folder. The layer of
stored settings is built along with the functions, and the same is done to it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.sam.tool import ROOT, SamError, runtime_python, sam

BUILD_SECONDS = 300.0
COMPILE_SECONDS = 120.0
MAX_ZIPPED_BYTES = 5_000_000
DEPLOYED_AT = "/var/task"  # where Lambda unpacks it: what tracebacks name, and where they find the source
LAYER = "DatabaseLayer"  # its name in template.yaml
LAYER_DEPLOYED_AT = "/opt"
LAYER_LIST = "infra/layer/requirements.txt"
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold, as SAM's own zips have it

# Read by type checkers, by pip and by `make lock`; scripts for a shell.
_UNREAD = (
    "**/__pycache__",
    "**/*.pyi",
    "**/py.typed",
    "*.data",
    "bin",
    "functions/requirements.*",
    "requirements.*",  # of the layer
)
# A third of the whole: parts of packages that nothing of ours imports, nor what it imports. tests/sam/test_artefact.py
# runs the entries without them.
_UNIMPORTED = (
    "annotated_types/test_cases.py",
    "aws_lambda_powertools/event_handler",
    "aws_lambda_powertools/logging/formatters/datadog.py",
    "aws_lambda_powertools/metrics/provider/datadog",
    "dotenv/cli.py",
    "dotenv/ipython.py",
    "paho/mqtt/publish.py",
    "paho/mqtt/subscribe.py",
    "pydantic/color.py",
    "pydantic/experimental",
    "pydantic/mypy.py",
    "pydantic/v1",
    *(
        f"aws_lambda_powertools/utilities/{name}"
        for name in (
            "auth_alpha",
            "batch",
            "circuit_breaker",
            "data_classes",
            "data_masking",
            "feature_flags",
            "idempotency",
            "kafka",
            "metadata",
            "parameters",
            "parser",
            "streaming",
            "typing",
            "validation",
        )
    ),
)
# Of each package's metadata stay name, version and licences, which scanners ask for. Nothing has a plugin here.
_KEPT_METADATA = ("METADATA", "licenses")


@dataclass(frozen=True, slots=True)
class Package:
    """Folders that all have the same content, and that content as one zip."""

    folders: tuple[Path, ...]
    zip_file: Path
    unpacked_bytes: int
    zipped_bytes: int
    sha256: str
    """Of the zip: the same for the same tree, wherever and whenever it was built (and by the same zlib)."""


@dataclass(frozen=True, slots=True)
class Artefact(Package):
    """What one build made: a folder for each function."""

    layer: Package
    """What stored settings need besides: functions get it where those are switched on, at /opt."""


def build(root: Path = ROOT, architecture: str | None = None) -> Artefact:
    """Build the tree in `root` for `architecture` (`arm64`, `x86_64`; None: the template's default).

    `.aws-sam/build` is then what `sam local invoke` runs and `sam deploy` deploys. Raises `SamError`.
    """
    output = root / ".aws-sam" / "build"
    overrides = () if architecture is None else ("--parameter-overrides", f"Architecture={architecture}")
    sam("build", "--build-dir", str(output), *overrides, deadline_seconds=BUILD_SECONDS, directory=root)
    layer = output / LAYER
    first, *others = folders = tuple(sorted(path for path in output.iterdir() if path.is_dir() and path != layer))
    if any(_contents(other) != _contents(first) for other in others):
        raise SamError("the functions were built apart: they must share CodeUri and Metadata in template.yaml")
    _finish(first, first, DEPLOYED_AT)
    for other in others:
        shutil.rmtree(other)
        shutil.copytree(first, other)
    _finish(layer, layer / "python", LAYER_DEPLOYED_AT)
    suffix = "" if architecture is None else f"-{architecture}"
    code = _packed(folders, root / "build" / f"bucketbell{suffix}.zip")
    if code.zipped_bytes > MAX_ZIPPED_BYTES:
        raise SamError(
            f"the artefact has {code.zipped_bytes:,} bytes zipped, more than {MAX_ZIPPED_BYTES:,}: {code.zip_file}"
        )
    return Artefact(**asdict(code), layer=_packed((layer,), root / "build" / f"bucketbell-layer{suffix}.zip"))


def build_copy(directory: Path, architecture: str | None = None) -> Artefact:
    """Build a copy of the tree in the new folder `directory`: our own build stays as it is. Raises `SamError`."""
    directory.mkdir(parents=True)
    shutil.copytree(ROOT / "functions", directory / "functions", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / LAYER_LIST).parent.mkdir(parents=True)
    for name in ("template.yaml", "samconfig.toml", LAYER_LIST):
        shutil.copyfile(ROOT / name, directory / name)
    return build(directory, architecture)


def _finish(folder: Path, packages: Path, deployed_at: str) -> None:
    """Trim and compile the packages in `folder`; then times and permissions that do not tell where and when."""
    for pattern in _UNREAD + _UNIMPORTED:
        for found in list(packages.glob(pattern)):
            _remove(found)
    for metadata in packages.glob("*.dist-info"):
        for found in metadata.iterdir():
            if found.name not in _KEPT_METADATA:
                _remove(found)
        headers, _, _ = (metadata / "METADATA").read_text(encoding="utf-8").partition("\n\n")
        (metadata / "METADATA").write_text(headers + "\n", encoding="utf-8")  # without the package's README
    compile_all(folder, deployed_at)
    epoch = 315_532_800  # 1980-01-01T00:00:00Z
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (epoch, epoch))


def compile_all(folder: Path, deployed_at: str = DEPLOYED_AT) -> None:
    """Write the .pyc files of all in `folder`, byte for byte the same wherever `folder` is. Raises `SamError`."""
    command = (runtime_python(), "-P", "-s", "-S", "-m", "compileall", "-q", "-f", "-j", "1")
    done = subprocess.run(  # noqa: S603 - the runtime's own interpreter
        [*command, "--invalidation-mode", "unchecked-hash", "-s", folder, "-p", deployed_at, folder],
        # The order of a frozenset's elements in a .pyc goes by their hashes.
        env={"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=COMPILE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise SamError(f"the artefact could not be compiled:\n{done.stdout}{done.stderr}")


def _packed(folders: tuple[Path, ...], zip_file: Path) -> Package:
    _zip(folders[0], zip_file)
    return Package(
        folders,
        zip_file,
        sum(file.stat().st_size for file in _files(folders[0])),
        zip_file.stat().st_size,
        hashlib.sha256(zip_file.read_bytes()).hexdigest(),
    )


def _zip(folder: Path, zip_file: Path) -> None:
    zip_file.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(zip_file, "w") as archive:
        for file in _files(folder):
            info = zipfile.ZipInfo(file.relative_to(folder).as_posix(), ZIP_EPOCH)
            info.external_attr = 0o100644 << 16
            info.create_system = 3  # Unix, on whatever this runs
            archive.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED)  # as hard as SAM does


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _contents(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): hashlib.sha256(file.read_bytes()).digest() for file in _files(folder)}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m infra.sam.build", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--architecture", choices=("arm64", "x86_64"), help="instead of the template's default")
    options = parser.parse_args(arguments)
    try:
        artefact = build(architecture=options.architecture)
    except SamError as error:
        print(error, file=sys.stderr)
        return 1
    for package in (artefact, artefact.layer):
        folders = ", ".join(str(folder.relative_to(ROOT)) for folder in package.folders)
        print(f"{folders}: {package.unpacked_bytes / 1e6:.2f} MB")
        print(f"{package.zip_file.relative_to(ROOT)}: {package.zipped_bytes / 1e6:.2f} MB, sha256 {package.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
