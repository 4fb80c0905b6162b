"""The host with stored broker settings: the real process, real Mosquittos."""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.local.certificates import make_certificates
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.subscriber import Subscriber
from tests.databases import new_sqlite
from tests.fakes.broker import FakeBroker
from tests.hosts import TOPICS, Host, eventually, upload
from tests.stored import PASSWORD, SHORT, USER, Admin, Stream, four, names, readiness, stored, storing
from tests.timing import SLACK_SECONDS

pytestmark = pytest.mark.usefixtures("mosquitto_binary")


# Which settings are in force.


def test_without_a_row_the_environment_is_in_force_and_a_row_outlives_it(tmp_path: Path) -> None:
    """`GET config` says which; the row is loaded at the next start and wins; each end is a DISCONNECT."""
    url = new_sqlite(tmp_path)
    with (
        Mosquitto(tmp_path / "environment") as first,
        Mosquitto(tmp_path / "row", users={USER: PASSWORD}, acl=f"user {USER}\ntopic readwrite #") as second,
    ):
        with Host(tmp_path, storing(url, first.url)) as host:
            config = Admin(host).config()
            assert (config["source"], config["version"], config["broker_port"]) == ("environment", 0, first.port)
            config = Admin(host).put(second.port, username=USER, password=PASSWORD)
            assert (config["source"], config["version"], config["has_password"]) == ("database", 1, True)
            eventually(lambda: readiness(host)[0] == 200)
            host.stop()
        assert "Received DISCONNECT" in first.log_text()
        assert "Received DISCONNECT" in second.log_text()
        before = first.log_text()
        with Subscriber(second.url, TOPICS, username=USER, password=PASSWORD) as listener:
            with Host(tmp_path, storing(url, first.url)) as host:
                config = Admin(host).config()
                assert (config["source"], config["broker_port"], config["username"]) == ("database", second.port, USER)
                assert Admin(host).status()["broker"] == second.url
                assert host.post(upload()).json() == {"outcomes": ["delivered"]}
                listener.next()
                goodbyes = second.log_text().count("Received DISCONNECT")
                host.stop()
            assert second.log_text().count("Received DISCONNECT") == goodbyes + 1
        assert first.log_text() == before, "nobody called at the environment's broker"


def test_stored_settings_connect_by_tls_with_the_authority_of_the_environment(tmp_path: Path) -> None:
    """And without it the status says what is wrong, while the service goes on."""
    certificates = make_certificates(tmp_path / "certificates")
    with Mosquitto(tmp_path / "broker", certificates=certificates, users={USER: PASSWORD}) as broker:
        changes: dict[str, object] = {"use_tls": True, "username": USER, "password": PASSWORD}
        trusting = storing(new_sqlite(tmp_path), MQTT_CA_FILE=str(certificates.ca_file))
        with stored(tmp_path, trusting, broker.port, **changes) as (host, admin):
            eventually(lambda: readiness(host)[0] == 200)
            assert host.post(upload()).status_code == 200
            assert admin.status()["broker"] == f"mqtts://127.0.0.1:{broker.port}"
        strange = storing(new_sqlite(tmp_path), MQTT_CA_FILE=str(certificates.stranger_ca_file))
        with Host(tmp_path, strange, ready=False) as host:
            eventually(lambda: Admin(host).status()["last_error"] is not None)
            assert "certificate" in Admin(host).status()["last_error"]["reason"]
            assert host.post(upload()).status_code == 503


def test_disabled_settings_connect_to_nobody_and_skip_events_in_silence(tmp_path: Path) -> None:
    """At the start too: no connection, 200 without outcomes, `mqtt_enabled` 0, ready; enabled again it rings."""
    with FakeBroker() as broker:
        known = storing(new_sqlite(tmp_path), f"mqtt://127.0.0.1:{free_port()}")
        with stored(tmp_path, known, broker.port, enabled=False):
            pass
        with Host(tmp_path, known, patch=SHORT) as host:
            eventually(lambda: readiness(host) == (200, {"configured": False}))
            for door, status in (("/events", 200), ("/events/fast", 202)):
                assert host.post(upload(), door).status_code == status
            assert host.post(upload()).json() == {"outcomes": []}
            assert (host.metric("mqtt_enabled"), host.metric("events_total")) == (0, 0)
            assert (Admin(host).status()["broker"], Admin(host).connected()) == (None, False)
            time.sleep(0.5)
            assert (broker.connections, host.lines("WARNING")) == (0, [])
            Admin(host).put(broker.port)
            eventually(lambda: readiness(host)[0] == 200)
            assert host.post(upload()).json() == {"outcomes": ["delivered"]}
            Admin(host).put(broker.port, enabled=False)
            broker.wait_for("DISCONNECT")
            assert host.post(upload()).json() == {"outcomes": []}


