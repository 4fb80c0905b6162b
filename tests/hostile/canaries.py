"""A canary for every setting that holds a secret: of a form that the setting takes, and not to be had by chance."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import BaseModel, SecretStr

from functions.mqtt.broker import BrokerConfig
from functions.settings import Settings
from functions.stored.model import MqttConfigChange
from tests.hostile.searching import SHORTEST_LEAK, leaks

# Settings with such a name that hold no secret, and why not.
NO_SECRET = {
    "host_key_file": "a path",
    "mqtt_key_file": "a path",
    "nats_key_file": "a path",
    "nats_nkey_file": "a path",
    "mqtt_ca_pem": "certificates, which every server shows",
    "mqtt_cert_pem": "likewise; a key in it is not kept",
    "device_tokens_revoked": "ids",
    "aws_access_key_id": "half of a pair that is worth nothing alone; S3 puts it into every presigned URL",
    "aws_endpoint_url_secrets_manager": "a URL that may hold no credentials",
    "secret_id": "a name or an ARN",
    "secrets_dir": "a path",
}
SUSPICIOUS = ("password", "token", "secret", "key", "pem", "credential", "passphrase")


def holds_secret(annotation: object) -> bool:
    """Whether a SecretStr is anywhere in a type."""
    return annotation is SecretStr or any(map(holds_secret, get_args(annotation)))


def secret_fields(kind: type[Any]) -> set[str]:
    """The fields of settings, of a document or of a dataclass that hold secrets."""
    if issubclass(kind, BaseModel):
        return {name for name, field in kind.model_fields.items() if holds_secret(field.annotation)}
    assert dataclasses.is_dataclass(kind)
    return {name for name, annotation in get_type_hints(kind).items() if holds_secret(annotation)}


def suspicious_fields(kind: type[BaseModel]) -> set[str]:
    """The fields that sound as if they held one."""
    return {name for name in kind.model_fields if any(word in name for word in SUSPICIOUS)}


def word(name: str, length: int = 24) -> str:
    """Letters that are in no other text of this world; the same in every run."""
    digest = hashlib.sha256(f"canary of {name}".encode()).digest() * (length // 32 + 1)
    return "".join(string.ascii_letters[byte % 52] for byte in digest[:length])


_CLIENT_KEY = ec.derive_private_key(int.from_bytes(hashlib.sha256(b"canary").digest()), ec.SECP256R1())


def _key_pem() -> str:
    return _CLIENT_KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def certificate_pem() -> str:
    """The certificate of the client key, by itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "canary")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, _CLIENT_KEY.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1))
    certificate = builder.sign(_CLIENT_KEY, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


CANARIES: dict[str, tuple[str, ...]] = {
    "mqtt_password": (word("mqtt_password"),),
    "mqtt_key_pem": (_key_pem(),),
    "webhook_tokens": (word("webhook one"), word("webhook two")),
    "admin_tokens": (word("admin one"), word("admin two")),
    "device_token_keys": tuple(f"{kid}:{base64.b64encode(word(kid, 32).encode()).decode()}" for kid in ("new", "old")),
    "database_url": (f"postgresql://bell:{word('database')}@127.0.0.1:1/settings",),
    "encryption_keys": tuple(base64.urlsafe_b64encode(word(f"fernet {n}", 32).encode()).decode() for n in (1, 2)),
    "aws_secret_access_key": (word("aws_secret_access_key"),),
    "aws_session_token": (word("aws_session_token", 64),),
    "r2_queue_token": (word("r2_queue_token"),),
    "nats_password": (word("nats_password"),),
}
STORED_PASSWORD = word("stored password")
INSTEAD = {"nats_token": "nats_password"}
"""Secrets that cannot be set together with another, which is looked for in their place."""

# What of each must not be seen: where the setting has a form around the secret, what is within it.
HIDDEN: dict[str, tuple[str, ...]] = CANARIES | {
    "mqtt_key_pem": tuple(line for line in CANARIES["mqtt_key_pem"][0].splitlines()[2:-1]),
    "device_token_keys": (word("new", 32), word("old", 32)),
    "database_url": (word("database"),),
    "encryption_keys": tuple(word(f"fernet {n}", 32) for n in (1, 2)),
    "stored password": (STORED_PASSWORD,),
}


def environment(*fields: str) -> dict[str, str]:
    """These settings with their canaries."""
    return {field.upper(): ",".join(CANARIES[field]) for field in fields}


def seen(text: str | bytes, *, but: tuple[str, ...] = ()) -> dict[str, set[str]]:
    """By setting: what of its canaries, in any form and from 8 characters on, is in `text`."""
    plain = text if isinstance(text, str) else text.decode("latin-1")
    found = {
        field: set[str]().union(*(leaks(one, plain) for one in hidden))
        for field, hidden in HIDDEN.items()
        if field not in but
    }
    return {field: parts for field, parts in found.items() if parts}


def seen_in_files(*files: Path) -> dict[str, dict[str, set[str]]]:
    """The same for files, by name."""
    found = {file.name: seen(file.read_bytes()) for file in files}
    return {name: parts for name, parts in found.items() if parts}


KINDS: tuple[type[Any], ...] = (Settings, MqttConfigChange, BrokerConfig)
assert all(len(one) >= SHORTEST_LEAK for hidden in HIDDEN.values() for one in hidden)
