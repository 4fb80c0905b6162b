"""What a check is, what comes of it, and the order: what depends on something wrong is not checked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Health = Literal["ok", "wrong", "not checked"]

CHECK_SECONDS = 6.0
"""For one check: what it asks has deadlines of its own, and all of them are shorter. A resolver has none."""

TOTAL_SECONDS = 25.0
"""For all of them. Nearly always each answers at once."""


class WrongError(Exception):
    """Something is wrong: `detail` says what was found, `remedy` what to do about it."""

    def __init__(self, detail: str, remedy: str) -> None:
        """Neither may hold a secret."""
        self.detail = detail
        self.remedy = remedy
        super().__init__(f"{detail} {remedy}")


class NotCheckedError(Exception):
    """It cannot be known from here; the message says why."""


class Timed(NamedTuple):
    """What was found, where it also tells something how long that took."""

    detail: str
    milliseconds: float

    @classmethod
    def since(cls, began_at: float, detail: str) -> Timed:
        """`began_at` is `time.monotonic()`."""
        return cls(detail, round((time.monotonic() - began_at) * 1000, 1))


@dataclass(frozen=True, slots=True)
class Checkup:
    """One thing to look at. `look` returns what it found, or raises `WrongError` or `NotCheckedError`.

    `needs` are the names of checks that must have found all well before.
    """

    name: str
    look: Callable[[], str | Timed]
    needs: tuple[str, ...] = ()
    seconds: float = CHECK_SECONDS


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a check. There is a `remedy` where something is wrong, and nowhere else."""

    name: str
    health: Health
    detail: str
    remedy: str = ""
    milliseconds: float | None = None


def examine(
    checks: Sequence[Checkup], hear: Callable[[Finding], object], *, total_seconds: float = TOTAL_SECONDS
) -> list[Finding]:
    """Make the checks in their order; `hear` is told each finding at once."""
    until = time.monotonic() + total_seconds
    findings: dict[str, Finding] = {}
    known = {check.name for check in checks}
    for check in checks:
        # What is not among the checks does not exist in this installation, and nothing waits for it.
        missing = [name for name in check.needs if name in known and findings[name].health != "ok"]
        if missing:
            finding = Finding(check.name, "not checked", f"it needs: {', '.join(missing)}")
        else:
            finding = _made(check, until - time.monotonic())
        findings[check.name] = finding
        hear(finding)
    return list(findings.values())


def _made(check: Checkup, left_seconds: float) -> Finding:
    no_time = Finding(check.name, "not checked", "there was no time left for it")
    if left_seconds <= 0:
        return no_time
    found: list[Finding] = []
    # A daemon: whatever hangs in it does not keep the process.
    thread = threading.Thread(target=lambda: found.append(_look(check)), name="doctor", daemon=True)
    began_at = time.monotonic()
    thread.start()
    thread.join(min(check.seconds, left_seconds))
    if not found and left_seconds < check.seconds:
        return no_time
    if not found:
        seconds = time.monotonic() - began_at
        return Finding(
            check.name,
            "wrong",
            f"There was no answer within {seconds:.0f} s.",
            "See whether the name can be resolved from here, and whether a firewall swallows the packets.",
        )
    return found[0]


def _look(check: Checkup) -> Finding:
    try:
        found = check.look()
    except WrongError as error:
        return Finding(check.name, "wrong", error.detail, error.remedy)
    except NotCheckedError as error:
        return Finding(check.name, "not checked", str(error))
    except Exception as error:  # noqa: BLE001 - the other checks go on; its message might hold a secret
        return Finding(check.name, "not checked", f"the check itself failed: {type(error).__name__}")
    if isinstance(found, Timed):
        return Finding(check.name, "ok", found.detail, milliseconds=found.milliseconds)
    return Finding(check.name, "ok", found)
