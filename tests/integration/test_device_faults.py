from __future__ import annotations

import gzip
import itertools
import json
import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import http_client as web
from infra.device import fetch, loop
from infra.device.jobs import ONCE_ATTEMPTS
from infra.local.certificates import make_certificates
from infra.local.process import free_port
from tests.fakes.device_rig import DeviceRig
from tests.fakes.slow_store import Behaviour, SlowStore, listed
from tests.hosts import eventually
from tests.timing import PATIENCE_SECONDS

OLD, NEW = os.urandom(300_000), os.urandom(300_001)
FILE = "assets/firmware.bin"


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


def have_old(world: SlowStore, rig: DeviceRig) -> None:
    """Let the device have another version of the file, and forget what that took."""
    new = world.objects[FILE]
    world.put(FILE, OLD)
    assert rig.once()
    assert rig.content(FILE) == OLD
    world.objects[FILE] = new
    world.seen.clear()
    rig.events.clear()


def test_a_file_is_fetched_verified_and_not_fetched_again(world: SlowStore, rig: DeviceRig) -> None:
    """The token goes to the server only, the ETag is asked for, and a second look costs no download."""
    assert rig.once()
    assert rig.content(FILE) == NEW
    (seen,) = world.downloads()
    assert "Authorization" not in seen.headers
    assert seen.headers["If-Match"] == f'"{world.objects[FILE].etag}"'
    assert "Range" not in seen.headers
    done = rig.wait_for("verified")
    assert (done["by"], done["size"], done["resumed_bytes"]) == ("md5", len(NEW), 0)
    legs = [done[f"{leg}_ms"] for leg in ("waited", "asked", "downloaded", "verified", "placed")]
    assert all(leg >= 0 for leg in legs)
    assert sum(legs) <= done["total_ms"] + 1
    assert rig.once()
    assert len(world.downloads()) == 1
    assert rig.named("caught_up")[-1] == {"listed": 1, "unchanged": 1, "wanted": 0}


def test_an_unchanged_manifest_is_not_sent_again(world: SlowStore, rig: DeviceRig) -> None:
    """Each page is asked for with its ETag, and all pages are read."""
    for number in range(4):
        world.put(f"assets/{number}", b"x")
    assert rig.once()
    assert rig.once()
    assert [seen.status for seen in world.asked("/manifest")] == [200] * 3 + [304] * 3
    assert len(world.downloads()) == 5
    world.put("assets/5", b"y")
    assert rig.once()
    assert rig.content("assets/5") == b"y"


def test_a_dropped_connection_is_resumed(world: SlowStore, rig: DeviceRig) -> None:
    """Each attempt asks for what is missing, of the same version, with the same URL."""
    world.script = [Behaviour(cut_after_bytes=limit) for limit in (100_000, 50_000, 0, 1)]
    assert rig.once()
    assert rig.content(FILE) == NEW
    assert [seen.headers.get("Range") for seen in world.downloads()] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
        "bytes=150000-",
        "bytes=150001-",
    ]
    assert {seen.headers["If-Match"] for seen in world.downloads()} == {f'"{world.objects[FILE].etag}"'}
    assert len(world.asked("/assets")) == 1
    assert rig.wait_for("verified")["resumed_bytes"] == 150_001


def test_what_an_earlier_process_had_is_used(world: SlowStore, tmp_path: Path) -> None:
    """A run that gives up leaves its bytes to the next one; a complete part needs no request at all."""
    world.script = [Behaviour(cut_after_bytes=1000)] + [Behaviour(status=503)] * ONCE_ATTEMPTS
    with DeviceRig(tmp_path, world.url) as rig:
        assert not rig.once()
        assert not (tmp_path / FILE).exists()
    with DeviceRig(tmp_path, world.url) as rig:
        assert rig.once()
        assert rig.wait_for("verified")["resumed_bytes"] == 1000
        assert rig.content(FILE) == NEW


