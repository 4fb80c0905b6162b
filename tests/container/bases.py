"""Stands in for the public images, where there is no registry: made of this machine's Debian packages and Python 3.13.

They have names of their own, so nobody takes them for the real ones. They do not prove that the public images have
what the Dockerfiles ask of them, nor that MinIO can be built in a container.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.local.install import MINIO
from infra.sam.engine import docker
from infra.sam.tool import runtime_python

PYTHON = "bucketbell-test/python:3.13"
MOSQUITTO = "bucketbell-test/mosquitto:debian"
GO = "bucketbell-test/go:minio"
SYSTEMD = "bucketbell-test/debian:systemd"
QUESTION_SECONDS = 20.0
IMPORT_SECONDS = 180.0

# What every Debian has, the shared libraries that these need, and what Python wants beside them.
_ESSENTIAL = (
    *("base-files", "bash", "coreutils", "dash", "debianutils", "findutils"),
    *("grep", "gzip", "libc-bin", "libc6", "sed", "tar"),
)
_PYTHON_NEEDS = ("ca-certificates", "netbase", "tzdata")
_BUILD_NEEDS = ("binutils", "binutils-common", "binutils-x86-64-linux-gnu")
_BROKER_NEEDS = ("mosquitto", "mosquitto-clients")
_MACHINE_NEEDS = ("systemd", "mount", "util-linux", "procps")
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nmosquitto:x:1883:1883::/mosquitto:/bin/false\n",
    "etc/group": "root:x:0:\nmosquitto:x:1883:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_MERGED = ("bin", "sbin", "lib", "lib64")  # links to what is below /usr, though packages of Debian 12 say e.g. /bin/sh
_LEFT_OUT = re.compile(r"/usr/share/(doc|man|locale|info|lintian|bug)/|/gconv/|/__pycache__/")
_OF_PYTHON_LEFT_OUT = re.compile(
    r"lib/(python3\.13/(test|idlelib|tkinter|turtledemo|config-)|pkgconfig|.*\.a$)|/_tkinter"
)
# What the build asks for is there.
_APT = "#!/bin/sh\n"
# Not the program that builds MinIO: it hands out what this machine's Go has built of the same module, and nothing else.
_GO = f"""#!/bin/sh
case "$*" in
    "install "*"github.com/minio/minio@{MINIO.version}") mkdir -p "$GOBIN" && cp /prebuilt/minio "$GOBIN/" ;;
    *) echo "this stand-in does not know: go $*" >&2; exit 1 ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Base:
    """One image: Debian packages that are installed here, files by their place in it, and Dockerfile instructions."""

    name: str
    packages: tuple[str, ...]
    trees: tuple[tuple[Path, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    directories: tuple[tuple[str, int], ...] = ()
    changes: tuple[str, ...] = ()


def python_base() -> Base:
    """What `python:3.13-slim` is: Debian, and Python in /usr/local."""
    tree = runtime_python().resolve().parents[1]
    environment = ("ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "ENV LANG=C.UTF-8")
    return Base(
        PYTHON,
        (*_ESSENTIAL, *_PYTHON_NEEDS, *_BUILD_NEEDS),
        files=(("usr/local/bin/apt-get", _APT),),
        trees=((tree / "bin", "usr/local/bin"), (tree / "lib", "usr/local/lib")),
        # Where an image's Python finds the library beside it, as ldconfig would have noted.
        changes=(*environment, "ENV LD_LIBRARY_PATH=/usr/local/lib", 'CMD ["python3"]'),
    )


def mosquitto_base() -> Base:
    """What `eclipse-mosquitto` is: the broker, its tools, its user 1883 and the folders below /mosquitto."""
    folders = tuple((f"mosquitto{folder}", 1883) for folder in ("", "/config", "/data", "/log"))
    command = 'CMD ["/usr/sbin/mosquitto", "-c", "/mosquitto/config/mosquitto.conf"]'
    return Base(MOSQUITTO, (*_ESSENTIAL, *_BROKER_NEEDS), directories=folders, changes=(command,))


def systemd_base() -> Base:
    """A machine with Debian's systemd and broker, and a Python in /usr/local."""
    python = python_base()
    return Base(
        SYSTEMD,
        (*_ESSENTIAL, *_PYTHON_NEEDS, *_BROKER_NEEDS, *_MACHINE_NEEDS),
        trees=python.trees,
        directories=tuple((f"var/{folder}/mosquitto", 1883) for folder in ("lib", "log")),
    )


def go_base(minio: Path) -> Base:
    """A `go` that knows one module."""
    return Base(GO, _ESSENTIAL, trees=((minio, "prebuilt/minio"),), files=(("usr/local/bin/go", _GO),))


def make(base: Base) -> str:
    """The image of this name, made again where this file or what it is made of has changed."""
    wanted = hashlib.sha256(f"{base} {Path(__file__).read_text()} {_versions(base.packages)}".encode()).hexdigest()
    label = '{{ index .Config.Labels "bucketbell.inputs" }}'
    known = docker("image", "ls", "--quiet", base.name, deadline_seconds=QUESTION_SECONDS)
    if known and docker("inspect", "--format", label, base.name, deadline_seconds=QUESTION_SECONDS) == wanted:
        return base.name
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            _fill(tar, base)
        archive.seek(0)
        changes = [word for line in (*base.changes, f"LABEL bucketbell.inputs={wanted}") for word in ("--change", line)]
        docker("import", *changes, "-", base.name, deadline_seconds=IMPORT_SECONDS, stdin=archive)
    return base.name


def _fill(tar: tarfile.TarFile, base: Base) -> None:
    for name in _MERGED:
        _add(tar, name, kind=tarfile.SYMTYPE, target=f"usr/{name}")
    for name, mode in (("tmp", 0o1777), ("root", 0o700), ("var/lib", 0o755), ("run", 0o755)):
        _add(tar, name, kind=tarfile.DIRTYPE, mode=mode)
    for name, owner in base.directories:
        _add(tar, name, kind=tarfile.DIRTYPE, mode=0o755, owner=owner)
    for name, text in (*_FILES.items(), *base.files):
        _add(tar, name, content=text.encode(), mode=0o755 if text.startswith("#!") else 0o644)
    places = dict(_places(base))
    for file in _shared_objects(places.values()):
        places.setdefault(_merged(str(file)), file)
    for place, file in places.items():
        if place in _MERGED:
            continue
        if file.is_symlink():
            _add(tar, place, kind=tarfile.SYMTYPE, target=str(file.readlink()))
        else:
            _add(tar, place, content=file.read_bytes(), mode=file.stat().st_mode & 0o777)


def _places(base: Base) -> Iterator[tuple[str, Path]]:
    """Each file and link, by its place in the image."""
    for path in _run("dpkg", "-L", *base.packages).splitlines():
        file = Path(path)
        if path.startswith("/") and not _LEFT_OUT.search(path) and (file.is_symlink() or file.is_file()):
            yield _merged(path), file
    for tree, place in base.trees:
        if tree.is_file():
            yield place, tree
        for file in sorted(tree.rglob("*")) if tree.is_dir() else ():
            inside = f"{tree.name}/{file.relative_to(tree)}"
            if not (_LEFT_OUT.search(f"/{inside}/") or _OF_PYTHON_LEFT_OUT.search(inside)) and not file.is_dir():
                yield f"{place}/{file.relative_to(tree)}", file
    # Made when it was installed, so no package has it.
    if "ca-certificates" in base.packages:
        yield "etc/ssl/certs/ca-certificates.crt", Path("/etc/ssl/certs/ca-certificates.crt")
        yield "usr/lib/ssl/cert.pem", Path("/etc/ssl/certs/ca-certificates.crt")


def _merged(path: str) -> str:
    return re.sub(r"^/(bin|sbin|lib|lib64)/", r"usr/\1/", path).lstrip("/")


def _shared_objects(files: Iterable[Path]) -> Iterator[Path]:
    """The libraries that these need, by the names by which the loader asks for them."""
    programs = [str(file) for file in files if file.is_file() and _head(file) == b"\x7fELF"]
    said = _run("ldd", *programs, may_fail=True)  # some are linked statically
    for path in sorted(set(re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", said, re.MULTILINE))):
        if not path.startswith(str(runtime_python().resolve().parents[1])):
            yield from (Path(path).parent.resolve() / Path(path).name, Path(path).resolve())  # a link and its file
    # Asked for by name at run time.
    for name in ("libnss_dns.so.2", "libgcc_s.so.1", "libstdc++.so.6*"):
        yield from Path("/usr/lib").glob(f"*-linux-gnu/{name}")


def _head(file: Path) -> bytes:
    with file.open("rb") as content:
        return content.read(4)


def _add(
    tar: tarfile.TarFile,
    name: str,
    *,
    kind: bytes = tarfile.REGTYPE,
    content: bytes = b"",
    mode: int = 0o755,
    target: str = "",
    owner: int = 0,
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname, entry.size = kind, mode, target, len(content)
    entry.uid = entry.gid = owner
    tar.addfile(entry, io.BytesIO(content))


def _versions(packages: Iterable[str]) -> str:
    return _run("dpkg-query", "--show", *packages)


def _run(*command: str, may_fail: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=QUESTION_SECONDS, check=not may_fail)
    return done.stdout
