"""What an entry's imports leave out, in interpreters of their own: it counts once for each process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.unit.test_architecture import IMPORT_DEADLINE_SECONDS, ROOT, loaded_by

LEFT_OUT = {"asyncio", "shutil", "urllib.request", "zipfile"}


def answer(statements: str) -> object:
    """What the statements leave in `answer`, in an interpreter of their own."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, json\n{statements}\nprint(json.dumps(answer))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=IMPORT_DEADLINE_SECONDS,
        check=True,
    )
    return json.loads(done.stdout)


def test_notify_starts_without_what_its_packages_do_not_need_for_it() -> None:
    """With the template's variables: they would be imported otherwise, and no stand-in is left in `sys.modules`."""
    variables = {"PYDANTIC_DISABLE_PLUGINS": "1"}
    assert loaded_by("import pydantic_settings, paho.mqtt.client", **variables) >= LEFT_OUT
    assert not loaded_by("import functions.notify", **variables) & LEFT_OUT


@pytest.mark.parametrize("entry", ["functions.notify", "functions.download"])
def test_an_entry_ends_with_a_garbage_collector(entry: str) -> None:
    """It collects, but not what the imports have made."""
    assert answer(f"import {entry}, gc; answer = [gc.isenabled(), gc.get_freeze_count() > 1000]") == [True, True]


def test_what_was_left_out_is_there_for_those_who_use_it() -> None:
    """A package that holds a stand-in reaches the one real module through it, whoever imports that first."""
    uses = """
import functions.notify, pydantic_settings.main, paho.mqtt.client
held = pydantic_settings.main.asyncio, paho.mqtt.client.urllib.request
run, proxies = held[0].run, held[1].getproxies
import asyncio.events, urllib.request
answer = [run is asyncio.run, proxies is urllib.request.getproxies, held[0].events is asyncio.events]
answer += [type(one).__name__ for one in (asyncio, urllib.request, paho.mqtt.client.urllib.request)]"""
    assert answer(uses) == [True, True, True, "module", "module", "module"]


def test_what_is_used_during_the_imports_is_imported_then() -> None:
    """A package may derive a class from what another needs not even the name of."""
    uses = """
from functions import lean_imports
import urllib.request, asyncio
class Handler(urllib.request.HTTPHandler): pass
before = "urllib.request" in sys.modules and type(sys.modules["urllib.request"]).__name__
lean_imports.end()
import urllib.request
answer = [before, issubclass(Handler, urllib.request.HTTPHandler), "asyncio" in sys.modules]"""
    assert answer(uses) == ["module", True, False]


def test_what_was_imported_before_stays_as_it_is() -> None:
    """Where an entry is imported into a process that runs already, nothing is replaced."""
    assert answer("import asyncio, functions.notify\nanswer = sys.modules['asyncio'] is asyncio") is True
