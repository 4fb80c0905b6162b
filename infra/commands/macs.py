"""MAC addresses from a list: each device once, or every line that is wrong is named.

A list is one MAC a line (blank lines and `# comments` may be between them), or CSV with a column `mac`: with a header,
its cells separated by commas, semicolons or tabs. What is read lies in a temporary file, so that a long list needs no
more memory than a short one.
"""

from __future__ import annotations

import csv
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from typing import TextIO

from functions.events.names import normalise_mac

MAX_LINE_CHARACTERS = 64 * 1024
COLUMNS = {"mac", "macaddress"}
DELIMITERS = ",;\t"


class NoListError(Exception):
    """This is no list of MACs at all; the message says why, and repeats nothing of it."""


class MacList:
    """What was read: `good` devices, and how many lines were `wrong`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        """Nothing yet."""
        self._database = database
        self.good = self.wrong = 0
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("CREATE TABLE macs (line INTEGER PRIMARY KEY, mac TEXT, device INTEGER UNIQUE)")

    def __iter__(self) -> Iterator[str]:
        """Each MAC as its first line spells it, in the order of the list."""
        return (mac for (mac,) in self._database.execute("SELECT mac FROM macs ORDER BY line"))

    def add(self, line: int, text: str, say: Callable[[str], None]) -> None:
        """Take one MAC. `say` is told of one that is wrong, or that is here already."""
        try:
            mac = normalise_mac(text)
        except ValueError:
            self.wrong += 1
            say(f"line {line}: this is not a MAC address")
            return
        device = int(mac.replace("-", ""), 16)
        known = self._database.execute("INSERT OR IGNORE INTO macs VALUES (?, ?, ?)", (line, mac, device)).rowcount == 0
        if not known:
            self.good += 1
            return
        (first,) = self._database.execute("SELECT line FROM macs WHERE device = ?", (device,)).fetchone()
        say(f"line {line}: the same device as in line {first}; it gets one token")


@contextmanager
def read_macs(file: TextIO, say: Callable[[str], None]) -> Iterator[MacList]:
    """Read all of a list that was opened with `newline=""`. Raises NoListError."""
    with closing(sqlite3.connect("")) as database:  # a file without a name, which goes when it is closed
        macs = MacList(database)
        try:
            for line, text in _macs(_lines(file)):
                macs.add(line, text, say)
        except sqlite3.Error as error:
            raise NoListError(f"the temporary file cannot be written ({error}): make room, or set TMPDIR") from None
        yield macs


def _lines(file: TextIO) -> Iterator[tuple[int, str]]:
    number = 0
    while text := file.readline(MAX_LINE_CHARACTERS + 1):
        number += 1
        if len(text) > MAX_LINE_CHARACTERS:
            raise NoListError(f"line {number} is longer than {MAX_LINE_CHARACTERS:,} characters")
        yield number, text


def _macs(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """What stands where a MAC should, and the number of its line."""
    plain = ((number, text) for number, text in lines if text.strip() and not text.lstrip().startswith("#"))
    first = next(plain, None)
    if first is None:
        return
    for delimiter in DELIMITERS:
        cells = [re.sub(r"[^a-z]", "", cell.lower()) for cell in next(csv.reader([first[1]], delimiter=delimiter), ())]
        columns = [place for place, cell in enumerate(cells) if cell in COLUMNS]
        if len(columns) == 1:
            yield from _column(lines, delimiter, columns[0])
            return
        if columns:
            raise NoListError(f"line {first[0]} names more than one column `mac`")
        if len(cells) > 1:
            raise NoListError(f"line {first[0]} is neither a MAC nor a header with a column `mac`")
    yield from chain([first], plain)


def _column(lines: Iterator[tuple[int, str]], delimiter: str, place: int) -> Iterator[tuple[int, str]]:
    """One column of CSV. A row may go over several lines: it is called by its first."""
    at = 0

    def texts() -> Iterator[str]:
        nonlocal at
        for number, text in lines:
            at = at or number
            yield text

    rows = csv.reader(texts(), delimiter=delimiter)
    while True:
        at = 0
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise NoListError(f"line {at} is not CSV: {error}") from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield at, row[place] if place < len(row) else ""
