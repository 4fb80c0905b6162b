"""What is deployed: its content, its size, that it starts without compiling, and that two builds are one."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.bench import lambda_process
from infra.local.mosquitto import Mosquitto
from infra.sam.build import DEPLOYED_AT, MAX_ZIPPED_BYTES, Artefact, build_copy
from infra.sam.tool import runtime_python
from infra.subscriber import Subscriber
from tests.gateway import http_event
from tests.sam.artefact import ARCHITECTURES

IMPORT_SECONDS = 60.0
BOTO3_FOLDER = str(Path(boto3.__file__).parents[1])
ENTRIES = ("functions.notify", "functions.download", "functions.integration")

# boto3 comes with the runtime; the others are for developing, testing, or the self-hosted process.
FOREIGN = {
    "boto3", "botocore", "cryptography", "hypothesis", "infra", "moto", "mypy", "prometheus_client", "pytest", "rich",
    "s3transfer", "samcli", "tests", "typer", "urllib3",
}  # fmt: skip

# Standard library only: the interpreter sees the artefact alone. Compiled code comes from the .pyc files, so that
# whatever is compiled while importing is a module without one.
_PROBE = """
import builtins, importlib, json, sys
sys.path[:0] = json.loads(sys.argv[1])
compiled = []
def hook(event, arguments):
    if event == "compile" and str(arguments[1]).startswith(sys.path[0]):
        compiled.append(str(arguments[1]))
