"""The settings of NATS JetStream, a queue of events between a store and one or several hosts."""

from pathlib import Path

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from functions.settings import fields as setting_types
from functions.settings.addresses import is_tls, parse_nats_url

WAYS_IN = ("nats_username", "nats_token", "nats_creds_file", "nats_nkey_file")


class JetStreamSettings(BaseSettings):
    """Part of `Settings`."""

    model_config = SettingsConfigDict(defer_build=True)  # nothing is validated by a part

    nats_url: setting_types.NatsServers = Field(
        default=(),
        description="The host also takes events from NATS JetStream: `nats://host[:4222]`, or `tls://host[:4222]` for "
        "TLS; several servers of one cluster comma-separated. Unset: it does not.",
    )
    nats_stream: setting_types.NatsName = Field(
        default="bucketbell",
        description="The stream; the names of what lies beside it begin with it. `bucketbell connect` makes them all.",
    )
    nats_consumer: setting_types.NatsName = Field(
        default="bucketbell", description="The stream's durable consumer. Hosts that name the same one share the work."
    )
    nats_username: setting_types.MqttName | None = Field(default=None, description="User name at NATS.")
    nats_password: setting_types.MqttSecret | None = Field(default=None, description="Password at NATS.")
    nats_token: SecretStr | None = Field(default=None, description="Token at NATS, instead of a user name.")
    nats_creds_file: setting_types.ReadableFile | None = Field(
        default=None, description="File with JWT and seed (`.creds`), instead of a user name."
    )
    nats_nkey_file: setting_types.ReadableFile | None = Field(
        default=None, description="File with the seed of an NKey, instead of a user name."
    )
    nats_ca_file: setting_types.ReadableFile | None = Field(
        default=None, description="PEM file with the authorities to trust, instead of the system's (`tls` only)."
    )
    nats_cert_file: setting_types.ReadableFile | None = Field(
        default=None, description="PEM client certificate (`tls` only)."
    )
    nats_key_file: setting_types.ReadableFile | None = Field(
        default=None, description="PEM key of the client certificate (`tls` only)."
    )

    @field_validator("nats_url")
    @classmethod
    def _servers(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parse_nats_url(url)
        if len({is_tls(url) for url in urls}) > 1:
            raise ValueError("must be of one kind, all nats:// or all tls://: they share one set of credentials")
        return urls

    @field_validator("nats_password")
    @classmethod
    def _with_user(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if "nats_username" in info.data and (password is None) != (info.data["nats_username"] is None):
            raise ValueError("goes together with NATS_USERNAME: set both or neither")
        return password

    @field_validator(*WAYS_IN[1:])
    @classmethod
    def _one_way_in(cls, value: object, info: ValidationInfo) -> object:
        others = [name for name in WAYS_IN if name != info.field_name and info.data.get(name) is not None]
        if value is not None and others:
            raise ValueError(f"goes instead of {others[0].upper()}: unset one of the two")
        return value

    @field_validator("nats_ca_file", "nats_cert_file", "nats_key_file")
    @classmethod
    def _with_tls(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        urls = info.data.get("nats_url")
        if path is not None and urls and not is_tls(urls[0]):
            raise ValueError("needs TLS: NATS_URL must start with tls://")
        return path

    @field_validator("nats_key_file")
    @classmethod
    def _with_certificate_at_nats(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if "nats_cert_file" in info.data and (path is None) != (info.data["nats_cert_file"] is None):
            raise ValueError("goes together with NATS_CERT_FILE: set both or neither")
        return path
