"""Settings from every source, bent: they are refused by name without being repeated, or everything starts with them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from functions.admin.operations import Administration
from functions.cameras.reader import DetectionReader
from functions.devices.downloads import Downloads
from functions.events.envelopes import ObjectCreated, parse
from functions.events.routes import Routes, Upload
from functions.integration import NoLocalPublisher
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.client import Client
from functions.mqtt.connection import Connection
from functions.mqtt.packets import publish_packet
from functions.s3.clients import StorageError
from functions.s3.objects import Objects
from functions.settings import Settings, SettingsError, load, sources
from functions.settings.addresses import check_database_url, parse_endpoint, parse_http_url, parse_mqtt_url
from functions.stored.errors import StoreUnavailableError
from functions.stored.store import ConfigStore
from functions.web.tokens import KeyringError
from infra.commands.config import shown
from tests.hostile.searching import ODD_TEXTS, Draw, assert_discreet, leaks, tries

CANARY = "c4n4ry-Zq7/x+9=w"
SECRET = "s3cr3t-Kx93mmQpT0"
KEY = base64.b64encode(bytes(range(32))).decode()
FERNET = base64.urlsafe_b64encode(bytes(range(32))).decode()
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
PEM_KEY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"
ED25519 = base64.b64encode(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).private_bytes_raw()).decode()
HTTP = ["http://127.0.0.1:9000", "https://s3.example.com/base", "http://[::1]:9000", "http://h:0", "http://:9000"]
REGIONS = ["us-east-1", "eu-west-1", "../x", "a b", "evil.example/", "x" * 300]

# What is right, or nearly so, for each setting. One that is missing here fails the first test.
EXAMPLES: dict[str, list[str]] = {
    "mqtt_url": ["mqtt://b", "mqtts://b:8883", "mqtt://[::1]:1", "mqtt://[fe80::1%eth0]", f"mqtt://u:{CANARY}@b"],
    "mqtt_username": ["u", "ü", "u" * 70_000, "u\0v", "u\nv"],
    "mqtt_password": ["p", " p ", "p" * 70_000, CANARY],
    "mqtt_ca_file": ["/etc/hostname", "/dev/null", "/", "nowhere"],
    "mqtt_cert_file": ["/etc/hostname", "/dev/null"],
    "mqtt_key_file": ["/etc/hostname", "/dev/null"],
    "host_cert_file": ["/etc/hostname", "/dev/null", "nowhere"],
    "host_key_file": ["/etc/hostname", "/dev/null"],
    "mqtt_ca_pem": [PEM, PEM.replace("\n", "\\n"), PEM.replace("\n", " ")],
    "mqtt_cert_pem": [PEM, PEM + PEM_KEY],
    "mqtt_key_pem": [PEM_KEY, PEM_KEY.replace("PRIVATE", "ENCRYPTED PRIVATE")],
    "mqtt_alpn": ["mqtt", "x-amzn-mqtt-ca", "x" * 255],
    "mqtt_qos": ["0", "1", "2", " 1 ", "1.0", "٣"],
    "mqtt_protocol": ["5", "3.1.1", "4"],
    "mqtt_client_id_prefix": ["bucketbell", "", "x" * 64],
    "mqtt_keepalive_seconds": ["1", "65535", "60"],
    "mqtt_connect_timeout_seconds": ["0.1", "300", "1e-300", "nan", "inf"],
    "mqtt_publish_timeout_seconds": ["0.1", "5"],
    "topic_prefix": ["iotsupport", "a/b", "é" * 100, "x" * 70_000, "a b"],
    "device_topics": ["off", "on", "only"],
    "bucket": ["devices", "x" * 300, "a/b", "ü", "../up", "a\nb", "arn:aws:s3:us-east-1:1:accesspoint/x"],
    "configs_prefix": ["configs/", "c", "é/"],
    "assets_prefix": ["assets/", "a/b/", "x" * 1100],
    "events_prefix": ["events/", "e" * 1020],
    "public_base_url": HTTP,
    "event_retry_seconds": ["1", "604800", "0", "60.5"],
    "webhook_tokens": ["0123456789abcdef", "0123456789abcdef,fedcba9876543210", CANARY * 2],
    "device_token_keys": [f"k:{KEY}", f"e:ed25519:{ED25519},k:{KEY}", f"p:ed25519-public:{ED25519}", f"k:{CANARY}"],
    "device_tokens_revoked": ["a,b", ""],
    "admin_tokens": ["0123456789abcdef", CANARY * 2],
    "trusted_proxies": ["192.0.2.7", "10.0.0.0/8,::1", "1.2.3.4/33", "/", "localhost"],
    "mqtt_test_allowed_hosts": ["broker.local", "10.0.0.0/8,::1", "[::1]", "1.2.3.4/33", "/"],
    "database_url": [
        "sqlite:////tmp/x.db",
        "postgresql://u:p@h/d",
        f"postgresql://u:{CANARY}@h:1/d?x=1",
        "sqlite:///x",
    ],
    "encryption_keys": [FERNET, f"{FERNET},{FERNET}", CANARY],
    "s3_public_endpoint_url": HTTP,
    "url_ttl_seconds": ["60", "604800"],
    "device_requests_per_minute": ["0", "60000"],
    "sqs_queue_url": [*HTTP, "https://sqs.us-east-1.amazonaws.com/1/q"],
    "r2_queue_url": [f"{url}/client/v4/accounts/a1/queues/b2" for url in HTTP] + ["https://h/accounts/../queues/x"],
    "r2_queue_token": [CANARY, "t", "two words", "é"],
    "sweep_seconds": ["0", "2", "604800", "1.5"],
    "sweep_grace_seconds": ["0", "10", "86401"],
    "sweep_rings_per_second": ["1", "0"],
    "sweep_max_rings": ["1", "100000", "-1"],
    "sweep_catch_up_seconds": ["0", "86400"],
    "sweep_events_max_age_seconds": ["0", "300"],
    "fleet_accept_unknown": ["off", "on"],
    "fleet_retention_days": ["1", "90"],
    "sweep_state_file": ["/var/lib/bucketbell/sweep.db", "s", "x" * 5000],
    "nats_url": ["nats://n", "nats://a,nats://b:1", "tls://[::1]:4222", f"nats://u:{CANARY}@n", "nats://a,tls://b"],
    "nats_stream": ["bucketbell", "A-b_1", "a.b", "x" * 65],
    "nats_consumer": ["bucketbell", "a b"],
    "nats_username": ["u", "u" * 70_000],
    "nats_password": ["p", " p ", CANARY],
    "nats_token": ["t", CANARY],
    "nats_creds_file": ["/etc/hostname", "nowhere"],
    "nats_nkey_file": ["/etc/hostname", "/"],
    "nats_ca_file": ["/etc/hostname", "nowhere"],
    "nats_cert_file": ["/etc/hostname", "/dev/null"],
    "nats_key_file": ["/etc/hostname", "/dev/null"],
    "log_level": ["DEBUG", "INFO", "debug"],
    "aws_endpoint_url": HTTP,
    "aws_endpoint_url_s3": HTTP,
    "aws_endpoint_url_sqs": HTTP,
    "aws_endpoint_url_secrets_manager": HTTP,
    "aws_access_key_id": ["AKIA", "a\nb"],
    "aws_secret_access_key": [CANARY],
    "aws_session_token": [CANARY, "x" * 5000],
    "s3_region": REGIONS,
    "s3_addressing_style": ["path", "virtual", "auto"],
    "aws_region": REGIONS,
    "aws_default_region": REGIONS,
    "secrets_dir": ["/nowhere", "/etc/hostname"],
    "secret_id": ["name", "arn:aws:secretsmanager:us-east-1:1:secret:x"],
}

FILES = {"MQTT_CERT_FILE": "/etc/hostname", "MQTT_KEY_FILE": "/etc/hostname"}
HOST_FILES = {"HOST_CERT_FILE": "/etc/hostname", "HOST_KEY_FILE": "/etc/hostname"}
NATS_FILES = {"NATS_CERT_FILE": "/etc/hostname", "NATS_KEY_FILE": "/etc/hostname"}
NATS_LOGIN = {"NATS_USERNAME": "u", "NATS_PASSWORD": "p"}
NEEDS = {
    "nats_username": NATS_LOGIN,
    "nats_password": NATS_LOGIN,
    "nats_cert_file": NATS_FILES,
    "nats_key_file": NATS_FILES,
    "mqtt_password": {"MQTT_USERNAME": "u"},
    "mqtt_cert_file": FILES,
    "mqtt_key_file": FILES,
    "host_cert_file": HOST_FILES,
    "host_key_file": HOST_FILES,
    "mqtt_cert_pem": {"MQTT_KEY_PEM": PEM_KEY},
    "mqtt_key_pem": {"MQTT_CERT_PEM": PEM},
    "events_prefix": {"BUCKET": "b"},
    "sweep_seconds": {"BUCKET": "b"},
    "r2_queue_url": {"R2_QUEUE_TOKEN": "t"},
    "r2_queue_token": {"R2_QUEUE_URL": "https://h/accounts/a/queues/q"},
}

# Of which the first is named where they do not fit together.
PARTNERS = {
    "NATS_PASSWORD": "NATS_USERNAME",
    "NATS_KEY_FILE": "NATS_CERT_FILE",
    "MQTT_KEY_FILE": "MQTT_CERT_FILE",
    "MQTT_KEY_PEM": "MQTT_CERT_PEM",
    "HOST_KEY_FILE": "HOST_CERT_FILE",
    "ASSETS_PREFIX": "CONFIGS_PREFIX",
    "R2_QUEUE_TOKEN": "R2_QUEUE_URL",
}
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # huge values are the point


@st.composite
def values(draw: Draw, field: str) -> str:
    """Something right for this setting, or bent, or for another one, with a canary in it now and then."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(ODD_TEXTS)
    other = draw(st.sampled_from(sorted(EXAMPLES))) if kind == 1 else field
    text = draw(st.sampled_from(EXAMPLES[other]))
    if kind < 5:
        at = draw(st.integers(0, min(len(text), 60)))
        put = draw(st.sampled_from([CANARY, f" {CANARY}", f"{CANARY}@", f":{CANARY}@"]) | ODD_TEXTS)
        text = text[:at] + put + text[at + draw(st.integers(0, 2)) :]
    return text


