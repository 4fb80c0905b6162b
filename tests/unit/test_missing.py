"""A part that is not here is never mistaken for a pass: named at the end of the run, and a failure in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_is_missing_is_named_at_the_end_and_fails_in_ci(tmp_path: Path, workers: str) -> None:
    """However many processes run the tests: skipped and named in one line, but an error where CI is set."""
    probe = tmp_path / "test_probe.py"
    probe.write_text("def test_it(minio_binary):\n    assert minio_binary\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", str(probe)]
    known = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST_")}
    known |= {"BUCKETBELL_CACHE": str(tmp_path), "PATH": "/nowhere", "PYTHONPATH": str(ROOT)}

    def run(**more: str) -> tuple[int, str]:
        done = subprocess.run(
            [*command, "--numprocesses", workers],
            cwd=tmp_path,
            env=known | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    status, said = run()
    assert (status, "NOT TESTED, because it is not here: minio (`make minio`)" in said) == (0, True), said
    status, said = run(CI="true")
    assert (status, "minio is missing: `make minio`" in said) == (1, True), said
