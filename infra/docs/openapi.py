"""The committed OpenAPI document, from the code that serves it: `python -m infra.docs.openapi --write`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from functions.admin.openapi import document

FILE = Path(__file__).parents[2] / "docs" / "openapi.json"


def text() -> str:
    """The document as it is committed."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or say whether it is behind (exit 1)."""
    parser = argparse.ArgumentParser(prog="python -m infra.docs.openapi", description="docs/openapi.json.")
    parser.add_argument("--write", action="store_true", help="write it again")
    if parser.parse_args(arguments).write:
        FILE.write_text(text(), encoding="utf-8")
        return 0
    if FILE.exists() and FILE.read_text(encoding="utf-8") == text():
        return 0
    sys.stderr.write("docs/openapi.json is behind: python -m infra.docs.openapi --write\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
