"""Who may import whom: entries, folders, pure modules, drivers; and the entries stay light to import."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORT_DEADLINE_SECONDS = 60.0
MAX_LINES = 400

ALIAS = "functions.broker"  # the former name of the integration's entry
ENTRIES = {"functions.notify", "functions.download", "functions.integration", ALIAS}
SETTINGS = "functions.settings"
# They stand beside the folders, because every folder may need them.
SHARED = {"functions.telemetry", "functions.lifecycle", "functions.lean_imports", "functions.backoff"}
# They stand beside the folders too, because they bring several together: what the entry for events keeps warm, and the
# log of what became of an event, which the host writes as well.
JOINING = {"functions.notifier", "functions.events_log", "functions.own_topics"}
# All of this folder is pure, and so is a module whose docstring begins with this word: these at least.
PURE_FOLDER, PURE_WORD = "functions.events", "Pure:"
PURE_AT_LEAST = {
    "functions.admin.openapi",
    "functions.admin.schemas",
    "functions.cameras.detections",
    "functions.cameras.discovery",
    "functions.cameras.message",
    "functions.fleet.channels",
    "functions.fleet.reports",
    "functions.mqtt.audience",
    "functions.mqtt.message",
    "functions.mqtt.outcome",
    "functions.mqtt.packets",
    "functions.mqtt.suspects",
    "functions.settings.addresses",
    "functions.settings.pem",
    "functions.settings.reach",
    "functions.stored.errors",
    "functions.stored.model",
    "functions.web.messages",
}

MIGRATIONS = {f"infra.migrations.versions.{file.stem}" for file in ROOT.glob("infra/migrations/versions/0*.py")}

# Each driver, and who may import it.
DRIVERS = {
    "paho": {
        "functions.mqtt.client",
        "infra.subscriber",  # the other end of the line: hears what the connection says
        "infra.bench.threaded",  # what our publisher is compared with
        "infra.bench.sides",  # what our connection is compared with
        "infra.bench.usual.handler",  # and the function
    },
    "boto3": {"functions.s3.clients", "functions.s3.signing"},
    "botocore": {"functions.s3.clients", "functions.s3.signing", "functions.settings.secret"},
    "pydantic_settings": {
        "functions.settings.fields",
        "functions.settings.fleet",
        "functions.settings.jetstream",
        "functions.settings.model",
        "functions.settings.sources",
        "infra.bench.usual.handler",
    },
    "dotenv": {"functions.settings.sources"},
    # the entries: the type of Lambda's context
    "aws_lambda_powertools": {"functions.telemetry", *(ENTRIES - {ALIAS}), "infra.bench.usual.handler"},
    "jwt": {"functions.web.tokens"},
    "sqlalchemy": {
        "functions.stored.bulk",
        "functions.stored.database",
        "functions.stored.fleet",
        "functions.stored.fleet_reader",
        "functions.stored.postgresql",
        "functions.stored.rings",
        *MIGRATIONS,
    },
    "alembic": {"infra.migrations.runner", "infra.migrations.env", *MIGRATIONS},
    # tokens: the type of one kind of key; certificates: throw-away ones for TLS on this machine
    "cryptography": {"functions.stored.encryption", "functions.web.tokens", "infra.local.certificates"},
    "urllib3": {"infra.http_client", "infra.connect.minio_admin"},  # the latter: for minio, which takes a pool of it
    "minio": {"infra.connect.minio_admin"},
    "httptools": {"infra.host.web.protocol", "infra.host.web.wire"},
    "uvloop": {
        "infra.host.server",
        "infra.bench.sides",  # is served as the host is
        "infra.bench.load",
        "infra.bench.reports",  # what asks is no slower than what answers
        "infra.bench.crowd",
    },
    # The types of NATS' messages, too. The host's room is loaded only with NATS_URL.
    "nats": {
        "infra.jetstream.connection",
        "infra.jetstream.layout",
        "infra.host.jetstream.agreement",
        "infra.host.jetstream.announced",
        "infra.host.jetstream.hand",
        "infra.host.jetstream.pull",
        "infra.host.jetstream.source",
        "infra.doctor.jetstream",  # types
    },
    "playwright": {"infra.local.chromium", "infra.bench.console"},  # the latter: types
    "prometheus_client": {"infra.host.metrics", "infra.host.web.site"},  # site: the content type of /metrics
}


def modules(package: str) -> dict[str, Path]:
    """Every module of a package: dotted name → file."""
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted((ROOT / package).rglob("*.py"))
    }


FUNCTIONS, INFRA, TESTS = modules("functions"), modules("infra"), modules("tests")
OURS = FUNCTIONS | INFRA | TESTS
FOLDERS = sorted(name for name, file in FUNCTIONS.items() if file.name == "__init__.py" and name != "functions")


@cache
def tree(file: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"))


def docstring(name: str) -> str:
    """A module's docstring."""
    return ast.get_docstring(tree(OURS[name])) or ""


