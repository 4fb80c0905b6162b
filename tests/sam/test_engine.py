"""The engine and the images: made where they are missing, left alone where they are there."""

from __future__ import annotations

import json
import socket
from ipaddress import ip_address

import pytest

from infra.local.process import PartError
from infra.sam.build import Artefact
from infra.sam.engine import ADD_HOST, HOST, answers, docker, engine
from infra.sam.image import BASE, VERSION, base_image, moto_images

RUN_SECONDS = 30.0


@pytest.mark.usefixtures("docker_engine")
def test_engine_that_runs_is_left_alone() -> None:
    """Whoever finds an engine running uses it and does not stop it."""
    with engine():
        assert answers()
    assert answers()


def test_a_server_of_this_machine_is_reached_from_a_container(host_address: str) -> None:
    """In an engine's first life too: at the address where it listens, by the name that functions are given."""
    assert not ip_address(host_address).is_unspecified, "the network must not reach it"
    with socket.create_server((host_address, 0)) as server:
        server.settimeout(RUN_SECONDS)
        connect = (
            f"import socket; socket.create_connection(('{HOST}', {server.getsockname()[1]}), {RUN_SECONDS}).close()"
        )
        python = ("--entrypoint", f"/var/lang/bin/python{VERSION}", BASE, "-c", connect)
        docker("run", "--rm", "--add-host", ADD_HOST, *python, deadline_seconds=2 * RUN_SECONDS)
        server.accept()[0].close()


def test_engine_elsewhere_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where DOCKER_HOST names an engine, none is started beside it."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(PartError, match="that DOCKER_HOST names"), engine():
        pass


@pytest.mark.usefixtures("docker_engine")
def test_image_is_made_once() -> None:
    """An image that is there, and made of what is still here, stays."""
    before = docker("image", "inspect", BASE, "--format", "{{.Id}}", deadline_seconds=RUN_SECONDS)
    said: list[str] = []
    assert base_image(said.append) == BASE
    assert docker("image", "inspect", BASE, "--format", "{{.Id}}", deadline_seconds=RUN_SECONDS) == before
    assert said == []


@pytest.mark.usefixtures("docker_engine")
def test_one_event_is_run_as_moto_asks(artefact: Artefact) -> None:
    """Handler and event are arguments; the answer is the last line, and a failure is an exit status of 1."""
    once = ("run", "--rm", "--volume", f"{artefact.folders[0]}:/var/task:ro", moto_images())
    said = docker(*once, "functions.notify.handler", '{"Records": []}', deadline_seconds=RUN_SECONDS)
    assert json.loads(said.splitlines()[-1]) == {"published": 0, "skipped": 0, "failed": 0}
    with pytest.raises(PartError, match=r"No module named 'functions\.nothing'"):
        docker(*once, "functions.nothing.handler", "{}", deadline_seconds=RUN_SECONDS)
