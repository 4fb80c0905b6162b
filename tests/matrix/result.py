"""What a run found out about one store or broker, and the files in which it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

Verdict = Literal["ok", "failed", "lost", "not possible"]
Kind = Literal["store", "broker"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the contract.

    `failed`: bucketbell did not do what it promises. `lost`: it cannot know of what was lost, by the nature of the
    store or broker. `not possible`: the store or broker has no such thing.
    """

    name: str
    verdict: Verdict
    said: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A store or broker that was tried. `how`: where the program came from; `figures`: name with unit → value."""

    kind: Kind
    name: str
    version: str
    date: str
    checks: tuple[Check, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    how: str = ""

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks for which a run has to end with status 1."""
        return tuple(check for check in self.checks if check.verdict == "failed")

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Subject:
        """From the JSON of `as_json`; ValueError when a verdict is unknown."""
        checks = tuple(Check(**check) for check in document["checks"])
        for check in checks:
            if check.verdict not in get_args(Verdict):
                raise ValueError(f"{document['name']}: {check.name}: {check.verdict!r} is no verdict")
        return cls(**{**document, "checks": checks})

    def as_json(self) -> str:
        """Indented, so that a change shows line by line in a diff."""
        return json.dumps({**asdict(self), "figures": dict(self.figures)}, indent=2, ensure_ascii=False) + "\n"


def save(subject: Subject, directory: Path = RESULTS) -> Path:
    """Writes `<kind>-<name>.json`; what an earlier run found out about the same subject is replaced."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{subject.kind}-{subject.name}.json"
    path.write_text(subject.as_json())
    return path


def load(directory: Path = RESULTS) -> tuple[Subject, ...]:
    """All that is kept, stores first, each kind by name."""
    subjects = [Subject.of(json.loads(path.read_text())) for path in directory.glob("*.json")]
    return tuple(sorted(subjects, key=lambda subject: (subject.kind != "store", subject.name)))