# A change.


@pytest.mark.parametrize("qos", ["1", "2"])
def test_under_a_stream_of_events_a_change_loses_none_and_the_old_broker_hears_no_more(
    tmp_path: Path, qos: str
) -> None:
    """Everything confirmed was heard at one of the two; what was posted after the answer only at the new one."""
    with ExitStack() as parts:
        old, new = (parts.enter_context(Mosquitto(tmp_path / name)) for name in ("old", "new"))
        at_old, at_new = (parts.enter_context(Subscriber(one.url, TOPICS)) for one in (old, new))
        known = storing(new_sqlite(tmp_path), MQTT_QOS=qos)
        host, admin = parts.enter_context(stored(tmp_path, known, old.port))
        eventually(lambda: readiness(host)[0] == 200)
        with Stream(host, "a") as one, Stream(host, "b") as other:
            eventually(lambda: len(one.confirmed) > 20)
            admin.put(new.port)
            posted_later = {stream: stream.next_name() for stream in (one, other)}
            eventually(lambda: all(stream.next_name() > posted_later[stream] for stream in (one, other)))
            time.sleep(0.3)
        confirmed = {*one.confirmed, *other.confirmed}
        eventually(lambda: confirmed <= {*names(at_old), *names(at_new)})  # at QoS 2 the subscriber takes a while
        heard_old, heard_new = set(names(at_old)), set(names(at_new))
        for stream in (one, other):
            assert set(stream.answers) <= {200, 503}
            later = {name for name in stream.confirmed if name >= posted_later[stream]}
            assert later
            assert later <= heard_new
            assert not later & heard_old
        # Where an acknowledgement crosses our DISCONNECT, the kernel resets the connection before the broker reads it.
        eventually(lambda: re.search(r"Client bucketbell-\w+ disconnected", old.log_text()))


def test_a_change_during_a_poll_of_the_database_is_not_undone_by_it(tmp_path: Path) -> None:
    """What was read before the change is older than it: nobody goes back to the old broker for a while."""
    slow = (
        f"{SHORT}\nimport time\nfrom functions.stored.store import ConfigStore\nread = ConfigStore.load\n"
        "def load(store):\n    found = read(store)\n    time.sleep(0.5)\n    return found\n"
        "ConfigStore.load = load"
    )
    with ExitStack() as parts:
        old, new = (parts.enter_context(Mosquitto(tmp_path / name)) for name in ("old", "new"))
        known = storing(new_sqlite(tmp_path))
        _, admin = parts.enter_context(stored(tmp_path, known, old.port, slow))
        eventually(admin.connected)
        for pause_seconds in (0.8, 1.05, 1.3):  # at different moments of a poll, which takes 0.7 s
            time.sleep(pause_seconds)
            admin.put(new.port)
            visits = old.log_text().count("New client connected")
            time.sleep(0.8)
            assert old.log_text().count("New client connected") == visits
            admin.put(old.port)
            eventually(admin.connected)


def test_a_change_that_does_not_concern_the_broker_keeps_the_connection(tmp_path: Path) -> None:
    """Nor does storing the same again, nor a poll of the database."""
    with Mosquitto(tmp_path / "broker") as broker:
        with stored(tmp_path, storing(new_sqlite(tmp_path)), broker.port) as (host, admin):
            eventually(lambda: readiness(host)[0] == 200)
            admin.put(broker.port, qos=2, topic_prefix="house", retain_messages=True)
            assert admin.put(broker.port, qos=2)["version"] == 3
            time.sleep(0.6)
            assert host.post(upload()).status_code == 200
        assert broker.log_text().count("New client connected") == 1


