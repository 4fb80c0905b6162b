"""The MicroPython client, run by a real MicroPython: the whole way on real parts, and what breaks on the way."""

from __future__ import annotations

import hashlib
import json
import random
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate
from paho.mqtt.publish import single

from infra.local.certificates import make_certificates
from infra.local.install import find_micropython
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process
from tests.conftest import missing
from tests.e2e.conftest import Build
from tests.e2e.test_pull import RING, WITH_DOWNLOADS
from tests.e2e.world import eventually, fresh, fresh_config
from tests.fakes.slow_store import TOKEN, Behaviour, SlowStore

CLIENT = Path(__file__).parents[2] / "infra/deploy/micropython"
MAC = "a1-b2-c3-d4-e5-f6"
ASSET = "esp32/fw a+b%é.bin"
OLD, NEW = (random.Random(seed).randbytes(300_001) for seed in (1, 2))  # noqa: S311 - protects nothing
SHA256 = hashlib.sha256(NEW).hexdigest()

MAIN = """
import bucketbell, sys
bucketbell.FIRST_RETRY_SECONDS = 0.1
bucketbell.KEEPALIVE_SECONDS = {keepalive_seconds}
bucketbell.TIMEOUT_SECONDS = {timeout_seconds}
ca = open({ca!r}, "rb").read() if {ca!r} else None
bucketbell.Board(
    {mac!r}, {token!r}, {server!r}, {broker!r}, {files!r}, ca, {directory!r}, on_file=lambda path: print("has", path),
    own_topic={own_topic!r}
).run()
"""


@pytest.fixture(scope="session")
def micropython() -> Path:
    """The real MicroPython, or no test of it."""
    return find_micropython() or missing("micropython", "`make micropython`")


class BoardProcess(Process):
    """A board: MicroPython with the client and a `main.py`; what is in `files` survives its restarts."""

    def __init__(
        self,
        micropython: Path,
        directory: Path,
        server: str,
        broker: str,
        *,
        mac: str = MAC,
        token: str = TOKEN,
        files: Mapping[str, str] | None = None,
        ca: Path | None = None,
        keepalive_seconds: int = 60,
        timeout_seconds: int = 10,
        own_topic: bool = False,
    ) -> None:
        self.files = directory / "files"
        self._main = MAIN.format(
            mac=mac,
            token=token,
            server=server,
            broker=broker,
            files=dict(files or {ASSET: "firmware.bin"}),
            ca="" if ca is None else str(ca),
            directory=str(self.files),
            keepalive_seconds=keepalive_seconds,
            timeout_seconds=timeout_seconds,
            own_topic=own_topic,
        )
        # A heap as on a small board: what grows with the file would not fit.
        command = [str(micropython), "-X", "heapsize=96k", str(directory / "main.py")]
        super().__init__("board", command, directory, environment={"MICROPYPATH": str(CLIENT)})

    def prepare(self) -> None:
        """Write what is on the board."""
        self.files.mkdir(exist_ok=True)
        (self.directory / "main.py").write_text(self._main)

    def has(self, name: str, body: bytes) -> bool:
        """Whether that file has come."""
        file = self.files / name
        return file.exists() and file.read_bytes() == body

    def gets(self, name: str, body: bytes) -> None:
        """Wait for it; fails with what was said when it does not come in time."""
        assert eventually(lambda: self.has(name, body)), self.log_text()

    def says(self, words: str, times: int = 1) -> None:
        """Wait until that was said so often."""
        assert eventually(lambda: self.log_text().count(words) >= times), self.log_text()


Start = Callable[..., BoardProcess]


