"""One emulated AWS for all tests here, with what is deployed built from the tree as it is."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from infra.sam.build import build_copy
from infra.sam.engine import engine
from infra.sam.image import ARCHITECTURE, base_image
from tests.aws.cloud import Cloud, Credentials


@pytest.fixture
def cloud(deployed: Cloud) -> Iterator[Cloud]:
    """The stack, deployed; what a test that failed has left of messages is gone before the next one."""
    yield deployed
    deployed.tidy_up()


@pytest.fixture(scope="session")
def deployed(mosquitto_binary: Path) -> Iterator[Cloud]:
    """The image made, the functions built, the stack deployed: once for all tests, and nothing is left of it."""
    del mosquitto_binary
    credentials = Credentials(
        password=secrets.token_urlsafe(),
        device_token_keys=f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}",
        admin_token=secrets.token_urlsafe(),
    )
    with TemporaryDirectory(prefix="bucketbell-aws-") as name, engine():
        directory = Path(name)
        image = base_image()
        package = build_copy(directory / "build", ARCHITECTURE).zip_file
        with Cloud(directory, image=image, package=package, credentials=credentials) as cloud:
            yield cloud
