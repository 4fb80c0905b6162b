"""The settings: what each variable means, and which values are valid."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from functions.settings import fields as setting_types
from functions.settings import pem, sources
from functions.settings.addresses import can_be_virtual, parse_mqtt_url, path_of
from functions.settings.fields import (
    DatabaseUrl,
    EncryptionKeys,
    Endpoint,
    Seconds,
    Secrets,
    Tokens,
    TopicPrefix,
    Words,
)
from functions.settings.fleet import FleetSettings
from functions.settings.jetstream import JetStreamSettings

EXACT = frozenset({"mqtt_password", "nats_password"})  # anything else loses the spaces around it, which no editor shows


class SettingsError(Exception):
    """Some variables are wrong. `problems` pairs each variable with what is wrong and what would be right.

    It never holds a rejected value: the value may be a secret.
    """

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        """Keep `problems` as data; the message is one line for each."""
        self.problems = problems
        super().__init__("\n".join(f"{variable}: {problem}" for variable, problem in problems))


class Settings(FleetSettings, JetStreamSettings):
    """Every setting is an environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(defer_build=False, extra="ignore", frozen=True, hide_input_in_errors=True)

    mqtt_url: str | None = Field(
        default=None,
        description="The broker: `mqtt://host[:1883]` or `mqtts://host[:8883]`. Unset: nothing is published.",
    )
    mqtt_username: setting_types.MqttName | None = Field(default=None, description="User name at the broker.")
    mqtt_password: setting_types.MqttSecret | None = Field(default=None, description="Password at the broker.")
    mqtt_ca_file: setting_types.ReadableFile | None = Field(
        default=None, description="PEM file with the authorities to trust, instead of the system's (`mqtts` only)."
    )
    mqtt_cert_file: setting_types.ReadableFile | None = Field(
        default=None, description="PEM client certificate (`mqtts` only)."
    )
    mqtt_key_file: setting_types.ReadableFile | None = Field(
        default=None, description="PEM key of the client certificate (`mqtts` only)."
    )
    mqtt_ca_pem: str | None = Field(
        default=None,
        description="What MQTT_CA_FILE would hold, where there are no files (a `\\n` written out is a line end).",
    )
    mqtt_cert_pem: str | None = Field(default=None, description="Likewise, instead of MQTT_CERT_FILE.")
    mqtt_key_pem: SecretStr | None = Field(default=None, description="Likewise, instead of MQTT_KEY_FILE.")
    mqtt_alpn: str | None = Field(
        default=None,
        max_length=255,
        pattern=r"^[!-~]*$",
        description="Protocol to ask for by ALPN (`mqtts` only), e.g. `x-amzn-mqtt-ca` for AWS IoT Core on port 443.",
    )
    mqtt_qos: setting_types.Qos = Field(default=1, description="Quality of service of the notifications: 0, 1 or 2.")
    mqtt_protocol: Literal["5", "3.1.1"] = Field(
        default="5", description="`5` or `3.1.1`; 3.1.1 carries no message properties."
    )
    mqtt_client_id_prefix: str = Field(
        default="bucketbell",
        max_length=64,
        pattern=r"^[A-Za-z0-9_-]*$",
        description="The client id is this, a dash and 12 random hex digits.",
    )
    mqtt_keepalive_seconds: int = Field(default=60, ge=1, le=65535, description="MQTT keep alive.")
    mqtt_connect_timeout_seconds: Seconds = Field(
        default=5.0, description="Deadline for TCP, TLS and CONNACK together."
    )
    mqtt_publish_timeout_seconds: Seconds = Field(default=5.0, description="Deadline for the broker's acknowledgement.")

    topic_prefix: TopicPrefix = Field(
        default="iotsupport", description="Topics are `<prefix>/updates/configs` and `<prefix>/updates/assets`."
    )
    bucket: str | None = Field(default=None, description="Only this bucket's events ring. Unset: any bucket's do.")
    configs_prefix: setting_types.KeyPrefix = Field(
        default="configs/", description="Keys of device configs: `<prefix><mac>.json`."
    )
    assets_prefix: setting_types.KeyPrefix = Field(default="assets/", description="Keys of assets: `<prefix><path>`.")
    events_prefix: setting_types.KeyPrefix | None = Field(
        default=None,
        description="Keys of cameras' detection events: `<prefix><camera id>/<event id>.json`, with the thumbnail "
        "beside it as `.jpg`; e.g. `events/`. Needs BUCKET. Unset: none are announced.",
    )
    public_base_url: setting_types.HttpUrl | None = Field(
        default=None,
        description="Where this host's downloads (or the API's) are, as the outside sees it: links to thumbnails begin "
        "with it. Needs DEVICE_TOKEN_KEYS. Unset: they are presigned, and die after URL_TTL_SECONDS.",
    )

    webhook_tokens: Tokens = Field(
        default=(),
        description="Tokens that a store may present, comma-separated (two at once while rotating): as bearer token, "
        "as password of `Basic`, as `?token=`; or sign with (Backblaze B2). Unset: the host starts on loopback only.",
    )
    host_cert_file: setting_types.ReadableFile | None = Field(
        default=None,
        description="PEM file with the host's certificate, then those of the authorities in between: the host then "
        "serves HTTPS. A renewed file counts within a minute.",
    )
    host_key_file: setting_types.ReadableFile | None = Field(
        default=None, description="PEM file with the key of HOST_CERT_FILE."
    )
    trusted_proxies: setting_types.Networks = Field(
        default=(),
        description="The host's own proxies: addresses and networks (CIDR), comma-separated. Their `Forwarded` or "
        "`X-Forwarded-For` is believed. Unset: nobody's is.",
    )
    device_token_keys: Secrets = Field(
        default=(),
        description="Keys of the device tokens, comma-separated: `<kid>:<base64 of at least 32 bytes>`, the latter "
        "e.g. from `openssl rand -base64 32`. The first signs, all verify.",
    )
    device_tokens_revoked: Words = Field(
        default=(), description="Ids (`jti`) of device tokens that are no longer valid, comma-separated."
    )
    admin_tokens: Tokens = Field(
        default=(),
        description="Bearer tokens that may fetch every file and change the stored settings, comma-separated.",
    )
    mqtt_test_allowed_hosts: setting_types.Hosts = Field(
        default=(),
        description="Which brokers an administrator may test and store: names, addresses and networks (CIDR), "
        "comma-separated. Unset: any. Never link-local addresses and clouds' metadata services.",
    )
    database_url: DatabaseUrl | None = Field(
        default=None,
        description="Where broker settings are stored: `sqlite:////path/to/file.db` or "
        "`postgresql://user:password@host/database`. Unset: the variables here are in force.",
    )
    encryption_keys: EncryptionKeys = Field(
        default=(),
        description="Keys of the stored password, comma-separated: 32 bytes in URL-safe base64 each, e.g. from "
        "`openssl rand -base64 32 | tr '+/' '-_'`. The first encrypts, all decrypt.",
    )
    url_ttl_seconds: int = Field(
        default=900, ge=60, le=604_800, description="How long a download URL stays valid, in seconds (at most 7 days)."
    )
    device_requests_per_minute: int = Field(
        default=120,
        ge=0,
        le=60_000,
        description="What the host grants each token, all at once if it likes; at once also twice what its manifest "
        "lists. 0 for no limit.",
    )
    sqs_queue_url: setting_types.HttpUrl | None = Field(
        default=None, description="The host also polls this queue for the bucket's events."
    )
    r2_queue_url: setting_types.CloudflareQueueUrl | None = Field(
        default=None,
        description="The host also polls this Cloudflare Queue for an R2 bucket's events: "
        "`https://api.cloudflare.com/client/v4/accounts/<account id>/queues/<queue id>`.",
    )
    r2_queue_token: setting_types.ApiToken | None = Field(
        default=None, description="Cloudflare's API token for R2_QUEUE_URL, with the permission Queues: Edit."
    )
    event_retry_seconds: int = Field(
        default=3600, ge=1, le=604_800, description="How long one cause may hold up a store's queue (`POST /events`)."
    )
    sweep_seconds: int = Field(
        default=0,
        ge=0,
        le=604_800,
        description="The pause between two sweeps: the host lists the bucket (BUCKET) and announces what no event has "
        "announced. 0: never.",
    )
    sweep_grace_seconds: int | None = Field(
        default=None,
        ge=0,
        le=86_400,
        description="How old a file must be, by the store's clock, before a sweep announces it: the store's event goes "
        "first. Unset: 10 where the store sends events, else 0.",
    )
    sweep_rings_per_second: int = Field(
        default=50, ge=1, le=10_000, description="How many files a sweep announces in a second, at most."
    )
    sweep_max_rings: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="How many files one sweep announces, at most: the newest. The others wait for the next.",
    )
    sweep_catch_up_seconds: int = Field(
        default=86_400,
        ge=0,
        le=31_536_000,
        description="When the sweep's state is lost, files younger than this are announced again.",
    )
    sweep_events_max_age_seconds: int = Field(
        default=300, ge=0, le=86_400, description="A sweep announces cameras' events that are younger than this."
    )
    sweep_state_file: Path | None = Field(
        default=None,
        description="SQLite file that holds what was announced, where there is no DATABASE_URL. Unset: "
        "`.bucketbell/sweep` in the bucket.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="How much is logged.")

    aws_endpoint_url: Endpoint | None = Field(
        default=None, description="boto3's own: the endpoint of the store that is not AWS (and of its SQS)."
    )
    aws_endpoint_url_s3: Endpoint | None = Field(default=None, description="boto3's own: the S3 endpoint alone.")
    s3_public_endpoint_url: Endpoint | None = Field(
        default=None,
        description="The store as *devices* reach it: download URLs are signed for it. Unset: the S3 endpoint.",
    )
    s3_addressing_style: Literal["path", "virtual"] | None = Field(
        default=None,
        description="`path` (`host/bucket/key`) or `virtual` (`bucket.host/key`), as the store wants it. "
        "Unset: `virtual` on AWS, `path` elsewhere.",
    )
    s3_region: setting_types.RegionName | None = Field(
        default=None,
        description="The store's region. Unset: AWS_REGION, AWS_DEFAULT_REGION, the queue's, boto3's profile's, "
        "else `us-east-1`; where the bucket names another, that one.",
    )
    aws_endpoint_url_sqs: Endpoint | None = Field(default=None, description="boto3's own: the SQS endpoint alone.")
    aws_endpoint_url_secrets_manager: Endpoint | None = Field(
        default=None, description="boto3's own: the Secrets Manager endpoint alone."
    )
    aws_access_key_id: str | None = Field(default=None, description="boto3's own.")
    aws_secret_access_key: SecretStr | None = Field(default=None, description="boto3's own.")
    aws_session_token: SecretStr | None = Field(default=None, description="boto3's own.")
    aws_region: setting_types.RegionName | None = Field(default=None, description="The region of everything on AWS.")
    aws_default_region: setting_types.RegionName | None = Field(
        default=None, description="boto3's own: likewise, after AWS_REGION."
    )
    secrets_dir: setting_types.Directory | None = Field(
        default=None,
        description="Directory with a file for each secret, named as the variable, perhaps with `bucketbell_` before "
        "it. Environment and `.env` win.",
    )
    secret_id: str | None = Field(
        default=None,
        description="Name or ARN of a secret in AWS Secrets Manager: a JSON object of text, each key named as the "
        "variable. All others win.",
    )

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
    def _text(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        # Compose files and Lambda consoles pass "" for what nobody filled in.
        if not value.strip():
            return cls.model_fields[str(info.field_name)].get_default(call_default_factory=True)
        try:
            value.encode()
        except UnicodeEncodeError:  # how Python hands on the bytes of an environment that is not UTF-8
            raise ValueError("must be UTF-8 text") from None
        if sources.is_quoted(value) and not sources.is_secret(cls.model_fields[str(info.field_name)]):
            raise ValueError("must not stand in quotes: they are taken for a part of it. Write it without them")
        return value if info.field_name in EXACT else value.strip()

    # A field sees those declared above it in `info.data`, but for the wrong ones: what belongs together is judged
    # at the last one, and reported along with whatever else is wrong.

    @field_validator("mqtt_url")
    @classmethod
    def _mqtt_url(cls, url: str | None) -> str | None:
        if url is not None:
            parse_mqtt_url(url)
        return url

    @field_validator("mqtt_password")
    @classmethod
    def _with_username(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if password is not None and info.data.get("mqtt_username", "") is None:
            raise ValueError("goes together with MQTT_USERNAME: set both")
        return password

    @field_validator("mqtt_ca_pem", "mqtt_cert_pem")
    @classmethod
    def _certificates(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is not None and info.data.get(str(info.field_name).replace("_pem", "_file")) is not None:
            raise ValueError("goes instead of the variable that ends in _FILE: unset one of the two")
        return None if text is None else pem.certificates(text)

    @field_validator("mqtt_key_pem")
    @classmethod
    def _key(cls, text: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if "mqtt_cert_pem" in info.data and (text is None) != (info.data["mqtt_cert_pem"] is None):
            raise ValueError("goes together with MQTT_CERT_PEM: set both or neither")
        return None if text is None else SecretStr(pem.private_key(text.get_secret_value()))

    @field_validator(
        "mqtt_ca_file", "mqtt_cert_file", "mqtt_key_file", "mqtt_ca_pem", "mqtt_cert_pem", "mqtt_key_pem", "mqtt_alpn"
    )
    @classmethod
    def _over_tls(cls, value: object, info: ValidationInfo) -> object:
        url = info.data.get("mqtt_url")
        if value is not None and url is not None and not parse_mqtt_url(url)[0]:
            raise ValueError("needs TLS: MQTT_URL must start with mqtts://")
        return value

    @field_validator("mqtt_key_file", "host_key_file")
    @classmethod
    def _with_certificate(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        certificate = str(info.field_name).replace("_key_", "_cert_")
        if certificate in info.data and (path is None) != (info.data[certificate] is None):
            raise ValueError(f"goes together with {certificate.upper()}: set both or neither")
        return path

    @field_validator("r2_queue_token")
    @classmethod
    def _with_queue(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if "r2_queue_url" in info.data and (token is None) != (info.data["r2_queue_url"] is None):
            raise ValueError("goes together with R2_QUEUE_URL: set both or neither")
        return token

    @field_validator("assets_prefix")
    @classmethod
    def _apart(cls, assets: str, info: ValidationInfo) -> str:
        configs = info.data.get("configs_prefix")
        if configs is not None and (configs.startswith(assets) or assets.startswith(configs)):
            raise ValueError("must not overlap CONFIGS_PREFIX (S3 refuses such rules), e.g. configs/ and assets/")
        return assets

    @field_validator("events_prefix")
    @classmethod
    def _events(cls, events: str | None, info: ValidationInfo) -> str | None:
        if events is None:
            return None
        others = [info.data[name] for name in ("configs_prefix", "assets_prefix") if name in info.data]
        if any(other.startswith(events) or events.startswith(other) for other in others):
            raise ValueError("must not overlap CONFIGS_PREFIX and ASSETS_PREFIX, e.g. events/")
        if info.data.get("bucket", "") is None:
            raise ValueError("needs BUCKET: where the events' documents and thumbnails are")
        return events

    @field_validator("sweep_seconds")
    @classmethod
    def _swept(cls, seconds: int, info: ValidationInfo) -> int:
        if seconds and info.data.get("bucket", "") is None:
            raise ValueError("needs BUCKET: which bucket to list")
        return seconds

    @field_validator("s3_public_endpoint_url")
    @classmethod
    def _public_path(cls, url: str | None, info: ValidationInfo) -> str | None:
        own = info.data.get("aws_endpoint_url_s3") or info.data.get("aws_endpoint_url")
        if url is not None and path_of(url) != path_of(own):
            raise ValueError(
                "must have the path of AWS_ENDPOINT_URL_S3, usually none: the store checks the signature of the path "
                "that it sees, and a proxy changes that. Give it a name or a port of its own, e.g. https://s3.example.org"
            )
        return url

    @field_validator("s3_addressing_style")
    @classmethod
    def _virtual_hosts(cls, style: str | None, info: ValidationInfo) -> str | None:
        own = info.data.get("aws_endpoint_url_s3") or info.data.get("aws_endpoint_url")
        urls = [url for url in (own, info.data.get("s3_public_endpoint_url")) if url is not None]
        if style == "virtual" and urls and not can_be_virtual(info.data.get("bucket") or "bucket", urls):
            raise ValueError(
                "virtual needs endpoints with a host name, no address, and a BUCKET that fits before it: lower-case "
                "letters, digits and dashes. Use path, or rename them"
            )
        return style


def setting_names() -> list[str]:
    """All settings, in the order in which people read them: what is inherited comes last."""
    own = [name for name in Settings.model_fields if name in Settings.__annotations__]
    return list(dict.fromkeys([*own, *Settings.model_fields]))
