"""What was announced of a bucket, on SQLite and on PostgreSQL: kept, compared, trimmed, forgotten."""

import os
import shutil
from itertools import combinations
from pathlib import Path

import pytest

from functions.stored.database import Database
from functions.stored.errors import StoreUnavailableError
from functions.stored.ring import KEPT, Ring
from functions.stored.rings import AT_ONCE, KEPT_MS, MAX_FORGOTTEN, MAX_KEY_BYTES, PrefixProgress, RingStore, Scope
from infra.migrations.runner import upgrade
from tests.databases import execute, new_sqlite

SCOPE = Scope("bucket", "http://store:9000")
DAY_SECONDS = KEPT_MS / 1000
ODD = ["configs/\N{SNOWMAN}.json", "configs/-a", "configs/a-b", "configs/a/b", "configs/\U0001f514", "configs/\uffff"]


class Clock:
    """The host's clock, as this test sets it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        """Seconds since 1970."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """One for each test."""
    return Clock()


@pytest.fixture
def rings(migrated_url: str, clock: Clock) -> RingStore:
    """A bucket of which nothing was announced."""
    return store(migrated_url, clock)


def store(url: str, clock: Clock, scope: Scope = SCOPE, *, sweeps: bool = True) -> RingStore:
    """A host's store at this URL."""
    return RingStore(Database(url), scope, sweeps=sweeps, now=clock.time)


def ring(key: str, etag: str = "e", modified: int = 1000, *, identity: bytes = b"") -> Ring:
    """One ring of a sweep."""
    return Ring(key, etag, modified, is_exact=True, identity=identity)


def test_what_rang_is_known_newest_first(rings: RingStore) -> None:
    """Every field of each of the last contents, whatever a key or an entity tag is made of."""
    first = Ring("configs/a.json", "e1", -1, is_exact=False, identity=bytes(range(16)))
    second = Ring("configs/a.json", "", 2**53, is_exact=True)
    third = Ring("configs/\N{SNOWMAN}\ud800\x00.json", "x" * MAX_KEY_BYTES, 3, is_exact=True)
    rings.record([first, second, third])
    asked = [first.object_key, third.object_key, "configs/never.json"]
    assert rings.of_keys(asked) == {first.object_key: [second, first], third.object_key: [third]}
    assert rings.of_keys([]) == {}


def test_only_the_last_contents_of_a_key_are_kept(rings: RingStore, migrated_url: str) -> None:
    """In one batch or in many; the same content again is the newest, and takes no room of another."""
    contents = [ring("k", f"e{number}") for number in range(10)]
    rings.record(contents[:7])
    for one in contents[7:]:
        rings.record([one])
    assert rings.of_keys(["k"]) == {"k": contents[: -KEPT - 1 : -1]}
    rings.record([contents[7]])
    assert [one.etag for one in rings.of_keys(["k"])["k"]] == ["e7", "e9", "e8", "e6"]
    assert execute(migrated_url, "SELECT count(*) FROM sweep_rings") == [(KEPT,)]


def test_a_large_batch_is_recorded_whole(rings: RingStore) -> None:
    """More rows than one change has, some keys twice in it."""
    many = [ring(f"k{number % (2 * AT_ONCE)}", f"e{number}") for number in range(2 * AT_ONCE + 500)]
    rings.record(many)
    found = rings.of_keys([f"k{number}" for number in range(2 * AT_ONCE)])
    assert len(found) == 2 * AT_ONCE
    assert [one.etag for one in found["k3"]] == [f"e{2 * AT_ONCE + 3}", "e3"]


def test_a_key_that_no_store_has_spoils_no_batch(rings: RingStore) -> None:
    """S3's keys have at most 1,024 bytes, and an index of PostgreSQL takes no key of any length."""
    longest, longer = "\N{SNOWMAN}" * 341 + "k", os.urandom(4500).hex()
    assert len(longest.encode()) == MAX_KEY_BYTES
    rings.record([ring(longer), ring(longest)])
    assert rings.of_keys([longer, longest]) == {longest: [ring(longest)]}


