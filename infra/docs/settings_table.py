"""The table of settings, from their class: `python -m infra.docs.settings_table --write docs/settings.md`.

Without `--write` it compares, and exits 1 where the file is behind.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from functions.settings import Settings, setting_names

BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def table() -> str:
    """Return the Markdown table: a row for each setting."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name in setting_names():
        field = Settings.model_fields[name]
        default = field.get_default()
        text = f"{default:g}" if isinstance(default, float) else str(default)
        cells = (f"`{name.upper()}`", "-" if default in (None, ()) else f"`{text}`", str(field.description))
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def updated(text: str) -> str:
    """Return `text` with the table between its markers; ValueError where it has no such pair."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"needs a line {BEGIN} and, below it, a line {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m infra.docs.settings_table", description="The table of settings.")
    parser.add_argument("file", type=Path, nargs="?", default=Path("docs/settings.md"))
    parser.add_argument("--write", action="store_true", help="update the file instead of comparing")
    options = parser.parse_args(arguments)
    file: Path = options.file
    try:
        before = file.read_text(encoding="utf-8")
        after = updated(before)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{file}: {error}\n")
        return 1
    if before == after:
        return 0
    if options.write:
        file.write_text(after, encoding="utf-8")
        return 0
    sys.stderr.write(f"{file} is behind: python -m infra.docs.settings_table --write {file}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
