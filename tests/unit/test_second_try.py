"""What `.ci/run` makes of tests that pass at their second try only: docs/decisions/0068-a-second-try.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MAX_SECOND_TRIES

RUN_SECONDS = 100.0
UNSURE = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_unsure(number):
    seen = Path(__file__).with_name(str(number))
    if not seen.exists():
        seen.touch()
        raise AssertionError(f"first words of {{number}}")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(("count", "status"), [(MAX_SECOND_TRIES, 0), (MAX_SECOND_TRIES + 1, 1)])
def test_a_few_second_tries_are_told_and_more_are_a_failure(
    tmp_path: Path, count: int, status: int, workers: str
) -> None:
    """Each with its name and all that it said when it failed."""
    (tmp_path / "test_unsure.py").write_text(UNSURE.format(count=count))
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    words = ("-p", "tests.conftest", "-p", "no:schemathesis", "--reruns", "1", "--numprocesses", workers)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == status, done.stdout
    for number in range(count):
        assert f"FAILED AT ITS FIRST TRY: test_unsure.py::test_unsure[{number}]" in done.stdout
        assert f"AssertionError: first words of {number}" in done.stdout
