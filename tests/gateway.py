"""Events as an API Gateway HTTP API sends them (payload format 2.0), and what a handler answers to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from aws_lambda_powertools.utilities.typing import LambdaContext

from functions.web.api_gateway import respond
from functions.web.router import Router

# What handlers here never ask for: an object that has nothing.
CONTEXT = cast("LambdaContext", SimpleNamespace())


def http_event(
    path: str,
    *,
    method: str = "GET",
    query: str = "",
    headers: Mapping[str, str] | None = None,
    stage: str = "$default",
) -> dict[str, Any]:
    """One request. `path` is decoded already, `query` is not: so does AWS send them."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path if stage == "$default" else f"/{stage}{path}",
        "rawQueryString": query,
        "headers": {
            "host": "evil.example",
            "x-forwarded-host": "evil.example",
            "x-forwarded-proto": "gopher",
            **{name.lower(): value for name, value in (headers or {}).items()},
        },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api-id",
            "domainName": "id.execute-api.us-east-1.amazonaws.com",
            "domainPrefix": "id",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "device",
            },
            "requestId": "id",
            "routeKey": "$default",
            "stage": stage,
            "time": "20/Nov/2026:12:00:00 +0000",
            "timeEpoch": 1795176000000,
        },
        "isBase64Encoded": False,
    }


@dataclass(frozen=True, slots=True)
class Answered:
    """A handler's answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: str

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Answered:
        """Read what goes back to the gateway: it must be JSON, as Lambda makes it."""
        plain = json.loads(json.dumps(answer))
        assert plain["isBase64Encoded"] is False
        assert not plain.get("cookies")
        return cls(
            plain["statusCode"], {name.lower(): value for name, value in plain["headers"].items()}, plain["body"]
        )

    @classmethod
    def by(cls, router: Router[Any], event: dict[str, Any]) -> Answered:
        """What these routes answer on Lambda."""
        return cls.of(respond(router, event))

    @property
    def document(self) -> Any:  # noqa: ANN401 - JSON
        """The body as JSON."""
        return json.loads(self.body)