@pytest.fixture
def start(micropython: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a board, and ends it."""
    with ExitStack() as stack:

        def begin(server: str, broker: str, **options: object) -> BoardProcess:
            board = BoardProcess(micropython, tmp_path / "board", server, broker, **options)  # type: ignore[arg-type] # its own
            stack.callback(board.stop)
            return board.start()

        yield begin


@pytest.fixture
def world() -> Iterator[SlowStore]:
    """Server and store with one asset, whose checksum is known."""
    with SlowStore() as fake:
        fake.put(f"assets/{ASSET}", NEW)
        fake.ticket_changes = {"sha256": SHA256}
        yield fake


def announce(
    broker: Mosquitto, payload: bytes = json.dumps({"filename": ASSET}).encode(), topic: str = "updates/assets"
) -> None:
    """Publish what an upload of the asset publishes, or anything else."""
    single(f"iotsupport/{topic}", payload, qos=1, hostname="127.0.0.1", port=broker.port)


# --- the whole way


def test_an_upload_is_on_the_board_byte_for_byte(build_minio: Build, start: Start) -> None:
    """MinIO, host, Mosquitto, MicroPython: config and asset, new and replaced; what is not this board's stays away."""
    world = build_minio(mqtt=WITH_DOWNLOADS)
    mine, theirs = fresh_config(), fresh_config()
    mac = mine.removesuffix(".json")
    board = start(world.host.url, world.broker.url, mac=mac, token=RING.mint(mac))
    world.put(f"configs/{theirs}", b"theirs")
    world.put(f"assets/{fresh()}", b"nobody's")
    world.put(f"configs/{mine}", b'{"interval": 1}')
    board.gets("config.json", b'{"interval": 1}')
    for body, how in ((OLD, {"ChecksumAlgorithm": "SHA256"}), (NEW, {"Metadata": {"sha256": SHA256.upper()}})):
        world.put(f"assets/{ASSET}", body, **how)
        board.gets("firmware.bin", body)
    board.says("has", 3)  # which is the last that it does
    assert {file.name for file in board.files.iterdir()} == {"config.json", "firmware.bin", "bucketbell.json"}


def test_what_was_uploaded_while_it_was_off_is_caught_up(build_minio: Build, start: Start) -> None:
    """By the manifest, over several pages; what is unchanged is not downloaded again."""
    world = build_minio(mqtt=WITH_DOWNLOADS)
    mine = fresh_config()
    mac = mine.removesuffix(".json")
    world.put(f"configs/{mine}", b"config")
    for number in range(45):
        world.put(f"assets/{number:02}", b"not this board's")
    world.put(f"assets/{ASSET}", OLD)
    world.put("assets/empty", b"")
    files = {ASSET: "firmware.bin", "empty": "empty"}
    board = start(world.host.url, world.broker.url, mac=mac, token=RING.mint(mac), files=files)
    board.gets("firmware.bin", OLD)
    board.gets("empty", b"")
    board.says("has", 3)
    board.stop()
    world.put(f"assets/{ASSET}", NEW)
    board.start()
    board.gets("firmware.bin", NEW)
    board.says("has", 4)  # this is the last in the manifest
    assert board.new_log_text().count("has") == 1
    assert board.has("config.json", b"config")


def test_it_all_works_over_tls(tmp_path: Path, start: Start, mosquitto_binary: Path) -> None:
    """MQTT and HTTP, against certificates of an authority of our own; a stranger's are refused."""
    files = make_certificates(tmp_path / "certificates")
    del mosquitto_binary
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server_cert, files.server_key)
    der = tmp_path / "ca.der"
    with (
        Mosquitto(tmp_path / "mosquitto", certificates=files, users={"board": "s@cret"}) as broker,
        SlowStore(tls=context) as secure,
    ):
        secure.put(f"assets/{ASSET}", NEW)
        url = broker.url.replace("mqtts://", "mqtts://board:s@cret@")
        for authority, comes in ((files.stranger_ca_file, False), (files.ca_file, True)):
            der.write_bytes(load_pem_x509_certificate(authority.read_bytes()).public_bytes(Encoding.DER))
            board = start(secure.url, url, ca=der)
            if comes:
                board.gets("firmware.bin", NEW)
            else:
                board.says("bucketbell:")
                assert not secure.seen
            board.stop()


# --- what breaks on the way


def test_a_download_goes_on_where_it_stopped(world: SlowStore, mosquitto: Mosquitto, start: Start) -> None:
    """After a broken line and after a power cut, by Range and pinned by If-Match; the rest is verified with it."""
    world.script = [Behaviour(cut_after_bytes=100_000), Behaviour(stall_after_bytes=100_000)]
    board = start(world.url, mosquitto.url)
    board.says("the store ended the connection")
    part = board.files / "bucketbell.part"
    assert eventually(lambda: part.exists() and part.stat().st_size > 150_000), board.log_text()
    board.stop(0)
    world.release.set()
    board.start()
    board.gets("firmware.bin", NEW)
    first, *others = [seen.headers for seen in world.downloads()]
    assert "Range" not in first
    starts = [int(headers["Range"].removeprefix("bytes=").removesuffix("-")) for headers in others]
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1]
    assert {headers["If-Match"] for headers in others} == {f'"{hashlib.md5(NEW).hexdigest()}"'}  # noqa: S324 - an ETag


def test_what_came_damaged_is_fetched_afresh(world: SlowStore, mosquitto: Mosquitto, start: Start) -> None:
    """It says so; the old file stays until the new one is whole."""
    world.put(f"assets/{ASSET}", OLD)
    world.ticket_changes = {}
    board = start(world.url, mosquitto.url)
    board.gets("firmware.bin", OLD)
    world.put(f"assets/{ASSET}", NEW)
    world.ticket_changes = {"sha256": SHA256}
    kept: list[bool] = []
    world.script = [
        Behaviour(body=NEW[:-1] + b"?"),
        Behaviour(cut_after_bytes=0, at_stop=lambda: kept.append(board.has("firmware.bin", OLD))),
    ]
    announce(mosquitto)
    board.gets("firmware.bin", NEW)
    assert kept == [True]
    board.says("came damaged")