@st.composite
def environments(draw: Draw, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """A few settings, in an order of their own."""
    fields = draw(st.lists(st.sampled_from(sorted(set(EXAMPLES) - set(without))), max_size=12, unique=True))
    return {field.upper(): draw(values(field)) for field in fields}


def assert_refusal(environ: Mapping[str, str], error: SettingsError) -> None:
    """A refusal names variables in one line each, and shows nothing of the canary, wherever that was."""
    assert error.problems
    assert all(variable.isprintable() and problem for variable, problem in error.problems)
    if any(CANARY[:8] in value for value in environ.values()):
        assert_discreet(CANARY, error)


def loaded(environ: Mapping[str, str], **more: Any) -> Settings | None:  # noqa: ANN401 - what `load` takes
    """The settings, or None where they are refused as they should be."""
    try:
        return load(environ, **more).settings
    except SettingsError as error:
        assert_refusal(environ, error)
        return None


def test_every_setting_is_searched() -> None:
    """A new one has examples here before it is released."""
    assert set(EXAMPLES) == set(Settings.model_fields)
    for field, examples in EXAMPLES.items():
        fit = 0
        for example in examples:
            with suppress(SettingsError):
                fit += load(NEEDS.get(field, {}) | {field.upper(): example}) is not None
        assert fit or field in {"secrets_dir", "secret_id"}, f"no example of {field} is right"


@tries(120)
@given(environments(without=("secret_id",)))
def test_any_environment_is_refused_by_name_or_starts_everything(environ: dict[str, str]) -> None:
    """Without those that are named, the rest is good: and all can be made of it, and all said that is to be sent."""
    mended(environ, check=start)


def mended(environ: Mapping[str, str], *, check: Callable[[Settings], object] = lambda _: None) -> Settings:
    """The settings without those that a refusal names."""
    left = dict(environ)
    while True:
        try:
            settings = load(left).settings
            check(settings)
        except SettingsError as error:
            assert_refusal(left, error)
            wrong = {one for variable, _ in error.problems for one in (variable, PARTNERS.get(variable, variable))}
            if not wrong & left.keys():
                pytest.fail("what is named is there")
            left = {name: value for name, value in left.items() if name not in wrong}
        else:
            return settings


def start(settings: Settings) -> None:
    """Put together what the processes put together, and make what they would send."""
    assert not leaks(CANARY, f"{settings!r} {settings}") or not hides(settings)
    broker = BrokerConfig.of(settings)
    routes = Routes.of(settings)
    if broker is not None:
        assert broker.host in repr(broker)
        connection = Connection(broker, f"{broker.client_id_prefix}-0123456789ab")
        written = connect_packet(connection)
        assert written[0] == 0x10
    thing = {"bucket": {"name": settings.bucket or "b"}, "object": {"key": quote(f"{settings.assets_prefix}x.bin")}}
    (record,) = parse({"eventName": "ObjectCreated:Put", "s3": thing})
    routed = routes.route(record) if isinstance(record, ObjectCreated) else None
    if isinstance(routed, Upload):
        assert publish_packet(routed.message, 1, 1, properties=True)
    with suppress(KeyringError):
        downloads = Downloads.of(settings)
        if settings.events_prefix is not None:
            DetectionReader.of(settings, objects=downloads.objects, keyring=downloads.keyring)
    with suppress(SettingsError, StoreUnavailableError):
        Administration(settings, ConfigStore.of(settings), NoLocalPublisher())
    table = json.dumps({name: shown(getattr(settings, name)) for name in Settings.model_fields})
    table.encode()


def hides(settings: Settings) -> bool:
    """Whether the canary is in secret settings only: others are there to be shown."""
    return not leaks(CANARY, json.dumps(settings.model_dump(mode="json")))


def connect_packet(connection: Connection) -> bytes:
    """What CONNECT looks like on the wire, by the same way as on a real socket."""
    client = connection._client  # noqa: SLF001 - no socket, hence no public way
    sent = bytearray()
    client._packet_queue = lambda _kind, packet, *_rest: sent.extend(packet)  # type: ignore[assignment, method-assign]  # noqa: SLF001 - as above
    assert isinstance(client, Client)
    client._send_connect(60)  # noqa: SLF001 - as above
    return bytes(sent)


@tries(12)
@given(environments(without=("secret_id", "database_url")))
def test_any_settings_make_urls_or_say_why_not(environ: dict[str, str]) -> None:
    """Presigning and asking for a head raise nothing but StorageError, which no configuration turns into a 500."""
    fixed = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": SECRET, "BUCKET": "devices"}
    settings = mended(environ | fixed)
    objects = Objects(
        settings,
        settings.bucket or "devices",
        url_ttl_seconds=settings.url_ttl_seconds,
        public_endpoint_url=settings.s3_public_endpoint_url,
    )
    refused = ""
    try:
        url = objects.presign("assets/x", filename="x").url
    except StorageError as error:
        assert_discreet(SECRET, error)
        refused = error.message
    else:
        assert not leaks(SECRET, url)
        assert "X-Amz-Signature=" in url
        assert url.startswith(("http://", "https://"))
    assert "ndpoint" not in refused, "what boto3 does not take for an endpoint is a setting that is refused"


@tries(80)
@given(environments(without=("secret_id", "secrets_dir")), st.binary(max_size=40), st.integers(0, 3))
def test_any_dotenv_is_read_or_refused(tmp_path: Path, environ: dict[str, str], junk: bytes, places: int) -> None:
    """Quotes, line ends, half a line, bytes that are no UTF-8: what is in it is taken or named, and never shown."""
    lines = [f"{name}={value}".encode("utf-8", "replace") for name, value in environ.items()]
    lines[places:places] = [junk]
    file = tmp_path / ".env"
    file.write_bytes(b"\n".join(lines))
    settings = loaded(environ | {"MQTT_URL": ""}, env_file=file)
    assert settings is None or isinstance(settings, Settings)


@tries(80)
@given(environments(without=("secret_id", "secrets_dir")), st.binary(max_size=40))
def test_any_secrets_directory_is_read_or_refused(tmp_path: Path, environ: dict[str, str], junk: bytes) -> None:
    """A file may hold what no environment can: NUL, and bytes that are no text."""
    folder = tmp_path / "secrets"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("[A-Z]*[A-Z]"):
        old.unlink()
    for name, value in environ.items():
        (folder / name).write_bytes(value.encode("utf-8", "surrogatepass"))
    if environ:
        (folder / min(environ)).write_bytes(junk)
    (folder / "MQTT_USERNAME.d").mkdir(exist_ok=True)
    try:
        settings = load({"SECRETS_DIR": str(folder)}).settings
    except SettingsError as error:
        assert_refusal(environ, error)
    else:
        start(settings)


SECRET_VALUES = st.recursive(
    ODD_TEXTS | st.none() | st.integers() | st.floats() | st.just(CANARY),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just(CANARY), inner, max_size=2),
    max_leaves=4,
)


