"""What docs/aws.md lists of `template.yaml` is what the template has."""

from __future__ import annotations

import re

import pytest

from tests.template import EVERYTHING, ROOT, Stack, source

PAGE = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")
NOTHING = "-"


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without the table's own head."""
    table = re.search(r"(?:^\|.*\n)+", PAGE.split(f"\n## {heading}\n")[1], re.MULTILINE)
    assert table is not None
    lines = table[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_parameter_is_listed_with_its_default() -> None:
    """In the template's order, so that the page can be read beside it."""
    declared = source()["Parameters"]
    assert [(name, default) for name, default, _ in rows("Parameters")] == [
        (name, str(one["Default"]) or NOTHING) for name, one in declared.items()
    ]


def test_every_output_is_listed() -> None:
    """In the template's order."""
    assert [name for name, _ in rows("Outputs")] == list(source()["Outputs"])


def test_every_alarm_is_listed_with_what_to_do() -> None:
    """Also those that the dashboard alone shows."""
    listed = {name: do for name, _, do in rows("Watching it")}
    assert set(listed) == set(Stack(**EVERYTHING).of("AWS::CloudWatch::Alarm"))
    assert all(listed.values())


@pytest.mark.parametrize("stack", ["default", "dev", "prod"])
def test_every_environment_is_named(stack: str) -> None:
    """As `samconfig.toml` has them."""
    assert f"[{stack}.deploy.parameters]" in (ROOT / "samconfig.toml").read_text(encoding="utf-8")
    assert f"`{stack}`" in PAGE
