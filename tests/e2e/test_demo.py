"""`make demo` shows every step on either store, and fails when one of them cannot be seen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local import stack as local
from infra.local.detection import PICTURE, detect
from infra.local.process import Process
from infra.local.stack import BUCKET, MAC, DemoError, Stack
from tests.conftest import missing

DEMO = (sys.executable, "-m", "infra.local.demo")
ROOT = Path(__file__).parents[2]
DEMO_SECONDS = 100.0
SOON_SECONDS = 1.5
PASTE_SECONDS = 30.0
TO_PASTE = ("mqtt status", "fleet files", "why assets/esp32/firmware-1.0.bin", f"--device {MAC}")
DOCTOR = " doctor --host-url "


pytestmark = pytest.mark.usefixtures("mosquitto_binary")


class Run(Process):
    """`make run`, which is ready when it has said what to paste."""

    def is_ready(self) -> bool:
        """Whether it has come to its end, which is to stay."""
        return "Ctrl-C stops it all" in self.new_log_text()


@pytest.mark.parametrize("store", ["MinIO", "moto"])
def test_the_demonstration_shows_every_step(request: pytest.FixtureRequest, tmp_path: Path, store: str) -> None:
    """It ends with 0, and its last step is the picture of a camera, as it was uploaded; without MinIO it takes moto."""
    variables = dict(os.environ)
    if store == "MinIO":
        request.getfixturevalue("minio_binary")
    elif shutil.which("minio"):
        missing("a PATH without MinIO", "move `minio` to where `make minio` puts it: on the PATH `make demo` takes it")
    else:
        variables["BUCKETBELL_CACHE"] = str(tmp_path)
    done = subprocess.run(
        [*DEMO, "demo"], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=DEMO_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"object store  {store} at" in done.stdout
    assert len(re.findall(r"^ +rang ", done.stdout, re.MULTILINE)) == 4
    assert len(re.findall(r"^pulled ", done.stdout, re.MULTILINE)) == 3
    assert f"image/jpeg, {PICTURE.stat().st_size:,} bytes, as it was uploaded" in done.stdout


def test_what_there_is_to_paste_works(tmp_path: Path) -> None:
    """Of what `make run` prints at its end, each command that asks the host is run."""
    run = Run("run", [*DEMO, "run"], tmp_path, working_directory=ROOT, start_timeout_seconds=DEMO_SECONDS)
    try:
        run.start()
        lines = [line.strip() for line in run.new_log_text().splitlines()]
        pasted = [line for line in lines if line.startswith("curl ") or line.endswith(TO_PASTE) or DOCTOR in line]
        assert len(pasted) == 8
        assert "3 devices have it" in run.new_log_text()
        for command in pasted:
            done = subprocess.run(
                ["/bin/sh", "-c", command], capture_output=True, text=True, timeout=PASTE_SECONDS, check=False
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    finally:
        run.stop()


def test_the_picture_of_the_readme_can_be_made_anew(tmp_path: Path) -> None:
    """By the command in docs/cameras.md, from what was really seen; it asks nobody for fonts, and tells no token."""
    file = tmp_path / "cameras.svg"
    done = subprocess.run(
        [sys.executable, "-m", "infra.docs.capture", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for svg in (file.read_text(encoding="utf-8"), (ROOT / "docs" / "cameras.svg").read_text(encoding="utf-8")):
        assert "opened" in svg
        assert "token=" not in svg
        assert "url(" not in re.sub(r"url\(#[a-z0-9-]+\)", "", svg)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """The parts of `make run`, up."""
    stack = Stack(tmp_path)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def test_an_event_that_does_not_ring_is_a_failure(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bucket's rules nothing is heard."""
    detect(stack)
    rules = {"Bucket": BUCKET, "NotificationConfiguration": {}}
    stack.store.client("s3").put_bucket_notification_configuration(**rules)
    monkeypatch.setattr(local, "HEAR_SECONDS", SOON_SECONDS)
    with pytest.raises(DemoError, match="nothing was heard"):
        detect(stack)


def test_a_link_to_elsewhere_is_a_failure(stack: Stack) -> None:
    """A host that hands out links to another one is found out before anybody opens them."""
    stack.host.environment["PUBLIC_BASE_URL"] = "http://127.0.0.1:9"
    stack.host.restart()
    with pytest.raises(DemoError, match="no link to the host"):
        detect(stack)