def test_a_part_of_another_version_is_not_gone_on_with(world: SlowStore, mosquitto: Mosquitto, start: Start) -> None:
    """A file that is replaced in the middle is fetched from its beginning."""
    world.put(f"assets/{ASSET}", OLD)
    world.ticket_changes = {}
    world.script = [
        Behaviour(cut_after_bytes=100_000, at_stop=lambda: world.put(f"assets/{ASSET}", NEW)),
    ]
    board = start(world.url, mosquitto.url)
    board.gets("firmware.bin", NEW)
    assert "Range" not in world.downloads()[-1].headers


def test_a_store_that_knows_no_ranges_sends_all_of_it(world: SlowStore, mosquitto: Mosquitto, start: Start) -> None:
    """And the part that was there is thrown away."""
    world.script = [Behaviour(cut_after_bytes=100_000), Behaviour(ignore_conditions=True)]
    board = start(world.url, mosquitto.url)
    board.gets("firmware.bin", NEW)
    assert "Range" in world.downloads()[-1].headers


def test_one_file_that_fails_holds_up_no_other(world: SlowStore, mosquitto: Mosquitto, start: Start) -> None:
    """The others are fetched in the same round."""
    world.put("assets/a.bin", b"damaged, for ever")
    world.put("assets/z.bin", NEW)
    world.script = [Behaviour(status=500)] * 3
    board = start(world.url, mosquitto.url, files={"a.bin": "a", ASSET: "firmware.bin", "z.bin": "z"})
    board.gets("z", NEW)
    board.says("the store answers 500")
    board.says("came damaged")
    assert not (board.files / "a").exists()


def test_a_broker_that_was_away_is_heard_again(world: SlowStore, mosquitto: Mosquitto, start: Start) -> None:
    """It connects again with growing pauses, and then hears of the next upload."""
    board = start(world.url, mosquitto.url)
    board.gets("firmware.bin", NEW)
    mosquitto.stop()
    board.says("bucketbell:", 3)
    world.put(f"assets/{ASSET}", OLD)
    world.ticket_changes = {}
    mosquitto.start()
    board.gets("firmware.bin", OLD)
    world.put(f"assets/{ASSET}", NEW)
    announce(mosquitto)
    board.gets("firmware.bin", NEW)


def test_what_is_for_it_alone_comes_on_its_own_topic(world: SlowStore, mosquitto: Mosquitto, start: Start) -> None:
    """Its config, as with DEVICE_TOPICS, and any asset; not another device's config."""
    board = start(world.url, mosquitto.url, own_topic=True)
    board.gets("firmware.bin", NEW)
    world.ticket_changes = {}
    world.put(f"configs/{MAC.upper()}.json", b"{}")
    world.put(f"assets/{ASSET}", OLD)
    for name in ("00-00-00-00-00-00.json", f"{MAC.upper()}.json", ASSET):
        announce(mosquitto, json.dumps({"filename": name}).encode(), f"devices/{MAC}/updates")
    board.gets("config.json", b"{}")
    board.gets("firmware.bin", OLD)
    assert "bucketbell:" not in board.log_text()


def test_a_silent_broker_is_left(world: SlowStore, mosquitto: Mosquitto, start: Start) -> None:
    """A connection that only looks alive is found by the keep alive; a broker that answers keeps the connection."""
    board = start(world.url, mosquitto.url, keepalive_seconds=2, timeout_seconds=1)
    board.gets("firmware.bin", NEW)
    assert eventually(lambda: mosquitto.log_text().count("Received PINGREQ") > 1)
    assert "bucketbell:" not in board.log_text()
    mosquitto.freeze()
    board.says("bucketbell:")
    mosquitto.thaw()
    world.put(f"assets/{ASSET}", OLD)
    world.ticket_changes = {}
    announce(mosquitto)
    board.gets("firmware.bin", OLD)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"\xff", b'{"filename": 5}', b'{"filename": "../x"}', b"5"])
def test_a_message_that_makes_no_sense_ends_nothing(
    world: SlowStore, mosquitto: Mosquitto, start: Start, payload: bytes
) -> None:
    """The next one is heard."""
    board = start(world.url, mosquitto.url)
    board.gets("firmware.bin", NEW)
    announce(mosquitto, payload)
    world.put(f"assets/{ASSET}", OLD)
    world.ticket_changes = {}
    announce(mosquitto)
    board.gets("firmware.bin", OLD)
    assert board.running
