"""The broker to publish to, as a value: made of the settings, or of what is stored."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr

from functions.settings.addresses import parse_mqtt_url

if TYPE_CHECKING:
    from functions.settings import Settings
    from functions.settings.reach import Targets

_IOT_CORE = re.compile(r"\.iot\.[a-z0-9-]+\.amazonaws\.com(\.cn)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """Where and how to publish: everything that a connection needs, nothing that it does not."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    ca_pem: str | None = None
    cert_pem: str | None = None
    key_pem: SecretStr | None = None
    alpn: str | None = None
    protocol: Literal["5", "3.1.1"] = "5"
    qos: int = 1
    client_id_prefix: str = "bucketbell"
    keepalive_seconds: int = 60
    connect_timeout_seconds: float = 5.0
    publish_timeout_seconds: float = 5.0
    availability_topic: str | None = None
    """Where the broker itself says `offline`, retained, when it loses us: MQTT's last will."""
    targets: Targets | None = None
    """What may be connected to where an administrator named the broker; None where the environment did."""

    @classmethod
    def of(cls, settings: Settings) -> BrokerConfig | None:
        """The broker of the settings, or None where MQTT is not configured (then publishing is a silent no-op)."""
        if settings.mqtt_url is None:
            return None
        tls, host, port = parse_mqtt_url(settings.mqtt_url)
        return cls.at(host, port, settings, tls=tls, username=settings.mqtt_username, password=settings.mqtt_password)

    @classmethod
    def at(
        cls, host: str, port: int, settings: Settings, *, tls: bool, username: str | None, password: SecretStr | None
    ) -> BrokerConfig:
        """The broker at this address; certificates, protocol and deadlines are those of the settings."""
        return cls(
            host=host,
            port=port,
            tls=tls,
            username=username,
            password=password,
            ca_file=settings.mqtt_ca_file,
            cert_file=settings.mqtt_cert_file,
            key_file=settings.mqtt_key_file,
            ca_pem=settings.mqtt_ca_pem,
            cert_pem=settings.mqtt_cert_pem,
            key_pem=settings.mqtt_key_pem,
            alpn=settings.mqtt_alpn,
            protocol=settings.mqtt_protocol,
            qos=settings.mqtt_qos,
            client_id_prefix=settings.mqtt_client_id_prefix,
            keepalive_seconds=settings.mqtt_keepalive_seconds,
            connect_timeout_seconds=settings.mqtt_connect_timeout_seconds,
            publish_timeout_seconds=settings.mqtt_publish_timeout_seconds,
        )

    @property
    def url(self) -> str:
        """`mqtt(s)://host:port`, without credentials: safe to show."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    @property
    def known_by_certificate(self) -> bool:
        """Whether this broker knows us by a client certificate only."""
        return self.username is None and (self.cert_file or self.cert_pem) is not None

    @property
    def is_iot_core(self) -> bool:
        """Whether this is AWS IoT Core, by a name of AWS's own."""
        return _IOT_CORE.search(self.host) is not None

    @property
    def credentials_hint(self) -> str:
        """What to look at where the broker does not let us in."""
        if not self.known_by_certificate:
            return "check MQTT_USERNAME and MQTT_PASSWORD"
        certificate = f"the certificate in {self.variable('CERT')}"
        if self.is_iot_core:
            right = f"iot:Connect for client id {self.client_id_prefix}-*"
            return f"is {certificate} active, and attached to a policy that allows {right}?"
        return f"check what the broker allows to {certificate}, and whether it is active"

    def variable(self, name: Literal["CA", "CERT", "KEY"]) -> str:
        """Name the variable that says so, of the two that could."""
        from_text = self.ca_pem if name == "CA" else self.cert_pem
        return f"MQTT_{name}_{'PEM' if from_text else 'FILE'}"


def new_client_id(prefix: str) -> str:
    """Return a client id of this process alone: two clients with one id would disconnect each other for ever."""
    return f"{prefix}-{os.urandom(6).hex()}"
