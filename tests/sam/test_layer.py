"""The layer of stored settings: its content, and IntegrationFunction with it in a container, beside a PostgreSQL."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from functions.stored.model import MqttConfigChange
from infra.local.postgres import Postgres, find_postgres
from infra.local.stores import REGION, MotoServer
from infra.migrations.runner import upgrade
from infra.sam.build import LAYER_DEPLOYED_AT, Artefact, build_copy
from infra.sam.engine import HOST
from tests.conftest import missing
from tests.databases import new_key, new_postgresql, store_of
from tests.gateway import Answered, http_event
from tests.sam.artefact import ARCHITECTURES
from tests.sam.invoking import Sam
from tests.sam.test_artefact import FOREIGN, files, imported

MAX_UNPACKED_BYTES = 250_000_000  # Lambda, "Quotas": a function and its layers together
CONFIG = "/api/v1/integrations/mqtt/config"
TOKEN = "a-token-of-an-administrator"
LISTED = {"cryptography", "psycopg", "sqlalchemy"}


@pytest.fixture
def postgres(tmp_path: Path, host_address: str) -> Iterator[Postgres]:
    """A PostgreSQL that containers reach too."""
    if find_postgres() is None:
        missing("PostgreSQL", "install the package `postgresql`")
    # Not in tmp_path: the server is another user, who may not look into it.
    with tempfile.TemporaryDirectory(prefix="bucketbell-hba-") as directory:
        Path(directory).chmod(0o755)
        admitted = Path(directory) / "pg_hba.conf"
        admitted.write_text("host all all all scram-sha-256\n")
        addresses = dict.fromkeys(("127.0.0.1", host_address))
        settings = {"listen_addresses": ",".join(addresses), "hba_file": str(admitted)}
        server = Postgres(tmp_path / "postgres", settings=settings)
        try:
            with server:
                yield server
        finally:
            server.remove()


def test_database_packages_are_in_the_layer_alone(artefact: Artefact) -> None:
    """The layer has what the database's list names, where Lambda looks for it; the artefact has none of it."""
    (folder,) = artefact.layer.folders
    assert [path.name for path in folder.iterdir()] == ["python"]
    inside = {path.name for path in (folder / "python").iterdir()}
    assert inside >= LISTED
    assert not inside & ((FOREIGN - LISTED) | {"pydantic", "functions", "bin", "requirements.in", "requirements.txt"})
    assert not LISTED & {path.name for path in artefact.folders[0].iterdir()}
    assert artefact.unpacked_bytes + artefact.layer.unpacked_bytes < MAX_UNPACKED_BYTES


def test_database_code_starts_without_compiling(artefact: Artefact) -> None:
    """The runtime's Python finds unchecked .pyc files in the layer, which name where Lambda unpacks it."""
    (folder,) = artefact.layer.folders
    compiled, modules = imported(folder / "python", *sorted(LISTED), besides=str(artefact.folders[0]))
    assert compiled == []
    assert modules["sqlalchemy"] == str(folder / "python" / "sqlalchemy" / "__init__.py")
    (one,) = folder.glob("python/sqlalchemy/__pycache__/__init__.*.pyc")
    assert int.from_bytes(one.read_bytes()[4:8], "little") == 1  # PEP 552, as in test_artefact.py
    assert f"{LAYER_DEPLOYED_AT}/python/sqlalchemy/__init__.py".encode() in one.read_bytes()


def test_layer_is_the_same_wherever_built_and_for_the_other_processor(artefact: Artefact, tmp_path: Path) -> None:
    """A second build elsewhere gives the same zip; built for the other processor, every native part is that one's."""
    here = artefact.layer.zip_file.stem.removeprefix("bucketbell-layer-")
    assert build_copy(tmp_path / "again", here).layer.sha256 == artefact.layer.sha256
    (other,) = set(ARCHITECTURES.values()) - {here}
    (folder,) = build_copy(tmp_path / "other", other).layer.folders
    machine = {"x86_64": 62, "arm64": 183}[other]  # e_machine in <elf.h>
    libraries = [path.read_bytes() for path in files(folder) if ".so" in path.suffixes]
    assert libraries
    assert {int.from_bytes(library[18:20], "little") for library in libraries} == {machine}


def test_integration_answers_from_the_database(sam: Sam, moto: MotoServer, postgres: Postgres) -> None:
    """With the layer, and all of its secrets in one, an administrator reads what is stored, but for the password."""
    url, key = new_postgresql(postgres), new_key()
    upgrade(url)
    change = MqttConfigChange.model_validate(
        {"broker_host": "broker.example", "topic_prefix": "home", "username": "bell", "password": "hunter2"}
    )
    store_of(url, key).save(change, expected_version=None)
    secret = {
        "DATABASE_URL": url.replace("127.0.0.1", HOST),
        "ENCRYPTION_KEYS": key.get_secret_value(),
        "ADMIN_TOKENS": TOKEN,
    }
    moto.reset()
    moto.client("secretsmanager").create_secret(Name="bucketbell", SecretString=json.dumps(secret))
    variables = {"SECRET_ID": "bucketbell", "AWS_ENDPOINT_URL_SECRETS_MANAGER": f"http://{HOST}:{moto.port}"}
    asked = http_event(CONFIG, headers={"authorization": f"Bearer {TOKEN}"})
    done = sam.invoke("IntegrationFunction", asked, variables, environment={"AWS_DEFAULT_REGION": REGION})
    answer = Answered.of(done.answer)
    assert answer.status == 200, done
    shown = answer.document
    assert (shown["source"], shown["broker_host"], shown["topic_prefix"]) == ("database", "broker.example", "home")
    assert (shown["has_password"], shown["credentials"]) == (True, "ok"), "the layer's cryptography has read it"
    assert "hunter2" not in str(done)
