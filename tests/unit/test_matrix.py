"""What `make matrix` says of stores and brokers: its verdicts, its page, its exit status."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.verdict import Verdict
from tests.matrix import __main__ as command
from tests.matrix import stores
from tests.matrix.page import page
from tests.matrix.result import Check, Subject, load, save
from tests.matrix.stores.contract import LAST, once, silent
from tests.matrix.stores.kinds import KINDS
from tests.matrix.stores.outages import told
from tests.matrix.stores.world import Rang

ROOT = Path(__file__).parents[2]
WELL = Subject("store", "minio", "1.0", "2026-11-30", (Check("upload", "ok"),), {"p50 ms": 5.8}, "built by hand")
ILL = Subject("store", "ceph", "2.0", "2026-11-30", (Check("upload", "failed", "it rang not at all, as was seen"),))
LOSING = Subject("broker", "mosquitto", "2.0", "2026-11-30", (Check("restart", "lost", "3 of 9 missing"),))


def rang(*messages: tuple[str, str]) -> list[Rang]:
    """Messages of key and ETag."""
    return [Rang(key, etag, 0.0) for key, etag in messages]


def test_the_page_is_what_the_results_say() -> None:
    """docs/compatibility.md is what `make matrix ARGS="--only '' --write docs/compatibility.md"` writes."""
    kept = load()
    assert {"minio", "versitygw", "moto"} <= {subject.name for subject in kept}
    assert (ROOT / "docs/compatibility.md").read_text(encoding="utf-8") == page(kept)


def test_results_are_kept_one_file_a_subject(tmp_path: Path) -> None:
    """A later run over one replaces that one only; stores come first."""
    for subject in (LOSING, WELL, ILL):
        save(subject, tmp_path)
    assert load(tmp_path) == (ILL, WELL, LOSING)
    better = Subject("store", "ceph", "3.0", "2026-12-01", (Check("upload", "ok"),))
    save(better, tmp_path)
    assert load(tmp_path) == (better, WELL, LOSING)


def test_a_verdict_that_is_unknown_is_refused(tmp_path: Path) -> None:
    """A file that somebody changed by hand does not become a cell without a word."""
    path = save(WELL, tmp_path)
    path.write_text(path.read_text().replace('"ok"', '"fine"'))
    with pytest.raises(ValueError, match="minio: upload: 'fine' is no verdict"):
        load(tmp_path)


def test_the_page_tells_verdicts_apart() -> None:
    """One column each; what is longer than a cell stands below the table."""
    text = page((ILL, WELL, LOSING))
    assert "| upload | **no** | yes |" in text
    assert "| restart | lost: 3 of 9 missing |" in text
    assert "| p50 ms | | 5.8 |" in text
    assert "    - upload: it rang not at all, as was seen." in text


@pytest.mark.parametrize(
    ("messages", "verdict"),
    [
        ([("assets/a", "1"), ("assets/a", "2")], "ok"),
        ([("assets/a", "1")], "failed"),
        ([("assets/a", "1"), ("assets/a", "2"), ("assets/a", "2")], "failed"),
        ([("assets/a", "2"), ("assets/a", "1")], "failed"),
        ([("assets/a", "1"), ("assets/a", "")], "failed"),
        ([], "failed"),
    ],
)
def test_each_upload_has_to_ring_once(messages: list[tuple[str, str]], verdict: str) -> None:
    """Neither seldom nor often, and with the store's own ETag."""
    expected = [("assets/a", "1"), ("assets/a", "2")]
    assert once("upload", ["assets/a"], expected, rang(*messages), {}).verdict == verdict


def test_what_the_store_refuses_is_not_possible() -> None:
    """But if it takes some of the names, they have to ring, and the others are said."""
    refused = {"assets/x": "the store answers NotImplemented"}
    assert once("odd", ["assets/x"], [], [], refused).verdict == "not possible"
    some = once("odd", ["assets/x", "assets/y"], [("assets/y", "1")], rang(("assets/y", "1")), refused)
    assert some == Check("odd", "ok", "x: the store answers NotImplemented")
    assert silent("tagging", "assets/x", [], refused).verdict == "not possible"


def test_silence_counts_only_if_something_was_heard_after_it() -> None:
    """A host that is dead is silent too."""
    assert silent("delete", "assets/a", rang((LAST, "1")), {}).verdict == "ok"
    assert silent("delete", "assets/a", rang((LAST, "1"), ("assets/a", "1")), {}).verdict == "failed"
    assert silent("delete", "assets/a", [], {}).verdict == "failed"


@pytest.mark.parametrize(
    ("missing", "is_sweeping", "verdict"),
    [((), False, "ok"), ((), True, "ok"), (("assets/1",), False, "lost"), (("assets/1",), True, "failed")],
)
def test_with_the_sweep_nothing_may_be_missing(missing: tuple[str, ...], is_sweeping: bool, verdict: str) -> None:  # noqa: FBT001 - a parameter of the test
    """Without it, what the store does not tell of is lost."""
    of_outage = Verdict(9, 9 - len(missing), missing, 0, (), 0, None, 0.0)
    assert told("host killed", of_outage, is_sweeping=is_sweeping).verdict == verdict


def test_each_store_is_brought_by_a_word_that_there_is() -> None:
    """`make …`, and the Makefile has it."""
    targets = re.findall(r"^([a-z ]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    words = {target for line in targets for target in line.split()}
    assert {kind.word.removeprefix("make ") for kind in KINDS.values()} <= words


Playing = Callable[..., int]


@pytest.fixture
def playing(monkeypatch: pytest.MonkeyPatch) -> Playing:
    """The command, on a store that gives what it is told to; the brokers are left out."""

    def play(subject: Subject, *arguments: str, absent: str | None = None) -> int:
        def run(names: list[str], *_: object, **__: object) -> Iterator[Subject]:
            yield from (subject for name in names if name == subject.name)

        monkeypatch.setattr(stores, "run", run)
        monkeypatch.setattr(stores, "missing", lambda _name: absent)
        monkeypatch.setattr(command, "_brokers", lambda: None)
        return command.main(arguments)

    return play


def test_the_exit_status_says_whether_all_is_well(playing: Playing) -> None:
    """A loss by the store's nature is no failure; something that was asked for and is not here is one."""
    losing = Subject("store", "versitygw", "1", "2026-11-30", (Check("host killed", "lost"),))
    assert playing(WELL, "--only", "minio") == 0
    assert playing(losing, "--only", "versitygw") == 0
    assert playing(ILL, "--only", "minio,ceph") == 1
    assert playing(ILL, "--only", "ceph", "--jobs", "2") == 1
    assert playing(WELL, "--only", "minio", absent="make minio") == 1
    assert playing(WELL, absent="make minio") == 0


def test_an_unknown_name_is_refused(playing: Playing, capsys: pytest.CaptureFixture[str]) -> None:
    """With the names that there are."""
    with pytest.raises(SystemExit) as ended:
        playing(WELL, "--only", "minio,s3")
    assert ended.value.code == 2
    assert "s3: not known; there are minio, versitygw" in capsys.readouterr().err