def walk(node: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    """Every node below `node`; without `types`, not what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if not types and isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from walk(child, types=types)


@cache
def imports(file: Path, *, types: bool = True) -> set[str]:
    """Dotted names that a module imports, wherever in it: `from a import b` is `a.b` where that is a module of ours."""
    names: set[str] = set()
    for node in walk(tree(file), types=types):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inside if inside <= OURS.keys() else {node.module, *inside}
    return names


def top_levels(file: Path) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imports(file)}


def ours(name: str, *, types: bool = True) -> set[str]:
    """The other modules of ours that a module imports."""
    return imports(OURS[name], types=types) & OURS.keys() - {name}


def place(name: str) -> str:
    """The folder of a module, or the module itself where it stands beside the folders."""
    return ".".join(name.split(".")[:2])


def is_pure(name: str) -> bool:
    """Whether a module promises to be."""
    return place(name) == PURE_FOLDER or docstring(name).startswith(PURE_WORD)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One that is in the graph, if there is any."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_the_reader_of_imports_sees_them_all() -> None:
    """The tests below would pass on blindness; this one holds what they stand on."""
    assert {"functions.settings", "functions.telemetry"} <= ours("functions.notifier")
    assert "aws_lambda_powertools" in top_levels(FUNCTIONS["functions.notify"])
    assert "functions.settings.fields" in ours("functions.settings.model")
    assert "functions.settings" not in ours("functions.settings.model")
    assert "functions.cameras.reader" in ours("functions.notifier", types=False)  # inside a function
    assert "functions.settings" in ours("functions.events.routes")
    assert "functions.settings" not in ours("functions.events.routes", types=False)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert len(FUNCTIONS) > 40
    assert len(INFRA) > 80
    assert len(FOLDERS) > 8


def test_beside_the_folders_are_entries_and_what_all_share_or_what_joins_them() -> None:
    """A new module finds its folder, or says here why it has none."""
    beside = {name for name in FUNCTIONS if place(name) == name and name not in FOLDERS}
    assert beside == {"functions"} | ENTRIES | SHARED | JOINING


def test_nobody_imports_an_entry() -> None:
    """It is for Lambda alone: neither we nor our tools need it, nor what supports the tests, but for tests of it."""
    support = {name for name, file in TESTS.items() if not file.name.startswith("test_")}
    importers = {name for name in FUNCTIONS.keys() | INFRA.keys() | support if ours(name) & ENTRIES}
    assert importers == {ALIAS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_deployed_needs_nothing_else_of_the_repository(name: str) -> None:
    """`functions` imports neither `infra` nor `tests`."""
    assert not top_levels(FUNCTIONS[name]) & {"infra", "tests"}


@pytest.mark.parametrize("name", INFRA)
def test_the_tools_do_not_need_the_tests(name: str) -> None:
    """`infra` imports no tests."""
    assert "tests" not in top_levels(INFRA[name])


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if is_pure(name)])
def test_what_is_pure_imports_what_is_pure(name: str) -> None:
    """And pydantic, for models of what strangers send; the settings only as a type."""
    assert not {found for found in ours(name, types=False) if not is_pure(found)}
    assert not {found for found in ours(name) - {SETTINGS} if not is_pure(found)}
    foreign = top_levels(FUNCTIONS[name]) - set(sys.stdlib_module_names)
    assert foreign <= {"functions", "pydantic", "pydantic_core"}


def test_the_pure_modules_are_known() -> None:
    """None of them ceases to be by another docstring."""
    assert {name for name in PURE_AT_LEAST if not is_pure(name)} == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_what_it_says(folder: str) -> None:
    """The folders after "May import" in its docstring; and the settings, what all share, and what is pure."""
    named = {f"functions.{name}" for name in re.findall(r"`(\w+)`", docstring(folder).partition("May import")[2])}
    assert named <= set(FOLDERS)
    granted = {folder, SETTINGS, *named, *SHARED}
    for name in (one for one in FUNCTIONS if place(one) == folder):
        assert not {found for found in ours(name) if place(found) not in granted and not is_pure(found)}, name


def test_the_settings_stand_on_nothing() -> None:
    """All else may import them."""
    assert {place(found) for name in FUNCTIONS if place(name) == SETTINGS for found in ours(name)} == {SETTINGS}


def test_there_is_no_circle() -> None:
    """Neither of modules, imports inside of functions included, nor of the folders that are deployed."""
    graph = {name: ours(name, types=name in FUNCTIONS) for name in FUNCTIONS | INFRA}
    assert not circle(graph)
    folders: dict[str, set[str]] = {}
    for name in FUNCTIONS:
        folders.setdefault(place(name), set()).update(
            place(found) for found in ours(name) if place(found) != place(name)
        )
    assert not circle(folders)


@pytest.mark.parametrize("name", [name for name, file in (FUNCTIONS | INFRA).items() if file.name == "__init__.py"])
def test_a_folder_is_imported_for_nothing(name: str) -> None:
    """Its `__init__` has a docstring only, or a start would pay for what it does not need; the settings have a face."""
    assert name == SETTINGS or len(tree(OURS[name]).body) == 1


@pytest.mark.parametrize("driver", DRIVERS)
def test_one_module_talks_to_each_outside_system(driver: str) -> None:
    """Only the named modules import a driver, and they do."""
    importers = {name for name, file in (FUNCTIONS | INFRA).items() if driver in top_levels(file)}
    assert importers == DRIVERS[driver]


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"functions.settings.environment"}))
def test_only_the_settings_read_the_environment(name: str) -> None:
    """No other deployed module touches `os.environ`, by any of its names."""
    read = {"environ", "environb", "getenv", "getenvb", "get_exec_path", "expandvars", "expanduser"}
    used = {node.attr for node in ast.walk(tree(FUNCTIONS[name])) if isinstance(node, ast.Attribute)}
    assert not read & (used | {imported.rpartition(".")[2] for imported in imports(FUNCTIONS[name])})


@pytest.mark.parametrize("name", [*FUNCTIONS, *(name for name in INFRA if place(name) == name)])
def test_no_module_swallows_another(name: str) -> None:
    """Where its folder is searched, a bare `import` would find it: what is deployed takes no name, wherever it is."""
    taken = set(sys.stdlib_module_names) | (packages_distributions().keys() - {"functions", "infra"})
    assert name.rpartition(".")[2] not in taken


@pytest.mark.parametrize("name", FUNCTIONS | INFRA)
def test_a_module_is_one_idea_and_says_which(name: str) -> None:
    """Its docstring begins with a sentence, and it is short enough to be read."""
    file = (FUNCTIONS | INFRA)[name]
    docstring = ast.get_docstring(tree(file))
    assert docstring, "has no docstring"
    assert docstring.splitlines()[0].endswith((".", ":")), "its first line is no sentence"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, "is too long"


def types(file: Path) -> set[str]:
    """The names of a module's classes and aliases of types; not its type variables."""
    found = {node.name for node in ast.walk(tree(file)) if isinstance(node, ast.ClassDef)}
    for node in tree(file).body:
        if isinstance(node, ast.Assign) and not ast.unparse(node.value).startswith("TypeVar("):
            found |= {name for name in map(ast.unparse, node.targets) if re.fullmatch("_?[A-Z][a-z]+[A-Za-z]*", name)}
    return found


def test_no_two_types_share_a_name() -> None:
    """Who reads one need not ask which of them is meant."""
    named = Counter(name for file in (FUNCTIONS | INFRA).values() for name in types(file))
    assert {"Host", "Message", "KeyPrefix"} <= set(named)
    assert {name for name, count in named.items() if count > 1} == set()


def loaded_by(statement: str, **variables: str) -> set[str]:
    """The names in `sys.modules` after `statement` in a fresh interpreter; outside of Lambda but for `variables`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | variables
    answer = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys, json; print(json.dumps(list(sys.modules)))"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=IMPORT_DEADLINE_SECONDS,
        check=True,
    )
    return set(json.loads(answer.stdout))


HEAVY = {"boto3", "botocore", "uvloop", "httptools", "prometheus_client", "moto", "cryptography", "httpx"}
HEAVY |= {"sqlalchemy", "alembic", "psycopg", "nats", "nkeys"}


def test_the_lambda_entry_loads_only_what_it_needs() -> None:
    """Beyond what settings, logger, metrics and MQTT client bring, it loads its own modules and nothing else."""
    entry = loaded_by("import functions.notify")
    needed = loaded_by("import pydantic_settings, paho.mqtt.client\nfrom aws_lambda_powertools import Logger, Metrics")
    assert not {"boto3", "botocore.session", "prometheus_client", "httptools", "typer", "cryptography", "infra"} & entry
    # unicodedata: the compiler looks \N{…} up, where there is no .pyc yet
    assert entry - needed - {"gc", "unicodedata"} <= set(FUNCTIONS)


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_LAMBDA_FUNCTION_NAME": "notify"},
        {"AWS_LAMBDA_FUNCTION_NAME": "notify", "SECRET_ID": " "},
        {"AWS_LAMBDA_FUNCTION_NAME": "notify", "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"},
    ],
    ids=["on demand", "blank secret", "snap start"],
)
def test_without_a_secret_notify_starts_on_lambda_without_boto3(variables: dict[str, str]) -> None:
    """It would cost as much again as all the rest."""
    assert not {"boto3", "botocore.session"} & loaded_by("import functions.notify", **variables)


def test_a_snapshot_has_boto3_where_a_secret_will_be_read() -> None:
    """So that a restored process need not import it; nothing is asked before the restore."""
    variables = {"AWS_LAMBDA_FUNCTION_NAME": "notify", "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}
    assert "botocore.session" in loaded_by("import functions.notify", **variables, SECRET_ID="nowhere")


DATABASE = {
    "sqlalchemy",
    "psycopg",
    "alembic",
    "cryptography",
    "functions.stored.database",
    "functions.stored.encryption",
}


@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_without_a_database_nothing_of_one_is_loaded(entry: str) -> None:
    """Neither by an entry nor by asking for a store that is not configured; where one is, the packages come."""
    ask = f"""import {entry}, functions.stored.store, functions.settings
functions.stored.store.ConfigStore.of(functions.settings.load().settings)"""
    brought = (
        loaded_by("import jwt") if entry == "functions.download" else set[str]()
    )  # cryptography, where it is installed
    assert not DATABASE & (loaded_by(ask, DATABASE_URL=" ") - brought)
    assert DATABASE - {"alembic"} <= loaded_by(ask, DATABASE_URL="postgresql://db.local/settings")


def test_without_nats_a_host_loads_nothing_of_it() -> None:
    """Neither the client nor our own room for it."""
    loaded = loaded_by("import infra.host.server, infra.connect.jetstream, infra.doctor.examination")
    assert not {name for name in loaded if name.partition(".")[0] in {"nats", "nkeys", "nacl"}}
    assert "infra.host.jetstream.source" not in loaded


def test_help_is_shown_without_loading_the_machinery() -> None:
    """The command line imports what a command needs when that command runs."""
    assert not {name.partition(".")[0] for name in loaded_by("import infra.cli")} & (HEAVY | {"paho"})


def test_only_one_place_skips_tests() -> None:
    """`missing` in tests/conftest.py, which fails where CI is set and names at the end what was not run."""
    words = ("pytest." + "skip(", "mark." + "skip", "import" + "orskip", "mark." + "xfail")
    tests = Path(__file__).parents[1]
    found = {
        file.relative_to(tests).as_posix()
        for file in tests.rglob("*.py")
        if any(word in file.read_text() for word in words)
    }
    assert found == {"conftest.py"}
