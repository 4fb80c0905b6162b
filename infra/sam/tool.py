"""Calls the SAM CLI of `.venv-sam`, with credentials that open nothing, and finds the runtime's Python.

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SAM = ROOT / ".venv-sam" / "bin" / "sam"
RUNTIME = (3, 13)  # what `Runtime` in template.yaml says: .pyc files of another minor version are not looked at
REGION = "eu-central-1"  # SAM wants one, also where nothing is asked of AWS
QUESTION_SECONDS = 20.0
LAST_LINES = 25


class SamError(RuntimeError):
    """SAM, or the Python of the runtime, is missing or has failed; the message says what to do."""


def sam(
    *arguments: str, deadline_seconds: float, directory: Path = ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `sam` in `directory`, with `environment` on top of ours. Raises `SamError` where it fails or takes too long.

    For `sam build`, `sam validate` and `sam local`: it cannot reach an account.
    """
    words = shlex.join(("sam", *arguments))
    with running(*arguments, directory=directory, environment=environment) as process:
        try:
            stdout, stderr = process.communicate(timeout=deadline_seconds)
        except subprocess.TimeoutExpired:
            raise SamError(f"`{words}` was stopped: it took longer than {deadline_seconds:g} s") from None
    if process.returncode != 0:
        last = "\n".join((stdout + stderr).strip().splitlines()[-LAST_LINES:])
        raise SamError(f"`{words}` failed with exit status {process.returncode}:\n{last}")
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


@contextlib.contextmanager
def running(
    *arguments: str, directory: Path = ROOT, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`sam` as a process with its output in pipes, which has gone with all its children when the block ends.

    Raises `SamError` where the SAM CLI is not installed.
    """
    if not SAM.exists():
        raise SamError("the SAM CLI is not here: run `make build`, which installs it into .venv-sam")
    process = subprocess.Popen(  # noqa: S603 - our own SAM CLI
        [SAM, *arguments],
        cwd=directory,
        env=sam_environment() | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own: pip, docker and what else it starts end with it
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def sam_environment() -> dict[str, str]:
    """Our environment without what is somebody's account or Python, and with the runtime's Python to be found first."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON", "SAM_"))}
    return ours | {
        "PATH": f"{runtime_python().parent}{os.pathsep}{ours.get('PATH', os.defpath)}",
        "SAM_CLI_TELEMETRY": "0",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_EC2_METADATA_DISABLED": "true",
        # SAM asks AWS for the account's number: refused at once, or each command would wait ten seconds for the answer.
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_MAX_ATTEMPTS": "1",
    }


@cache
def runtime_python() -> Path:
    """The interpreter `python3.13` that `sam build` and the compiling of the artefact need.

    Looked for on PATH, then among pyenv's. Raises `SamError` with what to do.
    """
    name = ".".join(map(str, RUNTIME))
    on_path = (shutil.which(f"python{name}", path=folder) for folder in os.get_exec_path())
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    of_pyenv = sorted(pyenv.glob(f"versions/{name}.*/bin/python{name}"), reverse=True)
    for candidate in (*(Path(found) for found in on_path if found), *of_pyenv):
        if _runs(candidate):
            return candidate
    raise SamError(
        f"Python {name} is not here, and what is deployed is compiled by the runtime's own version. Install it "
        f"(Debian: apt-get install python{name} python{name}-venv; anywhere: pyenv install {name}, "
        f"uv python install {name}) and put python{name} on PATH"
    )


def _runs(python: Path) -> bool:
    """Whether it is what its name says, and has pip: pyenv's shims are on PATH also where nothing is behind them."""
    try:
        done = subprocess.run(  # noqa: S603 - found by its name
            [python, "-I", "-c", "import pip, sys; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
            timeout=QUESTION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and tuple(map(int, done.stdout.split())) == RUNTIME
