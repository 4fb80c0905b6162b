"""Every setting is read once, from where it was said to be, and a wrong one is named without being repeated."""

import json
import os
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr

from functions.mqtt.broker import BrokerConfig
from functions.settings import (
    LambdaRuntime,
    Settings,
    SettingsError,
    lambda_runtime,
    load,
    sources,
)
from functions.settings.addresses import parse_mqtt_url

CANARY = "canary-5f3a"
TOKEN = "0123456789abcdef"
CLOUDFLARE, R2_QUEUE = "https://api.cloudflare.com/client/v4", "/accounts/3f4b7e3d/queues/1ad27d24"
KEY_A, KEY_B = "A" * 43 + "=", "_-" * 21 + "b="


def settings(**environ: str) -> Settings:
    """Valid settings from these variables alone."""
    return load(environ).settings


def problems(environ: dict[str, str], *, env_file: Path | None = None) -> dict[str, str]:
    """What is wrong with `environ`, by variable."""
    with pytest.raises(SettingsError) as caught:
        load(environ, env_file=env_file)
    return dict(caught.value.problems)


@pytest.mark.parametrize(
    ("url", "tls", "host", "port"),
    [
        ("mqtt://broker.local", False, "broker.local", 1883),
        ("mqtts://broker.local", True, "broker.local", 8883),
        ("mqtt://broker.local:1884", False, "broker.local", 1884),
        ("mqtts://broker.local:1883", True, "broker.local", 1883),
        ("mqtt://broker.local:", False, "broker.local", 1883),
        ("mqtt://broker.local:1", False, "broker.local", 1),
        ("mqtt://broker.local:65535", False, "broker.local", 65535),
        ("mqtt://192.0.2.7", False, "192.0.2.7", 1883),
        ("mqtt://[::1]", False, "::1", 1883),
        ("mqtts://[2001:DB8::1]:9999/", True, "2001:db8::1", 9999),
        ("mqtt://[fe80::1%eth0]:1883", False, "fe80::1%eth0", 1883),
        ("mqtt://broker.local/some/path:99?query#fragment", False, "broker.local", 1883),
        ("mqtt://broker.local:1884?query", False, "broker.local", 1884),
        ("MQTTS://Broker.Local", True, "broker.local", 8883),
        ("  mqtt://broker.local\n", False, "broker.local", 1883),
        ("mqtt://mosquitto_1", False, "mosquitto_1", 1883),
        ("mqtt://broker.local.", False, "broker.local.", 1883),
        ("mqtt://xn--bcher-kva.example", False, "xn--bcher-kva.example", 1883),
        (f"mqtt://{'a' * 63}.local", False, f"{'a' * 63}.local", 1883),
    ],
)
def test_an_mqtt_url_says_where_the_broker_is(url: str, *, tls: bool, host: str, port: int) -> None:
    """Scheme, host and port are taken from the URL, default ports filled in, path and query ignored."""
    broker = BrokerConfig.of(settings(MQTT_URL=url))
    assert broker is not None
    assert (broker.tls, broker.host, broker.port) == (tls, host, port)
    assert parse_mqtt_url(broker.url) == (tls, host, port)


SCHEME, CREDENTIALS, HOST, PORT = "must start with mqtt://", "must not hold credentials", "must name a host", "the port"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://canary-5f3a", SCHEME),
        ("tcp://canary-5f3a:1883", SCHEME),
        ("ws://canary-5f3a", SCHEME),
        ("canary-5f3a", SCHEME),
        ("canary-5f3a:1883", SCHEME),
        ("mqtt:canary-5f3a", SCHEME),
        ("//canary-5f3a", SCHEME),
        ("mqtt://user:canary-5f3a@broker.local", CREDENTIALS),
        ("mqtt://canary-5f3a@broker.local", CREDENTIALS),
        ("mqtt://user:12/canary-5f3a@broker.local", CREDENTIALS),
        ("mqtt://user:12#canary-5f3a@broker.local", CREDENTIALS),
        ("mqtt://user:canary-5f3a\N{ACCOUNT OF}@broker.local", CREDENTIALS),
        ("mqtt://user:[canary-5f3a@broker.local", CREDENTIALS),
        ("mqtt://", HOST),
        ("mqtt:///canary-5f3a", HOST),
        ("mqtt://:1883", HOST),
        ("mqtt://::1", HOST),
        ("mqtt://[::1", HOST),
        ("mqtt://[]", HOST),
        ("mqtt://[canary-5f3a]", HOST),
        ("mqtt://[192.0.2.7]", HOST),
        ("mqtt://[::1]canary-5f3a", HOST),
        ("mqtt://canary-5f3a..local", HOST),
        ("mqtt://.", HOST),
        ("mqtt://.canary-5f3a", HOST),
        ("mqtt://-", HOST),
        (f"mqtt://{'a' * 64}.local", HOST),
        (f"mqtt://{'canary-5f3a.' * 30}", HOST),
        ("mqtt://canary-5f3a broker", HOST),
        ("mqtt://canary-5f3a\nbroker", HOST),
        ("mqtt://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example", HOST),
        ("mqtt://canary-5f3a!", HOST),
        ("mqtt://broker.local:0", PORT),
        ("mqtt://broker.local:65536", PORT),
        ("mqtt://broker.local:-1", PORT),
        ("mqtt://broker.local:canary-5f3a", PORT),
        ("mqtt://broker.local:1883:1884", PORT),
        ("mqtt://broker.local:" + "9" * 5000, PORT),
        ("mqtt://broker.local:\N{FULLWIDTH DIGIT ONE}", PORT),
    ],
)
def test_a_bad_mqtt_url_is_refused_with_a_right_one(url: str, problem: str) -> None:
    """The variable is named, the message shows a right value, and nothing of the rejected one."""
    (said,) = problems({"MQTT_URL": url}).values()
    assert said.startswith(problem)
    assert "e.g. mqtt://" in said or problem == CREDENTIALS
    assert CANARY not in said


