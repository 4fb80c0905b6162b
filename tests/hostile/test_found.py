"""What the searches have found, once, in plain words."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from functions.mqtt.broker import BrokerConfig
from functions.s3.clients import StorageError
from functions.s3.objects import Objects
from functions.settings import SettingsError, load
from functions.settings.addresses import check_database_url
from tests.hostile.searching import leaks

LONG = "x" * 5000
PASSWORD = "sesame/0pen-Kx7"


@pytest.mark.parametrize(
    "variable", ["SECRETS_DIR", "MQTT_CA_FILE", "MQTT_CERT_FILE", "MQTT_KEY_FILE", "HOST_CERT_FILE", "HOST_KEY_FILE"]
)
def test_a_path_that_no_system_can_have_is_refused_by_name(variable: str) -> None:
    """Python's `is_file` and `is_dir` raise for it, and for a folder that this process may not look into."""
    with pytest.raises(SettingsError, match=variable):
        load({variable: LONG})


def test_a_dotenv_that_no_system_can_have_is_none() -> None:
    """As one that does not exist."""
    assert load({}, env_file=Path(LONG)).origins == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MQTT_USERNAME", "u" * 65_536),
        ("MQTT_USERNAME", "bell\0"),
        ("MQTT_USERNAME", "be\nll"),
        ("MQTT_PASSWORD", "\N{SNOWMAN}" * 21_846),
        ("TOPIC_PREFIX", "\N{SNOWMAN}" * 342),
    ],
)
def test_what_no_mqtt_packet_can_hold_is_refused_by_name(variable: str, value: str) -> None:
    """Otherwise CONNECT or PUBLISH could not be written, and each message would fail in a way that nobody foresaw."""
    with pytest.raises(SettingsError, match=variable):
        load({"MQTT_URL": "mqtt://b", "MQTT_USERNAME": "u", variable: value})


def test_the_longest_that_a_packet_can_hold_is_taken() -> None:
    """A signed token may be a long password."""
    longest = {"MQTT_USERNAME": "u" * 65_535, "MQTT_PASSWORD": "p" * 65_535, "TOPIC_PREFIX": "t" * 1024}
    assert BrokerConfig.of(load({"MQTT_URL": "mqtt://b", **longest}).settings) is not None


@pytest.mark.parametrize("url", [f"postgresql://bell:p@{PASSWORD}@db.local/settings", f"postgresql://u:p@{PASSWORD}@h"])
def test_a_password_that_is_not_percent_encoded_is_not_taken_for_a_host(url: str) -> None:
    """Its parts would be host and database then, which messages name."""
    with pytest.raises(ValueError, match="percent-encoded") as caught:
        check_database_url(url)
    assert not leaks(PASSWORD, str(caught.value))


def test_what_is_no_s3_is_a_store_that_is_broken() -> None:
    """A proxy's page with status 200: a 503 that says so in the log, not a KeyError."""

    class Page(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}"}
        settings = load(environ | {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}).settings
        with pytest.raises(StorageError, match="not S3"):
            Objects(settings, "devices", url_ttl_seconds=60).head("assets/x")
        server.shutdown()
