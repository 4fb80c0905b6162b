"""The stack on moto, which holds bucket, queues and secrets; the built functions run in containers."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from infra.local.process import Process
from infra.local.stores import MotoServer
from infra.sam.build import Artefact
from tests.aws.cloud import RETRY_SECONDS, Cloud, Credentials
from tests.aws.deployment import Deployment, deploy
from tests.aws.function import Function
from tests.aws.mapping import EventSourceMapping, Turn
from tests.gateway import Answered, http_event
from tests.template import transformed


class MotoCloud(Cloud):
    """Moto does not invoke by itself, but through a mapping of our own, batch by batch."""

    def __init__(self, directory: Path, artefact: Artefact, credentials: Credentials, *, image: str) -> None:
        super().__init__(directory, MotoServer(directory / "moto"), artefact, credentials)
        self._image = image
        self._turns: list[Turn] = []

    def deploy(self, name: str, parameters: Mapping[str, str]) -> Deployment:
        """Moto's gaps are filled by hand."""
        return deploy(self.emulator, name, self.artefact.zip_file.read_bytes(), parameters)

    def start_functions(self) -> None:
        """In containers, with the mapping between queue and function."""
        code = self.directory / "code"
        with zipfile.ZipFile(io.BytesIO(self.artefact.zip_file.read_bytes())) as archive:
            archive.extractall(code)
        self.notify = self.enter_context(self._function("NotifyFunction", code))
        self.download = self.enter_context(self._function("DownloadFunction", code))
        self.mapping = EventSourceMapping(
            self.sqs,
            queue_url=self.queue_url,
            configuration=self.functions.get_event_source_mapping(UUID=self.stack.resources["NotifyUploads"]),
            invoke=self.notify.invoke,
        )

    def _function(self, name: str, code: Path) -> Function:
        environment = {  # what Lambda makes of the role; and moto is not where AWS is
            "AWS_REGION": self.emulator.region,
            "AWS_ACCESS_KEY_ID": self.emulator.access_key,
            "AWS_SECRET_ACCESS_KEY": self.emulator.secret_key,
            "AWS_ENDPOINT_URL": self.emulator.endpoint_url,
        }
        return Function(
            self.directory,
            image=self._image,
            code=code,
            configuration=self.configuration(name),
            environment=environment,
        )

    def attempt(self) -> None:
        """One batch; the function may fail messages, but not itself."""
        turn = self.mapping.turn(RETRY_SECONDS)
        if turn.invoked is not None:
            assert turn.invoked.error is None, self.last_words()
            self._turns.append(turn)

    def paused(self) -> AbstractContextManager[None]:
        """Nothing is taken but by `attempt`."""
        return nullcontext()

    def batches(self) -> list[tuple[int, int]]:
        """All that the mapping has had worked on."""
        return [(len(turn.records), len(turn.kept)) for turn in self._turns]

    def log_text(self) -> str:
        """What its container has said."""
        return self.notify.log_text()

    def ask(self, path: str, token: str, method: str = "GET", **headers: str) -> Answered:
        """What DownloadFunction answers to a request that the template's API routes to it."""
        paths = transformed()["Resources"]["DownloadApi"]["Properties"]["Body"]["paths"]
        folder = path.rsplit("/", 1)[0] + "/{"
        (route,) = (
            methods[method.lower()]
            for template, methods in paths.items()
            if template.startswith(folder) or template == path
        )
        assert "DownloadFunction" in json.dumps(route["x-amazon-apigateway-integration"]["uri"])
        event = http_event(path, method=method, headers={"authorization": f"Bearer {token}", **headers})
        invoked = self.download.invoke(json.dumps(event).encode())
        assert invoked.error is None, self.last_words()
        return Answered.of(json.loads(invoked.payload))

    def parts(self) -> tuple[Process, ...]:
        """The containers."""
        return self.notify, self.download
