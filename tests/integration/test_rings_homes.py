"""Where the sweep's state is at home: a database, a file of its own, the bucket; and what if it is lost or spoilt."""

import gzip
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from functions.settings import load
from functions.stored.database import VERSION_TABLE
from functions.stored.errors import StoreUnavailableError
from functions.stored.ring import Ring
from functions.stored.rings import PrefixProgress
from infra.host.sweep import marker
from infra.host.sweep.marker import KEY
from infra.host.sweep.state import State
from infra.local.postgres import Postgres
from infra.local.process import free_port
from infra.local.stores import Minio, MotoServer
from tests.databases import execute, new_postgresql, new_sqlite
from tests.fakes.rights import restricted

ROOT = Path(__file__).parents[2]
HOMES = ["file", "bucket", "sqlite", "postgresql"]
FIRST = PrefixProgress(17, is_complete=False, is_lost=False)
LOST = PrefixProgress(99, is_complete=False, is_lost=True)
ONE = Ring("configs/a.json", "e1", 1000, is_exact=True, identity=b"1" * 16)

_numbers = count()

# A host that records until it is killed.
HOST = """
import sys
from functions.settings import load
from functions.stored.ring import Ring
from infra.host.sweep.state import State
state = State.of(load().settings)
state.begin("configs/", 17)
for number in range(10_000):
    state.record([Ring(f"configs/{key}", f"e{number}", number, True) for key in range(50)])
    print(number, flush=True)
"""


class World:
    """A bucket of this test alone, and the home of the state that a host there is told of."""

    def __init__(self, store: MotoServer, home: str, variables: dict[str, str]) -> None:
        self.s3, self.bucket, self.home = store.client(), f"bucket-{next(_numbers)}", home
        self.s3.create_bucket(Bucket=self.bucket)
        self.environment = {
            "AWS_ENDPOINT_URL_S3": store.endpoint_url,
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
            "BUCKET": self.bucket,
            "SWEEP_SECONDS": "60",
            **variables,
        }

    @contextmanager
    def host(self, **variables: str) -> Iterator[State]:
        """The state of a host, which ends as it should."""
        state = State.of(load(self.environment | variables).settings)
        assert state is not None
        try:
            yield state
            state.save_last()
        finally:
            state.close()

    def lose(self) -> None:
        """What happens when nobody has kept a copy; the bucket's word stays."""
        if self.home == "bucket":
            header = self.content().partition(b"\n")[0]
            self.s3.put_object(Bucket=self.bucket, Key=KEY, Body=header + b"\n")
        elif self.home == "postgresql":
            url = self.environment["DATABASE_URL"]
            for table in ("rings", "identities", "prefixes", "scopes"):
                execute(url, f"DELETE FROM sweep_{table}")  # noqa: S608 - of this test
        else:
            self.file.unlink()

    @property
    def file(self) -> Path:
        """SQLite's."""
        return Path(
            self.environment.get("SWEEP_STATE_FILE") or self.environment["DATABASE_URL"].removeprefix("sqlite:///")
        )

    def content(self) -> bytes:
        """What is in the bucket."""
        return bytes(self.s3.get_object(Bucket=self.bucket, Key=KEY)["Body"].read())

    def keys(self) -> list[str]:
        """The names of what is in the bucket."""
        return [one["Key"] for one in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])]


@pytest.fixture
def world(request: pytest.FixtureRequest, moto: MotoServer, tmp_path: Path) -> World:
    """One with the home that the test names."""
    home = request.param
    variables = {"bucket": {}, "file": {"SWEEP_STATE_FILE": str(tmp_path / "100% a?b#c" / "state.db")}}.get(home)
    (tmp_path / "100% a?b#c").mkdir()
    if home == "sqlite":
        variables = {"DATABASE_URL": new_sqlite(tmp_path)}
    elif home == "postgresql":
        variables = {"DATABASE_URL": new_postgresql(request.getfixturevalue("postgres_server"))}
    return World(moto, home, variables or {})


