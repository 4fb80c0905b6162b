"""What several tests of one part begin with: a device and its server, a host that an administrator has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber
from tests.admin import administered
from tests.fakes.device_rig import FILE, NEW, DeviceRig
from tests.fakes.slow_store import SlowStore
from tests.hosts import Host


@pytest.fixture
def world() -> Iterator[SlowStore]:
    """Server and store, with one asset."""
    with SlowStore() as fake:
        fake.put(FILE, NEW)
        yield fake


@pytest.fixture
def rig(world: SlowStore, tmp_path: Path) -> Iterator[DeviceRig]:
    """A device that has caught up with nothing yet."""
    with DeviceRig(tmp_path / "device", world.url) as device:
        yield device


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host with a database of its own, and no broker yet."""
    with administered(tmp_path) as one:
        yield one


@pytest.fixture
def ear(mosquitto: Mosquitto) -> Iterator[Subscriber]:
    """Hears everything."""
    with Subscriber(mosquitto.url, ["#"]) as subscriber:
        yield subscriber