sys.addaudithook(hook)
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
print(json.dumps([compiled, {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}]))
"""


def files(folder: Path, pattern: str = "*") -> list[Path]:
    """All files below `folder`."""
    return [path for path in folder.rglob(pattern) if path.is_file()]


def imported(folder: Path, *names: str, besides: str = "") -> tuple[list[str], dict[str, str]]:
    """What a new process of the runtime's Python compiles of the artefact for these imports, and what it has loaded."""
    path = [str(folder), besides] if besides else [str(folder)]
    done = subprocess.run(
        [runtime_python(), "-I", "-S", "-B", "-W", "error", "-c", _PROBE, json.dumps(path), json.dumps(names)],
        env={"MQTT_URL": "", "AWS_REGION": "eu-central-1"},
        capture_output=True,
        text=True,
        timeout=IMPORT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    compiled, modules = json.loads(done.stdout)
    return compiled, modules


def test_every_function_has_the_same_artefact(artefact: Artefact) -> None:
    """One build serves all functions: their folders hold the same files."""
    first, *others = ({file.relative_to(folder): file.read_bytes() for file in files(folder)}
                      for folder in artefact.folders)  # fmt: skip
    assert len(others) + 1 == len(artefact.folders) >= len(ENTRIES)
    assert all(other == first for other in others)


def test_it_fits(artefact: Artefact) -> None:
    """It has at most 5 MB zipped, and the zip holds what the folder holds."""
    assert artefact.zipped_bytes == artefact.zip_file.stat().st_size <= MAX_ZIPPED_BYTES <= 5_000_000
    with zipfile.ZipFile(artefact.zip_file) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    folder = artefact.folders[0]
    assert names == {file.relative_to(folder).as_posix() for file in files(folder)}


def test_nothing_foreign_is_inside(artefact: Artefact) -> None:
    """No boto3 (the runtime has one), no tests, no development package, no list of packages, nothing to execute."""
    folder = artefact.folders[0]
    assert not FOREIGN & {path.name for path in folder.iterdir()}
    parts = {part for file in files(folder) for part in file.relative_to(folder).parts}
    assert not parts & {"tests", "test", "bin", "conftest.py", "requirements.in", "requirements.txt"}
    assert not [file for file in files(folder) if file.suffix in {".pyi", ".exe", ".sh", ".js"}]
    assert not [file for file in files(folder) if file.stat().st_mode & 0o111 or file.stat().st_mode & 0o044 != 0o044]


def test_our_modules_are_all_inside(artefact: Artefact) -> None:
    """Each module of functions/ and its folders is there, as source, which tracebacks show."""
    here, there = (
        {path.relative_to(folder) for path in folder.rglob("*.py")}
        for folder in (Path("functions"), artefact.folders[0] / "functions")
    )
    assert there == here


def test_every_module_has_its_unchecked_pyc(artefact: Artefact) -> None:
    """Each source has a .pyc of the runtime's version, which Python takes without a look at the source's time."""
    folder = artefact.folders[0]
    for source in files(folder, "*.py"):
        (compiled,) = source.parent.glob(f"__pycache__/{source.stem}.*.pyc")
        assert compiled.name == f"{source.stem}.cpython-313.pyc"
        # PEP 552: flags 0b01 are "by hash", without 0b10 "checked".
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 1, compiled
    assert len(files(folder, "*.pyc")) == len(files(folder, "*.py"))


def test_compiled_code_names_where_it_is_deployed(artefact: Artefact) -> None:
    """No compiled file tells where it was built; tracebacks name the file in /var/task."""
    folder = artefact.folders[0]
    built_at = os.fsencode(folder.parents[2])
    assert not [file for file in files(folder) if built_at in file.read_bytes()]
    (compiled,) = folder.glob("functions/__pycache__/notify.*.pyc")
    assert f"{DEPLOYED_AT}/functions/notify.py".encode() in compiled.read_bytes()


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_starts_without_compiling(artefact: Artefact, entry: str) -> None:
    """The runtime's Python imports it from the artefact and boto3 alone, and compiles nothing of the artefact."""
    folder = artefact.folders[0]
    compiled, modules = imported(folder, entry, besides=BOTO3_FOLDER if entry == "functions.download" else "")
    assert compiled == []
    assert modules[entry] == str(folder / "functions" / f"{entry.split('.')[1]}.py")
    ours = [name for name in ("pydantic", "aws_lambda_powertools") if not modules[name].startswith(str(folder))]
    assert ours == []


def test_the_probe_sees_what_is_compiled(artefact: Artefact, tmp_path: Path) -> None:
    """The check above would fail where .pyc files are missing."""
    (tmp_path / "lonely.py").write_text("x = 1\n")
    compiled, _ = imported(tmp_path, "lonely", besides=str(artefact.folders[0]))
    assert compiled == [str(tmp_path / "lonely.py")]


def answers(folder: Path, entry: str, *events: object, **variables: str) -> list[dict[str, Any]]:
    """What this entry answers to each event, in one process of the runtime's Python, with boto3 beside the artefact."""
    run = f"import runpy, sys; del sys.argv[0]; sys.path.append({BOTO3_FOLDER!r}); "
    run += "runpy.run_path(sys.argv[0], run_name='__main__')"
    read, write = os.pipe()
    done = subprocess.run(
        [runtime_python(), "-I", "-B", "-c", run, lambda_process.__file__, str(folder), entry, str(write)],
        input="".join(json.dumps(event) + "\n" for event in events),
        env={"AWS_LAMBDA_FUNCTION_NAME": "test", "AWS_REGION": "eu-central-1", "BUCKET": "bucket"} | variables,
        pass_fds=[write],
        capture_output=True,
        text=True,
        timeout=IMPORT_SECONDS,
        check=False,
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        assert done.returncode == 0, done.stderr
        return [json.loads(line)[2] for line in pipe]


def test_notify_runs_from_it(artefact: Artefact, tmp_path: Path, mosquitto_binary: Path) -> None:
    """The runtime's Python and the artefact are enough to publish, and to name the record that cannot be."""
    del mosquitto_binary
    body = json.loads(Path("tests/events/aws-put.json").read_text())
    body["Records"][0]["s3"]["object"]["key"] = "assets/firmware.bin"
    body["Records"][0]["s3"]["bucket"]["name"] = "bucket"
    batch = {
        "Records": [
            {"messageId": "good", "eventSource": "aws:sqs", "body": json.dumps(body)},
            {"messageId": "bad", "eventSource": "aws:sqs", "body": "{"},
        ]
    }
    with Mosquitto(tmp_path / "mosquitto") as broker, Subscriber(broker.url, ["#"]) as subscriber:
        (answer,) = answers(artefact.folders[0], "functions.notify", batch, MQTT_URL=broker.url)
        assert json.loads(subscriber.next(5).payload) == {"filename": "firmware.bin"}
    assert answer == {"batchItemFailures": [{"itemIdentifier": "bad"}]}


def test_download_runs_from_it(artefact: Artefact) -> None:
    """With the runtime's boto3 the artefact answers a device, here one without a token."""
    key = base64.b64encode(bytes(32)).decode()
    event = http_event("/assets/firmware.bin")
    (answer,) = answers(artefact.folders[0], "functions.download", event, DEVICE_TOKEN_KEYS=f"k:{key}")
    assert answer["statusCode"] == 401


def test_two_builds_are_the_same(artefact: Artefact, tmp_path: Path) -> None:
    """A second build of the same tree, elsewhere and later, gives the same zip."""
    again = build_copy(tmp_path / "somewhere" / "else", artefact.zip_file.stem.removeprefix("bucketbell-"))
    assert again.sha256 == artefact.sha256


def test_it_is_built_for_the_other_processor(artefact: Artefact, tmp_path: Path) -> None:
    """Both architectures can be built on either: every native part is that of the one asked for."""
    native = {"x86_64": "x86_64-linux-gnu.so", "arm64": "aarch64-linux-gnu.so"}
    here = artefact.zip_file.stem.removeprefix("bucketbell-")
    (other,) = set(ARCHITECTURES.values()) - {here}
    built = build_copy(tmp_path / "other", other)
    for architecture, folder in ((here, artefact.folders[0]), (other, built.folders[0])):
        libraries = files(folder, "*.so*")
        assert libraries
        assert all(library.name.endswith(native[architecture]) for library in libraries)
    assert built.zipped_bytes <= MAX_ZIPPED_BYTES