def warned(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What was said that needs somebody."""
    return [
        vars(one) for one in caplog.records if one.levelname in {"WARNING", "ERROR"} and "sweep" in one.getMessage()
    ]


@pytest.mark.parametrize("world", HOMES, indirect=True)
def test_what_was_recorded_is_there_after_a_restart(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever it is at home; a first sweep is a first sweep, and nothing needs to be said."""
    with world.host() as state:
        assert state.rings.database.file is None or world.home in {"file", "sqlite", "bucket"}
        assert state.begin("configs/", 17) == FIRST
        state.rings.complete("configs/")
        state.record([ONE])
    with world.host() as state:
        state.open()
        assert state.rings.progress("configs/") == FIRST._replace(is_complete=True)
        assert state.rings.of_keys([ONE.object_key]) == {ONE.object_key: [ONE]}
        assert state.rings.known([ONE.identity])
        assert state.begin("assets/", 18) == PrefixProgress(18, is_complete=False, is_lost=False), (
            "a prefix that is new"
        )
    assert world.keys() == [KEY]
    header = json.loads(world.content().partition(b"\n")[0])
    scope = f"{world.bucket} at {world.environment['AWS_ENDPOINT_URL_S3']}"
    times = header.pop("hosts").values()
    assert times
    assert all(first <= last for first, last in times)
    assert header == {"bucketbell": "sweep", "format": 1, "swept": {scope: {"configs/": 17, "assets/": 18}}}
    assert not warned(caplog)


@pytest.mark.parametrize("world", HOMES, indirect=True)
def test_a_state_that_is_lost_is_no_first_sweep(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The bucket says so, for each prefix and after each restart; a prefix that it does not name is new."""
    with world.host() as state:
        state.begin("configs/", 17)
        state.begin("assets/", 17)
    world.lose()
    with world.host() as state:
        assert state.begin("configs/", 99) == LOST
    with world.host() as state:
        assert state.begin("assets/", 99) == LOST
        assert state.begin("more/", 99) == LOST._replace(is_lost=False)
    lost = [vars(one) for one in caplog.records if one.getMessage() == "the sweep's state is lost"]
    assert [one["prefix"] for one in lost] == ["configs/", "assets/"]


@pytest.mark.parametrize("world", ["file", "bucket"], indirect=True)
@pytest.mark.parametrize("how", ["beginning", "middle", "short", "empty"])
def test_a_torn_state_is_set_aside_and_lost(world: World, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """It is kept under another name, which is said; an empty file is one that is new."""
    with world.host() as state:
        state.begin("configs/", 17)
        state.record([Ring(f"configs/{number}", "e", 1, is_exact=True) for number in range(2000)])
    content = world.file.read_bytes() if world.home == "file" else gzip.decompress(world.content().partition(b"\n")[2])
    third = len(content) // 3
    torn = {
        "beginning": bytes(4096) + content[4096:],
        "middle": content[:third] + os.urandom(third) + content[2 * third :],
        "short": content[:third],
        "empty": b"",
    }[how]
    if world.home == "file":
        world.file.write_bytes(torn)
        world.file.with_name(world.file.name + "-journal").write_bytes(b"what a crash has left")
    else:
        header = world.content().partition(b"\n")[0]
        world.s3.put_object(Bucket=world.bucket, Key=KEY, Body=header + b"\n" + gzip.compress(torn))
    with world.host() as state:
        assert state.begin("configs/", 99) == LOST
        assert state.rings.of_keys(["configs/1"]) == {}
        state.record([ONE])
    kept = {one["kept"] for one in warned(caplog) if "damaged" in one["msg"]}
    if how == "empty":
        assert not kept
    elif world.home == "file":
        aside = world.file.with_name(world.file.name + ".damaged")
        assert kept == {str(aside)}
        assert aside.read_bytes() == torn
    else:
        assert kept == {f"{KEY}.damaged"}
        assert sorted(world.keys()) == [KEY, f"{KEY}.damaged"]
    with world.host() as state:
        state.open()
        assert state.rings.of_keys([ONE.object_key])


@pytest.mark.parametrize("world", ["file", "bucket"], indirect=True)
def test_a_state_that_breaks_while_it_is_used_is_begun_anew(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What was being written is said to have failed; the next call finds a state that works."""
    with world.host() as state:
        state.begin("configs/", 17)
        state.record([Ring(f"configs/{number}", "e", 1, is_exact=True) for number in range(2000)])
        file = state.rings.database.file
        assert file is not None
        file.write_bytes(bytes(4096) + file.read_bytes()[4096:])
        with pytest.raises(StoreUnavailableError):
            state.record([ONE])
        state.record([ONE])
        with pytest.raises(StoreUnavailableError, match="begun anew"):
            state.of_keys(["configs/1"])  # a round that goes on would take all of the bucket for new
        assert state.progress("configs/") is None
        assert state.begin("configs/", 99) == LOST
        assert state.of_keys([ONE.object_key, "configs/1"]) == {ONE.object_key: [ONE]}
    assert [one["levelname"] for one in warned(caplog)] == ["ERROR"]


def test_what_a_killed_process_has_left_is_removed(
    moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state of the bucket's lies in a directory for as long as a process lives; others' stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    world = World(moto, "bucket", {"TMPDIR": str(tmp_path)})
    with subprocess.Popen(
        [sys.executable, "-c", HOST], cwd=ROOT, env=os.environ | world.environment, stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdout is not None
        host.stdout.readline()
        (left,) = tmp_path.iterdir()
        os.utime(left, (0, 0))
        with world.host():
            assert left.exists(), "it runs"
        host.kill()
    os.utime(left, (0, 0))
    with world.host() as state:
        assert state.rings.database.file is not None
        assert list(tmp_path.iterdir()) == [state.rings.database.file.parent]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("world", ["bucket"], indirect=True)
@pytest.mark.parametrize(
    "content", [b"", b"\0\1", b'{"bucketbell": "sweep"}\n', b"{}\n", b"[]", b"x" * 100_000, b"torn"]
)
def test_an_object_of_anything_is_a_state_that_is_lost(
    world: World, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """Nobody knows any more which prefixes were swept: all of them count as that."""
    with world.host() as state:
        state.begin("configs/", 17)
    if content == b"torn":
        content = world.content()[:-10]
    world.s3.put_object(Bucket=world.bucket, Key=KEY, Body=content)
    with world.host() as state:
        assert state.begin("configs/", 99) == LOST
        assert state.begin("assets/", 99) == LOST
    assert "damaged" in warned(caplog)[0]["msg"]
    with world.host() as state:
        state.open()
        assert state.rings.progress("assets/") == LOST


@pytest.mark.parametrize("world", ["bucket"], indirect=True)
def test_what_is_unpacked_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write to the bucket cannot fill this machine's disk."""
    monkeypatch.setattr(marker, "MAX_STATE_BYTES", 3 << 20)
    with world.host() as state:
        state.begin("configs/", 17)
    header = world.content().partition(b"\n")[0]
    world.s3.put_object(Bucket=world.bucket, Key=KEY, Body=header + b"\n" + gzip.compress(bytes(100 << 20)))
    with world.host() as state:
        assert state.begin("configs/", 99) == LOST


@pytest.mark.parametrize("world", ["file", "bucket"], indirect=True)
def test_a_newer_releases_state_is_left_alone(world: World, tmp_path: Path) -> None:
    """It is refused with words, as it is, and used again by that release."""
    with world.host() as state:
        state.begin("configs/", 17)
        state.record([ONE])
        url = f"sqlite:///{tmp_path / 'link.db'}"
        (tmp_path / "link.db").symlink_to(str(state.rings.database.file))
        execute(url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")  # noqa: S608 - of this test
        state.rings.complete("configs/")
    before = world.content()
    with world.host() as state:
        for call in (state.open, lambda: state.begin("configs/", 99), lambda: state.record([ONE])):
            with pytest.raises(StoreUnavailableError, match=r"newer release \(9999\): run that one"):
                call()
    assert world.content() == before
    world.s3.put_object(Bucket=world.bucket, Key=KEY, Body=b'{"bucketbell": "sweep", "format": 2, "new": 1}\n')
    if world.home == "bucket":
        with world.host() as state, pytest.raises(StoreUnavailableError, match="newer release: run that one"):
            state.open()
        assert b'"new"' in world.content()


@pytest.mark.parametrize("world", ["file"], indirect=True)
def test_a_file_that_is_somebody_elses_is_left_alone(world: World) -> None:
    """A text that a variable names by mistake stays where it is, and so does another program's database."""
    world.file.write_text("a letter to a friend\n" * 100)
    with world.host() as state, pytest.raises(StoreUnavailableError, match=r"SWEEP_STATE_FILE names .*: name another"):
        state.open()
    assert world.file.read_text().startswith("a letter")
    world.file.unlink()
    with closing(sqlite3.connect(world.file)) as theirs, theirs:
        theirs.execute("CREATE TABLE mqtt_config (topic TEXT)")
    with world.host() as state, pytest.raises(StoreUnavailableError, match="belongs to another program"):
        state.open()


@pytest.mark.parametrize("world", HOMES, indirect=True)
def test_another_buckets_state_is_refused_by_name(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """And stays: whoever names the first bucket again finds all as it was."""
    with world.host() as state:
        state.begin("configs/", 17)
        state.record([ONE])
    world.s3.create_bucket(Bucket=f"{world.bucket}-b")
    if world.home == "bucket":  # mirrored, for instance
        world.s3.copy_object(Bucket=f"{world.bucket}-b", Key=KEY, CopySource={"Bucket": world.bucket, "Key": KEY})
    with world.host(BUCKET=f"{world.bucket}-b") as state:
        assert state.begin("configs/", 99) == PrefixProgress(99, is_complete=False, is_lost=False)
        assert state.rings.of_keys([ONE.object_key]) == {}
    (said,) = warned(caplog)
    assert "another bucket or endpoint" in said["msg"]
    assert f"{world.bucket} at {world.environment['AWS_ENDPOINT_URL_S3']}" in said["others"]
    with world.host() as state:
        assert state.begin("configs/", 99) == FIRST
        assert state.rings.of_keys([ONE.object_key])


@pytest.mark.parametrize("world", ["bucket"], indirect=True)
@pytest.mark.parametrize("versions", ["", "Enabled", "Suspended"])
def test_the_bucket_keeps_one_version_of_the_state(world: World, versions: str) -> None:
    """Whether it keeps versions, or kept them once; nobody else's object is touched."""
    if versions:
        world.s3.put_bucket_versioning(Bucket=world.bucket, VersioningConfiguration={"Status": "Enabled"})
    for _ in range(3):
        world.s3.put_object(Bucket=world.bucket, Key=f"{KEY}-of-somebody", Body=b"1")
    with world.host() as state:
        state.begin("configs/", 17)
    if versions == "Suspended":
        world.s3.put_bucket_versioning(Bucket=world.bucket, VersioningConfiguration={"Status": "Suspended"})
    for number in range(4):
        with world.host() as state:
            state.record([ONE._replace(etag=f"e{number}")])
    found = world.s3.list_object_versions(Bucket=world.bucket)
    assert [one["Key"] for one in found["Versions"]].count(KEY) == 1
    assert len([one for one in found["Versions"] if one["Key"] != KEY]) == (3 if versions else 1)
    assert "DeleteMarkers" not in found
    with world.host() as state:
        state.open()
        assert len(state.rings.of_keys([ONE.object_key])[ONE.object_key]) == 4


@pytest.mark.parametrize("world", ["bucket"], indirect=True)
def test_the_bucket_is_written_to_now_and_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """When something changed and the pause is over; a round that changes nothing writes nothing."""

    def written() -> str:
        return str(world.s3.head_object(Bucket=world.bucket, Key=KEY)["ETag"])

    with world.host() as state:
        state.begin("configs/", 17)
        before = written()
        state.record([ONE])
        state.save()
        assert written() == before, "too early"
        monkeypatch.setattr("infra.host.sweep.state.SAVE_SECONDS", 0.0)
        state.save()
        assert (after := written()) != before
        world.s3.delete_object(Bucket=world.bucket, Key=KEY)
        state.rings.forget_gone("configs/", "", None, [ONE.object_key])
        state.save()
        state.save_last()
        assert world.keys() == [], "nothing has changed"
        state.record([ONE._replace(etag="e2")])
        assert written() != after


@pytest.mark.parametrize("world", ["bucket"], indirect=True)
def test_a_state_moves_into_a_file_that_is_new(world: World, tmp_path: Path) -> None:
    """SWEEP_STATE_FILE set later: what was announced until then is known."""
    with world.host() as state:
        state.begin("configs/", 17)
        state.record([ONE])
    file = tmp_path / "state.db"
    with world.host(SWEEP_STATE_FILE=str(file)) as state:
        assert state.begin("configs/", 99) == FIRST
        assert state.rings.of_keys([ONE.object_key])
    assert file.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.glob("state*")] == ["state.db"]


@pytest.mark.parametrize("world", ["bucket", "file"], indirect=True)
def test_a_store_that_is_away_is_no_first_sweep(world: World) -> None:
    """Nobody knows what was swept before the store has said it: nothing begins until then."""
    gone = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_port()}"}
    with world.host(**gone) as state:
        with pytest.raises(StoreUnavailableError, match="cannot be read"):
            state.begin("configs/", 17)
        if world.home == "file":
            world.file.write_bytes(b"")
            state.record([ONE])  # a file that is there needs nobody
        assert state.rings.database.file is not None


@pytest.mark.parametrize("world", ["sqlite", "postgresql"], indirect=True)
def test_what_rang_is_noted_in_a_database_while_the_store_is_away(world: World) -> None:
    """Other hosts ask for it, and need no word from the bucket."""
    with world.host(AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{free_port()}") as state:
        state.record([ONE])
        assert state.rings.known([ONE.identity])
        with pytest.raises(StoreUnavailableError, match="cannot be read"):
            state.begin("configs/", 17)


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_without_a_sweep_the_bucket_is_not_asked(world: World) -> None:
    """Hosts with one server tell each other what rang; without one there is nothing to keep."""
    with world.host(SWEEP_SECONDS="0") as state:
        state.record([ONE])
        assert state.is_shared
        assert state.rings.known([ONE.identity])
        assert state.rings.of_keys([ONE.object_key]) == {}
    assert world.keys() == []
    for url in ("", "sqlite:////tmp/settings.db"):
        assert State.of(load(world.environment | {"SWEEP_SECONDS": "0", "DATABASE_URL": url}).settings) is None


def test_without_a_right_to_the_marker_it_goes_on(
    minio: Minio, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a first sweep; that it may not read, or not write, is said once each."""
    store = minio.client()
    store.create_bucket(Bucket="rights")
    base = {
        "AWS_ENDPOINT_URL_S3": minio.endpoint_url,
        "BUCKET": "rights",
        "SWEEP_SECONDS": "60",
        "SWEEP_STATE_FILE": str(tmp_path / "state.db"),
    }
    for action, what in (("s3:PutObject", "write"), ("s3:GetObject", "read")):
        caplog.clear()
        state = State.of(load(base | restricted(minio, "rights/.bucketbell/*", action=action)).settings)
        assert state is not None
        for prefix in ("configs/", "assets/"):
            assert state.begin(prefix, 17) == FIRST
        state.record([ONE])
        state.save_last()
        state.close()
        assert [one["msg"] for one in warned(caplog)] == [f"the sweep cannot {what} {KEY} in the bucket"]
        (tmp_path / "state.db").unlink()


def test_older_versions_that_may_not_be_removed_are_said(
    minio: Minio, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once; the state is saved all the same."""
    store = minio.client()
    store.create_bucket(Bucket="kept")
    store.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    base = {"AWS_ENDPOINT_URL_S3": minio.endpoint_url, "BUCKET": "kept", "SWEEP_SECONDS": "60"}
    rights = restricted(minio, "kept/.bucketbell/*", action="s3:DeleteObjectVersion")
    state = State.of(load(base | rights | {"SWEEP_STATE_FILE": str(tmp_path / "s.db")}).settings)
    assert state is not None
    for prefix in ("configs/", "assets/", "more/"):
        state.begin(prefix, 17)
    state.close()
    assert [one["msg"] for one in warned(caplog)] == [f"the sweep cannot remove older versions of {KEY} in the bucket"]
    assert b"more/" in store.get_object(Bucket="kept", Key=KEY)["Body"].read()


@pytest.mark.parametrize("world", ["file"], indirect=True)
def test_what_was_said_is_recorded_outlives_a_kill(world: World) -> None:
    """A file of its own, killed at any moment: whole, and not one word of it was empty."""
    for turn in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", HOST],
            cwd=ROOT,
            env=os.environ | world.environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as host:
            assert host.stdout is not None
            said = [int(host.stdout.readline()) for _ in range(5 + turn)][-1]
            host.kill()
            said = max([said, *map(int, host.stdout.read().split())])
        with world.host() as state:
            state.open()
            newest = {
                found[0].modified for found in state.rings.of_keys([f"configs/{key}" for key in range(50)]).values()
            }
            assert len(newest) == 1
            assert newest <= {said, said + 1}
            assert state.rings.progress("configs/") == FIRST


@pytest.mark.parametrize("world", ["file"], indirect=True)
def test_a_directory_that_cannot_be_written_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or is not there; and a machine without any needs a variable."""
    with (
        world.host(SWEEP_STATE_FILE="/nowhere/state.db") as state,
        pytest.raises(StoreUnavailableError, match=r"/nowhere/state.db cannot be made: .*Make its directory"),
    ):
        state.record([ONE])
    with (
        world.host(SWEEP_STATE_FILE="/proc/state.db") as state,
        pytest.raises(StoreUnavailableError, match=r"/proc/state.db cannot be made"),
    ):
        state.record([ONE])
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(StoreUnavailableError, match="set SWEEP_STATE_FILE"):
        State.of(load(world.environment | {"SWEEP_STATE_FILE": ""}).settings)


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_a_damaged_database_is_nobodys_to_set_aside(world: World, postgres_server: Postgres, tmp_path: Path) -> None:
    """It holds settings too: it is said, and left alone."""
    del postgres_server
    url = new_sqlite(tmp_path)
    file = tmp_path / "settings.db"
    file.write_bytes(bytes(8192))
    file.write_bytes(b"SQLite format 3\0" + os.urandom(8192))
    before = file.read_bytes()
    with world.host(DATABASE_URL=url) as state, pytest.raises(StoreUnavailableError):
        state.open()
    assert file.read_bytes() == before
    assert list(tmp_path.glob("settings*")) == [file]
