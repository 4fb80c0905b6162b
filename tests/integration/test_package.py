"""The Python package: the same whenever it is built, and all that a person needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.deploy.release import IMAGE_FILE, LOCK, ROOT, Source, bill_of_materials, checksums, install, packages
from infra.local.process import Process, free_port
from tests.hosts import eventually

EPOCH = 1_700_000_001
RUN_SECONDS = 100.0
LISTS = ("functions/requirements.in", "infra/layer/requirements.in", "infra/requirements.in")
IMAGE_PYTHON = "3.13"
IMAGE_WHEELS = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in (17, 24, 26, 28, 34)))
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def copied(to: Path, mode: int, time: int) -> Source:
    """What the repository has, unpacked as elsewhere: with these rights, at this time."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build", "dist", "var")
    shutil.copytree(ROOT, to, ignore=ignored)
    for path in to.rglob("*"):
        path.chmod(mode | 0o111 if path.is_dir() else mode)
        os.utime(path, (time, time))
    return Source(to, EPOCH)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where wheel and sdist are."""
    directory = tmp_path_factory.mktemp("dist")
    packages(copied(tmp_path_factory.mktemp("one") / "tree", 0o644, EPOCH), directory)
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (found,) = built.glob("*.whl")
    return found


def pinned(lock: Path) -> list[str]:
    """Each package of a lock with its version, without hashes: with any, pip wants one for our wheel as well."""
    return re.findall(r"^[\w.\[\]-]+==[^\\\n]+", (ROOT / lock).read_text(), re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment that had nothing before the wheel was installed."""

    wheel: Path
    directory: Path

    def install(self, extra: str = "") -> Path:
        """Install it, in the versions that all tests have; where its programs are."""
        constraints = self.directory / "constraints.txt"
        constraints.write_text("\n".join(pinned(Path("tests/requirements.txt"))))
        return install(self.wheel, self.directory, extra=extra, constraints=constraints)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel without extras."""
    made = Installed(wheel, tmp_path_factory.mktemp("installed"))
    made.install()
    return made


@pytest.fixture(scope="module")
def programs(installed: Installed) -> Path:
    """The folder of its programs."""
    return installed.directory / "environment/bin"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No variable of ours, no program that was built into a cache."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}


def said(command: list[str], directory: Path, environment: dict[str, str]) -> str:
    """What a command says, which ends with 0."""
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_builds_of_one_commit_are_the_same(built: Path, tmp_path: Path) -> None:
    """Wheel and sdist, byte for byte: in another folder, unpacked at another time by a user with other rights."""
    again = tmp_path / "dist"
    again.mkdir()
    packages(copied(tmp_path / "elsewhere", 0o600, EPOCH + 86_400), again)
    files = sorted(file.name for file in again.iterdir())
    assert files == sorted(file.name for file in built.iterdir())
    assert [name.rpartition(".")[2] for name in files] == ["whl", "gz"]
    assert [(built / name).read_bytes() == (again / name).read_bytes() for name in files] == [True, True]


def test_the_wheel_has_what_people_use_and_nothing_else(wheel: Path) -> None:
    """Migrations, the page, the demonstration's picture, the unit; no tests, and nothing that is for working on it."""
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {"/".join(name.split("/")[:2]) for name in names if name.count("/") > 1}
    assert not folders & {"infra/bench", "infra/deploy", "infra/docs", "infra/sam", "infra/layer"}
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"functions", "infra", "bucketbell"}
    others = {name for name in names if not name.endswith(".py") and ".dist-info/" not in name}
    page = {file.name for file in (ROOT / "infra/host/web/console").iterdir()}
    assert {name.rpartition("/")[2] for name in others} == page | {
        "front-door.jpg",
        "bucketbell.service",
        "bucketbell.env",
    }
    migrations = {
        f"infra/migrations/versions/{file.name}" for file in (ROOT / "infra/migrations/versions").glob("0*.py")
    }
    assert migrations
    assert migrations <= names