def test_a_stalled_download_is_given_up_and_resumed(
    world: SlowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence for the named time ends the attempt, not the file."""
    monkeypatch.setattr(web, "STALL_TIMEOUT_SECONDS", 1.5)
    world.script = [Behaviour(stall_after_bytes=70_000)]
    with DeviceRig(tmp_path, world.url) as rig:
        assert rig.once()
        assert rig.reasons() == ["timed_out"]
        assert rig.wait_for("verified")["resumed_bytes"] == 70_000
        assert rig.content(FILE) == NEW


@pytest.mark.parametrize("status", [403, 400])
def test_an_expired_url_is_renewed_without_losing_anything(world: SlowStore, rig: DeviceRig, status: int) -> None:
    """The store's refusal of a URL that worked leads to a new URL at once, and the download goes on."""
    world.script = [Behaviour(cut_after_bytes=100_000), Behaviour(status=status)]
    assert rig.once()
    assert rig.reasons() == ["cut"]
    assert rig.reasons("renewing") == ["expired"]
    assert len(world.asked("/assets")) == 2
    assert world.downloads()[-1].headers["Range"] == "bytes=100000-"
    assert rig.content(FILE) == NEW


def test_an_object_replaced_in_the_middle_starts_anew(world: SlowStore, rig: DeviceRig) -> None:
    """The old version's bytes are never mixed with the new one's."""
    have_old(world, rig)
    newest = NEW[::-1]
    world.script = [Behaviour(cut_after_bytes=100_000, at_stop=lambda: world.put(FILE, newest))]
    assert rig.once()
    assert rig.reasons("renewing") == ["replaced"]
    assert [seen.status for seen in world.downloads()] == [200, 412, 200]
    assert rig.content(FILE) == newest


def test_an_object_replaced_behind_a_store_without_conditions(world: SlowStore, rig: DeviceRig) -> None:
    """Where If-Match is ignored, the response's ETag still tells."""
    newest = NEW[::-1]
    world.script = [
        Behaviour(cut_after_bytes=100_000, at_stop=lambda: world.put(FILE, newest)),
        Behaviour(ignore_conditions=True),
    ]
    assert rig.once()
    assert rig.reasons("renewing") == ["replaced"]
    assert rig.content(FILE) == newest


def test_an_object_deleted_in_the_middle_leaves_the_old_file(world: SlowStore, rig: DeviceRig) -> None:
    """The device says so, keeps what it has, and forgets what it had begun."""
    have_old(world, rig)
    world.script = [Behaviour(cut_after_bytes=100_000, at_stop=world.objects.clear)]
    assert rig.once()
    assert [fields["filename"] for fields in rig.named("gone")] == ["firmware.bin"]
    assert rig.content(FILE) == OLD
    assert list((rig.directory / ".bucketbell").glob("*.part")) == []


def test_a_store_that_ignores_ranges_is_lived_with(world: SlowStore, rig: DeviceRig) -> None:
    """A 200 in answer to a Range begins anew."""
    world.script = [Behaviour(cut_after_bytes=100_000), Behaviour(ignore_conditions=True)]
    assert rig.once()
    assert rig.content(FILE) == NEW
    assert rig.wait_for("verified")["resumed_bytes"] == 0


@pytest.mark.parametrize(
    ("does", "reasons"),
    [
        (Behaviour(body=OLD + b"x"), "corrupt stale_etag"),  # the same twice
        (Behaviour(body=NEW + b"x"), "corrupt"),
        (Behaviour(body=NEW[:-1], ignore_conditions=True), "cut"),
        (Behaviour(status=307, headers={"Location": "/elsewhere"}), "refused"),
        (Behaviour(status=204), "protocol"),
        (Behaviour(status=500), "unavailable"),
        (Behaviour(headers={"Transfer-Encoding": "chunked"}), "cut"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_answer_of_the_store_never_becomes_the_file(
    world: SlowStore, rig: DeviceRig, does: Behaviour, reasons: str
) -> None:
    """The old file stays, the attempts end, and a right answer later is still taken."""
    have_old(world, rig)
    world.script = [does] * ONCE_ATTEMPTS
    assert not rig.once()
    assert set(rig.reasons()) == set(reasons.split())
    assert rig.named("failed")[-1]["retry_in_ms"] is None
    assert rig.content(FILE) == OLD
    assert not [seen for seen in world.seen if "elsewhere" in seen.path]
    world.script = []
    assert rig.once()
    assert rig.content(FILE) == NEW


@pytest.mark.parametrize("content_range", ["bytes 0-9/300001", "bytes 100000-300000/300002", "items 1", ""])
def test_another_range_than_was_asked_for_is_not_written(world: SlowStore, rig: DeviceRig, content_range: str) -> None:
    """A 206 must begin where the part ends, and be of a file of that size."""
    wrong = Behaviour(headers={"Content-Range": content_range})
    world.script = [Behaviour(cut_after_bytes=100_000), wrong]
    assert rig.once()
    assert rig.reasons() == ["cut", "protocol"]
    assert rig.content(FILE) == NEW


def test_stored_bytes_are_taken_as_they_are(world: SlowStore, rig: DeviceRig) -> None:
    """An object with a Content-Encoding is not decoded, an empty one is a file too."""
    packed = gzip.compress(NEW)
    world.put("assets/packed", packed, Content_Encoding="gzip")
    world.put("assets/empty", b"")
    assert rig.once()
    assert rig.content("assets/packed") == packed
    assert rig.content("assets/empty") == b""


def test_an_etag_that_is_no_md5_is_not_taken_for_one(world: SlowStore, rig: DeviceRig) -> None:
    """Objects encrypted by KMS and multipart ones go by their size."""
    world.put("assets/kms", NEW, etag="0" * 32, x_amz_server_side_encryption="aws:kms")
    world.put("assets/parts", NEW, etag=f"{'0' * 32}-2")
    assert rig.once()
    assert {fields["filename"]: fields["by"] for fields in rig.named("verified")} == {
        "firmware.bin": "md5",
        "kms": "size",
        "parts": "size",
    }


@pytest.mark.parametrize(
    ("answer", "reason", "attempts"),
    [
        ((401, {}), "unauthorized", 1),
        ((503, {"Retry-After": "7"}), "unavailable", ONCE_ATTEMPTS),
        ((503, {"Retry-After": "soon"}), "unavailable", ONCE_ATTEMPTS),
        ((404, {}), "protocol", ONCE_ATTEMPTS),
        ((302, {"Location": "/manifest2"}), "protocol", ONCE_ATTEMPTS),
    ],
)
def test_what_the_server_refuses_is_told(
    world: SlowStore, tmp_path: Path, answer: tuple[int, dict[str, str]], reason: str, attempts: int
) -> None:
    """A bad token is not tried again by `--once`; whoever says Retry-After is left alone that long."""
    world.server_answers = [answer] * 10
    ten_seconds_a_look = itertools.count(0.0, 10.0).__next__
    with DeviceRig(tmp_path, world.url, clock=ten_seconds_a_look) as rig:
        assert not rig.once()
    assert rig.reasons() == [reason] * attempts
    assert len(world.seen) == attempts
    if answer[1].get("Retry-After") == "7":
        assert {fields["retry_in_ms"] for fields in rig.named("failed")[:-1]} == {7000}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"objects": {}}',
        b'{"objects": [1]}',
        b'{"objects": [{"kind": "asset"}], "next": null}',
        b'{"objects": [{"kind": "asset", "filename": "a", "etag": "a", "size": -1}]}',
        b'{"objects": [{"kind": "asset", "filename": "a", "etag": "a\\r\\nx: y", "size": 1}]}',
        b'{"objects": [], "next": 1}',
        b'{"objects": [], "next": "again"}',
        b'{"objects": [' + b" " * 9_000_000 + b"]}",
    ],
    ids=range(13),
)
def test_a_manifest_that_makes_no_sense_is_refused(world: SlowStore, rig: DeviceRig, body: bytes) -> None:
    """Nothing is fetched, and the device goes on living."""
    world.server_body = body
    assert not rig.once()
    assert set(rig.reasons()) == {"protocol"}
    assert world.downloads() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "ftp://x/y"},
        {"url": "file:///etc/passwd"},
        {"url": None},
        {"url": "http://[/x"},
        {"url": "http://:0/"},
        {"etag": ""},
        {"etag": 'a"\r\nX-Evil: 1'},
        {"size": "5"},
        {"size": True},
    ],
    ids=str,
)
def test_a_ticket_that_makes_no_sense_is_refused(world: SlowStore, rig: DeviceRig, changes: dict[str, object]) -> None:
    """No header is smuggled in, no other scheme followed."""
    world.ticket_changes = changes
    assert not rig.once()
    assert set(rig.reasons()) <= {"protocol", "unreachable"}
    assert world.downloads() == []