def test_a_bad_broker_is_stored_and_reported_and_a_good_one_heals(tmp_path: Path) -> None:
    """The service goes on meanwhile: it answers, and promises nothing that it cannot keep."""
    dead = free_port()
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(tmp_path / "broker"))
        listener = parts.enter_context(Subscriber(broker.url, TOPICS))
        host, admin = parts.enter_context(stored(tmp_path, storing(new_sqlite(tmp_path)), broker.port))
        eventually(lambda: readiness(host)[0] == 200)
        assert admin.put(dead)["broker_port"] == dead
        eventually(lambda: admin.status()["last_error"] is not None)
        status = admin.status()
        assert (status["connected"], status["broker"]) == (False, f"mqtt://127.0.0.1:{dead}")
        assert "refused" in status["last_error"]["reason"]
        code, mqtt = readiness(host)
        assert (code, mqtt["connected"], "refused" in mqtt["reason"]) == (503, False, True)
        assert host.http.get("/healthz").status_code == 200
        body = upload()
        assert host.post(body).status_code == 503
        admin.put(broker.port)
        eventually(lambda: readiness(host)[0] == 200, SLACK_SECONDS)  # at once, whatever the back-off
        assert host.post(body).json() == {"outcomes": ["delivered"]}
        listener.next()


# Status, metrics and logs.


def test_status_and_metrics_tell_of_an_outage(tmp_path: Path) -> None:
    """Each transition with its time and its reason, and the four metrics exactly."""
    with Mosquitto(tmp_path / "broker", users={USER: PASSWORD}) as broker:
        known = storing(new_sqlite(tmp_path))
        with stored(tmp_path, known, broker.port, username=USER, password=PASSWORD) as (host, admin):
            eventually(lambda: readiness(host)[0] == 200)
            first = admin.status()
            assert (first["scope"], first["connected"], first["last_error"]) == ("host", True, None)
            assert (first["messages_published"], first["reconnect_attempts"]) == (0, 0)
            assert four(host) == (1, 0, 0, 0)
            for _ in range(3):
                assert host.post(upload()).status_code == 200
            assert four(host) == (1, 3, 0, 0)
            assert admin.status()["messages_published"] == 3

            broker.kill()
            eventually(lambda: not admin.connected())
            assert host.post(upload()).status_code == 503
            eventually(lambda: admin.status()["reconnect_attempts"] >= 2)
            down, metrics = admin.status(), four(host)
            assert down["last_connected_at"] == first["last_connected_at"]
            assert down["last_error"]["reason_code"] is None
            assert down["last_error"]["at"] > first["last_connected_at"]
            assert metrics[:3] == (0, 3, 1)
            assert metrics[3] - down["reconnect_attempts"] in {0, 1}  # one may have come in between

            broker.set_users({USER: "another"})
            broker.start()
            eventually(lambda: (admin.status()["last_error"] or {}).get("reason_code") == 0x87)
            broker.set_users({USER: PASSWORD})
            broker.reload()
            eventually(admin.connected)
            back = admin.status()
            assert back["last_error"]["reason_code"] == 0x87
            assert back["last_connected_at"] > back["last_error"]["at"]
            assert host.post(upload()).status_code == 200
            assert four(host) == (1, 4, 1, back["reconnect_attempts"])


def test_the_log_tells_of_each_connect_and_once_of_each_cause(tmp_path: Path) -> None:
    """Connect and disconnect at INFO, with how many attempts had failed; each cause once per outage at WARNING."""
    with Mosquitto(tmp_path / "broker", users={USER: PASSWORD}) as broker:
        known = storing(new_sqlite(tmp_path))
        with stored(tmp_path, known, broker.port, username=USER, password=PASSWORD) as (host, admin):
            eventually(lambda: readiness(host)[0] == 200)
            for _ in range(2):
                attempts = admin.status()["reconnect_attempts"]
                broker.kill()
                # An event that waits has the host try once a second.
                eventually(
                    lambda before=attempts: (  # type: ignore[misc]  # the default binds this round's
                        host.post(upload()).status_code and admin.status()["reconnect_attempts"] >= before + 3
                    )
                )
                broker.start()
                eventually(admin.connected)
            back = admin.status()
            host.stop()
    causes: list[list[str]] = [[]]
    for line in map(json.loads, (text for text in host.log.splitlines() if text.startswith("{"))):
        if line["message"] == "mqtt connected":
            causes.append([])
        elif line["message"].startswith("mqtt connection failed"):
            assert line["level"] == "WARNING"
            causes[-1].append(line["reason"])
    assert all(len(set(once)) == len(once) for once in causes)
    assert [bool(once) for once in causes] == [False, True, True, False]
    said = [line["message"] for line in host.lines("INFO")]
    assert (said.count("mqtt connected"), said.count("mqtt disconnected")) == (3, 3)
    failed = [line["failed_attempts"] for line in host.lines("INFO") if line["message"] == "mqtt connected"]
    assert failed[0] == 0
    assert sum(failed) == back["reconnect_attempts"], "the loss, and each attempt but the last"
