"""The verdict of the chaos rig: it must be able to see each thing that can go wrong."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from tests.chaos.report import page
from tests.chaos.runner import Result, result_of
from tests.chaos.uploads import NotUploadedError, Uploads
from tests.chaos.verdict import Heard, Upload, Verdict, judge

A, B, C = "assets/a", "assets/b", "assets/c"
FIRST = "assets/000001.bin"
ONE_AFTER_ANOTHER = {A: Upload(1.0, 1.5), B: Upload(2.0, 2.5), C: Upload(3.0, 3.5)}


def heard(*keys: str, start_at: float = 10.0) -> list[Heard]:
    """One message a second, each under the id of its key."""
    return [Heard(key, f"id of {key}", start_at + number) for number, key in enumerate(keys)]


def test_all_is_well_when_each_upload_was_heard_once() -> None:
    """Nothing missing, repeated or overtaken; the longest wait is from the PUT's answer to the message."""
    verdict = judge(ONE_AFTER_ANOTHER, heard(A, B, C))
    assert (verdict.uploaded, verdict.heard, verdict.missing) == (3, 3, ())
    assert (verdict.repeats, verdict.renamed, verdict.out_of_order) == (0, (), 0)
    assert verdict.longest_wait_seconds == 8.5
    assert verdict.recovery_seconds is None


def test_what_was_never_heard_is_missing_by_name() -> None:
    """Also when everything is."""
    assert judge(ONE_AFTER_ANOTHER, heard(A, C)).missing == (B,)
    assert judge(ONE_AFTER_ANOTHER, []).missing == (A, B, C)


def test_what_the_store_has_no_longer_is_its_own_loss() -> None:
    """Not missing, and told apart; what was heard of is neither."""
    verdict = judge(ONE_AFTER_ANOTHER, heard(A), gone={A, B})
    assert (verdict.missing, verdict.lost) == ((C,), (B,))


def test_messages_of_probes_do_not_stand_in_for_uploads() -> None:
    """They are neither heard uploads nor repeats."""
    verdict = judge({A: Upload(1.0, 1.5)}, heard("assets/probe-1", "assets/probe-1"))
    assert (verdict.heard, verdict.missing, verdict.repeats) == (0, (A,), 0)


def test_a_repeat_under_the_first_id_is_only_counted() -> None:
    """However many there are."""
    verdict = judge(ONE_AFTER_ANOTHER, heard(A, B, A, C, A))
    assert (verdict.repeats, verdict.renamed, verdict.missing) == (2, (), ())


@pytest.mark.parametrize("event_id", ["another", ""])
def test_a_repeat_under_another_id_or_none_is_named(event_id: str) -> None:
    """A device could not know it for a repeat."""
    verdict = judge(ONE_AFTER_ANOTHER, [*heard(A, B, C), Heard(B, event_id, 20.0)])
    assert (verdict.repeats, verdict.renamed) == (1, (B,))


def test_a_message_without_an_id_is_named_even_when_it_came_once() -> None:
    """Its repeat would not be known either."""
    assert judge({A: Upload(1.0, 1.5)}, [Heard(A, "", 2.0)]).renamed == (A,)


def test_an_upload_is_out_of_order_when_one_that_began_after_its_answer_was_heard_before() -> None:
    """Counted once, however many overtook it; repeats do not count."""
    assert judge(ONE_AFTER_ANOTHER, heard(B, C, A)).out_of_order == 1
    assert judge(ONE_AFTER_ANOTHER, heard(C, B, A)).out_of_order == 2
    assert judge(ONE_AFTER_ANOTHER, heard(A, B, C, A)).out_of_order == 0


def test_uploads_side_by_side_have_no_order() -> None:
    """The second began before the first was answered."""
    assert judge({A: Upload(1.0, 3.0), B: Upload(2.0, 2.5)}, heard(B, A)).out_of_order == 0


def test_recovery_is_the_longest_time_from_a_healing_to_the_next_message() -> None:
    """A healing after which nothing more came says nothing."""
    verdict = judge(ONE_AFTER_ANOTHER, heard(A, B, C), healed_at=[9.5, 10.2, 99.0])
    assert verdict.recovery_seconds == pytest.approx(0.8)


def test_a_put_that_failed_does_not_count_and_its_number_is_not_used_again() -> None:
    """A second PUT of the same key would be another upload, with an id of its own."""
    tried: list[str] = []

    def put(key: str) -> None:
        tried.append(key)
        if key == FIRST:
            raise ConnectionError

    with Uploads(put, 1000.0) as uploads:
        uploads.reach(3, 5.0)
    assert uploads.unanswered.keys() == {FIRST}
    assert len(set(tried)) == len(tried)
    assert uploads.answered.keys() == set(tried) - {FIRST}


def test_too_few_uploads_are_an_error_not_a_small_figure() -> None:
    """With how many there were."""

    def put(key: str) -> None:
        raise ConnectionError(key)

    with Uploads(put, 1000.0) as uploads, pytest.raises(NotUploadedError, match="0 of 1 uploads"):
        uploads.reach(1, 0.1)


WELL = judge(ONE_AFTER_ANOTHER, heard(A, B, C))
LOST = judge(ONE_AFTER_ANOTHER, heard(A, C))
GONE = judge(ONE_AFTER_ANOTHER, heard(A, C), gone={B})
RENAMED = judge(ONE_AFTER_ANOTHER, [*heard(A, B, C), Heard(B, "another", 20.0)])


@pytest.mark.parametrize(
    ("name", "verdict", "complaint"),
    [
        ("broker-killed", WELL, ""),
        ("broker-killed", LOST, "1 missing: assets/b"),
        ("broker-killed", RENAMED, "1 repeats bear another id: assets/b"),
        ("broker-killed", None, "not played"),
        ("control", LOST, ""),
        ("control", WELL, "nothing was lost with the safety off: this rig cannot see a loss"),
        ("queue-full", LOST, "1 missing: assets/b"),
        ("queue-full", GONE, ""),
        ("queue-full", RENAMED, "1 repeats bear another id: assets/b"),
    ],
)
def test_a_result_complains_of_what_its_row_does_not_expect(name: str, verdict: Verdict | None, complaint: str) -> None:
    """Each complaint fails the run; a control that loses nothing does too."""
    assert Result(name, 1.0, verdict=verdict).complaint == complaint


def test_a_result_survives_json() -> None:
    """So that one page can be made of several runs."""
    result = Result("broker-killed", 1.0, "MinIO", 2, 40.0, 3, RENAMED, last_words="none")
    assert result_of(json.loads(json.dumps({**asdict(result), "complaint": result.complaint}))) == result


def test_the_page_names_what_failed_and_does_not_count_what_the_store_lost() -> None:
    """The summary is the first thing that is read."""
    results = [Result("broker-killed", 1.0, verdict=LOST), Result("queue-full", 1.0, verdict=GONE)]
    text = page(results, "short", 60.0, "a machine")
    assert "2 ways to break it, 6 uploads: 1 missing" in text
    assert "Failed: `broker-killed`." in text
    assert "has no longer: queue-full 1." in text
    assert "**broker-killed** failed: 1 missing: assets/b." in text