def test_identities_are_known_for_a_day(rings: RingStore, clock: Clock, migrated_url: str) -> None:
    """By whichever host they were recorded, also those of contents that are no longer kept; then they go."""
    many = [ring("k", f"e{number}", identity=number.to_bytes(16, "big")) for number in range(MAX_FORGOTTEN + 10)]
    rings.record([*many, *many[:5], ring("other")])
    asked = [one.identity for one in many[:3]]
    other_host = store(migrated_url, clock)
    assert other_host.known([*asked, bytes(range(16))]) == set(asked)
    assert other_host.known([]) == set()
    clock.now += DAY_SECONDS + 1
    for _ in range(2):
        rings.record([ring("k", "later", identity=b"\xff" * 16)])
    assert execute(migrated_url, "SELECT count(*) FROM sweep_identities") == [(1,)]


def test_another_buckets_rings_are_not_ours(rings: RingStore, clock: Clock, migrated_url: str) -> None:
    """Nor those of a bucket of that name at another endpoint; whose there are is known by name."""
    rings.record([ring("k", identity=b"1" * 16)])
    rings.begin("configs/", 5, lost=False)
    assert rings.scopes() == []
    for scope in (Scope("other", SCOPE.endpoint), Scope(SCOPE.bucket, "http://other:9000")):
        theirs = store(migrated_url, clock, scope)
        assert theirs.of_keys(["k"]) == {}
        assert theirs.known([b"1" * 16]) == set()
        assert theirs.prefixes() == {}
        assert theirs.scopes() == [SCOPE]
        clock.now += 2 * DAY_SECONDS
        assert theirs.forget_gone("", "", None, []) == 0
    assert rings.of_keys(["k"]) == {"k": [ring("k", identity=b"1" * 16)]}


def test_the_progress_of_each_prefix_is_kept(rings: RingStore, clock: Clock, migrated_url: str) -> None:
    """The first word about a prefix counts, whichever host has said it."""
    assert rings.progress("configs/") is None
    assert rings.begin("configs/", 17, lost=False) == PrefixProgress(17, is_complete=False, is_lost=False)
    assert store(migrated_url, clock).begin("configs/", 99, lost=True).t0 == 17
    assert rings.begin("\N{SNOWMAN}/", 18, lost=True) == PrefixProgress(18, is_complete=False, is_lost=True)
    rings.complete("configs/")
    assert rings.prefixes() == {
        "configs/": PrefixProgress(17, is_complete=True, is_lost=False),
        "\N{SNOWMAN}/": PrefixProgress(18, is_complete=False, is_lost=True),
    }
    assert rings.progress("assets/") is None


def test_a_key_that_is_gone_is_forgotten_after_a_day(rings: RingStore, clock: Clock) -> None:
    """Not before, not where a page does not reach, and never one that is listed."""
    keys = [f"assets/{number:03d}" for number in range(9)]
    rings.record([ring(key) for key in (*keys, "configs/x")])
    listed = {"assets/002", "assets/005"}
    assert rings.forget_gone("assets/", "", None, listed) == 0
    clock.now += DAY_SECONDS + 1
    rings.record([ring("assets/004", "new")])  # its newest is young
    assert rings.forget_gone("assets/", "assets/001", "assets/003", listed) == 1
    assert set(rings.of_keys(keys)) == set(keys) - {"assets/003"}
    assert rings.forget_gone("assets/", "assets/005", None, listed) == 3
    assert rings.forget_gone("assets/", "", "assets/005", listed) == 2
    assert set(rings.of_keys([*keys, "configs/x"])) == {*listed, "assets/004", "configs/x"}
    assert len(rings.of_keys(["assets/004"])["assets/004"]) == 2


