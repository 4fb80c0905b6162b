"""The flow is one way, one module talks to each outside system, and the entry stays light to import."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORT_DEADLINE_SECONDS = 60.0
MAX_LINES = 400

ENTRIES = {"notify", "download", "broker"}
PURE = {
    "addresses",
    "answers",
    "audience",
    "detections",
    "dialects",
    "discovery",
    "events",
    "mqtt_config",
    "openapi",
    "packets",
    "pem",
    "reach",
    "routes",
    "suspects",
    "web",
}
ADAPTERS = {
    "administration",
    "client",
    "collector",
    "config_store",
    "connection",
    "credentials",
    "database",
    "documents",
    "in_force",
    "lifetime",
    "manifest",
    "objects",
    "polling",
    "probe",
    "publisher",
    "signing",
    "storage",
    "telemetry",
    "tls",
    "tokens",
}
# What the settings are made of: each may import those that it is paired with.
SETTINGS = {
    "settings": {"addresses", "pem", "setting_types", "sources", "target"},
    "sources": {"secret", "setting_types"},
    "secret": set[str](),
    "setting_types": {"addresses", "reach"},
    "target": {"reach"},
}

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
        "functions.settings",
        "functions.settings.fields",
        "functions.settings.sources",
        "infra.bench.usual.handler",
    },
    "dotenv": {"functions.settings.sources"},
    # notify: the type of Lambda's context; download, broker: their routes
    "aws_lambda_powertools": {
        "functions.telemetry",
        "functions.notify",
        "functions.download",
        "functions.admin.api",
        "infra.bench.usual.handler",
    },
    "jwt": {"functions.web.tokens"},
    "sqlalchemy": {"functions.stored.database", "infra.migrations.versions.0001_mqtt_config"},
    "alembic": {"infra.migrations.runner", "infra.migrations.env", "infra.migrations.versions.0001_mqtt_config"},
    # tokens: the type of one kind of key; certificates: throw-away ones for TLS on this machine
    "cryptography": {"functions.stored.encryption", "functions.web.tokens", "infra.local.certificates"},
    "urllib3": {"infra.http_client"},
    "uvicorn": {
        "infra.host.server",
        "infra.host.guard",
        "infra.bench.sides",
    },  # sides: what our host is compared with
    "prometheus_client": {"infra.host.metrics", "infra.host.app"},  # app: the content type of /metrics
}


def modules(*packages: str) -> dict[str, Path]:
    """Every module of these packages: dotted name → file."""
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for package in packages
        for file in sorted((ROOT / package).rglob("*.py"))
    }


FUNCTIONS, INFRA = modules("functions"), modules("infra")


@cache
def tree(file: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"))


def walk(node: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    """Every node below `node`; without `types`, not what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if not types and isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from walk(child, types=types)


def imports(file: Path, *, types: bool = True) -> set[str]:
    """Dotted names that a module imports, wherever in it: `from a import b` counts as `a` and as `a.b`."""
    names: set[str] = set()
    for node in walk(tree(file), types=types):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top_levels(file: Path) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imports(file)}


def ours(file: Path, *, types: bool) -> set[str]:
    """The modules of `functions` that a module imports, without the package's name."""
    return {name.removeprefix("functions.") for name in imports(file, types=types) & set(FUNCTIONS)} - {"functions"}


def test_the_reader_of_imports_sees_them_all() -> None:
    """The tests below would pass on blindness; this one holds what they stand on."""
    assert {"functions.settings", "functions.telemetry", "aws_lambda_powertools"} <= (
        imports(FUNCTIONS["functions.notify"]) | top_levels(FUNCTIONS["functions.notify"])
    )
    assert "infra.host.server" in imports(INFRA["infra.commands.host"])  # inside a function
    assert "functions.settings" in imports(FUNCTIONS["functions.events.routes"])
    assert "functions.settings" not in imports(FUNCTIONS["functions.events.routes"], types=False)
    assert len(FUNCTIONS) > 8
    assert len(INFRA) > 10


