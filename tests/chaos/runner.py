"""Plays one scenario: starts its world, breaks it under uploads, waits, and compares."""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.chaos.scenarios import PROFILES, SCENARIOS, Scenario
from tests.chaos.uploads import Uploads
from tests.chaos.verdict import Verdict, judge
from tests.chaos.world import Profile, World

UPLOAD_SECONDS = 600.0  # for all of one scenario
LOOK_SECONDS = 0.25
TRIES = 3
_UNIFORM = random.SystemRandom().uniform


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one scenario.

    Without a `verdict` it could not be played, and `problem` says why; with one, `problem` is what its own check
    complains of. `events_from` says where events came from, `failed` how many PUTs the store did not answer with 200,
    `times` how often the fault happened, `seconds` how long all took, `last_words` what
    the logs say where something is wrong.
    """

    name: str
    seconds: float
    events_from: str = ""
    times: int = 0
    per_second: float = 0.0
    failed: int = 0
    verdict: Verdict | None = None
    problem: str = ""
    last_words: str = ""

    @property
    def shows_nothing(self) -> bool:
        """Whether all is well, but what was to be survived has not happened: that takes some luck in some scenarios."""
        verdict = self.verdict
        return self.problem.endswith("this shows nothing") and not (verdict and (verdict.missing or verdict.renamed))

    @property
    def complaint(self) -> str:
        """What is wrong, in words; "" when it went as it must."""
        if self.problem:
            return self.problem
        if self.verdict is None:
            return "not played"
        if self.verdict.renamed:
            return f"{len(self.verdict.renamed)} repeats bear another id: {_some(self.verdict.renamed)}"
        match SCENARIOS[self.name].expects:
            case "nothing missing" if self.verdict.missing:
                return f"{len(self.verdict.missing)} missing: {_some(self.verdict.missing)}"
            case "a loss" if not self.verdict.missing:
                return "nothing was lost with the safety off: this rig cannot see a loss"
        return ""


def result_of(document: dict[str, Any]) -> Result:
    """Read a result back from JSON."""
    fields = {name: value for name, value in document.items() if name != "complaint"}
    if verdict := fields["verdict"]:
        lists = {name: tuple(value) for name, value in verdict.items() if isinstance(value, list)}
        fields["verdict"] = Verdict(**verdict | lists)
    return Result(**fields)


def play(name: str, profile_name: str) -> Result:
    """Play one scenario in a directory of its own; again, where it shows nothing. What goes wrong is in the result."""
    scenario, profile = SCENARIOS[name], PROFILES[profile_name]
    begun_at = time.monotonic()
    try:
        for _ in range(TRIES):
            with tempfile.TemporaryDirectory(prefix="bucketbell-chaos-") as directory:
                result = _play(scenario, profile, Path(directory), begun_at)
            if not result.shows_nothing:
                break
    except Exception as error:  # noqa: BLE001 - whatever it was, the other scenarios can still be played
        return Result(name, time.monotonic() - begun_at, problem=f"{type(error).__name__}: {error}")
    return result


def _play(scenario: Scenario, profile: Profile, directory: Path, begun_at: float) -> Result:
    load = scenario.load(profile)
    with scenario.make(directory, profile) as world:
        world.uploads = Uploads(world.put, load.per_second)
        with world.uploads:
            for _ in range(load.times):
                time.sleep(_UNIFORM(*profile.pause_seconds))
                scenario.fault(world, profile)
            time.sleep(_UNIFORM(*profile.pause_seconds))
            world.uploads.reach(load.messages, UPLOAD_SECONDS)
        verdict = _listen(world, profile, patient=scenario.expects == "nothing missing")
        result = Result(
            scenario.name,
            time.monotonic() - begun_at,
            world.events_from,
            load.times,
            load.per_second,
            len(world.uploads.unanswered),
            verdict,
            scenario.check(world, verdict) if scenario.check else "",
        )
        bad = (*verdict.missing, *verdict.renamed)
        return replace(result, last_words=world.last_words(bad[0])) if result.complaint and bad else result


def _listen(world: World, profile: Profile, *, patient: bool) -> Verdict:
    """Wait for what is missing, for as long as it grows less, then for repeats."""
    uploads, gone = world.to_be_heard()
    patience_seconds = profile.hear_seconds if patient else profile.repeat_seconds
    left, until = len(uploads) + 1, 0.0
    while (missing := len(judge(uploads, world.heard(), gone=gone).missing)) and (
        missing < left or time.monotonic() < until
    ):
        if missing < left:  # a slow queue, on a busy machine, has lost nothing
            left, until = missing, time.monotonic() + patience_seconds
        time.sleep(LOOK_SECONDS)
    time.sleep(profile.repeat_seconds)
    return judge(uploads, world.heard(), world.healed_at, gone)


def _some(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:5]) + (" …" if len(keys) > 5 else "")
