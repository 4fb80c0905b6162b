"""The brokers' half of `make matrix`: what its suite makes of what was lost, and the words that bring a broker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.chaos.uploads import Uploads
from tests.chaos.verdict import Heard, Upload, judge
from tests.matrix import brokers
from tests.matrix.brokers.brand import Brand
from tests.matrix.brokers.install import BRING
from tests.matrix.brokers.outage import Outage, judged

MAKEFILE = Path(__file__).parents[2] / "Makefile"
KILLED, OPENED, LISTENS = 10.0, 12.0, 13.0
KEY = "assets/000001.bin"


def an_outage(began_at: float, answered_at: float, *heard: float, listens_at: float = LISTENS) -> Outage:
    """Of one upload, and when it was heard."""
    uploads = Uploads(lambda _key: None, 1.0)
    uploads._answered[KEY] = Upload(began_at, answered_at)  # noqa: SLF001 - nothing is uploaded here
    verdict = judge(uploads.answered, [Heard(KEY, "1", at) for at in heard])
    return Outage(uploads, verdict, KILLED, OPENED, listens_at)


@pytest.mark.parametrize(
    ("outage", "says_unheard", "verdict"),
    [
        (an_outage(11.0, 12.5, 13.5), False, "ok"),
        (an_outage(11.0, 12.5), False, "lost"),  # nobody listened yet, and the broker did not say so
        (an_outage(11.0, 12.5), True, "failed"),  # the broker said so
        (an_outage(11.0, 12.5, listens_at=20.0), True, "lost"),  # for longer than the host doubts it
        (an_outage(9.0, 9.9), True, "lost"),  # confirmed, and still in the broker's memory when it was killed
        (an_outage(14.0, 14.1), False, "failed"),  # while all was well
        (an_outage(14.0, 14.1), True, "failed"),
    ],
)
def test_a_loss_is_bucketbells_unless_nobody_could_know(outage: Outage, says_unheard: bool, verdict: str) -> None:  # noqa: FBT001 - a row of the table
    """What a broker confirms and gives to nobody is lost where it does not say so; anything else is a failure."""
    assert judged("restarted", outage, says_unheard=says_unheard).verdict == verdict


def test_an_upload_that_is_never_settled_is_a_failure() -> None:
    """However the broker behaves."""
    outage = an_outage(11.0, 12.5, 13.5)
    outage.uploads._unanswered[KEY] = Upload(11.0, 30.0)  # noqa: SLF001 - as above
    assert judged("restarted", outage, says_unheard=False).verdict == "failed"


def test_every_broker_is_brought_by_a_word_that_exists() -> None:
    """A word of the Makefile, or the command that brings Mosquitto."""
    words = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(brokers.NAMES) == set(BRING)
    assert set(brokers.NAMES) - {"mosquitto"} <= words


def test_a_broker_that_does_not_start_is_a_failure_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is tried all the same."""

    def make(*_: object) -> None:
        raise OSError("no such program")

    broken = Brand("", make, "1", lambda: None)  # type: ignore[arg-type]
    monkeypatch.setattr(brokers, "BRANDS", {"mosquitto": broken, "mochi": broken})
    monkeypatch.setattr(brokers, "AUDIENCES", (1,))
    monkeypatch.setattr(brokers, "FEW", (1,))
    subjects = list(brokers.run(["mosquitto", "mochi"], lambda _line: None))
    assert [[check.verdict for check in subject.checks] for subject in subjects] == [["failed"] * 2] * 2
