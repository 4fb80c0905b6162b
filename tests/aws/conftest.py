"""One emulated AWS for all tests here (EMULATOR names it), with what is deployed built from the tree as it is."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from infra.sam.build import Artefact, build_copy
from infra.sam.engine import engine
from infra.sam.image import ARCHITECTURE, base_image
from tests.aws.cloud import Cloud, Credentials
from tests.aws.ministack import leave_the_network
from tests.aws.ministack_cloud import MiniStackCloud
from tests.aws.moto_cloud import MotoCloud
from tests.conftest import missing

EMULATOR = os.environ.get("EMULATOR", "moto")
ON_MOTO = ("test_deployment.py", "test_mapping.py", "test_rotation.py")
ON_MINISTACK = (
    "test_api.py",
    "test_iot_core.py",
    "test_permissions.py",
    "test_queue.py",
    "test_stack.py",
    "test_stored_settings.py",
)
collect_ignore = {"moto": ON_MINISTACK, "ministack": ON_MOTO}[EMULATOR]


@pytest.fixture
def cloud(deployed: Cloud) -> Iterator[Cloud]:
    """The stack, deployed; what a test that failed has left of messages is gone before the next one."""
    yield deployed
    deployed.tidy_up()


@pytest.fixture
def ministack(cloud: Cloud) -> MiniStackCloud:
    """The same, for what MiniStack alone can do."""
    assert isinstance(cloud, MiniStackCloud)
    return cloud


@pytest.fixture(scope="session")
def deployed(mosquitto_binary: Path) -> Iterator[Cloud]:
    """The functions built, the stack deployed: once for all tests, and nothing is left of it."""
    del mosquitto_binary
    if EMULATOR == "ministack" and os.geteuid() != 0:
        missing("root", "run it as root: MiniStack gets a network of its own")
    with ExitStack() as undo:
        directory = Path(undo.enter_context(TemporaryDirectory(prefix="bucketbell-aws-")))
        yield undo.enter_context(_on_ministack(directory) if EMULATOR == "ministack" else _on_moto(directory, undo))


def _on_ministack(directory: Path) -> Cloud:
    artefact = _artefact(directory)  # from the network
    leave_the_network()
    return MiniStackCloud(directory, artefact, _credentials())


def _on_moto(directory: Path, undo: ExitStack) -> Cloud:
    undo.enter_context(engine())
    image = base_image()
    return MotoCloud(directory, _artefact(directory), _credentials(), image=image)


def _artefact(directory: Path) -> Artefact:
    return build_copy(directory / "build", ARCHITECTURE)


def _credentials() -> Credentials:
    return Credentials(
        password=secrets.token_urlsafe(),
        device_token_keys=f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}",
        admin_token=secrets.token_urlsafe(),
    )