@tries(120)
@given(environments(without=("secret_id",)), st.dictionaries(ODD_TEXTS, SECRET_VALUES, max_size=1), st.data())
def test_any_secret_document_is_taken_or_refused(
    environ: dict[str, str], junk: dict[str, Any], data: st.DataObject
) -> None:
    """What AWS Secrets Manager holds under SECRET_ID: a JSON object of text, or words that repeat nothing of it."""
    document = json.dumps({**environ, **junk})
    if data.draw(st.integers(0, 4)) == 0:
        at = data.draw(st.integers(0, len(document)))
        document = document[:at] + data.draw(st.sampled_from(["", CANARY, '"', "\ud800", "[" * 5000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "secret_text", lambda *_: document)
        try:
            settings = load({"SECRET_ID": "name"}).settings
        except SettingsError as error:
            assert_discreet(CANARY, error)
            return
    start(settings)


PARTS_OF_URLS = [
    *("mqtt", "mqtts", "http", "https", "sqlite", "postgresql", "postgresql+psycopg", "://", ":", "/", "//", "@"),
    *("[", "]", "[::1]", "?", "#", "%", "%41", "u", CANARY, "h", "db.local", "1.2.3.4", "0x7f", "99999", "80", "0"),
    *(" ", "\n", "\t", "\0", "é", "\ud800", "..", "&host=/tmp", "?host=/tmp&port=1", "sslmode=x", ",", "*"),
]
URL_PARTS = st.lists(st.sampled_from(PARTS_OF_URLS) | st.text(max_size=3), max_size=12).map("".join)


@tries(600)
@given(st.sampled_from(["", "mqtt://", "http://", "sqlite:///", "postgresql://", "postgresql://u:"]), URL_PARTS)
def test_any_url_is_refused_in_words_or_means_one_thing(start_with: str, rest: str) -> None:
    """ValueError without a part of the URL; what is taken has a host and port that can be dialled, or a database."""
    url = start_with + rest
    for check in (parse_mqtt_url, check_database_url):
        try:
            check(url)
        except ValueError as error:
            assert_discreet(CANARY, error)
    with suppress(ValueError):
        tls, host, port = parse_mqtt_url(url)
        assert host.isascii()
        assert host == host.lower().strip()
        assert 0 < port < 65536
        shown_again = f"{'mqtts' if tls else 'mqtt'}://{f'[{host}]' if ':' in host else host}:{port}"
        assert parse_mqtt_url(shown_again) == (tls, host, port)
        assert not leaks(CANARY, shown_again) or CANARY[:8] in rest.partition("@")[0].lower()
    for check_url in (parse_http_url, parse_endpoint):
        try:
            means = check_url(url)
        except ValueError as error:
            assert_discreet(CANARY, error)
        else:
            assert check_url(means) == means
