"""What the tests of the images share: an engine, the stand-ins, the composition, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.sam.engine import engine
from tests.container.bases import go_base, make, mosquitto_base, python_base
from tests.container.compose import BUILD_SECONDS, Composition, program


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, minio_binary: Path) -> Iterator[Composition]:
    """The composition with its images built, not started."""
    with engine():
        program()
        for base in (python_base(), mosquitto_base(), go_base(minio_binary)):
            make(base)
        composition = Composition(tmp_path_factory.mktemp("compose"))
        composition.run("build", "host", "store", seconds=BUILD_SECONDS)
        yield composition


@pytest.fixture(scope="session")
def composition(images: Composition) -> Iterator[Composition]:
    """All of it, as the first `docker compose up` on a machine starts it."""
    images.run("down", "--volumes", "--remove-orphans")
    try:
        images.up()
        yield images
    finally:
        images.run("down", "--volumes", "--remove-orphans")
