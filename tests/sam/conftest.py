"""What the tests in containers share: an engine, an image, the built functions, and servers that containers reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.mosquitto import Mosquitto
from infra.local.stores import Minio, MotoServer
from infra.sam import engine as engines
from infra.sam.build import Artefact
from infra.sam.image import BASE, base_image
from infra.subscriber import Subscriber
from tests.sam.artefact import artefact
from tests.sam.invoking import Sam, durations

__all__ = ["artefact"]


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[None]:
    """An engine with the image that SAM looks for; stopped at the end if it was started here."""
    with engines.engine():
        base_image()
        yield


@pytest.fixture(scope="session")
def host_address(docker_engine: None) -> str:
    """Where servers listen that containers reach too."""
    del docker_engine
    return engines.host_address(BASE)


@pytest.fixture
def sam(request: pytest.FixtureRequest, artefact: Artefact, docker_engine: None) -> Sam:
    """The SAM CLI beside the built functions."""
    del docker_engine
    return Sam(artefact.folders[0].parent, request.node.name)


@pytest.fixture
def mosquitto(tmp_path: Path, host_address: str, mosquitto_binary: Path) -> Iterator[Mosquitto]:
    """A Mosquitto of this test alone, which containers reach too."""
    del mosquitto_binary
    with Mosquitto(tmp_path / "mosquitto", host=host_address) as broker:
        yield broker


@pytest.fixture
def subscriber(mosquitto: Mosquitto) -> Iterator[Subscriber]:
    """A device that hears everything."""
    with Subscriber(mosquitto.url, ["#"]) as listening:
        yield listening


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory, host_address: str, minio_binary: Path) -> Iterator[Minio]:
    """A MinIO that containers reach too."""
    del minio_binary
    with Minio(tmp_path_factory.mktemp("minio"), host=host_address) as store:
        yield store


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory, host_address: str) -> Iterator[MotoServer]:
    """A moto server that containers reach too, as the Secrets Manager."""
    with MotoServer(tmp_path_factory.mktemp("moto"), host=host_address) as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the emulator said of the time."""
    if durations:
        terminalreporter.write_line("What the emulator says; a container's first call holds its start and all imports:")
    for test, milliseconds in durations:
        terminalreporter.write_line(f"{milliseconds:8.1f} ms  {test}")
