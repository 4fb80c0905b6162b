"""Debian's Chromium, driven by Playwright, which does not download one of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from infra.local.process import PartError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REMEDY = "apt-get install chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window. Raises `PartError` where Chromium is missing."""
    program = shutil.which("chromium")
    if program is None:
        raise PartError(f"Chromium is not here: {REMEDY}")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - nothing else here needs it

    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses root its sandbox
    with (
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=program, args=options)) as browser,
    ):
        yield browser