@pytest.mark.parametrize("environ", [{}, {"MQTT_URL": ""}, {"MQTT_URL": " \t\n"}])
def test_without_a_url_there_is_no_broker(environ: dict[str, str]) -> None:
    """Unset, empty and blank all mean that MQTT is not configured, whatever else is."""
    loaded = load({**environ, "MQTT_USERNAME": "", "MQTT_QOS": " ", "WEBHOOK_TOKENS": ""})
    assert loaded.settings == Settings()
    assert BrokerConfig.of(loaded.settings) is None
    assert loaded.origins == {}


def test_credentials_are_there_only_when_given() -> None:
    """Neither, the name alone, or both; the password keeps its spaces."""
    url = {"MQTT_URL": "mqtt://b"}
    assert BrokerConfig.of(load(url).settings) == BrokerConfig("b", 1883)
    assert BrokerConfig.of(load(url | {"MQTT_USERNAME": "u"}).settings) == BrokerConfig("b", 1883, username="u")
    broker = BrokerConfig.of(load(url | {"MQTT_USERNAME": " u ", "MQTT_PASSWORD": " p "}).settings)
    assert broker == BrokerConfig("b", 1883, username="u", password=SecretStr(" p "))


def test_everything_about_the_connection_reaches_the_broker(tmp_path: Path) -> None:
    """No connection setting is forgotten on the way."""
    files = {name: tmp_path / name for name in ("CA", "CERT", "KEY")}
    for file in files.values():
        file.touch()
    found = settings(
        MQTT_URL="mqtts://b",
        MQTT_QOS="2",
        MQTT_PROTOCOL="3.1.1",
        MQTT_CLIENT_ID_PREFIX="me",
        MQTT_KEEPALIVE_SECONDS="5",
        MQTT_CONNECT_TIMEOUT_SECONDS="0.5",
        MQTT_PUBLISH_TIMEOUT_SECONDS="7",
        **{f"MQTT_{name}_FILE": str(file) for name, file in files.items()},
    )
    assert BrokerConfig.of(found) == BrokerConfig(
        "b",
        8883,
        tls=True,
        ca_file=files["CA"],
        cert_file=files["CERT"],
        key_file=files["KEY"],
        protocol="3.1.1",
        qos=2,
        client_id_prefix="me",
        keepalive_seconds=5,
        connect_timeout_seconds=0.5,
        publish_timeout_seconds=7.0,
    )


def test_the_defaults_are_those_of_the_design() -> None:
    """QoS 1 and MQTT 5 unless somebody asks for something else."""
    broker = BrokerConfig.of(settings(MQTT_URL="mqtt://b"))
    assert broker is not None
    assert (broker.qos, broker.protocol, broker.tls) == (1, "5", False)
    assert (Settings().topic_prefix, Settings().configs_prefix, Settings().assets_prefix) == (
        "iotsupport",
        "configs/",
        "assets/",
    )


