"""The settings, validated once at the edge: the only reader of the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
MAX_HOST_CHARACTERS, MAX_LABEL_CHARACTERS = 253, 63  # RFC 1035 §2.3.4
MIN_TOKEN_CHARACTERS = 16

Seconds = Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)]


class SettingsError(Exception):
    """Some variables are wrong. `problems` pairs each variable with what is wrong and what would be right.

    It never holds a rejected value: the value may be a secret.
    """

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        """Keep `problems` as data; the message is one line for each."""
        self.problems = problems
        super().__init__("\n".join(f"{variable}: {problem}" for variable, problem in problems))


@dataclass(frozen=True, slots=True)
class Broker:
    """Where and how to publish: everything that a connection needs, nothing that it does not."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    protocol: Literal["5", "3.1.1"] = "5"
    qos: int = 1
    client_id_prefix: str = "bucketbell"
    keepalive_seconds: int = 60
    connect_timeout_seconds: float = 5.0
    publish_timeout_seconds: float = 5.0

    @property
    def url(self) -> str:
        """`mqtt(s)://host:port`, without credentials: safe to show."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def parse_mqtt_url(url: str) -> tuple[bool, str, int]:
    """Split `mqtt(s)://host[:port]` into (tls, host, port); the path is ignored.

    Raises `ValueError` with what would be right, and never repeats the URL: it may hold a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError("must start with mqtt:// or mqtts://, e.g. mqtt://broker.local:1883")
    if "@" in parts.netloc:
        raise ValueError("must not hold credentials: put them in MQTT_USERNAME and MQTT_PASSWORD")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("the port must be a number from 1 to 65535, e.g. mqtt://broker.local:1883") from None
    if port == 0:
        raise ValueError("the port must be a number from 1 to 65535, e.g. mqtt://broker.local:1883")
    if not host or not _is_host(host):
        raise ValueError("must name a host or an address, e.g. mqtt://broker.local or mqtt://[::1]:1883")
    return parts.scheme == "mqtts", host, port or DEFAULT_PORTS[parts.scheme]


def _is_host(host: str) -> bool:
    if ":" in host:  # urlsplit has checked the address between the brackets
        return True
    labels = host.removesuffix(".").split(".")
    return len(host) <= MAX_HOST_CHARACTERS and all(
        0 < len(label) <= MAX_LABEL_CHARACTERS and label.replace("-", "").replace("_", "").isalnum() and label.isascii()
        for label in labels
    )


def _has_control(text: str) -> bool:
    return any(character < " " or character == "\x7f" for character in text)