def test_names_that_a_gateway_would_spoil_are_asked_for_by_query(world: SlowStore, rig: DeviceRig) -> None:
    """A percent or question mark in a name goes where no gateway decodes it; other names are paths."""
    names = ["50%.bin", "what?.bin", "%2e%2e", "a b+c&d=e#f/é.bin"]
    for name in names:
        world.put(f"assets/{name}", name.encode())
    assert rig.once()
    for name in names:
        assert rig.content(f"assets/{name}") == name.encode()
    assert sorted(seen.path for seen in world.asked("/assets")) == [
        "/assets/a%20b%2Bc%26d%3De%23f/%C3%A9.bin",
        "/assets/firmware.bin",
        "/assets?filename=%252e%252e",
        "/assets?filename=50%25.bin",
        "/assets?filename=what%3F.bin",
    ]


def test_private_authorities_are_trusted_when_named(tmp_path: Path) -> None:
    """A server whose certificate nobody vouches for is refused; DEVICE_CA_FILE vouches."""
    certificates = make_certificates(tmp_path / "certificates")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    with SlowStore(tls=context) as world:
        world.put(FILE, NEW)
        for ca_file in (None, certificates.stranger_ca_file):
            with DeviceRig(tmp_path / "device", world.url, ca_file=ca_file) as rig:
                assert not rig.once()
                assert set(rig.reasons()) == {"unreachable"}
                assert "certificate" in rig.named("failed")[0]["detail"]
        assert world.seen == []
        with DeviceRig(tmp_path / "device", world.url, ca_file=certificates.ca_file) as rig:
            assert rig.once()
            assert rig.content(FILE) == NEW


