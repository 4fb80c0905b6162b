"""What only whole hosts can show of the sweep: they share what rang, and a store that hangs does not keep one alive."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import httpx

from infra.local.mosquitto import Mosquitto
from infra.local.postgres import Postgres
from infra.subscriber import Subscriber
from tests.databases import new_postgresql
from tests.hosts import STOP_SECONDS, Host, environment, event, eventually, exactly, record
from tests.timing import SLACK_SECONDS

ASK_SECONDS = 0.1


def outcomes(answer: httpx.Response) -> list[str]:
    """What a door says of each record."""
    return list(answer.json()["outcomes"])


def test_hosts_with_one_postgresql_share_what_rang(
    tmp_path: Path, mosquitto: Mosquitto, postgres_server: Postgres
) -> None:
    """An event that one has announced is a repeat at the other's sure door; without the database it rings at once."""
    known = environment(mosquitto.url, DATABASE_URL=new_postgresql(postgres_server), BUCKET="devices")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with (
        Host(tmp_path / "one", known) as one,
        Host(tmp_path / "two", known) as two,
        Subscriber(mosquitto.url, ["#"]) as listener,
    ):
        body = event(record("assets/a"), record("assets/b"))
        assert outcomes(one.post(body)) == ["delivered", "delivered"]
        time.sleep(1.5)  # what rang is noted within a second
        assert outcomes(two.post(body)) == ["repeated", "repeated"]
        exactly(2, listener)
        assert outcomes(two.post(event(record("assets/c")))) == ["delivered"]
        postgres_server.stop()
        try:
            for number in range(3):
                begun_at = time.monotonic()
                assert outcomes(two.post(event(record(f"assets/away-{number}")))) == ["delivered"]
                assert time.monotonic() - begun_at < ASK_SECONDS + SLACK_SECONDS
        finally:
            postgres_server.start()
        exactly(4, listener)
        assert len([line for line in two.lines("WARNING") if "asked for" in line["message"]]) == 1


def test_a_store_that_hangs_does_not_keep_a_host_alive(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """It takes connections and never answers; the host ends in time, and says what is the matter before."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as store:
        known = environment(
            mosquitto.url,
            BUCKET="devices",
            SWEEP_SECONDS="1",
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{store.getsockname()[1]}",
            AWS_ACCESS_KEY_ID="key",
            AWS_SECRET_ACCESS_KEY="secret",
        )
        with Host(tmp_path, known) as host, Subscriber(mosquitto.url, ["#"]) as listener:
            assert outcomes(host.post(event(record("assets/a")))) == ["delivered"]
            exactly(1, listener)
            eventually(lambda: any("swept" in line["message"] for line in host.lines("WARNING")), 60.0)
            assert host.stop() < STOP_SECONDS
