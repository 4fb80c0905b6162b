"""docs/compatibility.md, made of all results that are kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tests.matrix.result import Check, Kind, Subject

TITLES = {
    "minio": "MinIO",
    "versitygw": "Versity GW",
    "ceph": "Ceph RGW",
    "seaweedfs": "SeaweedFS",
    "garage": "Garage",
    "mosquitto": "Mosquitto",
    "rabbitmq": "RabbitMQ",
    "hivemq": "HiveMQ CE",
    "artemis": "Artemis",
}
SHORT_CHARACTERS = 24
YES, NO, FAILED = "yes", "-", "**no**"

HEAD = """\
# Which stores and brokers work

`make matrix` wrote this page. It starts real stores and real brokers, and plays the same suite over each, with a real
`bucketbell host`: on each store with a real Mosquitto, on each broker with its own. A run over some of them
(`make matrix ARGS="--only minio,mosquitto --write docs/compatibility.md"`) leaves the others' results as they were.

**yes**: it works. **-**: this store or broker has no such thing. **no**: it does not work, and the list below the table
says how. **lost**: what is gone is not bucketbell's to save, and the list says how much.
"""

STORES = """\
Each upload of the suite rings once, with the right name and ETag, or it is a **no**. In the rows of outages numbered
objects are uploaded all the time, while the host, the store or both are killed (SIGKILL) and started again. They count
if the store has answered 200.

- **Without the sweep**, what has not rung once the store has given up counts as missing. Ceph never gives up, but after
  a refused connection its topic can stand still until the gateway is restarted: here it has two minutes.
- **With [the sweep](self-hosting.md#the-sweep)**, none may be missing, and each object that a LIST shows counts,
  whatever was answered. It pauses for 2 s here, and leaves a file alone for 3 s where the store's own events ring.

**p50**: half of the uploads took no longer, from the beginning of the PUT to the message at the subscriber.
"""

BROKERS = """\
What a broker does with messages, and what the host makes of it.
"""

SECTIONS: tuple[tuple[Kind, str, str], ...] = (("store", "Stores", STORES), ("broker", "Brokers", BROKERS))


def page(subjects: Sequence[Subject]) -> str:
    """The whole of it."""
    parts = [HEAD]
    for kind, title, words in SECTIONS:
        ours = [subject for subject in subjects if subject.kind == kind]
        if ours:
            parts += [f"## {title}\n", words, "\n".join(_table(ours)) + "\n", "\n".join(_notes(ours)) + "\n"]
    return "\n".join(parts)


def title(subject: Subject) -> str:
    """As people write its name."""
    return TITLES.get(subject.name, subject.name)


def _table(subjects: Sequence[Subject]) -> Iterable[str]:
    yield _row("", *(title(subject) for subject in subjects))
    yield f"|---|{'---|' * len(subjects)}"
    yield _row("version", *(_version(subject.version) for subject in subjects))
    yield _row("tried on", *(subject.date for subject in subjects))
    for name in _names(check.name for subject in subjects for check in subject.checks):
        found = [next((check for check in subject.checks if check.name == name), None) for subject in subjects]
        yield _row(name, *map(_cell, found))
    for name in _names(figure for subject in subjects for figure in subject.figures):
        yield _row(name, *(_figure(subject.figures.get(name)) for subject in subjects))


def _row(*cells: str) -> str:
    return "".join(f"| {cell.replace('|', chr(92) + '|')} " if cell else "| " for cell in cells) + "|"


def _names(names: Iterable[str]) -> list[str]:
    """Each once, in the order in which they come first."""
    return list(dict.fromkeys(names))


def _version(version: str) -> str:
    """Of a version that Go made up for a commit, the day and the commit."""
    base, _, commit = version.rpartition("-")
    moment = base.rpartition("-")[2]
    is_made_up = len(commit) == len("7aac2a2c5b7c") and len(moment) == len("20260212201848") and moment.isdigit()
    return f"{moment[:4]}-{moment[4:6]}-{moment[6:8]} ({commit[:7]})" if is_made_up else version


def _cell(check: Check | None) -> str:
    if check is None:
        return ""
    said = check.said if len(check.said) <= SHORT_CHARACTERS else ""
    match check.verdict:
        case "ok":
            return said or YES
        case "failed":
            return f"{FAILED}: {said}" if said else FAILED
        case "lost":
            return f"lost: {said}" if said else "lost"
        case "not possible":
            return NO


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}".removesuffix(".0")


def _notes(subjects: Sequence[Subject]) -> Iterable[str]:
    """Where each came from, and what did not fit into its column."""
    for subject in subjects:
        yield f"- **{title(subject)}**: {subject.how}."
        checks_of: defaultdict[str, list[str]] = defaultdict(list)
        for check in subject.checks:
            if check.said and (check.verdict == "not possible" or len(check.said) > SHORT_CHARACTERS):
                checks_of[check.said].append(check.name)
        for said, names in checks_of.items():
            yield f"    - {'; '.join(names)}: {said}."
