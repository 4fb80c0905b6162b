"""The stack on MiniStack, which is in its own process tree all that the stack needs but a broker.

MiniStack 1.5.33 lacks three things that the template uses, done here by hand: `Fn::Split` in Conditions (each is
replaced by what it comes to), numbers by `Ref` in a mapping's ScalingConfig (its poller then fails at each turn), and
the `Body` of an HTTP API (its routes are made one by one). A fourth, StartMessageMoveTask, is met in `test_queue`.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.local.process import Process
from infra.sam.build import Artefact
from tests.aws.cloud import EMPTY_SECONDS, FETCH_SECONDS, Cloud, Credentials
from tests.aws.deployment import CODE_BUCKET, CODE_KEY, LAYER_KEY, Deployment, create, put_code
from tests.aws.ministack import AWS, MiniStack
from tests.gateway import Answered
from tests.template import Stack, transformed

BATCH = re.compile(
    r"ESM: Lambda \S+ processed (\d+) SQS messages from bell-events(?: \((\d+) partial failures\))?$", re.MULTILINE
)
ANY = "x-amazon-apigateway-any-method"
INTEGRATED = re.compile(r"functions/(\w+)\.Arn/invocations")


class MiniStackCloud(Cloud):
    """MiniStack polls the queue and invokes by itself, up to ten copies of the function at a time."""

    emulator: MiniStack

    def __init__(self, directory: Path, artefact: Artefact, credentials: Credentials) -> None:
        super().__init__(directory, MiniStack(directory / "ministack"), artefact, credentials)
        self._has_code = False
        self._variables: dict[str, Any] = {}

    def deploy(self, name: str, parameters: Mapping[str, str], *, update: bool = False) -> Deployment:
        """Make the stack `name`, or give it other parameters; MiniStack's own rules and conditions decide."""
        if not self._has_code:
            layer = self.artefact.layer
            put_code(
                self.emulator, {CODE_KEY: self.artefact.zip_file.read_bytes(), LAYER_KEY: layer.zip_file.read_bytes()}
            )
            self._has_code = True
        stack = Stack(**parameters)
        document = copy.deepcopy(transformed(CODE_KEY, **parameters))
        for condition, asked in document["Conditions"].items():
            if "Fn::Split" in json.dumps(asked):
                document["Conditions"][condition] = {"Fn::Equals": [str(stack.holds(condition)), "True"]}
        scaling = stack["NotifyUploads"]["ScalingConfig"]
        document["Resources"]["NotifyUploads"]["Properties"]["ScalingConfig"] = {
            key: int(value) for key, value in scaling.items()
        }
        key = f"{name}.json"  # in S3, as `sam deploy` has it: it is too long for a request
        self.s3.put_object(Bucket=CODE_BUCKET, Key=key, Body=json.dumps(document).encode())
        template = {"TemplateURL": f"{self.emulator.endpoint_url}/{CODE_BUCKET}/{key}"}
        deployed = create(self.emulator, name, parameters, template, update=update)
        self._make_routes(deployed, stack["DownloadApi"]["Body"]["paths"])
        return deployed

    def _make_routes(self, deployed: Deployment, paths: Mapping[str, Any]) -> None:
        gateway, api = self.emulator.client("apigatewayv2"), deployed.resources["DownloadApi"]
        made = {one["RouteKey"] for one in gateway.get_routes(ApiId=api)["Items"]}
        for path, methods in paths.items():
            for method, route in methods.items():
                key = f"{'ANY' if method == ANY else method.upper()} {path}"
                if key not in made:
                    gateway.create_route(
                        ApiId=api, RouteKey=key, Target=f"integrations/{self._integration(api, deployed, route)}"
                    )

    def _integration(self, api: str, deployed: Deployment, route: Mapping[str, Any]) -> str:
        asked = route["x-amazon-apigateway-integration"]
        found = INTEGRATED.search(asked["uri"])
        assert found is not None, asked
        function = self.functions.get_function_configuration(FunctionName=deployed.resources[found[1]])
        integration = self.emulator.client("apigatewayv2").create_integration(
            ApiId=api,
            IntegrationType="AWS_PROXY",
            IntegrationUri=function["FunctionArn"],
            PayloadFormatVersion=asked["payloadFormatVersion"],
        )
        return str(integration["IntegrationId"])

    def start_functions(self) -> None:
        """MiniStack does."""

    def attempt(self) -> None:
        """MiniStack is at it."""

    @contextmanager
    def paused(self, stack: Deployment | None = None) -> Iterator[None]:
        """The event source mapping (of another stack) is disabled."""
        mapping = (stack or self.stack).resources["NotifyUploads"]
        self.functions.update_event_source_mapping(UUID=mapping, Enabled=False)
        try:
            yield
        finally:
            self.functions.update_event_source_mapping(UUID=mapping, Enabled=True)

    def batches(self) -> list[tuple[int, int]]:
        """As MiniStack's log tells."""
        found = [(int(one[1]), int(one[2] or 0)) for one in BATCH.finditer(self.emulator.log_text())]
        return [(done + failed, failed) for done, failed in found]

    def log_text(self) -> str:
        """What is in the function's log group."""
        return self.log_of("notify")

    def log_of(self, function: str, stack: str = "bell") -> str:
        """What a function of a stack has logged into the group that the template gives it."""
        pages = self.emulator.client("logs").get_paginator("filter_log_events")
        found = pages.paginate(logGroupName=f"/aws/lambda/{stack}/{function}")
        return "\n".join(event["message"].rstrip() for page in found for event in page["events"])

    def ask(self, path: str, token: str, method: str = "GET", **headers: str) -> Answered:
        """What the HTTP API of the stack answers."""
        return self.ask_stack(self.stack, path, token, method, **headers)

    def ask_stack(
        self, stack: Deployment, path: str, token: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> Answered:
        """The same of another one."""
        connection = self.emulator.connection(FETCH_SECONDS)
        # MiniStack leaves the region out of the host that ApiUrl names.
        sent = {"host": f"{stack.resources['DownloadApi']}.execute-api.{AWS}", **headers}
        try:
            connection.request(method, path, body, sent | ({"authorization": f"Bearer {token}"} if token else {}))
            answer = connection.getresponse()
            return Answered(
                answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
            )
        finally:
            connection.close()

    def invoke(self, stack: Deployment, key: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - boto3's own options
        """Invoke the NotifyFunction of a stack directly, as for an upload; its answer, or its error."""
        answer = self.functions.invoke(
            FunctionName=stack.resources["NotifyFunction"],
            Payload=json.dumps(self.event(stack.outputs["BucketName"], key)),
            **more,
        )
        return dict(json.loads(answer["Payload"].read() or b"{}"))

    def event(self, bucket: str, key: str) -> dict[str, Any]:
        """S3's own event of an upload."""
        record = {
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "eventTime": "2026-01-01T00:00:00.000Z",
            "eventVersion": "2.1",
            "awsRegion": self.emulator.region,
            "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 1, "eTag": "e"}},
        }
        return {"Records": [record]}

    def restart(self, stack: Deployment, **variables: str) -> None:
        """Give the NotifyFunction of a stack these variables more than the template's; its copies start anew.

        MiniStack ends also those that are at work, so that they must have none.
        """
        self.wait(lambda: not self.queued(stack.outputs["QueueUrl"]), EMPTY_SECONDS)
        name = stack.resources["NotifyFunction"]
        if name not in self._variables:
            self._variables[name] = self.functions.get_function_configuration(FunctionName=name)["Environment"]
        known = self._variables[name]["Variables"]
        given = known | {"GENERATION": secrets.token_hex(4)} | variables
        self.functions.update_function_configuration(FunctionName=name, Environment={"Variables": given})

    def parts(self) -> tuple[Process, ...]:
        """None but MiniStack itself."""
        return ()
