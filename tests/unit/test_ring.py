"""What was announced of a key, and what a LIST shows of it."""

from __future__ import annotations

import pytest

from functions.mqtt.outcome import Outcome, Status
from functions.stored.ring import Ring, Verdict, is_repeat, verdict
from infra.host.sweep.judge import in_order

A, B, CONFIG = "assets/a", "assets/b", "configs/aa-bb-cc-dd-ee-ff.json"
FORBIDDEN = Outcome(Status.REFUSED, "the broker answered 0x87", 0x87)
REFUSED = Outcome(Status.REFUSED, "the broker answered 0x99", 0x99)
UNCONFIRMED = Outcome(Status.UNCONFIRMED, "connection lost")


def ring(etag: str, modified: int, *, is_exact: bool = False) -> Ring:
    """A ring of one key."""
    return Ring(A, etag, modified, is_exact)


@pytest.mark.parametrize(
    ("rings", "wanted"),
    [
        ([], Verdict.NEW),
        ([ring("e", 100_000, is_exact=True)], Verdict.KNOWN),
        ([ring("e", 99_999, is_exact=True)], Verdict.NEW),
        ([ring("f", 100_000, is_exact=True)], Verdict.NEW),
        ([ring("e", 95_000)], Verdict.KNOWN),
        ([ring("e", 94_999)], Verdict.NEW),
        ([ring("e", 900_000)], Verdict.KNOWN),  # its event came when a slow upload was complete
        ([ring("f", 900_000), ring("e", 900_000)], Verdict.NEW),
        ([ring("e-2", 1)], Verdict.NEW),
        ([ring("f", 200_000), ring("e", 100_500)], Verdict.ROLLBACK),
        ([ring("f", 200_000, is_exact=True), ring("e", 100_000, is_exact=True)], Verdict.ROLLBACK),
        # announced, replaced, and then perhaps uploaded again
        ([ring("f", 99_000), ring("e", 98_000)], Verdict.NEW),
        ([ring("f", 99_000, is_exact=True), ring("e", 98_000, is_exact=True)], Verdict.NEW),
        # events that overtook each other
        ([ring("f", 98_000), ring("e", 99_000)], Verdict.KNOWN),
    ],
)
def test_what_a_list_shows_is_known_new_or_a_rollback(rings: list[Ring], wanted: Verdict) -> None:
    """An ETag alone says nothing: the same bytes may be uploaded again, between two sweeps and after others."""
    assert verdict("e", 100_000, rings)[0] is wanted


def test_an_object_of_parts_is_known_by_its_etag() -> None:
    """AWS dates it by its beginning, its event by its end; one that was uploaded again after others is new."""
    assert verdict("e-2", 100_000, [ring("e-2", 9_000_000)])[0] is Verdict.KNOWN
    assert verdict("e-2", 100_000, [ring("f", 99_000), ring("e-2", 1)])[0] is Verdict.NEW
    assert is_repeat(ring("e-2", 0, is_exact=True), "e-2", 9_000_000)


@pytest.mark.parametrize("exact", [True, False])
def test_an_object_without_an_etag_is_known_by_its_date(exact: bool) -> None:  # noqa: FBT001 - a parameter
    """A file copied into Versity's folder has none."""
    assert verdict("", 100_000, [ring("", 100_000, is_exact=exact)])[0] is Verdict.KNOWN
    assert verdict("", 200_000, [ring("", 100_000, is_exact=exact)])[0] is Verdict.NEW
    assert verdict("", 200_000, [ring("e", 100_000, is_exact=exact)])[0] is Verdict.NEW


def test_pages_in_the_order_of_bytes_are_told_from_others() -> None:
    """SeaweedFS lists a folder before a file whose name begins like it."""
    assert in_order([], "")
    assert in_order(["a", "a-b", "a/b"], "")
    assert not in_order(["a/b", "a-b"], "")
    assert not in_order(["a"], "a")
    assert in_order(["\uffff", "\U00010000"], "")  # not the order of UTF-16
    assert in_order(["\ud800"], "")
