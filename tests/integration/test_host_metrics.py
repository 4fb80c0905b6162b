"""What `/metrics` shows before anything has happened: a rise from nothing is none to Prometheus."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from infra.local.certificates import make_certificates, renew_server
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stores import MotoServer
from tests.databases import execute, new_sqlite
from tests.hosts import TOPICS, Host, environment, eventually, upload
from tests.stored import SHORT, Admin, readiness, storing

EVENTS = Path(__file__).parents[1] / "events"
BY_TOPIC = ("mqtt_publish_total", "mqtt_publish_duration_seconds_count", "mqtt_no_subscribers_total")
CAMERA, DISCOVERY, AVAILABILITY = (
    "camera/+/event",
    "homeassistant/device/+/config",
    "home/bucketbell/replica/availability",
)
LOOKS_OFTEN = "from infra.host.mqtt import certificate\ncertificate.LOOK_AGAIN_SECONDS = 0.2"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(host: Host) -> Series:
    """The value of everything that has a topic, a source or an outcome."""
    families = text_string_to_metric_families(host.http.get("/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if {"topic", "source", "outcome"} & sample.labels.keys()
    }


def topics(shown: Series) -> set[str]:
    """The topics that are shown, each in every series that has one."""
    by_name = [{dict(labels)["topic"] for name, labels in shown if name == one} for one in BY_TOPIC]
    assert by_name[0] == by_name[1] == by_name[2]
    statuses = {(dict(labels)["topic"], dict(labels)["status"]) for name, labels in shown if name == BY_TOPIC[0]}
    assert statuses == {(topic, status) for topic in by_name[0] for status in ("success", "failure")}
    return by_name[0]


def outcomes(shown: Series, source: str) -> set[str]:
    """What may become of a record from this source."""
    found = [dict(labels) for name, labels in shown if name == "events_total"]
    return {labels["outcome"] for labels in found if labels["source"] == source}


def test_nothing_that_is_counted_is_new(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Every event of every sender, bad ones, a bad token, a broker that is down: no series but those of the start."""
    with Host(tmp_path, environment(mosquitto.url, MQTT_PUBLISH_TIMEOUT_SECONDS="0.5")) as host:
        at_first = series(host)
        assert set(at_first.values()) == {0}
        assert topics(at_first) == set(TOPICS)
        sure, fast = outcomes(at_first, "sure"), outcomes(at_first, "fast")
        assert {
            "delivered",
            "refused",
            "unconfirmed",
            "malformed",
            "unauthorised",
            "repeated",
            "foreign_bucket",
        } <= sure
        assert fast - sure == {"dropped"}
        assert outcomes(at_first, "sqs") == set(), "nothing polls a queue here"
        bodies = [document.read_bytes() for document in sorted(EVENTS.glob("*.json"))]
        bodies += [upload(), upload("configs/kitchen.json"), upload("assets//x"), upload("assets/x/"), b"{", b"", b"[]"]
        for door in ("/events", "/events/fast"):
            for body in bodies:
                assert host.post(body, door).status_code in {200, 202}
            assert host.post(bodies[0], door, token="wrong").status_code == 401
        mosquitto.stop()
        assert host.post(upload()).status_code == 503
        now = series(host)
        assert now.keys() == at_first.keys()
        assert sum(now.values()) > len(bodies)


def test_what_is_configured_besides_is_there_too(tmp_path: Path, mosquitto: Mosquitto, moto: MotoServer) -> None:
    """A queue that is polled, and cameras."""
    queue = moto.client("sqs").create_queue(QueueName="metrics")["QueueUrl"]
    moto.client().create_bucket(Bucket="metrics")
    known = {"AWS_ENDPOINT_URL": moto.endpoint_url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    known |= {"BUCKET": "metrics", "EVENTS_PREFIX": "events/", "SQS_QUEUE_URL": queue}
    with Host(tmp_path, environment(mosquitto.url, **known)) as host:
        shown = series(host)
        assert topics(shown) == {*TOPICS, CAMERA}
        assert {"gone", "bad_detection", "store_failed", "unconfirmed"} <= outcomes(shown, "sqs")
        assert not {"dropped", "unauthorised"} & outcomes(shown, "sqs")


def test_stored_settings_show_what_they_bring(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Nothing while there is no broker; Home Assistant's topics where it is switched on."""
    with Host(tmp_path, storing(new_sqlite(tmp_path)), ready=False, patch=SHORT) as host:
        eventually(lambda: readiness(host) == (200, {"configured": False}))
        assert series(host) == {}
        Admin(host).put(free_port())
        assert topics(series(host)) == set(TOPICS)
        Admin(host).put(mosquitto.port, discovery_enabled=True)
        assert topics(series(host)) == {*TOPICS, DISCOVERY, AVAILABILITY}


def test_the_brokers_certificate_is_watched_while_a_connection_lives_on(tmp_path: Path, mosquitto_binary: Path) -> None:
    """Its end as Unix time; a renewed one is seen although nobody reconnects. Without TLS there is no such metric."""
    del mosquitto_binary
    files = make_certificates(tmp_path / "certificates")

    def expires_at() -> float:
        return x509.load_pem_x509_certificate(files.server_cert.read_bytes()).not_valid_after_utc.timestamp()

    first = expires_at()
    with Mosquitto(tmp_path / "tls", certificates=files) as broker:
        known = environment(broker.url, MQTT_CA_FILE=str(files.ca_file))
        with Host(tmp_path, known, patch=LOOKS_OFTEN) as host:
            assert host.metric("mqtt_certificate_expires_seconds", broker=broker.url) == first
            renew_server(files, valid_for=timedelta(hours=30))
            broker.reload()
            eventually(lambda: host.metric("mqtt_certificate_expires_seconds", broker=broker.url) == expires_at())
            assert expires_at() != first
            assert host.metric("mqtt_reconnect_attempts_total") == 0
            broker.stop()
            eventually(lambda: host.metric("mqtt_connection_state") == 0)
            assert host.metric("mqtt_certificate_expires_seconds", broker=broker.url) == expires_at()
            host.stop()
    with Mosquitto(tmp_path / "plain") as broker, Host(tmp_path, environment(broker.url)) as host:
        assert "mqtt_certificate" not in host.http.get("/metrics").text


def test_a_database_that_is_down_is_told(tmp_path: Path) -> None:
    """`database_up` is 1, 0 while the stored settings cannot be read, 1 again; it is not there without a database."""
    url = new_sqlite(tmp_path)
    with Host(tmp_path, environment(None)) as host:
        assert "database_up" not in host.http.get("/metrics").text
    with Host(tmp_path, storing(url), ready=False, patch=SHORT) as host:
        eventually(lambda: host.metric("database_up") == 1)
        execute(url, "ALTER TABLE mqtt_config RENAME TO elsewhere")
        eventually(lambda: host.metric("database_up") == 0)
        assert "\ndatabase_up 0.0\n" in host.http.get("/metrics").text
        execute(url, "ALTER TABLE elsewhere RENAME TO mqtt_config")
        eventually(lambda: host.metric("database_up") == 1)
