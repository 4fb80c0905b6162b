"""Reads one secret of AWS Secrets Manager; imports botocore, the lower half of boto3, only when it is asked."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

DEFAULT_REGION = "us-east-1"  # AWS's first region, and the default name of a self-hosted store's
CONNECT_TIMEOUT_SECONDS = 1.0
READ_TIMEOUT_SECONDS = 1.0
DEADLINE_SECONDS = CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS
"""How long one read takes at the most, beside the resolver's own time. One attempt: the caller will ask again."""

_DENIED = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "UnrecognizedClientException",
    }
)


class SecretError(Exception):
    """The secret cannot be read. The message says why and what would be right, and holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach Secrets Manager; what is None, botocore looks up as boto3 does."""

    region: str | None
    endpoint_url: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)


def secret_text(secret_id: str, access: Access) -> str:
    """Return the text of a secret's current version within DEADLINE_SECONDS. Raises SecretError.

    `secret_id` is a name or an ARN. Needs `secretsmanager:GetSecretValue`.
    """
    botocore = import_botocore()
    from botocore import config, exceptions  # noqa: PLC0415 - as in `import_botocore`

    # At DEBUG it logs each answer.
    logging.getLogger("botocore.parsers").setLevel(logging.INFO)
    problem = ""
    region = access.region
    try:
        session = botocore.session.get_session()
        region = region or session.get_config_variable("region") or DEFAULT_REGION
        client = session.create_client(
            "secretsmanager",
            region_name=region,
            endpoint_url=access.endpoint_url,
            aws_access_key_id=access.access_key_id,
            aws_secret_access_key=access.secret_access_key,
            aws_session_token=access.session_token,
            config=config.Config(
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                read_timeout=READ_TIMEOUT_SECONDS,
                retries={"total_max_attempts": 1, "mode": "standard"},
            ),
        )
        text: str | None = client.get_secret_value(SecretId=secret_id).get("SecretString")
        if text is not None:
            return text
        problem = "must name a secret that holds text, not bytes"
    except exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        problem = _refused(str(error.response.get("Error", {}).get("Code", status)), status, region)
    except (exceptions.ConnectionError, exceptions.HTTPClientError):
        problem = (
            f"Secrets Manager in {region} does not answer within {DEADLINE_SECONDS:g} s: "
            "in a VPC it needs an endpoint or a NAT gateway"
        )
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError):
        problem = "this process has no credentials to read it with: a role, or AWS_ACCESS_KEY_ID and its secret"
    except exceptions.ParamValidationError:
        problem = "must be the name or the ARN of a secret"
    except (exceptions.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        problem = f"Secrets Manager cannot be asked: {type(error).__name__}"
    raise SecretError(problem)  # raised here: it must not hold what was raised


def import_botocore() -> ModuleType:
    """Import what `secret_text` needs: it takes a tenth of a second and more."""
    import botocore.session  # noqa: PLC0415 - see above

    return botocore


def _refused(code: str, status: int, region: str | None) -> str:
    if code == "ResourceNotFoundException":
        return f"must be the name or the ARN of a secret that exists in {region}"
    if code in _DENIED or status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return f"this process may not read it ({code}): allow it secretsmanager:GetSecretValue"
    return f"Secrets Manager refuses ({code})"
