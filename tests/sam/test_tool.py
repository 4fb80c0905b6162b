"""The SAM CLI is called with nobody's account, within a deadline, and says what to do where something is missing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.sam import tool
from infra.sam.build import compile_all, main
from infra.sam.tool import RUNTIME, SamError, runtime_python, sam, sam_environment


@pytest.fixture
def without_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine that has no Python 3.13, but a shim of that name which leads nowhere."""
    shim = tmp_path / "python3.13"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    runtime_python.cache_clear()
    yield
    runtime_python.cache_clear()


def test_it_speaks_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a profile nor keys nor an endpoint of ours reach the SAM CLI, and it tells nobody that it was used."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "PYTHONPATH"):
        monkeypatch.setenv(name, "ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours")
    environment = sam_environment()
    assert "ours" not in environment.values()
    assert environment["SAM_CLI_TELEMETRY"] == "0"


def test_a_failure_is_told_in_the_tools_words() -> None:
    """What SAM said is in the error."""
    with pytest.raises(SamError, match=r"(?s)`sam build --no-such-option` failed.*No such option"):
        sam("build", "--no-such-option", deadline_seconds=60)


def test_a_deadline_holds() -> None:
    """What takes too long is stopped."""
    begun_at = time.monotonic()
    with pytest.raises(SamError, match="was stopped"):
        sam("validate", "--lint", deadline_seconds=0.05)
    assert time.monotonic() - begun_at < 20, "it takes seconds; this is no hurry, but not for ever"


def test_a_missing_tool_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without `.venv-sam` the error names the command that makes it."""
    monkeypatch.setattr(tool, "SAM", tmp_path / "sam")
    with pytest.raises(SamError, match="make build"):
        sam("--version", deadline_seconds=60)


@pytest.mark.usefixtures("without_runtime")
def test_a_missing_python_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the runtime's Python `make build` names the version and how to get it, and ends with status 1."""
    assert main([]) == 1
    said = capsys.readouterr().err
    assert "Python 3.13 is not here" in said
    assert "pyenv install 3.13" in said
    assert "Traceback" not in said


def test_the_runtime_is_that_of_the_template() -> None:
    """The template's functions run on the Python that compiles them."""
    template = (Path(__file__).parents[2] / "template.yaml").read_text()
    assert f"Runtime: python{'.'.join(map(str, RUNTIME))}" in template


def test_what_cannot_be_compiled_fails_the_build(tmp_path: Path) -> None:
    """A file that is no Python is an error, with its name, and not a slow start."""
    (tmp_path / "wrong.py").write_text("def\n")
    with pytest.raises(SamError, match=r"(?s)could not be compiled.*wrong\.py"):
        compile_all(tmp_path)