def test_hostile_names_in_manifest_and_messages_write_nothing(world: SlowStore, rig: DeviceRig, tmp_path: Path) -> None:
    """The good file beside them is fetched; nothing else appears anywhere."""
    hostile = ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "x" * 300, "", "a//b", "a\0b", "a\ud800"]
    entries = [{**listed("assets/x", "e", 1), "filename": name} for name in hostile]
    other = listed("configs/00-00-00-00-00-00.json", "e", 1)
    unknown = {**listed("assets/x", "e", 1), "kind": "hologram"}
    world.server_body = json.dumps({"objects": [*entries, other, unknown], "next": None}).encode()
    assert rig.once()
    assert rig.reasons("skipped") == ["unsafe_name"] * len(hostile)
    world.server_body = None
    rig.start()
    for name in hostile:
        rig.say("t/updates/assets", json.dumps({"filename": name}).encode())
    rig.say("t/updates/assets", b"\xff")
    rig.say("elsewhere", b'{"filename": "x"}')
    rig.announce("configs/00-00-00-00-00-00.json")
    rig.wait_for("verified")
    assert rig.reasons("skipped") == ["unsafe_name"] * (2 * len(hostile) + 1) + ["not_ours"]
    assert {file for file in tmp_path.rglob("*") if file.is_file() and ".bucketbell" not in file.parts} == {
        rig.directory / FILE
    }
    assert {seen.path for seen in world.asked()} == {"/manifest", "/" + FILE}


def test_repeats_and_twins_cost_one_download(world: SlowStore, rig: DeviceRig) -> None:
    """The same id is dropped; two messages for one file, while it is coming, are one download."""
    rig.start()
    rig.wait_for("verified")
    first = world.put(FILE, OLD)
    world.script = [Behaviour(stall_after_bytes=10)]
    rig.announce(FILE, etag=first.etag, event_id="1")
    rig.wait_for("downloading", 2)
    rig.announce(FILE, etag=first.etag, event_id="1")
    rig.announce(FILE, etag=first.etag, event_id="2")
    assert rig.reasons("skipped") == ["repeat", "in_progress"]
    world.release.set()
    rig.wait_for("verified", 2)
    rig.announce(FILE, etag=first.etag, event_id="3")
    assert rig.reasons("skipped") == ["repeat", "in_progress", "unchanged"]
    assert rig.content(FILE) == OLD


def test_of_two_versions_the_newer_wins(world: SlowStore, rig: DeviceRig) -> None:
    """A newer version announced while one is coming ends that download: its rest would be of no use."""
    rig.start()
    rig.wait_for("verified")
    older = world.put(FILE, OLD * 10)
    newest = NEW[::-1]
    heard = threading.Event()
    world.script = [Behaviour(stall_after_bytes=500_000, go_on=True, at_stop=lambda: heard.wait(PATIENCE_SECONDS))]
    rig.announce(FILE, etag=older.etag, event_id="1")
    rig.wait_for("downloading", 2)
    rig.announce(FILE, etag=world.put(FILE, newest).etag, event_id="2")
    heard.set()
    world.release.set()
    assert rig.wait_for("verified", 2)["etag"] == world.objects[FILE].etag
    assert rig.content(FILE) == newest


