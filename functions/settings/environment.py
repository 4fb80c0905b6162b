"""Where settings come from: the only reader of the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from functions.settings import sources
from functions.settings.model import Settings, SettingsError


class Loaded(NamedTuple):
    """Valid settings, and for each field that was set, the name of the source it came from."""

    settings: Settings
    origins: dict[str, str]


def load(
    environ: Mapping[str, str] | None = None, *, env_file: Path | None = None, given: Mapping[str, str] | None = None
) -> Loaded:
    """Read the environment, then `env_file`, then the directory `SECRETS_DIR`, then the secret `SECRET_ID`.

    The first that has a value wins. `environ` defaults to the process's; what was `given` on a command line goes
    before it. Raises `SettingsError` naming every wrong variable.
    """
    loaded = _loaded({**(os.environ if environ is None else environ), **(given or {})}, env_file)
    if isinstance(loaded, Loaded):
        return loaded
    raise SettingsError(loaded)  # raised here: a traceback from inside would hold the rejected values


def _loaded(variables: Mapping[str, str], env_file: Path | None) -> Loaded | tuple[tuple[str, str], ...]:
    """The settings, or the problems with them."""
    try:
        values, origins = sources.read(Settings, variables, env_file)
        return Loaded(Settings.model_validate(values), origins)
    except sources.SourceError as error:
        return ((error.name, error.problem),)
    except ValidationError as error:
        return tuple(_problem(detail) for detail in error.errors(include_url=False))


def _problem(detail: ErrorDetails) -> tuple[str, str]:
    message = detail["msg"].removeprefix("Value error, ")
    return str(detail["loc"][0]).upper(), message[:1].lower() + message[1:]


class LambdaRuntime(NamedTuple):
    """What the Lambda service says of the process that it started us in."""

    snap_start: bool
    has_secret: bool = False


def lambda_runtime(environ: Mapping[str, str] | None = None) -> LambdaRuntime | None:
    """Tell whether this process is a Lambda function's: None anywhere else.

    Source: AWS Lambda, "Defined runtime environment variables".
    """
    environ = os.environ if environ is None else environ
    if "AWS_LAMBDA_FUNCTION_NAME" not in environ:
        return None
    return LambdaRuntime(
        snap_start=environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start",
        has_secret=bool(environ.get("SECRET_ID", "").strip()),
    )
