"""What the README and docs/ say of settings, commands, modules and each other is so."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
import typer.main

from functions.settings import Settings
from infra.cli import app
from infra.docs.settings_table import BEGIN, END, main, table, updated

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "docs" / "settings.md"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "infra/sam/README.md",
        ROOT / "tests/events/README.md",
    ]
)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def code() -> str:
    """All code of the pages: fenced blocks, then spans."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    return "\n".join([part for text in texts for part in (*FENCE.findall(text), *SPAN.findall(FENCE.sub("", text)))])


@cache
def anchors(page: Path) -> set[str]:
    """The names by which GitHub lets a page's headings be linked to."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_settings_table_is_the_class() -> None:
    """The table is what `python -m infra.docs.settings_table --write docs/settings.md` writes."""
    text = SETTINGS.read_text(encoding="utf-8")
    assert text == updated(text)


def test_every_setting_is_in_the_table() -> None:
    """One row each, with its default and a meaning; a secret's default would be none."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table().splitlines()[2:]]
    assert sorted(row[0] for row in rows) == sorted(f"`{name.upper()}`" for name in Settings.model_fields)
    assert all(len(row) == 3 and row[2].endswith(".") for row in rows)
    assert {"`MQTT_QOS`": "`1`", "`MQTT_URL`": "-", "`ASSETS_PREFIX`": "`assets/`"}.items() <= {
        row[0]: row[1] for row in rows
    }.items()


def test_a_difference_is_found_and_put_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --write it exits 1 and names the command; with it only what is between the markers changes."""
    file = tmp_path / "settings.md"
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
    file = tmp_path / "settings.md"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert main(["--write", str(file)]) == 1
    assert str(file) in capsys.readouterr().err
    assert (file.read_text(encoding="utf-8") if file.exists() else None) == text


def test_every_make_target_named_exists() -> None:
    """`make …` in a page's code is a target of the Makefile, with a line in `make help`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert {"run", "test"} <= (named := set(re.findall(r"\bmake ([a-z][a-z-]*)", code()))) <= targets, named - targets


def test_every_command_named_exists() -> None:
    """`bucketbell …` in a page's code is a command, and its options are that command's."""
    commands = typer.main.get_group(app).commands
    found = re.findall(r"\bbucketbell ([a-z][a-z-]*)((?:\\\n|[^\n`|;&#])*)", code())
    assert len(found) > 20
    # Without its first word: `connect --sure-only`, `mqtt set`.
    found += re.findall(rf"`({'|'.join(commands)}) ((?:[a-z]+ )?--[^`]*|[a-z]+)`", code())
    for name, rest in found:
        assert name in commands, f"bucketbell {name}"
        own = commands[name]
        each = [own, *getattr(own, "commands", {}).values()]
        options = {option for one in each for parameter in one.params for option in _options(parameter)} | {"--help"}
        assert set(re.findall(r"(?:^|(?<=\s))--[a-z-]+", rest)) <= options, f"bucketbell {name}{rest}"


def _options(parameter: typer.core.TyperOption) -> list[str]:
    return [*parameter.opts, *parameter.secondary_opts]


def test_every_module_named_can_be_run() -> None:
    """`python -m …` in a page's code."""
    found = set(re.findall(r"python -m (infra[a-z_.]*)", code()))
    assert found
    for name in found:
        assert importlib.util.find_spec(name) is not None, name


@pytest.mark.parametrize("page", [name for name in NAMES if name != "CHANGELOG.md"])
def test_every_place_in_the_code_named_exists(page: str) -> None:
    """A path such as `functions/s3` is there, and `functions.s3.clients.region` is a name in that module."""
    for span in SPAN.findall(FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))):
        place = span.strip("`")
        if re.fullmatch(r"(?:functions|infra|tests)/[\w./-]*", place):
            assert (ROOT / place).exists(), place
        elif re.fullmatch(r"(?:functions|infra|tests)(?:\.\w+)+", place):
            file, rest = _module(place)
            assert file is not None, place
            assert all(re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")) for name in rest), place


def _module(dotted: str) -> tuple[Path | None, list[str]]:
    """The file of the longest module in a dotted name, and what is left of the name."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        for file in (ROOT.joinpath(*parts[:length]).with_suffix(".py"), ROOT.joinpath(*parts[:length], "__init__.py")):
            if file.exists():
                return file, parts[length:]
    return None, parts


@pytest.mark.parametrize("page", NAMES)
def test_every_link_leads_somewhere(page: str) -> None:
    """Files, folders and headings of this repository; what is elsewhere is not asked."""
    file = ROOT / page
    for link in LINK.findall(FENCE.sub("", file.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_found() -> None:
    """The README leads to each page of docs/, and the table of decisions to each decision."""
    for start, folder in (("README.md", "docs"), ("docs/decisions/README.md", "docs/decisions")):
        linked = {
            (ROOT / start).parent.joinpath(link.partition("#")[0]).resolve()
            for link in LINK.findall((ROOT / start).read_text(encoding="utf-8"))
        }
        assert {page for page in ROOT.glob(f"{folder}/*.md") if page != ROOT / start} <= linked


def test_a_decision_bears_its_number() -> None:
    """The file's name, its heading and the table agree; no number is used twice."""
    rows = re.findall(r"^\| \[(\d+)\]\((\d{4})-", (ROOT / "docs/decisions/README.md").read_text("utf-8"), re.MULTILINE)
    files = sorted(ROOT.glob("docs/decisions/0*.md"))
    headings = [re.match(r"# (\d+)\. ", file.read_text(encoding="utf-8")) for file in files]
    assert [(int(one), int(other)) for one, other in rows] == [
        (int(heading[1]), int(file.name[:4])) for file, heading in zip(files, headings, strict=True) if heading
    ]
    assert all(int(one) == int(other) for one, other in rows)


def test_each_step_of_the_tables_is_on_the_page_about_upkeep() -> None:
    """Who takes one back reads what that loses."""
    steps = sorted(file.name[:4] for file in (ROOT / "infra/migrations/versions").glob("0*.py"))
    assert re.findall(r"^\| (\d{4}) \|", (ROOT / "docs/upkeep.md").read_text(encoding="utf-8"), re.MULTILINE) == steps
