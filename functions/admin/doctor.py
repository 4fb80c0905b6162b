"""Pure: what `bucketbell doctor` has found, as an administrator reads it, and what the host needs for that."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal, Protocol

from pydantic import Field

from functions.admin.schemas import Instant, Schema
from functions.web.messages import Problem


class FindingAnswer(Schema):
    """What came of one check."""

    name: str
    health: Literal["ok", "wrong", "not checked"]
    detail: str = Field(description="What was found.")
    remedy: str = Field(description="What to do, where something is wrong.")
    milliseconds: float | None = Field(description="How long it took, where that tells something.")


class ExaminationAnswer(Schema):
    """The last examination of the host that answers; each look at everything takes some seconds."""

    running: bool
    began_at: Instant | None = Field(description="Null where there was none since the host's start.")
    ended_at: Instant | None
    ok: bool | None = Field(description="Whether nothing is wrong; null while that is not known.")
    first: str | None = Field(description="What to mend first.")
    checks: tuple[FindingAnswer, ...] = Field(description="In the order in which things have to be well.")
    trouble: str = Field(description="Why nothing came of it; empty else.")


class Examining(Protocol):
    """What examines the installation. Methods are called from several threads."""

    def begin(self) -> ExaminationAnswer:
        """Begin an examination, unless one is running."""

    def latest(self) -> ExaminationAnswer:
        """Return what the last one has found, or that it is running."""


class NobodyExamines:
    """The `Examining` of a function: what there is to look at is elsewhere."""

    def begin(self) -> ExaminationAnswer:
        """See `Examining.begin`."""
        raise _elsewhere()

    def latest(self) -> ExaminationAnswer:
        """See `Examining.latest`."""
        raise _elsewhere()


def _elsewhere() -> Problem:
    return Problem(HTTPStatus.CONFLICT, "no_doctor", "Only the host examines itself: run `bucketbell doctor`.")