class Settings(BaseSettings):
    """Every setting is an environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, validate_default=False)

    mqtt_url: str | None = Field(
        None,
        description="The broker: `mqtt://host[:1883]` or `mqtts://host[:8883]`. Unset: nothing is published.",
    )
    mqtt_username: str | None = Field(None, description="User name at the broker.")
    mqtt_password: SecretStr | None = Field(None, description="Password at the broker.")
    mqtt_ca_file: Path | None = Field(
        None, description="PEM file with the authorities to trust, instead of the system's (`mqtts` only)."
    )
    mqtt_cert_file: Path | None = Field(None, description="PEM client certificate (`mqtts` only).")
    mqtt_key_file: Path | None = Field(None, description="PEM key of the client certificate.")
    mqtt_qos: int = Field(1, ge=0, le=2, description="Quality of service of the notifications: 0, 1 or 2.")
    mqtt_protocol: Literal["5", "3.1.1"] = Field(
        "5", description="`5` or `3.1.1`; 3.1.1 carries no message properties."
    )
    mqtt_client_id_prefix: str = Field(
        "bucketbell",
        max_length=64,
        pattern=r"^[A-Za-z0-9_-]*$",
        description="The client id is this, a dash and 12 random hex digits.",
    )
    mqtt_keepalive_seconds: int = Field(60, ge=1, le=65535, description="MQTT keep alive.")
    mqtt_connect_timeout_seconds: Seconds = Field(5.0, description="Deadline for TCP, TLS and CONNACK together.")
    mqtt_publish_timeout_seconds: Seconds = Field(5.0, description="Deadline for the broker's acknowledgement.")

    topic_prefix: str = Field(
        "iotsupport", description="Topics are `<prefix>/updates/configs` and `<prefix>/updates/assets`."
    )
    bucket: str | None = Field(None, description="Only this bucket's events ring. Unset: any bucket's do.")
    configs_prefix: str = Field("configs/", description="Keys of device configs: `<prefix><mac>.json`.")
    assets_prefix: str = Field("assets/", description="Keys of assets: `<prefix><path>`.")

    webhook_tokens: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Bearer tokens that a store may present, comma-separated (two at once while rotating). "
        "Unset: the host starts on loopback only.",
    )
    sqs_queue_url: str | None = Field(None, description="The host also polls this queue for the bucket's events.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="How much is logged.")

    aws_endpoint_url: str | None = Field(
        None, description="boto3's own: the endpoint of the store that is not AWS (and of its SQS)."
    )
    aws_endpoint_url_s3: str | None = Field(None, description="boto3's own: the S3 endpoint alone.")
    aws_endpoint_url_sqs: str | None = Field(None, description="boto3's own: the SQS endpoint alone.")
    aws_access_key_id: str | None = Field(None, description="boto3's own.")
    aws_secret_access_key: SecretStr | None = Field(None, description="boto3's own.")
    aws_session_token: SecretStr | None = Field(None, description="boto3's own.")
    aws_region: str = Field("us-east-1", description="boto3's own.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing implicitly: `load` reads the sources, so that a test can inject the environment."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @field_validator("*", mode="before")
    @classmethod
    def _blank_is_unset(cls, value: object, info: ValidationInfo) -> object:
        # Compose files and Lambda consoles pass "" for what nobody filled in.
        if isinstance(value, str) and not value.strip():
            return cls.model_fields[str(info.field_name)].get_default(call_default_factory=True)
        return value

    @field_validator("mqtt_url", mode="after")
    @classmethod
    def _mqtt_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parse_mqtt_url(url.strip())
        return url.strip()

    @field_validator("mqtt_ca_file", "mqtt_cert_file", "mqtt_key_file", mode="after")
    @classmethod
    def _readable(cls, path: Path | None) -> Path | None:
        if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
            raise ValueError("must be the path of a file that this process may read")
        return path

    @field_validator("mqtt_qos", mode="before")
    @classmethod
    def _qos(cls, value: object) -> object:
        if isinstance(value, str) and value.strip() not in {"0", "1", "2"}:
            raise ValueError("must be 0, 1 or 2")
        return value

    @field_validator("topic_prefix", mode="after")
    @classmethod
    def _topic_prefix(cls, prefix: str) -> str:
        prefix = prefix.removesuffix("/")
        # MQTT 5 §4.7.1: a topic name holds no wildcard; §4.7.3: at least one character.
        if not prefix or prefix.startswith(("/", "$")) or any(c in prefix for c in "+#") or _has_control(prefix):
            raise ValueError("must not begin with / or $, nor hold + # or control characters, e.g. iotsupport")
        return prefix

    @field_validator("configs_prefix", "assets_prefix", mode="after")
    @classmethod
    def _key_prefix(cls, prefix: str) -> str:
        prefix = prefix if prefix.endswith("/") else prefix + "/"
        if prefix.startswith("/") or "//" in prefix or _has_control(prefix):
            raise ValueError("must be a key prefix without a leading or double slash, e.g. configs/")
        return prefix

    @field_validator("webhook_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        tokens = tuple(token.strip() for token in value.split(","))
        # One word: MinIO sends a token of two words verbatim and none at all for anything else (FACTS: webhook).
        for token in tokens:
            if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
                raise ValueError(
                    f"each token must be one word of at least {MIN_TOKEN_CHARACTERS} ASCII characters, "
                    "e.g. from `openssl rand -hex 24`"
                )
        return tokens

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        problems: list[tuple[str, str]] = []
        tls_files = (
            ("MQTT_CA_FILE", self.mqtt_ca_file),
            ("MQTT_CERT_FILE", self.mqtt_cert_file),
            ("MQTT_KEY_FILE", self.mqtt_key_file),
        )
        if self.mqtt_url and not self.mqtt_url.startswith("mqtts://"):
            problems += [(name, "needs TLS: MQTT_URL must start with mqtts://") for name, path in tls_files if path]
        if bool(self.mqtt_cert_file) != bool(self.mqtt_key_file):
            problems.append(("MQTT_CERT_FILE", "goes together with MQTT_KEY_FILE: set both or neither"))
        if self.mqtt_password and self.mqtt_username is None:
            problems.append(("MQTT_PASSWORD", "goes together with MQTT_USERNAME: set both"))
        if self.configs_prefix.startswith(self.assets_prefix) or self.assets_prefix.startswith(self.configs_prefix):
            problems.append(
                (
                    "ASSETS_PREFIX",
                    "must not overlap CONFIGS_PREFIX (S3 refuses such rules), e.g. configs/ and assets/",
                )
            )
        if problems:
            raise SettingsError(tuple(problems))
        return self

    @property
    def broker(self) -> Broker | None:
        """The broker to publish to, or None where MQTT is not configured (then publishing is a silent no-op)."""
        if self.mqtt_url is None:
            return None
        tls, host, port = parse_mqtt_url(self.mqtt_url)
        return Broker(
            host=host,
            port=port,
            tls=tls,
            username=self.mqtt_username,
            password=self.mqtt_password,
            ca_file=self.mqtt_ca_file,
            cert_file=self.mqtt_cert_file,
            key_file=self.mqtt_key_file,
            protocol=self.mqtt_protocol,
            qos=self.mqtt_qos,
            client_id_prefix=self.mqtt_client_id_prefix,
            keepalive_seconds=self.mqtt_keepalive_seconds,
            connect_timeout_seconds=self.mqtt_connect_timeout_seconds,
            publish_timeout_seconds=self.mqtt_publish_timeout_seconds,
        )


class _InjectedEnvironment(EnvSettingsSource):
    """The environment that `load` was given, instead of the process's own."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str]:
        return {name.lower(): value for name, value in self._environ.items()}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Valid settings, and for each field that was set, the name of the source it came from."""

    settings: Settings
    origins: dict[str, str]


def load(environ: Mapping[str, str] | None = None, *, env_file: Path | None = None) -> Loaded:
    """Read the environment, then `env_file`, then the files in the directory `SECRETS_DIR`; the first that has it wins.

    `environ` defaults to the process's. Raises `SettingsError` naming every wrong variable.
    """
    environ = os.environ if environ is None else environ
    sources: list[tuple[str, PydanticBaseSettingsSource]] = [("environment", _InjectedEnvironment(Settings, environ))]
    if env_file is not None and env_file.is_file():
        sources.append((str(env_file), DotEnvSettingsSource(Settings, env_file=env_file)))
    if secrets_dir := environ.get("SECRETS_DIR"):
        if not Path(secrets_dir).is_dir():
            raise SettingsError((("SECRETS_DIR", "must be a directory with a file for each secret"),))
        sources.append((secrets_dir, SecretsSettingsSource(Settings, secrets_dir=secrets_dir)))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, source in sources:
        for field, value in source().items():
            blank = isinstance(value, str) and not value.strip()
            if field in Settings.model_fields and field not in values and not blank:
                values[field] = value
                origins[field] = name
    try:
        return Loaded(Settings(**values), origins)
    except ValidationError as error:
        raise SettingsError(tuple(_problem(detail) for detail in error.errors(include_url=False))) from None


def _problem(detail: ErrorDetails) -> tuple[str, str]:
    variable = str(detail["loc"][0]).upper() if detail["loc"] else "settings"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return variable, message[:1].lower() + message[1:]


@dataclass(frozen=True, slots=True)
class LambdaRuntime:
    """What the Lambda service says of the process that it started us in."""

    snap_start: bool


def lambda_runtime(environ: Mapping[str, str] | None = None) -> LambdaRuntime | None:
    """Tell whether this process is a Lambda function's: None anywhere else.

    Source: AWS Lambda, "Defined runtime environment variables".
    """
    environ = os.environ if environ is None else environ
    if "AWS_LAMBDA_FUNCTION_NAME" not in environ:
        return None
    return LambdaRuntime(snap_start=environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start")
