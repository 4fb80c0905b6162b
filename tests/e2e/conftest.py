"""Worlds to test in: one for a module whose tests leave it as it was, one for a test that breaks things."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import Kind, World

Build = Callable[..., World]


def _need(request: pytest.FixtureRequest, kind: Kind) -> None:
    """Skip, or fail in CI, where a real part is missing."""
    request.getfixturevalue("mosquitto_binary")
    if kind != "moto":
        request.getfixturevalue(f"{kind}_binary")


def _builder(request: pytest.FixtureRequest, kind: Kind, directory: Path) -> Iterator[Build]:
    _need(request, kind)
    with ExitStack() as stack:

        def build(**options: Any) -> World:  # noqa: ANN401 - World's own
            world = World(kind, directory, **options)
            stack.callback(world.stop)
            return world.start()

        yield build


@pytest.fixture(scope="module", params=["minio", "moto"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world that the tests of a module share: what they upload has names of its own, and all of it is heard."""
    for build in _builder(request, request.param, tmp_path_factory.mktemp("world")):
        yield build()


@pytest.fixture(params=["minio", "moto"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Build]:
    """Starts a world for this test alone, with either store."""
    yield from _builder(request, request.param, tmp_path)


@pytest.fixture
def build_minio(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Build]:
    """Starts a world with MinIO for this test alone."""
    yield from _builder(request, "minio", tmp_path)


@pytest.fixture
def build_moto(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Build]:
    """Starts a world with moto for this test alone."""
    yield from _builder(request, "moto", tmp_path)


@pytest.fixture(scope="module")
def versity_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with Versity GW that the tests of a module share."""
    for build in _builder(request, "versitygw", tmp_path_factory.mktemp("world")):
        yield build()