def test_every_deployed_module_has_its_room() -> None:
    """A new module says whether it is an entry, pure, an adapter, or the settings."""
    assert {name.removeprefix("functions.") for name in FUNCTIONS} == {
        "functions",
        *ENTRIES,
        *PURE,
        *ADAPTERS,
        *SETTINGS,
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_deployed_needs_nothing_else_of_the_repository(name: str) -> None:
    """`functions` imports neither `infra` nor `tests`."""
    assert not top_levels(FUNCTIONS[name]) & {"infra", "tests"}


@pytest.mark.parametrize("name", INFRA)
def test_the_tools_do_not_need_the_tests(name: str) -> None:
    """`infra` imports no tests."""
    assert "tests" not in top_levels(INFRA[name])


def test_the_flow_is_one_way() -> None:
    """Entries → pure core → adapters → settings: nothing inside imports what is further out."""
    for name, file in FUNCTIONS.items():
        assert not ours(file, types=True) & ENTRIES, f"{name} imports an entry"
    for name in PURE:
        file = FUNCTIONS[f"functions.{name}"]
        assert ours(file, types=False) <= PURE, f"{name} is pure"
        assert ours(file, types=True) <= PURE | {"settings"}, f"{name} is pure"
        # pydantic: models of what strangers send, at the boundary
        foreign = top_levels(file) - set(sys.stdlib_module_names) - {"functions", "pydantic", "pydantic_core"}
        assert not foreign, f"{name} is pure"
    for name, below in SETTINGS.items():
        assert ours(FUNCTIONS[f"functions.{name}"], types=True) <= below, f"{name} is below the adapters"


@pytest.mark.parametrize("driver", DRIVERS)
def test_one_module_talks_to_each_outside_system(driver: str) -> None:
    """Only the named modules import a driver, and they do."""
    importers = {name for name, file in (FUNCTIONS | INFRA).items() if driver in top_levels(file)}
    assert importers == DRIVERS[driver]


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"functions.settings"}))
def test_only_the_settings_read_the_environment(name: str) -> None:
    """No other deployed module touches `os.environ`, by any of its names."""
    read = {"environ", "environb", "getenv", "getenvb", "get_exec_path", "expandvars", "expanduser"}
    used = {node.attr for node in ast.walk(tree(FUNCTIONS[name])) if isinstance(node, ast.Attribute)}
    assert not read & (used | {imported.rpartition(".")[2] for imported in imports(FUNCTIONS[name])})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_deployed_module_swallows_another(name: str) -> None:
    """SAM puts the folder's files where a bare `import events` would find them: no name is taken."""
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


HEAVY = {"boto3", "botocore", "uvicorn", "uvloop", "httptools", "prometheus_client", "moto", "cryptography", "httpx"}
HEAVY |= {"sqlalchemy", "alembic", "psycopg"}


def test_the_lambda_entry_loads_only_what_it_needs() -> None:
    """Beyond what settings, logger, metrics and MQTT client bring, it loads its own modules and nothing else."""
    entry = loaded_by("import functions.notify")
    needed = loaded_by("import pydantic_settings, paho.mqtt.client\nfrom aws_lambda_powertools import Logger, Metrics")
    assert not {"boto3", "botocore.session", "prometheus_client", "uvicorn", "typer", "cryptography", "infra"} & entry
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
    ask = f"""import functions.{entry}, functions.stored.store, functions.settings
functions.stored.store.ConfigStore.of(functions.settings.load().settings)"""
    brought = loaded_by("import jwt") if entry == "download" else set[str]()  # cryptography, where it is installed
    assert not DATABASE & (loaded_by(ask, DATABASE_URL=" ") - brought)
    assert DATABASE - {"alembic"} <= loaded_by(ask, DATABASE_URL="postgresql://db.local/settings")


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
