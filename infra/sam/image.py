"""Stands in for AWS's image of the Python runtime where that is not here: this machine's own Python, in its places.

`python -m infra.sam.image` makes what is missing. An image that somebody pulled is left alone, and used.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from infra.local.install import Say
from infra.local.process import PartError
from infra.sam.engine import docker
from infra.sam.tool import RUNTIME, SamError, runtime_python

VERSION = ".".join(map(str, RUNTIME))
ARCHITECTURE = {"aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "x86_64")
"""Of this machine, as template.yaml's parameter calls it."""

BASE = f"public.ecr.aws/lambda/python:{VERSION}-{ARCHITECTURE}"
"""What SAM runs functions in, under the name by which SAM looks for it (samcli/local/docker/lambda_image.py)."""
ONCE = f"bucketbell/lambda-once:{VERSION}"
"""The same for moto's Lambda (`MOTO_DOCKER_LAMBDA_IMAGE`): runs one event, given as arguments, see once.py."""
BUSYBOX = "busybox:latest"
"""What moto copies a function's code into a volume with; it needs a `sleep`."""

QUESTION_SECONDS = 20.0
INSTALL_SECONDS = 180.0
IMPORT_SECONDS = 180.0

_RAPID = f"public.ecr.aws/lambda/python:{VERSION}-rapid-{ARCHITECTURE}"  # SAM's own, made of BASE and its emulator
_LABEL = "bucketbell.inputs"
_HERE = Path(__file__).parent
_REQUIREMENTS = _HERE / "image-requirements.txt"
_ONCE_PROGRAM = _HERE / "once.py"
_PYTHON = f"/var/lang/bin/python{VERSION}"