def test_the_sdist_tells_neither_who_built_it_nor_where(built: Path) -> None:
    """Each file has the commit's time, nobody's name, and the same rights."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in members} == {(0, 0, "", "", EPOCH)}
    assert {one.mode for one in members} == {0o644, 0o755}


def test_every_module_is_there_with_what_it_needs(
    wheel: Path, programs: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """In an environment with nothing but the wheel's own dependencies, each of its modules can be imported."""
    files = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files}
    modules.remove("infra.migrations.env")  # Alembic's, for a running migration
    assert len(modules) > 100
    said([str(programs / "python"), "-I", "-c", IMPORT_ALL, *sorted(modules)], tmp_path, environment)


def test_a_host_starts_in_an_empty_directory(programs: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """It makes its tables and answers, whatever else is called `functions` and `infra` there."""
    for name in ("functions", "infra"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('somebody else')\n")
    environment["DATABASE_URL"] = f"sqlite:///{tmp_path}/settings.db"
    port = free_port()

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    bucketbell = str(programs / "bucketbell")
    command = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), bucketbell, "host"]
    with Process("host", [*command, "--port", str(port)], tmp_path, working_directory=tmp_path, ready=answers) as host:
        eventually(lambda: "tables are up to date now" in host.log_text())
    assert said([bucketbell, "migrate"], tmp_path, environment) == "the tables were up to date already\n"
    assert re.fullmatch(r"bucketbell \d+\.\d+\.\d+\n", said([bucketbell, "--version"], tmp_path, environment))


@pytest.mark.usefixtures("mosquitto_binary")
def test_the_demonstration_needs_one_extra(
    installed: Installed, programs: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Without it a store may be missing, which is said; with it every step is seen."""
    command = [str(programs / "bucketbell"), "demo", "--once"]
    without = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    if without.returncode:  # no MinIO on the PATH
        assert "with its extra `demo`" in without.stderr
        assert not without.stdout
    installed.install("[demo]")
    assert "every step was seen" in said(command, tmp_path, environment)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_image_needs_no_compiler(machine: str, tmp_path: Path) -> None:
    """Each package has a wheel for the image's Python, except those that its file builds, which are Python alone."""
    built = re.findall(r"--no-binary (\S+)", (ROOT / IMAGE_FILE).read_text())
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("\n".join(line for line in pinned(LOCK) if re.split(r"[\[=]", line)[0] not in built))
    platforms = [word for tag in IMAGE_WHEELS for word in ("--platform", f"{tag}_{machine}")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--only-binary", ":all:"]
    for_image = ["--python-version", IMAGE_PYTHON, "--target", str(tmp_path / "none"), *platforms]
    said([*pip, *for_image, "--requirement", str(wanted)], tmp_path, dict(os.environ))


def test_it_is_listed_what_an_installation_consists_of(built: Path, tmp_path: Path) -> None:
    """Each package of the lock with its hashes; the checksums are those of the files."""
    source = Source(ROOT, EPOCH)
    bill, lock = bill_of_materials(source, tmp_path)
    document = json.loads(bill.read_text())
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["component"]["name"] == "bucketbell"
    text = lock.read_text()
    hashes = {
        f"{one['name']}=={one['version']}": {hash_["content"] for hash_ in one["externalReferences"][0]["hashes"]}
        for one in document["components"]
    }
    entries = re.findall(r"^(\S+?)(?:\[.*?\])?(==\S+)(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert hashes == {name + version: set(re.findall(r"sha256:(\w+)", rest)) for name, version, rest in entries}
    direct = [re.findall(r"^[\w-]+", (ROOT / file).read_text(), re.MULTILINE) for file in LISTS]
    assert {name for names in direct for name in names} <= {one["name"] for one in document["components"]}
    for file in built.iterdir():
        shutil.copy(file, tmp_path)
    sums = checksums([file for file in tmp_path.iterdir() if file.is_file()], tmp_path)
    assert said(["sha256sum", "--check", "--quiet", sums.name], tmp_path, dict(os.environ)) == ""
    assert len(sums.read_text().splitlines()) == 4
