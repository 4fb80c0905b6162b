"""The broker to publish to, as a value: made of the settings, or of what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr

if TYPE_CHECKING:
    from functions.mqtt.reach import Targets


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

    @property
    def url(self) -> str:
        """`mqtt(s)://host:port`, without credentials: safe to show."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"
