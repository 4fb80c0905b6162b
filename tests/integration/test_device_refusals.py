"""What the device makes of a store that refuses it, of files that come wrong, and of files without an ETag."""

from __future__ import annotations

import errno
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import FileIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.compat import get_current_datetime
from botocore.config import Config

from infra.device.checks import Check, digest
from infra.device.names import Name
from infra.device.server import Ticket
from infra.local.stores import LOCAL_CREDENTIALS, Minio, Store, VersityGateway
from tests.fakes.device_rig import DeviceRig
from tests.fakes.real_store import RealStore
from tests.fakes.slow_store import MODIFIED, Behaviour, SlowStore, listed
from tests.timing import PATIENCE_SECONDS

NEW = os.urandom(300_001)
FILE = "assets/firmware.bin"
LATER = MODIFIED + timedelta(hours=1)

_buckets = itertools.count()


@pytest.fixture
def world() -> Iterator[SlowStore]:
    """Server and store, with one asset."""
    with SlowStore() as fake:
        fake.put(FILE, NEW)
        yield fake


@pytest.fixture
def rig(world: SlowStore, tmp_path: Path) -> Iterator[DeviceRig]:
    """A device that has caught up with nothing yet."""
    with DeviceRig(tmp_path / "device", world.url) as device:
        yield device


@pytest.fixture
def hasty(world: SlowStore, tmp_path: Path) -> Iterator[DeviceRig]:
    """A device by whose clock ten seconds pass with each look."""
    with DeviceRig(tmp_path / "device", world.url, clock=itertools.count(0.0, 10.0).__next__) as device:
        yield device


# Being asked to come later.


@pytest.mark.parametrize("headers", [{"Retry-After": "7"}, {}], ids=["with Retry-After", "without"])
def test_a_rate_limit_costs_no_attempt(world: SlowStore, hasty: DeviceRig, headers: dict[str, str]) -> None:
    """However often the server asks to come later: `--once` waits as long, and nothing is given up."""
    world.server_answers = [(429, headers)] * 30
    assert hasty.once()
    assert hasty.content(FILE) == NEW
    assert hasty.reasons() == ["rate_limited"] * 30
    if headers:
        assert {fields["retry_in_ms"] for fields in hasty.named("failed")} == {7000}


def listen_to(rig: DeviceRig, before: Callable[[int], None]) -> list[tuple[float, str]]:
    """When the server is asked for which file; `before` is called with how often it was."""
    asked: list[tuple[float, str]] = []
    locate = rig.server.locate

    def noted(name: Name) -> Ticket:
        asked.append((time.monotonic(), name.filename))
        before(len(asked))
        return locate(name)

    rig.server.locate = noted  # type: ignore[method-assign]
    return asked


def test_a_rate_limit_holds_for_every_file(world: SlowStore, rig: DeviceRig) -> None:
    """It is the device that is asked to wait: no other file is tried in its place."""
    for number in range(5):
        world.put(f"assets/{number}", b"x")

    def refuse_the_second(number: int) -> None:
        if number == 2:
            world.server_answers = [(429, {"Retry-After": "1"})]

    asked = listen_to(rig, refuse_the_second)
    assert rig.once()
    (before, refused), (after, again) = asked[1:3]
    assert after - before >= 1
    assert refused == again
    assert len(asked) == 7


def test_a_rate_limit_holds_for_what_was_announced_meanwhile(world: SlowStore, rig: DeviceRig) -> None:
    """A file announced anew while its request was refused waits as long as any other."""

    def announce_and_refuse(number: int) -> None:
        if number == 1:
            rig.announce(FILE, etag="another")
            world.server_answers = [(429, {"Retry-After": "1"})]

    asked = listen_to(rig, announce_and_refuse)
    assert rig.once()
    (before, _), (after, _) = asked
    assert after - before >= 1


def test_a_stores_429_is_kept_too(world: SlowStore, hasty: DeviceRig) -> None:
    """With the same URL, and nothing is given up."""
    world.script = [Behaviour(status=429, headers={"Retry-After": "9"})] * 20
    assert hasty.once()
    assert hasty.reasons() == ["rate_limited"] * 20
    assert {fields["retry_in_ms"] for fields in hasty.named("failed")} == {9000}
    assert len(world.asked("/assets")) == 1


