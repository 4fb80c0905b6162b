"""What the README says of settings and commands is so."""

import importlib.util
import re
from pathlib import Path

import pytest
import typer.main

from functions.settings import Settings
from infra.cli import app
from infra.docs.settings_table import BEGIN, END, main, table, updated

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def code() -> str:
    """All code of the README: fenced blocks, then spans."""
    text = README.read_text(encoding="utf-8")
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    return "\n".join([*fence.findall(text), *re.findall(r"`[^`\n]+`", fence.sub("", text))])


def test_the_settings_table_is_the_class() -> None:
    """The README's table is what `python -m infra.docs.settings_table --write README.md` writes."""
    text = README.read_text(encoding="utf-8")
    assert text == updated(text)


def test_every_setting_is_in_the_table() -> None:
    """One row each, with its default and a meaning; a secret's default would be none."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"`{name.upper()}`" for name in Settings.model_fields]
    assert all(len(row) == 3 and row[2].endswith(".") for row in rows)
    assert {"`MQTT_QOS`": "`1`", "`MQTT_URL`": "-", "`ASSETS_PREFIX`": "`assets/`"}.items() <= {
        row[0]: row[1] for row in rows
    }.items()


def test_a_difference_is_found_and_put_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --write it exits 1 and names the command; with it only what is between the markers changes."""
    file = tmp_path / "README.md"
    file.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nrest\n", encoding="utf-8")
    assert main([str(file)]) == 1
    assert "--write" in capsys.readouterr().err
    assert "old" in file.read_text(encoding="utf-8")
    assert main(["--write", str(file)]) == 0
    assert main([str(file)]) == 0
    assert file.read_text(encoding="utf-8") == f"# Title\n\n{BEGIN}\n{table()}\n{END}\n\nrest\n"


@pytest.mark.parametrize("text", [None, "", BEGIN, END, f"{END}\n{BEGIN}\n"])
def test_a_file_without_markers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    """Nothing is written to a file that has no place for the table, or is not there."""
    file = tmp_path / "README.md"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert main(["--write", str(file)]) == 1
    assert str(file) in capsys.readouterr().err
    assert (file.read_text(encoding="utf-8") if file.exists() else None) == text


def test_every_make_target_named_exists() -> None:
    """`make …` in the README's code is a target of the Makefile, with a line in `make help`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", code())) <= targets


def test_every_command_named_exists() -> None:
    """`bucketbell …` in the README's code is a command, and its options are that command's."""
    commands = typer.main.get_group(app).commands
    for name, rest in re.findall(r"\bbucketbell ([a-z][a-z-]*)((?:\\\n|[^\n`|;&#])*)", code()):
        assert name in commands, f"bucketbell {name}"
        options = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= options, f"bucketbell {name}{rest}"


def test_every_module_named_exists() -> None:
    """`python -m …` in the README's code can be run."""
    for name in re.findall(r"python -m (infra[a-z_.]*)", code()):
        assert importlib.util.find_spec(name) is not None, name