@pytest.mark.parametrize(
    ("variable", "values", "said"),
    [
        ("MQTT_QOS", ["3", "-1", "1.0", "true", "one", "\N{SUPERSCRIPT ONE}", "1 1"], "must be 0, 1 or 2"),
        ("MQTT_PROTOCOL", ["4", "3.1", "5.0", "mqtt5"], "'5' or '3.1.1'"),
        ("MQTT_CLIENT_ID_PREFIX", ["a b", "a/b", "#", "\N{LATIN SMALL LETTER E WITH ACUTE}"], "pattern"),
        ("MQTT_CLIENT_ID_PREFIX", ["a" * 65], "at most 64"),
        ("MQTT_KEEPALIVE_SECONDS", ["0", "-1"], "greater than or equal to 1"),
        ("MQTT_KEEPALIVE_SECONDS", ["65536"], "less than or equal to 65535"),
        ("MQTT_KEEPALIVE_SECONDS", ["1.5", "true", "one minute"], "valid integer"),
        ("MQTT_PUBLISH_TIMEOUT_SECONDS", ["0", "-1", "-0.0"], "greater than 0"),
        ("MQTT_PUBLISH_TIMEOUT_SECONDS", ["nan", "inf", "-inf"], "finite number"),
        ("MQTT_CONNECT_TIMEOUT_SECONDS", ["301", "1e300"], "less than or equal to 300"),
        ("MQTT_CONNECT_TIMEOUT_SECONDS", ["5s", "0x5", "5,0"], "valid number"),
        ("TOPIC_PREFIX", ["/iot", "/", "$SYS", "a/+/b", "a#", "a\x00b", "a\x85b", "a\ufffe"], "e.g. iotsupport"),
        ("TOPIC_PREFIX", ["a\udcff"], "must be UTF-8"),
        ("MQTT_USERNAME", ["a\udcff"], "must be UTF-8"),
        ("MQTT_PASSWORD", ["a\udcff"], "must be UTF-8"),
        ("CONFIGS_PREFIX", ["/configs", "a//b", "configs//", "/", "a\nb", "a\x7fb"], "key prefix"),
        ("ASSETS_PREFIX", ["/assets", "assets//"], "key prefix"),
        ("ASSETS_PREFIX", [".bucketbell", ".bucketbell/assets/"], "keeps its own"),
        ("ASSETS_PREFIX", ["configs", "configs/", "configs/assets"], "must not overlap CONFIGS_PREFIX"),
        ("WEBHOOK_TOKENS", ["short", "a" * 15], "at least 16"),
        (
            "WEBHOOK_TOKENS",
            [f"{TOKEN} {TOKEN}", TOKEN + "\u00e9", f"{TOKEN}\t{TOKEN}", f"{TOKEN},", f",{TOKEN}", f"{TOKEN},,{TOKEN}"],
            "one word of at least 16 ASCII",
        ),
        ("LOG_LEVEL", ["TRACE", "verbose"], "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        (
            "AWS_ENDPOINT_URL_S3",
            ["127.0.0.1:9000", "s3://b", "http://u:p@host", "http://", "http://a b", "http:///x"],
            "e.g. http://127.0.0.1:9000",
        ),
        ("SQS_QUEUE_URL", ["my-queue", "https://u:p@sqs/1/q"], "must be an http"),
        (
            "R2_QUEUE_URL",
            [CLOUDFLARE + path for path in ("", "/accounts/a/queues/", "/queues/q", f"{R2_QUEUE}/x")],
            "accounts/<account id>/queues/<queue id>",
        ),
        ("R2_QUEUE_URL", ["my-queue", f"https://u:p@h{R2_QUEUE}"], "must be an http"),
        ("R2_QUEUE_TOKEN", ["two words", "é"], "one word"),
        ("R2_QUEUE_TOKEN", ["alone"], "goes together with R2_QUEUE_URL"),
        (
            "S3_PUBLIC_ENDPOINT_URL",
            ["https://example.org/s3", "https://example.org/a/b/"],
            "a name or a port of its own",
        ),
        ("S3_PUBLIC_ENDPOINT_URL", ["http://mini_o:9000", "https://s3_eu.example.org"], "without an underscore"),
        ("AWS_ENDPOINT_URL", ["http://minio_1:9000"], "without an underscore"),
        ("AWS_ENDPOINT_URL_SQS", ["http://queue_1"], "without an underscore"),
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", ["http://aws_1"], "without an underscore"),
        ("AWS_ENDPOINT_URL_S3", ["http://h/a%20b", "http://h/a//b", "http://h/gr\u00fcn"], "single slashes"),
        ("S3_PUBLIC_ENDPOINT_URL", ["https://u:p@h", "https://u@h", "http://h/@"], "without credentials"),
        ("S3_PUBLIC_ENDPOINT_URL", ["https://h?x=1", "https://h/?", "https://h#top", "http://h?"], "without ? and #"),
        ("S3_PUBLIC_ENDPOINT_URL", ["ftp://h", "s3://h", "h:9000", "//h", "https:/h", "https:h"], "must be an http"),
        (
            "S3_PUBLIC_ENDPOINT_URL",
            ["http://h:0", "http://h:", "http://h:65536", "http://h:080", "http://h:x", "http://h:1:2"],
            "from 1 to 65535",
        ),
        (
            "S3_PUBLIC_ENDPOINT_URL",
            ["http://", "http://:9000", "http://-h", "http://h..x", "http://1.2.3", "http://b\u00fccher.example"],
            "must name a host",
        ),
        ("PUBLIC_BASE_URL", ["http://h:0", "https://h?x", "https://h#x"], "e.g. http"),
        ("S3_ADDRESSING_STYLE", ["auto", "Virtual", "dns"], "'path' or 'virtual'"),
        (
            "S3_REGION",
            ["eu central 1", "eu_central_1", "../x", "x" * 64, "-eu", "7", "aws-global"],
            "e.g. eu-central-1",
        ),
        ("AWS_REGION", ["eu.central", "aws-us-gov-global"], "e.g. eu-central-1"),
        ("AWS_DEFAULT_REGION", ["https://s3.eu-central-1.amazonaws.com"], "e.g. eu-central-1"),
        ("MQTT_CA_FILE", ["/nowhere/ca.pem", "/"], "path of a file"),
        ("SECRETS_DIR", ["/nowhere", __file__], "must be a directory"),
        ("DATABASE_URL", ["settings.db", "mysql://h/d", "postgres://h/d"], "e.g. sqlite:////var/lib/bucketbell"),
        ("DATABASE_URL", ["sqlite:///:memory:", "sqlite://"], "must name a file"),
        ("DATABASE_URL", ["postgresql://h", "postgresql://h:x/d"], "must name host and database"),
        (
            "ENCRYPTION_KEYS",
            ["k" * 43, "k" * 44, f"{'k' * 43}=,", "+" * 43 + "=", "k" * 42 + "=="],
            "openssl rand -base64 32",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(variable: str, values: list[str], said: str) -> None:
    """The one wrong variable is named, and the message tells what it wants."""
    for value in values:
        found = problems({"MQTT_USERNAME": "u", variable: value})
        assert set(found) == {variable}, value
        assert said in found[variable], value


@pytest.mark.parametrize(
    ("variable", "value", "meant"),
    [
        ("TOPIC_PREFIX", "plant/7/", "plant/7"),
        ("TOPIC_PREFIX", "plant//", "plant"),
        ("CONFIGS_PREFIX", "device/configs", "device/configs/"),
        ("ASSETS_PREFIX", "firmware \N{LATIN SMALL LETTER U WITH DIAERESIS}/", "firmware \u00fc/"),
        ("ASSETS_PREFIX", "configs-and-more", "configs-and-more/"),
        ("BUCKET", " firmware ", "firmware"),
        ("MQTT_QOS", " 0 ", 0),
        ("MQTT_CLIENT_ID_PREFIX", "", "bucketbell"),
        ("AWS_ENDPOINT_URL", "https://s3.example:9000/path", "https://s3.example:9000/path"),
        ("SQS_QUEUE_URL", "http://127.0.0.1:5000/123456789012/q", "http://127.0.0.1:5000/123456789012/q"),
        ("WEBHOOK_TOKENS", f" {TOKEN} , {TOKEN}2 ", (SecretStr(TOKEN), SecretStr(f"{TOKEN}2"))),
        ("AWS_ENDPOINT_URL", "http://minio:9000/", "http://minio:9000"),
        ("S3_PUBLIC_ENDPOINT_URL", "HTTPS://S3.Example.ORG:9000/", "https://s3.example.org:9000"),
        ("S3_PUBLIC_ENDPOINT_URL", "http://[2001:DB8::1]:9000", "http://[2001:db8::1]:9000"),
        ("S3_PUBLIC_ENDPOINT_URL", "https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("PUBLIC_BASE_URL", "https://Bell_1.example/bell", "https://bell_1.example/bell"),
        ("S3_REGION", " home ", "home"),
        ("S3_ADDRESSING_STYLE", "virtual", "virtual"),
        ("MQTT_PASSWORD", '{"looks": "like JSON"}', SecretStr('{"looks": "like JSON"}')),
        ("MQTT_USERNAME", "null", "null"),
        ("DATABASE_URL", " sqlite:///settings.db ", SecretStr("sqlite:///settings.db")),
        ("ENCRYPTION_KEYS", f"{KEY_A} , {KEY_B}", (SecretStr(KEY_A), SecretStr(KEY_B))),
        ("WEBHOOK_TOKENS", '["looks-like-JSON"]', (SecretStr('["looks-like-JSON"]'),)),
    ],
)
def test_a_value_means_what_it_looks_like(variable: str, value: str, meant: object) -> None:
    """Slashes are put right, spaces around a value dropped, nothing is taken for JSON."""
    found = load({"MQTT_USERNAME": "u", variable: value}).settings
    assert getattr(found, variable.lower()) == meant


def test_cloudflares_queue_goes_together_with_its_token() -> None:
    """One alone is refused; the address is taken without a slash at its end."""
    queue = {"R2_QUEUE_URL": f" {CLOUDFLARE}{R2_QUEUE}/"}
    assert set(problems(queue)) == {"R2_QUEUE_TOKEN"}
    found = settings(**queue, R2_QUEUE_TOKEN="t")
    assert found.r2_queue_url == CLOUDFLARE + R2_QUEUE
    assert found.r2_queue_token == SecretStr("t")


def test_a_public_endpoint_has_the_path_that_the_store_knows() -> None:
    """A store that is itself below a path checks its signatures with it; a proxy's path it never sees."""
    own = {"AWS_ENDPOINT_URL_S3": "http://storage:5000/storage/v1/s3", "AWS_ENDPOINT_URL": "http://other"}
    found = settings(**own, S3_PUBLIC_ENDPOINT_URL="https://example.org/storage/v1/s3/")
    assert found.s3_public_endpoint_url == "https://example.org/storage/v1/s3"
    for url in ("https://example.org", "https://example.org/s3"):
        assert set(problems(own | {"S3_PUBLIC_ENDPOINT_URL": url})) == {"S3_PUBLIC_ENDPOINT_URL"}


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_ENDPOINT_URL": "http://10.0.0.1:9000"},
        {"AWS_ENDPOINT_URL_S3": "http://[fe80::1]:9000", "AWS_ENDPOINT_URL": "http://minio.local"},
        {"AWS_ENDPOINT_URL": "http://minio.local", "S3_PUBLIC_ENDPOINT_URL": "http://192.0.2.7"},
        {"AWS_ENDPOINT_URL": "http://minio.local", "BUCKET": "devices.example"},
        {"AWS_ENDPOINT_URL": "http://minio.local", "BUCKET": "Devices"},
    ],
)
def test_virtual_hosts_need_a_name_before_which_the_bucket_fits(variables: dict[str, str]) -> None:
    """boto3 would go over to the path in silence, which such a store does not take."""
    assert settings(**variables).s3_addressing_style is None
    assert set(problems(variables | {"S3_ADDRESSING_STYLE": "virtual"})) == {"S3_ADDRESSING_STYLE"}
    names = {"AWS_ENDPOINT_URL": "http://minio.local", "BUCKET": "devices", "S3_ADDRESSING_STYLE": "virtual"}
    assert settings(**names).s3_addressing_style == "virtual"


BOM, PASSWORD = "\ufeff", "  p\"w'd\t "


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", BOM])
@pytest.mark.parametrize("source", ["environment", "directory", "secret"])
def test_what_tools_add_to_a_value_is_taken_away(
    source: str, start: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line end and a byte order mark, from every source; a secret is otherwise what it is, blanks and all."""
    values = {name: start + value + end for name, value in {"MQTT_PASSWORD": PASSWORD, "BUCKET": "iot"}.items()}
    values["MQTT_USERNAME"] = f"u{end}"
    environ = dict(values)
    if source == "directory":
        for name, value in values.items():
            (tmp_path / name).write_bytes(value.encode())
        environ = {"SECRETS_DIR": str(tmp_path)}
    if source == "secret":
        monkeypatch.setattr(sources, "secret_text", lambda *_: start + json.dumps(values) + end)
        environ = {"SECRET_ID": "bell"}
    found = settings(**environ)
    assert (found.bucket, found.mqtt_username) == ("iot", "u")
    assert found.mqtt_password == SecretStr(PASSWORD)


def test_only_one_line_end_is_taken_away(tmp_path: Path) -> None:
    """A second one may be meant, and what is inside a secret stays: a certificate's CRLF, a line of blanks."""
    (tmp_path / "MQTT_PASSWORD").write_bytes(b"a\r\nb\n\r\n")
    found = settings(SECRETS_DIR=str(tmp_path), MQTT_USERNAME="u")
    assert found.mqtt_password == SecretStr("a\r\nb\n")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_dotenv_may_come_from_windows(end: str, tmp_path: Path) -> None:
    """A byte order mark does not hide the first variable; quotes there are the file's own, and go."""
    lines = ["BUCKET='iot'", "MQTT_USERNAME=u", 'MQTT_PASSWORD="p w "', 'TOPIC_PREFIX="plant\\n"', ""]
    (tmp_path / ".env").write_bytes((BOM + end.join(lines)).encode())
    found = load({}, env_file=tmp_path / ".env").settings
    assert (found.bucket, found.mqtt_username, found.topic_prefix) == ("iot", "u", "plant")
    assert found.mqtt_password == SecretStr("p w ")


SECRETS = {
    "mqtt_password",
    "r2_queue_token",
    "mqtt_key_pem",
    "nats_password",
    "nats_token",
    "webhook_tokens",
    "device_token_keys",
    "admin_tokens",
    "database_url",
    "encryption_keys",
    "aws_secret_access_key",
    "aws_session_token",
}


def test_every_setting_is_a_secret_or_none() -> None:
    """What shows as stars is what quotes are left on."""
    fields = Settings.model_fields.items()
    assert {name for name, field in fields if sources.is_secret(field)} == SECRETS


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - SECRETS))
@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotes_around_a_value_are_named(name: str, quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compose file hands them on, and no bucket, no prefix, no number has any; Secrets Manager is not asked then."""
    monkeypatch.setattr(sources, "secret_text", lambda *_: pytest.fail("asked"))
    said = problems({"SECRET_ID": "bell", name.upper(): f" {quote}{CANARY}{quote}\n"})
    assert set(said) == {name.upper()}
    assert "quotes" in said[name.upper()]
    assert CANARY not in said[name.upper()]


def test_quotes_are_left_in_secrets_and_inside_values() -> None:
    """They may be a part of it."""
    found = settings(MQTT_USERNAME="o'brien", MQTT_PASSWORD='"p"', WEBHOOK_TOKENS=f"'{TOKEN}'", ASSETS_PREFIX='"a"b')
    assert found.mqtt_password == SecretStr('"p"')
    assert found.webhook_tokens == (SecretStr(f"'{TOKEN}'"),)
    assert (found.mqtt_username, found.assets_prefix) == ("o'brien", '"a"b/')


def test_prefixes_may_be_swapped() -> None:
    """Overlap is judged between what is in force, not with defaults that are gone."""
    found = settings(CONFIGS_PREFIX="assets/", ASSETS_PREFIX="configs/")
    assert (found.configs_prefix, found.assets_prefix) == ("assets/", "configs/")
    assert set(problems({"CONFIGS_PREFIX": "assets/of/devices"})) == {"ASSETS_PREFIX"}


def test_tls_files_need_tls_and_each_other(tmp_path: Path) -> None:
    """Files without mqtts://, a certificate without its key, and a key without its certificate are refused."""
    pem = tmp_path / "some.pem"
    pem.touch()
    ca, cert, key = ({f"MQTT_{name}_FILE": str(pem)} for name in ("CA", "CERT", "KEY"))
    plain, tls = {"MQTT_URL": "mqtt://b"}, {"MQTT_URL": "MQTTS://b"}
    assert set(problems(plain | ca | cert | key)) == {"MQTT_CA_FILE", "MQTT_CERT_FILE", "MQTT_KEY_FILE"}
    assert "mqtts://" in problems(plain | ca)["MQTT_CA_FILE"]
    assert "MQTT_CERT_FILE" in problems(tls | cert)["MQTT_KEY_FILE"]
    assert "MQTT_CERT_FILE" in problems(tls | key)["MQTT_KEY_FILE"]
    assert BrokerConfig.of(load(tls | ca | cert | key).settings) is not None
    assert BrokerConfig.of(load(tls | ca).settings) is not None


CERTIFICATE = "-----BEGIN CERTIFICATE----- canary5f3a -----END CERTIFICATE-----"
KEY = CERTIFICATE.replace("CERTIFICATE", "PRIVATE KEY")


def test_certificates_may_come_as_text() -> None:
    """They reach the broker well-formed, beside the protocol to ask for; the key does not show."""
    loaded = load(
        {
            "MQTT_URL": "mqtts://b:443",
            "MQTT_CA_PEM": CERTIFICATE,
            "MQTT_CERT_PEM": CERTIFICATE,
            "MQTT_KEY_PEM": KEY,
            "MQTT_ALPN": " x-amzn-mqtt-ca ",
        }
    )
    certificate = "-----BEGIN CERTIFICATE-----\ncanary5f3a\n-----END CERTIFICATE-----\n"
    key = certificate.replace("CERTIFICATE", "PRIVATE KEY")
    assert BrokerConfig.of(loaded.settings) == BrokerConfig(
        "b",
        443,
        tls=True,
        ca_pem=certificate,
        cert_pem=certificate,
        key_pem=SecretStr(key),
        alpn="x-amzn-mqtt-ca",
    )
    assert "PRIVATE KEY" not in f"{loaded} {BrokerConfig.of(loaded.settings)} {loaded.settings.model_dump_json()}"


def test_certificates_as_text_need_tls_and_each_other_and_no_files(tmp_path: Path) -> None:
    """The variable that is wrong is named, and nothing of the text is repeated."""
    file = tmp_path / "some.pem"
    file.touch()
    ca, cert, key = {"MQTT_CA_PEM": CERTIFICATE}, {"MQTT_CERT_PEM": CERTIFICATE}, {"MQTT_KEY_PEM": KEY}
    plain, tls, alpn = {"MQTT_URL": "mqtt://b"}, {"MQTT_URL": "mqtts://b"}, {"MQTT_ALPN": "mqtt"}
    wrong = problems(plain | ca | cert | key | alpn)
    assert set(wrong) == {"MQTT_CA_PEM", "MQTT_CERT_PEM", "MQTT_KEY_PEM", "MQTT_ALPN"}
    assert all("mqtts://" in said for said in wrong.values())
    assert "MQTT_CERT_PEM" in problems(tls | cert)["MQTT_KEY_PEM"]
    assert "MQTT_CERT_PEM" in problems(tls | key)["MQTT_KEY_PEM"]
    assert "_FILE" in problems(tls | ca | {"MQTT_CA_FILE": str(file)})["MQTT_CA_PEM"]
    files = {"MQTT_CERT_FILE": str(file), "MQTT_KEY_FILE": str(file)}
    assert "_FILE" in problems(tls | cert | key | files)["MQTT_CERT_PEM"]
    assert "certificate" in problems(tls | {"MQTT_CA_PEM": KEY})["MQTT_CA_PEM"].lower()
    (said,) = problems(tls | cert | {"MQTT_KEY_PEM": CERTIFICATE}).values()
    assert "PRIVATE KEY" in said
    assert "canary" not in said
    assert set(problems(tls | {"MQTT_ALPN": "two words"})) == {"MQTT_ALPN"}


def test_a_password_needs_a_user_name() -> None:
    """A password alone is a mistake, not an anonymous connection."""
    assert "MQTT_USERNAME" in problems({"MQTT_PASSWORD": CANARY})["MQTT_PASSWORD"]
    assert set(problems({"MQTT_PASSWORD": CANARY, "MQTT_USERNAME": "\udcff"})) == {"MQTT_USERNAME"}


def test_everything_wrong_is_reported_together(tmp_path: Path) -> None:
    """Wrong values and values that do not go together come in one report, one line each, and no follow-up errors."""
    with pytest.raises(SettingsError) as caught:
        load(
            {
                "MQTT_URL": "http://b",
                "MQTT_PASSWORD": CANARY,
                "MQTT_CERT_FILE": str(tmp_path / CANARY),
                "MQTT_KEY_FILE": __file__,
                "MQTT_QOS": "3",
                "CONFIGS_PREFIX": "/configs",
                "ASSETS_PREFIX": "x",
                "SECRETS_DIR": str(tmp_path / CANARY),
            }
        )
    wrong = ["MQTT_URL", "MQTT_PASSWORD", "MQTT_CERT_FILE", "MQTT_QOS", "CONFIGS_PREFIX", "SECRETS_DIR"]
    assert [variable for variable, _ in caught.value.problems] == wrong
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == wrong


@pytest.mark.parametrize(
    "environ",
    [
        {"MQTT_URL": f"mqtt://user:{CANARY}@host"},
        {"MQTT_URL": f"mqtt://user:{CANARY}\N{ACCOUNT OF}@host"},
        {"MQTT_PASSWORD": CANARY},
        {"MQTT_PASSWORD": CANARY + "\udcff"},
        {"WEBHOOK_TOKENS": CANARY},
        {"ENCRYPTION_KEYS": CANARY},
        {"DATABASE_URL": f"mysql://u:{CANARY}@host/d"},
        {"DATABASE_URL": f"postgresql://u:{CANARY}@host"},
        {"WEBHOOK_TOKENS": f"{CANARY} {CANARY}"},
        {"MQTT_QOS": CANARY},
        {"MQTT_KEEPALIVE_SECONDS": CANARY},
        {"MQTT_CLIENT_ID_PREFIX": CANARY + "!"},
        {"AWS_ENDPOINT_URL": f"http://user:{CANARY}@host"},
        {"MQTT_CA_FILE": CANARY},
        {"LOG_LEVEL": CANARY},
    ],
)
def test_a_rejected_value_is_never_repeated(environ: dict[str, str]) -> None:
    """What was rejected may be a secret: it is in no text of the error, and no other error rides along with it."""
    with pytest.raises(SettingsError) as caught:
        load(environ)
    error = caught.value
    assert CANARY not in str(error) + repr(error)
    assert CANARY not in "".join(traceback.format_exception(error))
    assert error.__context__ is error.__cause__ is None


def test_secrets_do_not_show() -> None:
    """Settings and BrokerConfig can be printed and logged."""
    loaded = load(
        {
            "MQTT_URL": "mqtt://b",
            "MQTT_USERNAME": "u",
            "MQTT_PASSWORD": CANARY,
            "WEBHOOK_TOKENS": f"{CANARY}-0123456789,{CANARY}-9876543210",
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "AWS_SESSION_TOKEN": CANARY,
            "DATABASE_URL": f"postgresql://u:{CANARY}@host/d",
            "ENCRYPTION_KEYS": f"{CANARY:k<43}=",
        }
    )
    broker = BrokerConfig.of(loaded.settings)
    shown = f"{loaded} {loaded.settings} {loaded.settings!r} {broker} {loaded.settings.model_dump()}"
    assert CANARY not in shown + loaded.settings.model_dump_json()


def test_the_process_environment_stays_out_of_an_injected_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `load` is given is all it reads; without an argument it reads the process's variables."""
    monkeypatch.setenv("BUCKET", "mine")
    monkeypatch.setenv("MQTT_QOS", "not a number")
    assert load({}).settings == Settings()
    monkeypatch.setenv("MQTT_QOS", "2")
    assert (load().settings.bucket, load().settings.mqtt_qos) == ("mine", 2)


def test_only_names_in_capitals_count() -> None:
    """A shell's own `bucket`, or a stranger's variable, changes nothing."""
    loaded = load({"bucket": "x", "Mqtt_Url": "http://", "mqtt_qos": "9", "UNKNOWN": "x", "MQTT_URL_": "x"})
    assert (loaded.settings, loaded.origins) == (Settings(), {})


def test_the_first_source_that_has_a_value_wins(tmp_path: Path) -> None:
    """Environment before .env before the secrets directory; a blank is no value; each origin is told."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "MQTT_PASSWORD").write_text("from secrets\n")
    (secrets / "mqtt_username").write_text("from-secrets\n")
    (secrets / "BUCKET").write_text("from-secrets\n")
    (secrets / "TOPIC_PREFIX").write_text("\n")
    (secrets / "unknown").write_text("x")
    dotenv = tmp_path / ".env"
    dotenv.write_text("BUCKET=from-dotenv\nMQTT_QOS=2\nexport AWS_REGION='eu-1' # comment\nbucket=x\nMQTT_PROTOCOL\n")
    loaded = load({"MQTT_QOS": "0", "BUCKET": " ", "SECRETS_DIR": str(secrets)}, env_file=dotenv)
    assert loaded.settings.mqtt_password is not None
    assert loaded.settings.mqtt_password.get_secret_value() == "from secrets"
    assert loaded.settings.mqtt_username == "from-secrets"
    assert loaded.settings.bucket == "from-dotenv"
    assert loaded.settings.mqtt_qos == 0
    assert loaded.origins == {
        "mqtt_qos": "environment",
        "secrets_dir": "environment",
        "bucket": str(dotenv),
        "aws_region": str(dotenv),
        "mqtt_password": str(secrets),
        "mqtt_username": str(secrets),
    }


def test_dotenv_may_name_the_secrets_directory(tmp_path: Path) -> None:
    """SECRETS_DIR is a setting as any other."""
    (tmp_path / "bucket").write_text("b")
    (tmp_path / ".env").write_text(f"SECRETS_DIR={tmp_path}\n")
    assert load({}, env_file=tmp_path / ".env").settings.bucket == "b"


def test_a_dollar_in_dotenv_is_a_dollar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password is not interpolated with what else is in the environment."""
    monkeypatch.setenv("HOME_BROKER", CANARY)
    (tmp_path / ".env").write_text("MQTT_USERNAME=u\nMQTT_PASSWORD=a${HOME_BROKER}b$HOME_BROKER\n")
    password = load({}, env_file=tmp_path / ".env").settings.mqtt_password
    assert password is not None
    assert password.get_secret_value() == "a${HOME_BROKER}b$HOME_BROKER"


def test_secrets_mounted_by_kubernetes_are_read(tmp_path: Path) -> None:
    """Kubernetes links each file to `..data/`, itself a link to a dated directory."""
    (tmp_path / "..2024").mkdir()
    (tmp_path / "..2024" / "BUCKET").write_text("b")
    (tmp_path / "..data").symlink_to("..2024")
    (tmp_path / "BUCKET").symlink_to("..data/BUCKET")
    assert load({"SECRETS_DIR": str(tmp_path)}).settings.bucket == "b"


def test_secrets_handed_on_by_systemd_are_read(tmp_path: Path) -> None:
    """It puts the credential's name before each file's; a file without it wins."""
    (tmp_path / "bucketbell_BUCKET").write_text("b")
    (tmp_path / "bucketbell_MQTT_USERNAME").write_text("other")
    (tmp_path / "MQTT_USERNAME").write_text("u")
    found = load({"SECRETS_DIR": str(tmp_path)}).settings
    assert (found.bucket, found.mqtt_username) == ("b", "u")


def test_a_missing_dotenv_is_no_error(tmp_path: Path) -> None:
    """Nobody has to have one."""
    assert load({}, env_file=tmp_path / ".env").settings == Settings()


def test_an_unreadable_source_is_named(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are reported, and not repeated."""
    (tmp_path / ".env").write_bytes(b"MQTT_PASSWORD=\xff" + CANARY.encode())
    (tmp_path / "MQTT_PASSWORD").write_bytes(b"\xff" + CANARY.encode())
    assert "UTF-8" in problems({}, env_file=tmp_path / ".env")[str(tmp_path / ".env")]
    with pytest.raises(SettingsError, match="SECRETS_DIR: must be UTF-8") as caught:
        load({"SECRETS_DIR": str(tmp_path)})
    assert caught.value.__context__ is None


def test_settings_cannot_be_changed() -> None:
    """They are validated once; what changes later would not be."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().bucket = "other"


def test_the_constructor_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `load` looks around."""
    monkeypatch.setitem(os.environ, "BUCKET", "mine")
    assert Settings().bucket is None


@pytest.mark.parametrize(
    ("environ", "runtime"),
    [
        ({}, None),
        ({"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}, None),
        ({"AWS_LAMBDA_FUNCTION_NAME": "f"}, LambdaRuntime(snap_start=False)),
        (
            {"AWS_LAMBDA_FUNCTION_NAME": "f", "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand"},
            LambdaRuntime(snap_start=False),
        ),
        (
            {"AWS_LAMBDA_FUNCTION_NAME": "f", "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"},
            LambdaRuntime(snap_start=True),
        ),
    ],
)
def test_the_lambda_runtime_is_recognised(environ: dict[str, str], runtime: LambdaRuntime | None) -> None:
    """A function knows that it is one, and whether its memory will be a snapshot."""
    assert lambda_runtime(environ) == runtime
