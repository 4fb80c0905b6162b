"""Where the settings come from: the environment, `.env`, a directory of secrets, AWS Secrets Manager."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pydantic_settings
from dotenv import dotenv_values
from pydantic_settings import BaseSettings, EnvSettingsSource, SecretsSettingsSource

from functions.secret import Access, SecretError, secret_text

NOT_IN_A_SECRET = frozenset({"SECRET_ID", "SECRETS_DIR"})  # it is read last


class SourceError(Exception):
    """A source cannot be read. Names it, or its variable, and holds nothing of what is in it."""

    def __init__(self, name: str, problem: str) -> None:
        """Keep both as data."""
        self.name = name
        self.problem = problem
        super().__init__(f"{name}: {problem}")


class Found(NamedTuple):
    """By field: its raw value, and the name of the source that it came from."""

    values: dict[str, Any]
    origins: dict[str, str]


def read(settings_class: type[BaseSettings], variables: Mapping[str, str], env_file: Path | None) -> Found:
    """Read the environment, then `env_file`, then `SECRETS_DIR`, then `SECRET_ID`; the first that has a value wins.

    Raises `SourceError`.
    """
    values, origins = found = Found({}, {})

    def take(origin: str, more: Mapping[str, Any]) -> None:
        for field, value in more.items():
            if field not in values and str(value).strip():
                values[field] = value
                origins[field] = origin

    take("environment", _Variables(settings_class, variables)())
    if env_file is not None and is_there(env_file.is_file):
        # Not interpolated: a dollar in a password is a dollar, and nothing comes from elsewhere.
        dotenv = _readable(str(env_file), lambda: dotenv_values(env_file, interpolate=False))
        take(str(env_file), _Variables(settings_class, dotenv)())
    if (directory := values.get("secrets_dir", "")) and is_there(Path(directory).is_dir):
        take(directory, _readable("SECRETS_DIR", SecretsSettingsSource(settings_class, secrets_dir=directory)))
    if secret_id := str(values.get("secret_id", "")).strip():
        take(secret_id, _secret(secret_id, settings_class, values))
    return found


def is_there(check: Callable[[], bool]) -> bool:
    """Whether a `Path`'s `check` holds; it does not where the system will not say, as of a name that is too long."""
    try:
        return check()
    except OSError:
        return False


class _Variables(EnvSettingsSource):
    """The variables that it was given, instead of the process's own; in capitals only, as boto3 has them."""

    def __init__(self, settings_class: type[BaseSettings], variables: Mapping[str, str | None]) -> None:
        self._variables = variables
        super().__init__(settings_class)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._variables.items() if name == name.upper()}


def _readable(name: str, read_source: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read_source()
    except (OSError, UnicodeDecodeError, pydantic_settings.SettingsError):
        pass
    raise SourceError(name, "must be UTF-8 text that this process may read")  # out here, or the text would ride along


def _secret(secret_id: str, settings_class: type[BaseSettings], values: Mapping[str, Any]) -> dict[str, str]:
    access = Access(
        values.get("aws_region") or settings_class.model_fields["aws_region"].default,
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
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return {}, f"the secret must hold a JSON object, {right}"
    for position, (name, value) in enumerate(document.items(), 1):
        if name not in names:
            return {}, f"key {position} of the secret is no variable that may be in it, {right}"
        if not isinstance(value, str):
            return {}, f"the secret's {name} must be text in quotes, {right}"
    return {name.lower(): value for name, value in document.items()}, ""