def test_messages_without_properties_work_too(world: SlowStore, rig: DeviceRig) -> None:
    """MQTT 3.1.1 carries neither id nor ETag: the server is asked, and an unchanged file not fetched."""
    rig.start()
    rig.wait_for("verified")
    rig.announce(FILE)
    rig.wait_for("skipped")
    assert rig.reasons("skipped") == ["unchanged"]
    world.put(FILE, OLD)
    rig.announce(FILE)
    rig.wait_for("verified", 2)
    assert rig.content(FILE) == OLD
    assert len(world.downloads()) == 2


def test_a_fleet_is_spread(world: SlowStore, tmp_path: Path) -> None:
    """Catching up and fetching each wait for a random part of the spread."""
    with DeviceRig(tmp_path, world.url, spread_seconds=7.0) as rig:
        rig.start()
        rig.wait_for("verified")
        rig.announce(FILE, etag="another")
        rig.wait_for("heard")
    assert rig.spreads[:2] == [(0, 7.0), (0, 7.0)]


def test_a_flood_of_names_becomes_one_catch_up(
    world: SlowStore, rig: DeviceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is bounded: beyond that, the manifest is asked what is really there."""
    monkeypatch.setattr(loop, "MAX_WAITING", 3)
    for number in range(10):
        rig.announce(f"assets/{number}")
    rig.start()
    rig.wait_for("verified")
    assert len(world.asked("/assets")) <= 4


def test_no_room_on_the_disk_is_told_before_a_byte_comes(
    world: SlowStore, rig: DeviceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file stays; when there is room again, the next attempt has the new one."""
    have_old(world, rig)
    monkeypatch.setattr(rig.store, "free_bytes", lambda: fetch.DISK_RESERVE_BYTES + len(NEW) - 1)
    assert not rig.once()
    assert rig.reasons() == ["disk_full"]
    assert world.downloads() == []
    assert rig.content(FILE) == OLD
    monkeypatch.undo()
    assert rig.once()
    assert rig.content(FILE) == NEW


def test_a_conflict_of_names_is_told_once(world: SlowStore, rig: DeviceRig) -> None:
    """A file where a folder is wanted cannot be cured by trying again."""
    world.put(FILE + "/below", b"x")
    assert not rig.once()
    assert rig.reasons() == ["conflict"]
    assert rig.content(FILE) == NEW


def test_a_link_out_of_the_folder_is_not_written_through(world: SlowStore, rig: DeviceRig, tmp_path: Path) -> None:
    """Whoever planted it, the file behind it stays as it is."""
    del world
    (tmp_path / "outside").mkdir()
    (rig.directory / "assets").symlink_to(tmp_path / "outside")
    assert not rig.once()
    assert rig.reasons() == ["conflict"]
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_server_that_is_away_is_tried_again(world: SlowStore, tmp_path: Path) -> None:
    """`--once` gives up after its attempts; the running device goes on trying."""
    with DeviceRig(tmp_path, f"http://127.0.0.1:{free_port()}") as rig:
        assert not rig.once()
        assert rig.reasons() == ["unreachable"] * ONCE_ATTEMPTS
    world.server_answers = [(503, {})] * 8
    with DeviceRig(tmp_path, world.url) as rig:
        rig.start()
        rig.wait_for("verified")
        assert rig.reasons() == ["unavailable"] * 8


def test_stopping_is_quick_and_keeps_what_is_there(world: SlowStore, tmp_path: Path) -> None:
    """The download ends without a complaint; the next run goes on behind it."""
    world.put(FILE, NEW * 10)
    sent = threading.Event()
    world.script = [Behaviour(stall_after_bytes=2_000_000, at_stop=sent.set)]
    with DeviceRig(tmp_path, world.url) as rig:
        rig.start()
        assert sent.wait(PATIENCE_SECONDS)
        parts = (tmp_path / ".bucketbell").glob
        eventually(lambda: sum(part.stat().st_size for part in parts("*.part")) >= 2_000_000)
        rig.device.stop()
        world.release.set()
    assert rig.reasons() == []
    assert not (tmp_path / FILE).exists()
    with DeviceRig(tmp_path, world.url) as rig:
        assert rig.once()
        assert rig.content(FILE) == NEW * 10
        assert rig.wait_for("verified")["resumed_bytes"] == 2_000_000
