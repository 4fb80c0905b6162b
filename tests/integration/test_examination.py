"""The doctor, asked over HTTP: one examination at a time, in a process that no host outlives or waits for."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from functions.admin.doctor import ExaminationAnswer
from functions.admin.openapi import DOCTOR
from functions.settings import load
from infra.host import examiner
from infra.host.examiner import Examiner
from infra.local.certificates import make_certificates
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stores import MotoServer
from tests.fleet import FleetRig, ask
from tests.hosts import Host, eventually

pytestmark = pytest.mark.usefixtures("mosquitto_binary")

PATH = DOCTOR.removeprefix("/api/v1")


@pytest.fixture
def rig(tmp_path: Path, moto: MotoServer, mosquitto: Mosquitto) -> FleetRig:
    """A host with all that is kept in a database."""
    return FleetRig(tmp_path, moto, mosquitto)


def children(pid: int) -> list[str]:
    """The processes that this one has begun (proc(5))."""
    return [child for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in tasks.read_text().split()]


def ended(host: Host) -> dict[str, Any]:
    """The examination, once it has ended."""
    eventually(lambda: not ask(host, PATH)["running"])
    found: dict[str, Any] = ask(host, PATH)
    return found


def healths(found: dict[str, Any]) -> dict[str, str]:
    """By the checks' names."""
    return {one["name"]: one["health"] for one in found["checks"]}


def outcome(of: Examiner) -> ExaminationAnswer:
    """The same, asked for here."""
    assert of.begin().running
    eventually(lambda: not of.latest().running)
    return of.latest()


def test_who_asks_meanwhile_hears_of_the_one_that_is_running(rig: FleetRig) -> None:
    """And what it found can be read as often as one likes."""
    with rig.host() as host:
        assert ask(host, PATH)["began_at"] is None
        begun = ask(host, PATH, "POST")
        assert (begun["running"], begun["ok"], begun["checks"]) == (True, None, [])
        assert ask(host, PATH, "POST") == begun
        found = ended(host)
        assert ask(host, PATH) == found
        assert found["began_at"] == begun["began_at"] < found["ended_at"]
        assert (found["ok"], found["first"], found["trouble"]) == (False, "notification rules", "")
        health = healths(found)
        assert health["settings"] == health["host"] == health["host's broker"] == "ok"
        assert ask(host, PATH, "POST")["running"]


def test_the_next_one_sees_what_was_mended(rig: FleetRig) -> None:
    """A broker that is away, and back."""
    with rig.host() as host:
        rig.broker.stop()
        ask(host, PATH, "POST")
        assert healths(ended(host))["broker's port"] == "wrong"
        rig.broker.start()
        eventually(lambda: host.http.get("/readyz").status_code == 200)
        ask(host, PATH, "POST")
        assert healths(ended(host))["broker's port"] == "ok"


def test_a_host_whose_certificate_is_of_a_private_authority_is_reached(rig: FleetRig, tmp_path: Path) -> None:
    """With `BUCKETBELL_CA_FILE` in its environment; what is found without says so."""
    files = make_certificates(tmp_path / "tls")
    pair = {"HOST_CERT_FILE": str(files.server_cert), "HOST_KEY_FILE": str(files.server_key)}
    for more, health in (({}, "wrong"), ({"BUCKETBELL_CA_FILE": str(files.ca_file)}, "ok")):
        port = free_port()
        variables = rig.environment | pair | more | {"PUBLIC_BASE_URL": f"https://localhost:{port}"}
        with Host(tmp_path, variables, port=port, ca_file=files.ca_file) as host:
            ask(host, PATH, "POST")
            (found,) = [one for one in ended(host)["checks"] if one["name"] == "host"]
            assert found["health"] == health, found
            assert ("BUCKETBELL_CA_FILE" in found["remedy"]) == (health == "wrong")


def test_what_else_is_called_like_our_packages_is_not_run(rig: FleetRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder where somebody has started the host: another program's, or nobody's good will."""
    for name in ("functions", "infra"):
        (rig.directory / name).mkdir()
        (rig.directory / name / "__init__.py").write_text("raise RuntimeError('somebody else')\n")
    monkeypatch.chdir(rig.directory)
    one = Examiner(load({}).settings)
    one.listen("127.0.0.1", 1, tls=False)
    assert outcome(one).trouble == ""


def test_a_host_that_ends_leaves_no_doctor_behind(rig: FleetRig) -> None:
    """Nor does it wait for one."""
    with rig.host() as host:
        ask(host, PATH, "POST")
        eventually(lambda: children(host.child.pid))
        (child,) = children(host.child.pid)
        host.stop()
        eventually(lambda: not Path("/proc", child).exists())


def test_none_is_begun_by_a_host_that_ends() -> None:
    """Not even one that was asked for a moment before: nobody would end it."""
    one = Examiner(load({}).settings)
    one.listen("127.0.0.1", 1, tls=False)
    before = set(children(os.getpid()))
    one.stop()
    assert "could not be run" in outcome(one).trouble
    assert set(children(os.getpid())) <= before


def test_one_that_cannot_be_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of an examination that never ends."""
    one = Examiner(load({}).settings)
    one.listen("0.0.0.0", 1, tls=False)  # noqa: S104 - nobody listens
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    found = outcome(one)
    assert "could not be run" in found.trouble
    assert found.ok is None


def test_one_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever hangs in it."""
    monkeypatch.setattr(examiner, "SECONDS", 0.01)
    one = Examiner(load({}).settings)
    one.listen("::", 1, tls=False)
    before = set(children(os.getpid()))
    assert "did not end" in outcome(one).trouble
    assert set(children(os.getpid())) <= before


@pytest.mark.parametrize(
    ("listening", "tls", "public", "asked"),
    [
        (("127.0.0.1", 8080), False, "https://bell.local", "http://127.0.0.1:8080"),
        (("0.0.0.0", 8081), False, None, "http://127.0.0.1:8081"),  # noqa: S104 - nobody listens
        (("::", 8080), False, None, "http://[::1]:8080"),
        (("10.1.2.3", 8443), True, None, "https://10.1.2.3:8443"),
        (("10.1.2.3", 8443), True, "https://bell.local", "https://bell.local"),
    ],
)
def test_the_host_is_asked_where_it_listens(
    listening: tuple[str, int],
    tls: bool,  # noqa: FBT001 - a parameter of the test
    public: str | None,
    asked: str,
) -> None:
    """And by the name that its certificate is for, where it serves TLS."""
    one = Examiner(load({} if public is None else {"PUBLIC_BASE_URL": public}).settings)
    one.listen(*listening, tls=tls)
    assert one.url == asked
