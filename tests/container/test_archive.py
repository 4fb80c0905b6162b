"""The image archive of `make release`."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from infra.deploy.release import IMAGE_BASE, IMAGE_FILE, ROOT, Source, image
from infra.sam.engine import docker
from tests.container.bases import PYTHON
from tests.container.compose import RUN_SECONDS, Composition

NAME = "bucketbell:0.1.0"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Where the wheel lies, whose version the image has."""
    (tmp_path / "bucketbell-0.1.0-py3-none-any.whl").touch()
    return tmp_path


def test_it_can_be_loaded(images: Composition, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the image under its name and version, and is made with the base that PYTHON_IMAGE names."""
    del images
    for name, value in {"PYTHON_IMAGE": PYTHON, "DOCKER_BUILDKIT": "0"}.items():
        monkeypatch.setenv(name, value)
    try:
        (archive,) = image(Source(ROOT, 1_700_000_000), release)
    finally:
        docker("image", "rm", "--force", NAME, deadline_seconds=RUN_SECONDS)
    with tarfile.open(archive) as packed:
        manifest = packed.extractfile("manifest.json")
        assert manifest is not None
        assert [one["RepoTags"] for one in json.load(manifest)] == [[NAME]]


def test_without_its_base_there_is_none(
    images: Composition, release: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A release goes on without it, and says what to do."""
    del images
    monkeypatch.setenv("PYTHON_IMAGE", "bucketbell-test/nothing:here")
    assert image(Source(ROOT, 1_700_000_000), release) == []
    assert "No image archive: it needs a Docker engine that has bucketbell-test/nothing:here" in capsys.readouterr().out


def test_the_base_is_the_dockerfiles() -> None:
    """The same wherever it is named."""
    for file in (IMAGE_FILE, IMAGE_FILE.with_name("minio.Dockerfile")):
        assert f"ARG BASE={IMAGE_BASE}\n" in (ROOT / file).read_text()
    assert f"PYTHON_IMAGE:-{IMAGE_BASE}" in (ROOT / IMAGE_FILE.with_name("compose.yaml")).read_text()
