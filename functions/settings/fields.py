"""What some settings have in common, as types: lists, tokens, prefixes, addresses, regions, databases, keys."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from functions.settings.addresses import check_database_url, parse_endpoint, parse_http_url, parse_topic_prefix
from functions.settings.reach import Targets

MIN_TOKEN_CHARACTERS = 16
OWN_PREFIX = ".bucketbell/"
MAX_MQTT_BYTES = 65535  # MQTT 5 §1.5.4 and §1.5.6: the length of a string or of binary data has two bytes
MAX_TOPIC_PREFIX_BYTES = 1024

_FERNET_KEY = re.compile("[A-Za-z0-9_-]{43}=")  # 32 bytes: what `cryptography.fernet.Fernet` takes

_CLOUDFLARE_QUEUE = re.compile("/accounts/[A-Za-z0-9_-]{1,64}/queues/[A-Za-z0-9_-]{1,64}$")

_NATS_NAME = re.compile("[A-Za-z0-9_-]{1,64}")  # also the first word of subjects, and the name of a KV bucket
_REGION = re.compile("(?![0-9]+$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)")  # what botocore takes
_GLOBAL = re.compile("aws(-[a-z]+)*-global")  # botocore's names for a partition's endpoint of no region


def _split(value: object) -> object:
    return tuple(item.strip() for item in value.split(",")) if isinstance(value, str) else value


def is_one_word(token: str) -> bool:
    """Whether this can be a bearer token. MinIO sends a token of two words as it is, and no token of more words."""
    return bool(token) and token.isascii() and token.isprintable() and " " not in token


def _tokens(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    for token in (secret.get_secret_value() for secret in secrets):
        if len(token) < MIN_TOKEN_CHARACTERS or not is_one_word(token):
            raise ValueError(
                f"each token must be one word of at least {MIN_TOKEN_CHARACTERS} ASCII characters, "
                "e.g. from `openssl rand -hex 24`"
            )
    return secrets


def _networks(entries: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(entry, strict=False)) for entry in entries)
    except ValueError:
        raise ValueError("must be addresses and networks, comma-separated, e.g. 192.0.2.7,10.0.0.0/8") from None


def _hosts(entries: tuple[str, ...]) -> tuple[str, ...]:
    Targets.parse(entries)
    return entries


def _encryption_keys(keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if not all(_FERNET_KEY.fullmatch(key.get_secret_value()) for key in keys):
        raise ValueError(
            "each key must be 32 bytes in URL-safe base64 (44 characters), e.g. from "
            "`openssl rand -base64 32 | tr '+/' '-_'`"
        )
    return keys


def _database_url(url: SecretStr) -> SecretStr:
    check_database_url(url.get_secret_value())
    return url


def _mqtt_name(name: str) -> str:
    if not name.isprintable() or len(name.encode()) > MAX_MQTT_BYTES:
        raise ValueError(f"must be text without control characters, at most {MAX_MQTT_BYTES} bytes")
    return name


def _mqtt_secret(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) > MAX_MQTT_BYTES:
        raise ValueError(f"must have at most {MAX_MQTT_BYTES} bytes")
    return secret


def _topic_prefix(prefix: str) -> str:
    try:
        levels = parse_topic_prefix(prefix)
    except ValueError:
        raise ValueError("must not begin with / or $, nor hold + # or control characters, e.g. iotsupport") from None
    if len(levels.encode()) > MAX_TOPIC_PREFIX_BYTES:
        raise ValueError(f"must have at most {MAX_TOPIC_PREFIX_BYTES} bytes, e.g. iotsupport")
    return levels


def _cloudflare_queue(url: str) -> str:
    """Return the address of a queue in Cloudflare's API, without a slash at its end. Raises ValueError."""
    url = parse_http_url(url).rstrip("/")
    if _CLOUDFLARE_QUEUE.search(url) is None:
        raise ValueError(
            "must be https://api.cloudflare.com/client/v4/accounts/<account id>/queues/<queue id>, with both ids from "
            "Cloudflare's dashboard"
        )
    return url


def _one_word(secret: SecretStr) -> SecretStr:
    if not is_one_word(secret.get_secret_value()):
        raise ValueError("must be one word of ASCII characters")
    return secret


def is_there(check: Callable[[], bool]) -> bool:
    """Whether a `Path`'s `check` holds; False if the system cannot say, e.g. for a name that is too long."""
    try:
        return check()
    except OSError:
        return False


def _readable_file(path: Path) -> Path:
    if not (is_there(path.is_file) and os.access(path, os.R_OK)):
        raise ValueError("must be the path of a file that this process may read")
    return path


def _directory(path: Path) -> Path:
    if not is_there(path.is_dir):
        raise ValueError("must be a directory with a file for each secret, e.g. /run/secrets")
    return path


def is_region(text: str) -> bool:
    """Whether boto3 can sign for a region of this name."""
    return _REGION.fullmatch(text) is not None and _GLOBAL.fullmatch(text) is None


def _region(text: str) -> str:
    if not is_region(text):
        raise ValueError("must be the name of one region: letters, digits and dashes, e.g. eu-central-1")
    return text


def _key_prefix(prefix: str) -> str:
    prefix = prefix if prefix.endswith("/") else prefix + "/"
    if prefix.startswith("/") or "//" in prefix or not prefix.isprintable():
        raise ValueError("must be a key prefix without a leading or double slash, e.g. firmware/")
    if prefix.startswith(OWN_PREFIX):
        raise ValueError(f"must not be below {OWN_PREFIX}, where the host keeps its own, e.g. firmware/")
    return prefix


def _nats_name(name: str) -> str:
    if _NATS_NAME.fullmatch(name) is None:
        raise ValueError("must be a name of at most 64 letters, digits, - and _, e.g. bucketbell")
    return name


def _qos(value: object) -> object:
    if isinstance(value, str) and value.strip() not in {"0", "1", "2"}:
        raise ValueError("must be 0, 1 or 2")
    return value


Seconds = Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)]
MqttName = Annotated[str, AfterValidator(_mqtt_name)]
MqttSecret = Annotated[SecretStr, AfterValidator(_mqtt_secret)]
TopicPrefix = Annotated[str, AfterValidator(_topic_prefix)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
NatsServers = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
NatsName = Annotated[str, AfterValidator(_nats_name)]
Hosts = Annotated[Words, AfterValidator(_hosts)]
Networks = Annotated[Words, AfterValidator(_networks)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]
Tokens = Annotated[Secrets, AfterValidator(_tokens)]
EncryptionKeys = Annotated[Secrets, AfterValidator(_encryption_keys)]
ReadableFile = Annotated[Path, AfterValidator(_readable_file)]
Directory = Annotated[Path, AfterValidator(_directory)]
KeyPrefix = Annotated[str, AfterValidator(_key_prefix)]
Qos = Annotated[int, Field(ge=0, le=2), BeforeValidator(_qos)]
CloudflareQueueUrl = Annotated[str, AfterValidator(_cloudflare_queue)]
ApiToken = Annotated[SecretStr, AfterValidator(_one_word)]
HttpUrl = Annotated[str, AfterValidator(parse_http_url)]
Endpoint = Annotated[str, AfterValidator(parse_endpoint)]
RegionName = Annotated[str, AfterValidator(_region)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