def test_keys_are_in_the_order_of_their_bytes(rings: RingStore, clock: Clock) -> None:
    """As S3 lists them: a dash goes before a slash, and what UTF-16 would turn round is in its place."""
    ordered = sorted(ODD, key=str.encode)
    around = {"configs", "configs.x", "configs0", "configs/"}
    for after, upto in combinations([0, *range(1, len(ODD) + 1), None], 2):
        rings.record([ring(key) for key in (*ODD, *around)])
        clock.now += DAY_SECONDS + 1
        bounds = ordered[after - 1] if after else "", None if upto is None else ordered[upto - 1]
        gone = set(ordered[after:upto]) | ({"configs/"} if not after else set())
        assert rings.forget_gone("configs/", *bounds, ()) == len(gone), bounds
        assert set(rings.of_keys([*ODD, *around])) == {*ODD, *around} - gone, bounds


def test_many_that_are_gone_are_forgotten_bit_by_bit(rings: RingStore, clock: Clock, migrated_url: str) -> None:
    """More than one look finds, those that stay among them; without a prefix to the very end."""
    keys = [f"{number:05d}" for number in range(5 * AT_ONCE)]
    rings.record([ring(key) for key in keys])
    clock.now += DAY_SECONDS + 1
    assert rings.forget_gone("", "", None, keys[::5]) == 4 * AT_ONCE
    assert execute(migrated_url, "SELECT count(*) FROM sweep_rings") == [(AT_ONCE,)]


def test_where_nobody_sweeps_only_identities_are_kept(clock: Clock, migrated_url: str) -> None:
    """Nobody would forget the keys; as soon as one host sweeps, the others help it."""
    doors_only = store(migrated_url, clock, sweeps=False)
    doors_only.record([ring("k", identity=b"1" * 16)])
    assert doors_only.of_keys(["k"]) == {}
    assert doors_only.known([b"1" * 16])
    store(migrated_url, clock).begin("configs/", 1, lost=False)
    doors_only.record([ring("k", identity=b"2" * 16)])
    assert doors_only.of_keys(["k"])


def test_nothing_is_written_where_nothing_changes(tmp_path: Path, clock: Clock) -> None:
    """A round over a bucket that stays as it is leaves SQLite's file as it is."""
    upgrade(url := new_sqlite(tmp_path))
    rings = store(url, clock)
    rings.begin("configs/", 1, lost=False)
    rings.record([ring(f"configs/{number}") for number in range(10)])
    file = tmp_path / "settings.db"
    before = file.stat().st_mtime_ns, file.read_bytes()
    rings.record([])
    rings.of_keys(["configs/1"])
    assert rings.forget_gone("configs/", "", None, [f"configs/{number}" for number in range(10)]) == 0
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before


def test_a_copy_of_last_week_is_gone_on_with(tmp_path: Path, clock: Clock) -> None:
    """What was announced since is new again, and what is announced from now on is in its order."""
    upgrade(url := new_sqlite(tmp_path))
    rings = store(url, clock)
    rings.begin("configs/", 1, lost=False)
    rings.record([ring("configs/a", "old")])
    shutil.copy(tmp_path / "settings.db", tmp_path / "copy")
    clock.now += 7 * DAY_SECONDS
    rings.record([ring("configs/a", "newer"), ring("configs/b")])
    shutil.copy(tmp_path / "copy", tmp_path / "settings.db")
    assert rings.of_keys(["configs/a", "configs/b"]) == {"configs/a": [ring("configs/a", "old")]}
    rings.record([ring("configs/a", "newest"), ring("configs/b")])
    assert [one.etag for one in rings.of_keys(["configs/a"])["configs/a"]] == ["newest", "old"]


@pytest.mark.parametrize("column", ["etag", "modified", "identity"])
def test_a_row_of_anything_is_no_crash(tmp_path: Path, clock: Clock, column: str) -> None:
    """SQLite lets a hand write any kind of value into any column."""
    upgrade(url := new_sqlite(tmp_path))
    rings = store(url, clock)
    rings.record([ring("k")])
    execute(url, f"UPDATE sweep_rings SET {column} = 'x' || 1")  # noqa: S608 - of this test
    with pytest.raises(StoreUnavailableError, match="changed by hand"):
        rings.of_keys(["k"])
