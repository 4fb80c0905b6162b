"""The OpenAPI document: valid, committed, and about everything that is served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from functions.admin.openapi import API, OPERATIONS, RENEWAL, document
from functions.devices.renewal import TOKEN
from infra.docs import openapi


def test_the_document_is_valid_openapi_3_1() -> None:
    """By a validator that is not ours."""
    assert document()["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(document()).iter_errors()) == []


def test_the_committed_copy_is_the_codes() -> None:
    """`python -m infra.docs.openapi --write` brings it up to date."""
    assert json.loads(openapi.FILE.read_text(encoding="utf-8")) == document()
    assert openapi.main([]) == 0


def test_a_copy_that_is_behind_is_told_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 with the command; with `--write` it is put right."""
    monkeypatch.setattr(openapi, "FILE", tmp_path / "openapi.json")
    assert openapi.main([]) == 1
    assert "--write" in capsys.readouterr().err
    assert openapi.main(["--write"]) == 0
    assert openapi.main([]) == 0


def test_every_operation_is_in_it_and_needs_a_token() -> None:
    """And nothing else is but a device's renewal; no answer has a property for a password's text."""
    made = document()
    served = {(path, method.upper()) for path, methods in made["paths"].items() for method in methods}
    assert served == {(one.path, one.method) for one in (*OPERATIONS, RENEWAL)}
    assert all(path.startswith(API) for path, _ in served - {(TOKEN, "POST")})
    assert made["paths"][TOKEN]["post"]["security"] == [{"device": []}]
    assert made["security"] == [{"admin": []}]
    schemas = made["components"]["schemas"]
    assert [name for name, schema in schemas.items() if "password" in schema["properties"]] == [
        "MqttConfigChange",
        "ProbeAnswer",
    ]
    assert schemas["ProbeAnswer"]["properties"]["password"]["enum"] == ["given", "stored", "none"]
