"""Builds what is deployed once for the tests that look at it."""

from __future__ import annotations

import platform

import pytest

from infra.sam.build import Artefact, build_copy

ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


@pytest.fixture(scope="session")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """The artefact for this machine's processor, built from a copy of the tree."""
    return build_copy(tmp_path_factory.mktemp("artefact") / "here", ARCHITECTURES[platform.machine()])