# As in AWS's image, but for the locale, which needs files that this has not.
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "TZ": ":UTC",
    "PATH": "/var/lang/bin:/usr/local/bin:/usr/bin:/bin:/opt/bin",
    "LD_LIBRARY_PATH": "/var/lang/lib:/var/task:/var/task/lib:/opt/lib",
    "LAMBDA_TASK_ROOT": "/var/task",
    "LAMBDA_RUNTIME_DIR": "/var/runtime",
    # Layers come first (Lambda, "Layer paths for each Lambda runtime").
    "PYTHONPATH": f"/opt/python/lib/python{VERSION}/site-packages:/opt/python:/var/runtime",
}
# AWS_EXECUTION_ENV: by this, and by the missing variables of the emulator, code knows where it runs.
_BOOTSTRAP = f"""#!/bin/sh
cd /var/task
export AWS_EXECUTION_ENV=AWS_Lambda_python{VERSION}
exec {_PYTHON} -m awslambdaric "${{_HANDLER:-$1}}"
"""
_FILES = {
    "etc/passwd": "root:x:0:0::/:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
    "var/runtime/bootstrap": _BOOTSTRAP,
}
_DIRECTORIES = ("opt", "tmp", "var/task")
# What SAM's Dockerfile and moto call, and a person who looks around.
_TOOLS = ("sh", "mv", "cp", "rm", "chmod", "mkdir", "sleep", "ls", "cat", "env")
# Of the C library, for what wheels of functions may ask of a Linux (PEP 600), and for finding addresses by name.
_BESIDE_LIBC = (
    *("libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libm.so.6"),
    *("libresolv.so.2", "libnss_files.so.2", "libnss_dns.so.2", "libgcc_s.so.1", "libstdc++.so.6"),
)
_UNUSED = {"test", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages", "dist-packages"}

# Asked of the runtime's Python about itself.
_QUESTION = """
import json, ssl, sys, sysconfig
print(json.dumps({
    "version": sys.version,
    "executable": sys.executable,
    "library": sysconfig.get_path("stdlib"),
    "certificates": ssl.get_default_verify_paths().openssl_cafile,
}))
"""


def base_image(say: Say = print) -> str:
    """`BASE`: pulled by somebody, else made here from this machine's Python; again if that or this file has changed.

    Needs a running engine. Raises `PartError` or `SamError` with what to do.
    """
    python = _ask_python()
    wanted = _digest(python["version"].encode(), _REQUIREMENTS.read_bytes(), Path(__file__).read_bytes())
    labels = _labels(BASE)
    if labels is None or labels.get(_LABEL, wanted) != wanted:
        say(f"Making {BASE} of this machine's Python …")
        started = time.monotonic()
        _make_base(python, wanted)
        say(f"It took {time.monotonic() - started:.0f} s. Pull the real one, and that is used instead.")
    # Made by SAM of another BASE: it would not look whether that is still the same.
    rapid = _labels(_RAPID)
    if rapid is not None and rapid.get(_LABEL) != (_labels(BASE) or {}).get(_LABEL):
        docker("image", "rm", "--force", _RAPID, deadline_seconds=QUESTION_SECONDS)
    return BASE


def moto_images(say: Say = print) -> str:
    """`ONCE`, for `MOTO_DOCKER_LAMBDA_IMAGE`; it and `BUSYBOX` are made where they are missing. As `base_image`."""
    base_image(say)
    wanted = _digest(_image_id(BASE).encode(), _ONCE_PROGRAM.read_bytes())
    if (_labels(ONCE) or {}).get(_LABEL) != wanted:
        _make_once(wanted)
    # AWS's image has an entry point, so that it is no busybox; where it could be pulled, so can busybox.
    labels = _labels(BUSYBOX)
    ours = _LABEL in (_labels(BASE) or {})
    if ours and (labels is None or _LABEL in labels):
        docker("tag", BASE, BUSYBOX, deadline_seconds=QUESTION_SECONDS)
    return ONCE


def _make_base(python: dict[str, str], digest: str) -> None:
    changes = [f"ENV {name}={value}" for name, value in _ENVIRONMENT.items()]
    changes += [f"LABEL {_LABEL}={digest}", "WORKDIR /var/task"]
    with tempfile.TemporaryDirectory(prefix="bucketbell-image-") as directory:
        runtime = Path(directory) / "runtime"
        archive = Path(directory) / "image.tar"
        _install(runtime)
        with tarfile.open(archive, "w") as tar:
            _fill(tar, python, runtime)
        with archive.open("rb") as tree:
            options = [word for change in changes for word in ("--change", change)]
            docker("import", *options, "-", BASE, deadline_seconds=IMPORT_SECONDS, stdin=tree)
    # What had that name before.
    docker("image", "prune", "--force", "--filter", f"label={_LABEL}", deadline_seconds=QUESTION_SECONDS)


def _make_once(digest: str) -> None:
    container = docker("create", BASE, "/bin/true", deadline_seconds=QUESTION_SECONDS)
    try:
        docker("cp", str(_ONCE_PROGRAM), f"{container}:/var/once.py", deadline_seconds=QUESTION_SECONDS)
        entry_point = f"ENTRYPOINT {json.dumps([_PYTHON, '-I', '/var/once.py'])}"
        changes = ["--change", entry_point, "--change", "CMD []", "--change", f"LABEL {_LABEL}={digest}"]
        docker("commit", *changes, container, ONCE, deadline_seconds=IMPORT_SECONDS)
    finally:
        docker("rm", container, deadline_seconds=QUESTION_SECONDS)


def _install(target: Path) -> None:
    """What AWS's runtime brings beside the interpreter, pinned by hash."""
    pip = (sys.executable, "-m", "pip", "--python", str(runtime_python()), "install", "--quiet", "--no-input")
    _run(
        [*pip, "--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", str(target), "-r", _REQUIREMENTS],
        INSTALL_SECONDS,
    )


def _fill(tar: tarfile.TarFile, python: dict[str, str], runtime: Path) -> None:
    executable = Path(python["executable"]).resolve()
    library = Path(python["library"])
    for name in _DIRECTORIES:
        _add_directory(tar, name)
    for name, text in _FILES.items():
        _add_text(tar, name, text)
    _add_file(tar, executable, _PYTHON.lstrip("/"))
    _add_tree(tar, library, f"var/lang/lib/python{VERSION}")
    _add_tree(tar, runtime, "var/runtime")
    tools = {name: Path(found).resolve() for name in _TOOLS if (found := shutil.which(name))}
    for name, tool in tools.items():
        _add_file(tar, tool, f"bin/{name}")
    extensions = (file for tree in (library, runtime) for file in tree.rglob("*.so") if not _is_unused(file, tree))
    objects = _shared_objects([executable, *tools.values(), *extensions])
    beside = (one.with_name(name) for one in objects if one.name == "libc.so.6" for name in _BESIDE_LIBC)
    for needed in dict.fromkeys([*objects, *(one for one in beside if one.exists())]):
        # The loader has to be where programs name it; the rest is found by LD_LIBRARY_PATH.
        place = str(needed) if needed.name.startswith("ld-") else f"var/lang/lib/{needed.name}"
        _add_file(tar, needed.resolve(), place.lstrip("/"))
    certificates = Path(python["certificates"])
    if certificates.exists():
        _add_file(tar, certificates.resolve(), str(certificates).lstrip("/"))


def _is_unused(file: Path, tree: Path) -> bool:
    relative = file.relative_to(tree)
    # _tkinter needs the libraries of a desktop.
    return relative.parts[0] in _UNUSED or relative.parts[0].startswith("config-") or "_tkinter" in relative.name


def _shared_objects(files: Iterable[Path]) -> list[Path]:
    """The libraries that these files need, and those need, once each, as the loader of this machine finds them."""
    said = _run(["ldd", *(str(file) for file in files)], QUESTION_SECONDS, may_fail=True)
    found = re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", said, re.MULTILINE)
    return [Path(path) for path in dict.fromkeys(found)]


def _add_tree(tar: tarfile.TarFile, tree: Path, name: str) -> None:
    for file in sorted(tree.rglob("*")):
        if file.is_file() and not _is_unused(file, tree):
            _add_file(tar, file.resolve(), f"{name}/{file.relative_to(tree).as_posix()}")


def _add_file(tar: tarfile.TarFile, file: Path, name: str) -> None:
    entry = tar.gettarinfo(file, name)
    # Two names of one file would become a link to the first, which is there under another name.
    entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", file.stat().st_size
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    with file.open("rb") as content:
        tar.addfile(entry, content)


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o755 if text.startswith("#!") else 0o644
    tar.addfile(entry, io.BytesIO(content))


def _add_directory(tar: tarfile.TarFile, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE
    entry.mode = 0o1777 if name == "tmp" else 0o755
    tar.addfile(entry)


def _ask_python() -> dict[str, str]:
    answer: dict[str, str] = json.loads(_run([runtime_python(), "-I", "-c", _QUESTION], QUESTION_SECONDS))
    return answer


def _labels(image: str) -> dict[str, str] | None:
    """The labels of a local image, None where there is no such image."""
    config = _inspect(image)
    return None if config is None else config["Config"].get("Labels") or {}


def _image_id(image: str) -> str:
    config = _inspect(image)
    return "" if config is None else str(config["Id"])


def _inspect(image: str) -> dict[str, Any] | None:
    if not docker("image", "ls", "--quiet", image, deadline_seconds=QUESTION_SECONDS):
        return None
    found: list[dict[str, Any]] = json.loads(docker("image", "inspect", image, deadline_seconds=QUESTION_SECONDS))
    return found[0]


def _digest(*inputs: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in inputs)).hexdigest()


def _run(command: Sequence[str | Path], deadline_seconds: float, *, may_fail: bool = False) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - programs of this machine, no shell
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=deadline_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise PartError(f"`{command[0]}` took longer than {deadline_seconds:g} s") from None
    if done.returncode != 0 and not may_fail:
        raise PartError(f"`{command[0]}` failed:\n{done.stderr.strip()}")
    return done.stdout


def main() -> int:
    """Make both images; the exit status."""
    try:
        moto_images()
    except (PartError, SamError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{BASE}, {ONCE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