# Refusals.


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (Behaviour(status=403, code="AccessDenied", message="Access Denied"), "forbidden"),
        (Behaviour(status=403, code="AccessDenied", message="Request has expired"), "clock_skew"),
        (Behaviour(status=403, code="RequestTimeTooSkewed"), "clock_skew"),
        (Behaviour(status=403, code="InvalidObjectState"), "archived"),
        (Behaviour(status=400, code="AuthorizationHeaderMalformed", message="expecting 'eu-central-1'"), "misdirected"),
        (Behaviour(status=400, code="InvalidRequest", message="Server Side Encryption"), "refused"),
        (Behaviour(status=403), "forbidden"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.code,
)
def test_a_fresh_url_that_is_refused_is_called_by_its_cause(
    world: SlowStore, rig: DeviceRig, does: Behaviour, reason: str
) -> None:
    """`--once` asks once, and says what the store said; the running device comes ever more seldom."""
    world.script = [does] * 100
    assert not rig.once()
    assert rig.reasons() == [reason]
    failed = rig.wait_for("failed")
    assert failed["code"] == (does.code or None)
    assert does.message in failed["detail"]
    assert len(world.downloads()) == len(world.asked("/assets")) == 1
    rig.start()
    rig.wait_for("failed", 9)
    waits = [spread for spread in rig.spreads if spread[0] > 0]
    assert waits[:6] == [(0.25, 0.5), (1, 2), (4, 8), (16, 32), (64, 128), (256, 512)]


def test_a_token_that_is_not_accepted_is_not_shown_for_every_file(world: SlowStore, rig: DeviceRig) -> None:
    """After each pause one request tells whether it is accepted by now."""
    for number in range(5):
        world.put(f"assets/{number}", b"x")

    def refuse(number: int) -> None:
        if number == 2:
            world.server_answers = [(401, {})] * 3

    asked = listen_to(rig, refuse)
    rig.start()
    rig.wait_for("verified", 6)
    names = [name for _, name in asked]
    assert names[1:5] == [names[1]] * 4
    assert len(names) == 6 + 3
    assert rig.reasons() == ["unauthorized"] * 3
    waits = [spread for spread in rig.spreads if spread[0] > 0]
    assert waits == [(0.25, 0.5), (1, 2), (4, 8)]


def test_a_store_that_refuses_ranges_is_asked_for_the_whole(world: SlowStore, rig: DeviceRig) -> None:
    """At once: what is there would be refused again and again."""
    world.script = [Behaviour(cut_after_bytes=100_000), Behaviour(status=416, code="InvalidRange")]
    assert rig.once()
    assert rig.content(FILE) == NEW
    assert [seen.status for seen in world.downloads()] == [200, 416, 200]
    assert rig.reasons() == ["cut"]


def test_an_upload_is_a_reason_to_try_at_once(world: SlowStore, tmp_path: Path) -> None:
    """What was refused waits for long, but not when its file is announced anew."""
    world.script = [Behaviour(status=403, code="AccessDenied")]
    with DeviceRig(tmp_path, world.url, retry_seconds=10 * PATIENCE_SECONDS) as rig:
        rig.start()
        rig.wait_for("failed")
        rig.announce(FILE, etag=world.objects[FILE].etag, event_id="1")
        rig.wait_for("verified")


def test_catching_up_again_does_not_repeat_what_was_refused(world: SlowStore, tmp_path: Path) -> None:
    """Each reconnection asks for the manifest; a version that was refused waits, another one does not."""
    world.script = [Behaviour(status=403, code="AccessDenied")]
    with DeviceRig(tmp_path, world.url, retry_seconds=10 * PATIENCE_SECONDS) as rig:
        rig.start()
        rig.wait_for("failed")
        rig.device.listening()
        rig.wait_for("caught_up", 2)
        assert len(world.downloads()) == 1
        world.put(FILE, NEW[::-1])
        rig.device.listening()
        rig.wait_for("verified")
        assert rig.content(FILE) == NEW[::-1]


