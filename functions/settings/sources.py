"""Where the settings come from: the environment, `.env`, a directory of secrets, AWS Secrets Manager."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from dotenv import dotenv_values
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from functions.settings.fields import is_there
from functions.settings.secret import Access, SecretError, secret_text

UTF_8 = "utf-8-sig"  # without the byte order mark that Windows' editors write
BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
NOT_IN_A_SECRET = frozenset({"SECRET_ID", "SECRETS_DIR"})  # it is read last

_LINE_END = re.compile(r"(?:\r\n|\n|\r)\Z")

T = TypeVar("T")


class SourceError(Exception):
    """A source cannot be read. Names it, or its variable, and holds nothing of what is in it."""

    def __init__(self, name: str, problem: str) -> None:
        """Keep both as data."""
        self.name = name
        self.problem = problem
        super().__init__(f"{name}: {problem}")


class RawValues(NamedTuple):
    """By field: its raw value, and the name of the source that it came from."""

    values: dict[str, str]
    origins: dict[str, str]


def read(settings_class: type[BaseSettings], variables: Mapping[str, str], env_file: Path | None) -> RawValues:
    """Read the environment, then `env_file`, then `SECRETS_DIR`, then `SECRET_ID`; the first that has a value wins.

    Raises `SourceError`.
    """
    values, origins = found = RawValues({}, {})

    def take(origin: str, more: Mapping[str, str]) -> None:
        for field, value in more.items():
            if field not in values and (text := plain(value)).strip():
                values[field] = text
                origins[field] = origin

    take("environment", _variables(settings_class, variables))
    if env_file is not None and is_there(env_file.is_file):
        # Not interpolated: a dollar in a password is a dollar.
        dotenv = _readable(str(env_file), lambda: dotenv_values(env_file, interpolate=False, encoding=UTF_8))
        take(str(env_file), _variables(settings_class, dotenv))
    if (directory := values.get("secrets_dir", "")) and is_there(Path(directory).is_dir):
        take(directory, _readable("SECRETS_DIR", lambda: _files(Path(directory), settings_class)))
    # What is in quotes will be refused by name: to ask Secrets Manager with it would only say so in other words.
    quoted = any(
        is_quoted(value) and not is_secret(settings_class.model_fields[name]) for name, value in values.items()
    )
    if (secret_id := values.get("secret_id", "").strip()) and not quoted:
        take(secret_id, _secret(secret_id, settings_class, values))
    return found


def is_quoted(value: str) -> bool:
    """Whether quotes stand around a value, which a shell would have taken away and a compose file passes on."""
    text = value.strip()
    return len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting is a secret: only its owner knows which characters belong to it."""
    return SecretStr.__name__ in str(field.annotation)


def plain(value: str) -> str:
    """A value without what an editor, `echo` or `--env-file` adds to it: a byte order mark, one line end."""
    return _LINE_END.sub("", value.removeprefix(BYTE_ORDER_MARK))


def _variables(settings_class: type[BaseSettings], variables: Mapping[str, str | None]) -> dict[str, str]:
    """Of these variables the settings; in capitals only, as boto3 has them."""
    named = {name.lower(): value for name, value in variables.items() if name == name.upper()}
    return {field: value for field in settings_class.model_fields if (value := named.get(field)) is not None}


def _files(directory: Path, settings_class: type[BaseSettings]) -> dict[str, str]:
    """Read the file of each setting that has one; a Kubernetes secret's are links, and capitals do not matter."""
    files = {path.name.lower(): path for path in directory.iterdir() if path.is_file()}
    # Not `read_text`, which turns each CRLF into a line end: a secret is what it is.
    return {field: files[field].read_bytes().decode(UTF_8) for field in settings_class.model_fields if field in files}


def _readable(name: str, read_source: Callable[[], T]) -> T:
    try:
        return read_source()
    except (OSError, UnicodeDecodeError):
        pass
    raise SourceError(name, "must be UTF-8 text that this process may read")  # raised here: it must not hold the text


def _secret(secret_id: str, settings_class: type[BaseSettings], values: Mapping[str, str]) -> dict[str, str]:
    access = Access(
        values.get("aws_region") or values.get("aws_default_region"),
        values.get("aws_endpoint_url_secrets_manager") or values.get("aws_endpoint_url"),
        values.get("aws_access_key_id"),
        values.get("aws_secret_access_key"),
        values.get("aws_session_token"),
    )
    try:
        text = secret_text(secret_id, access)
    except SecretError as error:
        problem = str(error)
    else:
        names = {field.upper() for field in settings_class.model_fields} - NOT_IN_A_SECRET
        document, problem = _parsed(text, names)
        if not problem:
            return document
    raise SourceError("SECRET_ID", problem)  # out here: as in `_readable`


def _parsed(text: str, names: set[str]) -> tuple[dict[str, str], str]:
    """Return the variables that a secret holds, by field, or what is wrong with it, in words that repeat nothing."""
    right = 'e.g. {"MQTT_PASSWORD": "..."}'
    try:
        document = json.loads(text.removeprefix(BYTE_ORDER_MARK))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return {}, f"the secret must hold a JSON object, {right}"
    for position, (name, value) in enumerate(document.items(), 1):
        if name not in names:
            return {}, f"key {position} of the secret is not a variable that may be in it, {right}"
        if not isinstance(value, str):
            return {}, f"the secret's {name} must be text in quotes, {right}"
    return {name.lower(): value for name, value in document.items()}, ""
