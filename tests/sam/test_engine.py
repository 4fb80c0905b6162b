"""The engine and the images: made where they are missing, left alone where they are there."""

from __future__ import annotations

import json

import pytest

from infra.local.process import PartError
from infra.sam.build import Artefact
from infra.sam.engine import Engine, answers, docker, engine
from infra.sam.image import BASE, base_image, moto_images

RUN_SECONDS = 30.0


def test_engine_that_runs_is_left_alone(docker_engine: Engine) -> None:
    """Whoever finds an engine running uses it and does not stop it."""
    with engine() as found:
        assert found == docker_engine
    assert answers()


def test_engine_elsewhere_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where DOCKER_HOST names an engine, none is started beside it."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(PartError, match="that DOCKER_HOST names"), engine():
        pass


def test_image_is_made_once(docker_engine: Engine) -> None:
    """An image that is there, and made of what is still here, stays."""
    del docker_engine
    before = docker("image", "inspect", BASE, "--format", "{{.Id}}", deadline_seconds=RUN_SECONDS)
    said: list[str] = []
    assert base_image(said.append) == BASE
    assert docker("image", "inspect", BASE, "--format", "{{.Id}}", deadline_seconds=RUN_SECONDS) == before
    assert said == []


def test_one_event_is_run_as_moto_asks(docker_engine: Engine, artefact: Artefact) -> None:
    """Handler and event are arguments; the answer is the last line, and a failure is an exit status of 1."""
    del docker_engine
    once = ("run", "--rm", "--volume", f"{artefact.folders[0]}:/var/task:ro", moto_images())
    said = docker(*once, "functions.notify.handler", '{"Records": []}', deadline_seconds=RUN_SECONDS)
    assert json.loads(said.splitlines()[-1]) == {"published": 0, "skipped": 0, "failed": 0}
    with pytest.raises(PartError, match=r"No module named 'functions\.nothing'"):
        docker(*once, "functions.nothing.handler", "{}", deadline_seconds=RUN_SECONDS)