def signed_otherwise(store: Store, bucket: str, *, shift_seconds: float = 0.0, **changes: Any) -> str:  # noqa: ANN401 - boto3's
    """A URL for the file as a server with other settings, or with a wrong clock, signs it."""
    known = {
        "endpoint_url": store.endpoint_url,
        "aws_access_key_id": store.access_key,
        "aws_secret_access_key": store.secret_key,
        "region_name": "us-east-1",
    }
    s3 = boto3.client("s3", **known | changes, config=Config(signature_version="s3v4", s3={"addressing_style": "path"}))
    moment = get_current_datetime() + timedelta(seconds=shift_seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.auth.get_current_datetime", lambda: moment)
        return str(s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": FILE}, ExpiresIn=60))


@pytest.mark.parametrize("kind", ["minio", "versitygw"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shift_seconds": -300}, "clock_skew"),
        ({"aws_access_key_id": "NOBODY"}, "misdirected"),
        ({"aws_secret_access_key": "wrong-secret"}, "misdirected"),
        ({"region_name": "eu-central-1"}, "misdirected"),
    ],
    ids=str,
)
def test_real_stores_name_the_cause(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, changes: dict[str, Any], reason: str
) -> None:
    """A server whose clock, key or region is wrong: MinIO and Versity Gateway say so, and so does the device."""
    store: Minio | VersityGateway = request.getfixturevalue(kind)
    bucket = RealStore(store, f"refusals-{next(_buckets)}")
    bucket.put(FILE, NEW)
    with SlowStore(bucket) as server:
        bucket.ticket_changes = {"url": signed_otherwise(store, bucket.bucket, **changes)}
        with DeviceRig(tmp_path, server.url) as rig:
            assert not rig.once()
            assert rig.reasons() == [reason]
            told = rig.wait_for("failed")
            assert told["code"]
            assert "Signature=" not in told["detail"]
            assert LOCAL_CREDENTIALS[1] not in told["detail"]


# If-Match.


def test_a_store_that_denies_a_right_if_match_is_asked_without(world: SlowStore, rig: DeviceRig) -> None:
    """Once, and the ETag of its answer must be the right one."""
    world.refuses_if_match = True
    assert rig.once()
    assert rig.content(FILE) == NEW
    assert [(seen.status, "If-Match" in seen.headers) for seen in world.downloads()] == [(412, True), (200, False)]
    assert len(world.asked("/assets")) == 1


def test_also_what_is_resumed_is_asked_for_without(world: SlowStore, rig: DeviceRig) -> None:
    """The rest is only taken from the version that its beginning is of."""
    world.script = [Behaviour(cut_after_bytes=100_000, at_stop=lambda: setattr(world, "refuses_if_match", True))]
    assert rig.once()
    assert rig.content(FILE) == NEW
    assert [seen.status for seen in world.downloads()] == [200, 412, 412, 206]
    assert rig.wait_for("verified")["resumed_bytes"] == 100_000


def test_without_if_match_another_version_is_not_taken(world: SlowStore, rig: DeviceRig) -> None:
    """The server still speaks of the old one: nothing is written, and it is not asked for hot."""
    world.ticket_changes = {"etag": "0" * 32}
    assert not rig.once()
    assert set(rig.reasons()) == {"replaced"}
    assert not (rig.directory / FILE).exists()
    assert [seen.status for seen in world.downloads()] == [412, 200] * (len(world.downloads()) // 2)


def test_a_part_that_nothing_ties_to_its_version_is_not_continued(world: SlowStore, rig: DeviceRig) -> None:
    """A 206 without ETag and time, of a store that was not held to a version: everything is fetched anew."""
    world.put(FILE, NEW, etag="", Last_Modified="yesterday")
    world.script = [Behaviour(cut_after_bytes=100_000)]
    assert rig.once()
    assert rig.content(FILE) == NEW
    assert [seen.status for seen in world.downloads()] == [200, 206, 200]


def test_an_etag_made_weak_on_the_way_is_the_same(world: SlowStore, rig: DeviceRig) -> None:
    """A proxy that compresses writes `W/` before it."""
    etag = world.objects[FILE].etag
    world.put(FILE, NEW, ETag=f'W/"{etag}"')
    assert rig.once()
    assert rig.content(FILE) == NEW


# What comes wrong, and disks that fail.


def test_a_file_that_comes_corrupt_is_not_fetched_each_minute(world: SlowStore, rig: DeviceRig) -> None:
    """The pauses grow beyond a minute: a large file over a slow line costs money."""
    world.script = [Behaviour(body=NEW[:-1] + bytes([NEW[-1] ^ accident])) for accident in range(1, 13)]
    rig.start()
    rig.wait_for("failed", 12)
    assert set(rig.reasons()) == {"corrupt"}
    waits = [high for low, high in rig.spreads if low > 0]
    assert waits[:8] == [0.5, 2, 8, 32, 128, 512, 2048, 3600]
    rig.wait_for("verified")


def test_an_etag_of_other_bytes_is_named_and_not_downloaded_again(world: SlowStore, rig: DeviceRig) -> None:
    """What comes twice is what the store has: from then on only the server is asked, until the object changes."""
    had = world.put(FILE, NEW)
    world.put(FILE, NEW[::-1], etag=had.etag)
    rig.start()
    rig.wait_for("failed", 6)
    assert set(rig.reasons()[:6]) == {"corrupt", "stale_etag"}
    assert rig.reasons()[:2] == ["corrupt", "stale_etag"]
    assert "the store's ETag or checksum is of other bytes" in rig.named("failed")[1]["detail"]
    assert len(world.downloads()) == 2
    waits = [high for low, high in rig.spreads if low > 0]
    assert waits[:6] == [0.5, 2, 8, 32, 128, 512]
    world.put(FILE, NEW, etag=had.etag, modified=LATER)
    rig.wait_for("verified")
    assert rig.content(FILE) == NEW


def test_once_gives_an_etag_of_other_bytes_up(world: SlowStore, rig: DeviceRig) -> None:
    """After the second download; what came is not put in place."""
    world.put(FILE, NEW[::-1], etag=world.put(FILE, NEW).etag)
    assert not rig.once()
    assert rig.reasons() == ["corrupt", "stale_etag"]
    assert rig.named("failed")[-1]["retry_in_ms"] is None
    assert not (rig.directory / FILE).exists()


def test_a_disk_that_cannot_be_read_is_told_and_lived_with(
    world: SlowStore, rig: DeviceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read error while verifying ends neither the process nor the file: it is fetched to other sectors."""
    bad = [True, True]

    def failing(check: Check, file: FileIO) -> str:
        if bad:
            bad.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(check, file)

    monkeypatch.setattr("infra.device.fetch.digest", failing)
    assert rig.once()
    assert rig.content(FILE) == NEW
    assert rig.reasons() == ["corrupt"] * 2
    assert "Input/output error" in rig.named("failed")[0]["detail"]
    assert len(world.downloads()) == 3


@pytest.mark.parametrize("call", ["free_bytes", "resume"])
def test_no_error_of_the_disk_ends_the_process(
    world: SlowStore, rig: DeviceRig, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Wherever the operating system says no, it is told with the reason."""
    del world

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(rig.store, call, failing)
    assert not rig.once()
    assert rig.reasons() == ["cannot_store"]


# Files without an ETag.


def test_a_file_without_an_etag_is_known_by_size_and_time(world: SlowStore, rig: DeviceRig) -> None:
    """It is fetched without If-Match, not again while both are the same, and again when one is not."""
    world.put(FILE, NEW, etag="")
    assert rig.once()
    assert rig.content(FILE) == NEW
    (seen,) = world.downloads()
    assert "If-Match" not in seen.headers
    done = rig.wait_for("verified")
    assert (done["etag"], done["by"]) == (None, "size")
    assert rig.once()
    assert rig.named("caught_up")[-1]["unchanged"] == 1
    assert len(world.downloads()) == 1
    world.put(FILE, NEW[::-1], etag="", modified=LATER)
    assert rig.once()
    assert rig.content(FILE) == NEW[::-1]
    world.put(FILE, NEW)
    assert rig.once()
    assert rig.content(FILE) == NEW


def test_a_file_without_an_etag_is_resumed_by_its_time(world: SlowStore, rig: DeviceRig) -> None:
    """Replaced meanwhile, it is begun anew."""
    world.put(FILE, NEW, etag="")
    world.script = [Behaviour(cut_after_bytes=100_000)]
    assert rig.once()
    assert rig.wait_for("verified")["resumed_bytes"] == 100_000
    newest = NEW[::-1]
    replace = lambda: world.put(FILE, newest + b"x", etag="", modified=LATER + timedelta(hours=1))  # noqa: E731
    world.put(FILE, newest, etag="", modified=LATER)
    world.script = [Behaviour(cut_after_bytes=100_000, at_stop=replace)]
    assert rig.once()
    assert rig.reasons("renewing") == ["replaced"]
    assert rig.content(FILE) == newest + b"x"


def test_one_bad_line_of_the_manifest_does_not_hide_the_others(world: SlowStore, rig: DeviceRig) -> None:
    """What makes sense is fetched; what does not is told, and exit status 1."""
    good = world.listing()
    bad = [1, {}, listed("assets/x", None, -1), {**listed("assets/x", "e", 1), "etag": 'a"\r\nx: y'}]
    bad.append({name: value for name, value in listed("assets/x", None, 1).items() if name != "last_modified"})
    world.listing = lambda: [*bad, *good]  # type: ignore[method-assign,list-item]
    assert not rig.once()
    assert rig.content(FILE) == NEW
    assert set(rig.reasons()) == {"protocol"}
    assert f"{len(bad)} lines" in rig.named("failed")[0]["detail"]


def test_notes_of_an_earlier_release_are_understood(world: SlowStore, rig: DeviceRig) -> None:
    """An update of the device fetches nothing that is there."""
    assert rig.once()
    (note,) = (rig.directory / ".bucketbell").glob("*.json")
    known = json.loads(note.read_text())
    del known["last_modified"]
    note.write_text(json.dumps(known))
    assert rig.once()
    assert len(world.downloads()) == 1
