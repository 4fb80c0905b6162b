"""Schemathesis asks the running host all that `/openapi.json` allows, and much that it forbids.

That document is of the integration's API, and of one route of the devices'. The other routes are searched in
`test_route_search.py`. By hand, for minutes, and each time something else:
`FUZZ=20 make test ARGS="tests/hostile/test_openapi.py"`.
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from functions.admin.openapi import OPERATIONS
from functions.devices.renewal import TOKEN
from functions.web.tokens import Keyring
from tests.admin import ADMIN, administered
from tests.hostile.searching import FUZZ
from tests.hosts import Host

EXAMPLES = 25
ASK_SECONDS = 20.0  # of one request: a broker is tried for a second, on a slow machine
RUN_SECONDS = 100.0 * max(1, FUZZ)
CONFIG = Path(__file__).with_name("schemathesis.toml")

# Any broker that is made up lives here, where nobody listens: nothing leaves this machine.
NOWHERE = """
import socket
resolve = socket.getaddrinfo
known = {"127.0.0.1", "localhost"}
socket.getaddrinfo = lambda host, *rest, **more: resolve(host if host in known else "127.77.7.7", *rest, **more)
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a database and an administrator."""
    with administered(tmp_path_factory.mktemp("host"), patch=NOWHERE) as running:
        yield running


def asked(host: Host, directory: Path, token: str, *selection: str) -> int:
    """How many requests Schemathesis has made, all of them answered as the document says."""
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIG), "run"),
        *(f"{host.url}/openapi.json", "--header", f"Authorization: Bearer {token}", "--no-color", *selection),
        *("--checks", "all", "--continue-on-failure", "--request-timeout", str(ASK_SECONDS)),
        *("--max-examples", str(EXAMPLES * max(1, FUZZ))),
        *(("--generation-database", "none") if FUZZ else ("--generation-deterministic",)),
    ]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    generated = re.search(r"(\d+) generated, \1 passed", ended.stdout)
    assert generated, ended.stdout
    print(f"{generated[1]} requests")  # noqa: T201 - for `pytest -rP`
    assert f"Tested: {1 if '--include-path' in selection else len(OPERATIONS)}\n" in ended.stdout
    assert host.http.get("/healthz").status_code == 200
    assert not host.lines("ERROR")
    assert "Traceback" not in host.log
    return int(generated[1])


@pytest.mark.timeout(RUN_SECONDS + 20)
def test_the_api_is_what_its_document_says(host: Host, tmp_path: Path) -> None:
    """No 5xx, nothing that is not written there, no way in without a token; and what is wrong is refused."""
    assert asked(host, tmp_path, ADMIN, "--exclude-path", TOKEN) >= 200


@pytest.mark.timeout(RUN_SECONDS + 60)
def test_so_is_the_renewal_of_a_devices_token(tmp_path: Path) -> None:
    """With a device's token, at a host for devices; nobody there has to be asked for it."""
    key = "k:" + base64.b64encode(bytes(range(32))).decode()
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with administered(tmp_path, DEVICE_TOKEN_KEYS=key, BUCKET="devices", **nowhere) as host:
        token = Keyring.parse([key]).mint("a1-b2-c3-d4-e5-f6")
        assert asked(host, tmp_path, token, "--include-path", TOKEN) >= 3
        assert host.metric("device_tokens_renewed_total") >= 1
