"""The installed command `bucketbell`, as a person or a script runs it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from infra.local.certificates import make_certificates
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

BUCKETBELL = Path(sys.executable).with_name("bucketbell")
COMMANDS = ("host", "connect", "listen", "config")
DEADLINE_SECONDS = 2 * PATIENCE_SECONDS
STOP_SECONDS = 2.0 + SLACK_SECONDS  # at once, to somebody who waits; DEADLINE_SECONDS is what hangs
NOT_FOR_HELP = {
    "alembic",
    "boto3",
    "botocore",
    "httptools",
    "paho",
    "prometheus_client",
    "psycopg",
    "sqlalchemy",
    "uvloop",
}
CANARY = "canary-5f3a-0123456789"
TOPIC = "iotsupport/updates/configs"
PAYLOAD = '{"filename": "aa-bb-cc-dd-ee-ff.json"}'


@pytest.fixture(autouse=True)
def _is_installed() -> None:
    assert BUCKETBELL.exists(), "run `make setup`"


def environment(variables: dict[str, str]) -> dict[str, str]:
    """A bare environment with these variables."""
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONWARNINGS": "error", **variables}


def run(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in `directory` to its end."""
    return subprocess.run(
        [BUCKETBELL, *arguments],
        cwd=directory,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@contextmanager
def running(directory: Path, *arguments: str, until: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command in the background, from when it has said `until` on either output."""
    with subprocess.Popen(
        [BUCKETBELL, *arguments],
        cwd=directory,
        env=environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=0,
    ) as process:
        try:
            wait_for(process, until)
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Read both outputs until `words` have come."""
    streams = [stream for stream in (process.stdout, process.stderr) if stream]
    deadline = time.monotonic() + DEADLINE_SECONDS
    said = b""
    while words.encode() not in said:
        assert time.monotonic() < deadline, said
        for stream in select.select(streams, [], [], 0.1)[0]:
            came = os.read(stream.fileno(), 65536)
            assert came, said
            said += came


def ring(broker: Mosquitto, payload: str = PAYLOAD, *, retain: bool = False) -> None:
    """Publish as the host does, with a user property."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho left it untyped
    properties.UserProperty = [("id", "7")]
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.publish(TOPIC, payload, qos=1, retain=retain, properties=properties).wait_for_publish(DEADLINE_SECONDS)
    client.disconnect()
    client.loop_stop()


@pytest.mark.parametrize("arguments", [(), *((command,) for command in COMMANDS)])
def test_every_command_explains_itself(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """--help tells what it does and what each option means, and exits 0."""
    told = run(tmp_path, *arguments, "--help", COLUMNS="200")
    assert (told.returncode, told.stderr) == (0, "")
    assert " ".join(["Usage: bucketbell", *arguments]) in told.stdout
    options = re.findall(r"^│ +(--[a-z-]+)(.*)│$", told.stdout, re.MULTILINE)
    assert options
    assert all(len(rest.split()) > 2 for _, rest in options)
    if not arguments:
        assert all(re.search(rf"│ {command} +[A-Z]", told.stdout) for command in COMMANDS)
    else:
        assert "Example" in told.stdout


def test_help_comes_at_once() -> None:
    """Nothing is loaded for it that only a command needs: those take most of a start."""
    program = f"""
import sys
from infra.cli import app
try:
    app(["--help"])
finally:
    print(sorted({NOT_FOR_HELP} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True
    )
    assert "Usage:" in done.stdout
    assert done.stderr == "[]\n"


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    """--version names the program and its version."""
    told = run(tmp_path, "--version")
    assert (told.returncode, told.stderr) == (0, "")
    assert re.fullmatch(r"bucketbell \d+\.\d+\.\d+\n", told.stdout)


@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("listen", "--nonsense"), ("listen", "--count", "0"), ("host", "--port", "65536")],
)
def test_wrong_options_exit_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A usage error is told apart from a failure."""
    assert run(tmp_path, *arguments).returncode == 2


def test_config_shows_every_setting_and_its_origin(tmp_path: Path) -> None:
    """Environment, .env, secrets directory and defaults are told apart; secrets are masked; markup is not read."""
    (tmp_path / ".env").write_text("TOPIC_PREFIX=plant\nMQTT_QOS=2\n")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "MQTT_PASSWORD").write_text(f"{CANARY}\n")
    variables = {
        "MQTT_URL": "mqtts://[::1]",
        "MQTT_USERNAME": "[/red]",
        "MQTT_QOS": "0",
        "SECRETS_DIR": "secrets",
        "WEBHOOK_TOKENS": f"{CANARY},{CANARY}2",
    }
    table = run(tmp_path, "config", **variables)
    assert (table.returncode, table.stderr) == (0, "")
    rows = {line.split()[0]: tuple(line.split(maxsplit=2)[1:]) for line in table.stdout.splitlines()}
    expected = {
        "MQTT_URL": ("environment", "mqtts://[::1]"),
        "MQTT_USERNAME": ("environment", "[/red]"),
        "MQTT_PASSWORD": ("secrets", "********"),
        "MQTT_QOS": ("environment", "0"),
        "TOPIC_PREFIX": (".env", "plant"),
        "WEBHOOK_TOKENS": ("environment", "********, ********"),
        "BUCKET": ("default", "-"),
        "CONFIGS_PREFIX": ("default", "configs/"),
    }
    assert expected.items() <= rows.items()
    document = run(tmp_path, "config", "--json", **variables)
    assert (document.returncode, document.stderr) == (0, "")
    values = json.loads(document.stdout)
    assert values["BUCKET"] == {"value": None, "origin": "default"}
    assert values["MQTT_QOS"] == {"value": 0, "origin": "environment"}
    assert values["MQTT_PASSWORD"] == {"value": "********", "origin": "secrets"}
    assert set(values) == set(rows)
    assert CANARY not in table.stdout + document.stdout


def test_config_shows_the_region_that_is_in_force(tmp_path: Path) -> None:
    """Whichever variable or profile it comes from; a profile that is not there is named."""
    (tmp_path / "aws").write_text("[default]\nregion = ap-south-1\n")
    nowhere = {"AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}

    def shown(**variables: str) -> tuple[str, str]:
        told = run(tmp_path, "config", "--json", **(nowhere | variables))
        assert (told.returncode, told.stderr) == (0, "")
        row = json.loads(told.stdout)["S3_REGION"]
        return row["value"], row["origin"]

    assert shown() == ("us-east-1", "default")
    assert shown(AWS_CONFIG_FILE="aws") == ("ap-south-1", "profile")
    assert shown(AWS_DEFAULT_REGION="eu-west-2\n", AWS_CONFIG_FILE="aws") == ("eu-west-2", "AWS_DEFAULT_REGION")
    assert shown(AWS_DEFAULT_REGION="eu-west-2", AWS_REGION="eu-west-1") == ("eu-west-1", "AWS_REGION")
    assert shown(AWS_REGION="eu-west-1", S3_REGION="home") == ("home", "environment")
    refused = run(tmp_path, "config", AWS_PROFILE="gone", **nowhere)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "gone" in refused.stderr


@pytest.mark.parametrize("arguments", [("config",), ("config", "--json"), ("listen",), ("host",)])
def test_wrong_settings_are_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Each is a line on standard error with what would be right; exit 1; nothing is repeated or on standard output."""
    told = run(tmp_path, *arguments, MQTT_URL=f"mqtt://user:{CANARY}@host", MQTT_QOS="7", WEBHOOK_TOKENS="short")
    assert (told.returncode, told.stdout) == (1, "")
    assert [line.partition(":")[0] for line in told.stderr.splitlines()] == ["MQTT_URL", "MQTT_QOS", "WEBHOOK_TOKENS"]
    assert "MQTT_PASSWORD" in told.stderr
    assert CANARY not in told.stderr


def test_listen_prints_what_a_device_hears(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """A line for each message, and the end of it when --count is reached."""
    with running(tmp_path, "listen", "--count", "2", until="listening on", MQTT_URL=mosquitto.url) as process:
        ring(mosquitto)
        ring(mosquitto, "\x1b[2J\x07\xff")
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, err) == (0, "")
    first, second = out.splitlines()
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  {TOPIC}  {re.escape(PAYLOAD)}", first)
    assert second.endswith(f"{TOPIC}  \N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}\xff")


def test_listen_prints_json_for_scripts(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Topic, payload, QoS, retain flag, properties and time of each message, one object a line."""
    arguments = ("listen", "--json", "--count", "1", "--seconds", str(PATIENCE_SECONDS))
    with running(tmp_path, *arguments, until="listening on", MQTT_URL=mosquitto.url) as process:
        before = time.time()
        ring(mosquitto)
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    (line,) = out.splitlines()
    message = json.loads(line)
    assert before <= message.pop("received_at") <= time.time()
    assert message == {"topic": TOPIC, "payload": PAYLOAD, "qos": 1, "retain": False, "properties": {"id": "7"}}


def test_listen_hears_cameras_where_there_are_any(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """With EVENTS_PREFIX."""
    known = {"MQTT_URL": mosquitto.url, "EVENTS_PREFIX": "events/", "BUCKET": "devices"}
    said = run(tmp_path, "listen", "--seconds", "0.2", **known).stderr
    assert "iotsupport/camera/+/event" in said


def test_listen_ends_after_the_seconds_given(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """With --count it exits 1, because fewer came; without it 0."""
    without = run(tmp_path, "listen", "--seconds", "0.2", MQTT_URL=mosquitto.url)
    assert (without.returncode, without.stdout) == (0, "")
    short = run(tmp_path, "listen", "--seconds", "0.2", "--count", "1", MQTT_URL=mosquitto.url)
    assert (short.returncode, short.stdout) == (1, "")
    assert "heard 0 of 1 messages in 0.2 s" in short.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_listen_ends_when_told_to(tmp_path: Path, mosquitto: Mosquitto, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM: at once, in order, and without a word."""
    with running(tmp_path, "listen", until="listening on", MQTT_URL=mosquitto.url) as process:
        asked = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert time.monotonic() - asked < STOP_SECONDS
    assert (process.returncode, out, err) == (0, "", "")


def test_listen_says_when_the_broker_goes_and_comes(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """It stays, tells of the loss on standard error, and hears what comes afterwards."""
    with running(tmp_path, "listen", "--count", "1", until="listening on", MQTT_URL=mosquitto.url) as process:
        mosquitto.stop()
        wait_for(process, "trying again")
        mosquitto.start()
        wait_for(process, "listening again")
        ring(mosquitto)
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    assert PAYLOAD in out


def test_listen_survives_a_closed_pipe(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """`bucketbell listen | head -1` ends with the next message, without a stack trace."""
    with running(tmp_path, "listen", until="listening on", MQTT_URL=mosquitto.url) as process:
        assert process.stdout is not None
        process.stdout.close()
        ring(mosquitto)
        process.wait(DEADLINE_SECONDS)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_listen_presents_its_client_certificate(tmp_path: Path) -> None:
    """A broker that asks for one is satisfied with MQTT_CERT_FILE and MQTT_KEY_FILE."""
    certificates = make_certificates(tmp_path)
    with Mosquitto(tmp_path / "mosquitto", certificates=certificates, require_client_certificate=True) as broker:
        ca = {"MQTT_URL": broker.url, "MQTT_CA_FILE": str(certificates.ca_file)}
        pair = {"MQTT_CERT_FILE": str(certificates.client_cert), "MQTT_KEY_FILE": str(certificates.client_key)}
        assert run(tmp_path, "listen", "--seconds", "0.1", **ca, **pair).returncode == 0
        assert run(tmp_path, "listen", "--seconds", "0.1", **ca).returncode == 1


def test_listen_says_why_it_cannot(tmp_path: Path) -> None:
    """No URL, nobody there, a wrong password, a file that is no certificate: one line, exit 1."""
    not_pem = tmp_path / "ca.pem"
    not_pem.write_text("nothing")
    with Mosquitto(tmp_path / "mosquitto", users={"user": "right"}) as broker:
        wrong = {"MQTT_URL": broker.url, "MQTT_USERNAME": "user", "MQTT_PASSWORD": CANARY}
        nobody = {"MQTT_URL": f"mqtt://127.0.0.1:{free_port()}"}
        for variables, words in (
            ({}, "MQTT_URL: must be set"),
            (nobody, "Connection refused"),
            (wrong, "Not authorized"),
            ({"MQTT_URL": "mqtts://127.0.0.1", "MQTT_CA_FILE": str(not_pem)}, "MQTT_CA_FILE"),
        ):
            told = run(tmp_path, "listen", **variables)
            assert (told.returncode, told.stdout) == (1, ""), words
            assert len(told.stderr.splitlines()) == 1, told.stderr
            assert words in told.stderr
            assert CANARY not in told.stderr


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])  # noqa: S104 - it must be refused
def test_host_stands_open_to_nobody(tmp_path: Path, address: str) -> None:
    """Without tokens it listens on loopback only."""
    told = run(tmp_path, "host", "--host", address, "--port", str(free_port()))
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("WEBHOOK_TOKENS: must be set")


def test_host_says_that_its_port_is_taken(tmp_path: Path) -> None:
    """One line with what to do, no stack trace, exit 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = run(tmp_path, "host", "--port", port)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith(f"cannot listen on 127.0.0.1 port {port}: Address already in use")
    assert len(told.stderr.splitlines()) == 1


def test_host_says_that_its_address_is_not_here(tmp_path: Path) -> None:
    """Neither a name that means nothing nor another machine's address makes a stack trace."""
    for address in ("host.invalid", "192.0.2.1"):
        told = run(tmp_path, "host", "--host", address, WEBHOOK_TOKENS=CANARY)
        assert (told.returncode, told.stdout) == (1, "")
        assert told.stderr.startswith(f"cannot listen on {address} port 8080: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_host_ends_in_order(tmp_path: Path, mosquitto: Mosquitto, number: signal.Signals) -> None:
    """It says where it listens, and exits 0 when told to stop; its port can be used again at once."""
    port = str(free_port())
    for _ in range(2):
        with running(tmp_path, "host", "--port", port, until="mqtt connected", MQTT_URL=mosquitto.url) as process:
            process.send_signal(number)
            out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, err) == (0, "")
        assert "Traceback" not in out
