"""The real parts that tests ask for by name. A missing one fails the run in CI, and is named at its end elsewhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from infra.local.install import find_minio, find_mosquitto, find_nats_server, find_versitygw
from infra.local.mosquitto import Mosquitto
from infra.local.nats_server import NatsServer
from infra.local.postgres import Postgres, find_postgres
from infra.local.stores import Minio, MotoServer, VersityGateway
from infra.migrations.runner import upgrade
from tests.databases import new_postgresql, new_sqlite

IS_MISSING = " is missing: "
MAX_SECOND_TRIES = 3
"""More in one run have a cause. Only a run with `--reruns` (CI's) has any: docs/decisions/0068-a-second-try.md."""


def missing(part: str, remedy: str) -> NoReturn:
    """Fail where nothing may be missing (CI), otherwise skip, and say so once at the end of the run."""
    if os.environ.get("CI"):
        pytest.fail(f"{part}{IS_MISSING}{remedy}")
    pytest.skip(f"{part}{IS_MISSING}{remedy}")  # a developer's machine only, and loudly: see the summary below


# Hypothesis holds each example to 200 ms by the clock, which says more about the machine than about the code.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start: a shell that runs them in the background has it ignored, by all below."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name in one line what could not be run: read off the reports, for the tests may have run in other processes."""
    reasons = {str(report.longrepr[-1]).removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped")}
    parts = [reason.replace(IS_MISSING, " (", 1) + ")" for reason in sorted(reasons) if IS_MISSING in reason]
    if parts:
        terminalreporter.write_line(f"NOT TESTED, because it is not here: {'; '.join(parts)}", red=True, bold=True)
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"FAILED AT ITS FIRST TRY: {report.nodeid}", red=True)
        terminalreporter.write_line(report.longreprtext)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Too many second tries are a failure, though each of them has passed."""
    reporter: pytest.TerminalReporter | None = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and len(reporter.getreports("rerun")) > MAX_SECOND_TRIES:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def mosquitto_binary() -> Path:
    """The real Mosquitto, or no test of it."""
    return find_mosquitto() or missing("mosquitto", "install the package `mosquitto`, or `make run` once")


@pytest.fixture(scope="session")
def minio_binary() -> Path:
    """The real MinIO, or no test of it."""
    return find_minio() or missing("minio", "`make minio`")


@pytest.fixture(scope="session")
def versitygw_binary() -> Path:
    """The real Versity Gateway, or no test of it."""
    return find_versitygw() or missing("versitygw", "`make versitygw`")


@pytest.fixture(scope="session")
def nats_binary() -> Path:
    """The real nats-server, or no test of it."""
    return find_nats_server() or missing("nats-server", "install the package `nats-server`")


@pytest.fixture
def nats_server(tmp_path: Path, nats_binary: Path) -> Iterator[NatsServer]:
    """A NATS server with JetStream, of this test alone, without passwords."""
    del nats_binary
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def mosquitto(tmp_path: Path, mosquitto_binary: Path) -> Iterator[Mosquitto]:
    """A Mosquitto of this test alone, without passwords."""
    del mosquitto_binary
    with Mosquitto(tmp_path / "mosquitto") as broker:
        yield broker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, mosquitto_binary: Path) -> Iterator[Mosquitto]:
    """A Mosquitto that the tests of one module share, without passwords."""
    del mosquitto_binary
    with Mosquitto(tmp_path_factory.mktemp("mosquitto")) as running:
        yield running


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory, minio_binary: Path) -> Iterator[Minio]:
    """A MinIO that the tests of one module share, without targets."""
    del minio_binary
    with Minio(tmp_path_factory.mktemp("minio")) as store:
        yield store


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """A moto server (S3 and SQS in memory) that the tests of one module share."""
    with MotoServer(tmp_path_factory.mktemp("moto")) as store:
        yield store


@pytest.fixture(scope="module")
def versitygw(tmp_path_factory: pytest.TempPathFactory, versitygw_binary: Path) -> Iterator[VersityGateway]:
    """A Versity Gateway that the tests of one module share, without a webhook."""
    del versitygw_binary
    with VersityGateway(tmp_path_factory.mktemp("versitygw")) as store:
        yield store


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL that all tests share: those that stop or freeze it bring it back."""
    if find_postgres() is None:
        missing("postgresql", "install the package `postgresql`")
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The DATABASE_URL of an empty database of this test alone, on each kind in turn."""
    if request.param == "sqlite":
        return new_sqlite(tmp_path)
    return new_postgresql(request.getfixturevalue("postgres_server"))


@pytest.fixture
def migrated_url(database_url: str) -> str:
    """The same with its tables."""
    upgrade(database_url)
    return database_url
