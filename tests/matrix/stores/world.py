"""The parts around one store: real broker, real host, a device that listens. The chaos rig's world, with this store."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from functions.web.tokens import Keyring
from infra.local.process import PartError
from infra.local.stores import Store
from tests.chaos.metrics import host_metric
from tests.chaos.scenarios import PROFILES
from tests.chaos.uploads import Uploads
from tests.chaos.verdict import Heard
from tests.chaos.world import BUCKET, STOP_SECONDS, SWEEPING, SWEPT_ONCE, Source, World, eventually
from tests.fakes.device_rig import MAC
from tests.matrix.stores.kinds import StoreKind

PROFILE = replace(PROFILES["short"], outage_seconds=2.0)
# Where the store's events go first. Shorter than the default of 10 s, so that a run does not take for ever: how long
# what is missing waits depends on it, whether it is missing does not.
EVENTS_FIRST = {"SWEEP_GRACE_SECONDS": "3"}
FIRST_SWEEP_SECONDS = 60.0
BUCKET_SECONDS = 60.0
TOKEN_KEY = base64.b64encode(bytes(range(32))).decode()
DEVICE_TOKEN = Keyring.parse([f"k:{TOKEN_KEY}"]).mint(MAC)
ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Rang:
    """A message as the device got it: object key (by its topic and file name), ETag without quotes, when."""

    key: str
    etag: str
    at: float


class StoreWorld(World):
    """Entered, everything runs, the bucket is there, and the store is told where its events go."""

    def __init__(self, kind: StoreKind, directory: Path) -> None:
        """As `World`. Raises `PartError`."""
        self.kind = kind
        self.phase = "none"
        super().__init__(
            directory,
            PROFILE,
            source="sqs" if kind.name == "moto" else "minio",
            # So that a message which a killed host had taken comes back in time.
            queue={"VisibilityTimeout": "2"} if kind.name == "moto" else None,
            variables={"DEVICE_TOKEN_KEYS": f"k:{TOKEN_KEY}"},
        )
        self.events_from = kind.events or "the sweep"

    def _make_store(self, directory: Path, source: Source) -> Store:
        del source
        return self.kind.make(directory / "store", self._doors)

    def _start_parts(self) -> None:
        self.broker.start()
        if self.kind.needs_host_first:
            self.host.start()
        self.store.start()
        if self.kind.connect is None:
            super()._connect()
        else:
            eventually(self._has_bucket, "the store takes no bucket", BUCKET_SECONDS)
            self.kind.connect(self.store, BUCKET, self._doors)
        self.host.start()

    def _has_bucket(self) -> bool:
        """A store may say that it is ready a moment before it is."""
        try:
            if BUCKET not in {one["Name"] for one in self.s3.list_buckets()["Buckets"]}:
                self.s3.create_bucket(Bucket=BUCKET)
        except self.s3.exceptions.ClientError:
            return False
        return True

    def _first_ring(self) -> None:
        """Whether anything rings is what is to be found out."""

    def sweep(self, *, events_first: bool) -> None:
        """From now on the host sweeps. Raises `PartError` when it does not."""
        self.host.stop(STOP_SECONDS)
        self.host.environment |= SWEEPING | (EVENTS_FIRST if events_first else {})
        self.host.start()
        eventually(lambda: host_metric(self.host, SWEPT_ONCE), "the host does not sweep", FIRST_SWEEP_SECONDS)

    @property
    def settle_seconds(self) -> float:
        """After so long nothing more comes of what was uploaded: two sweeps, or two looks of a store at its queue."""
        return 2 * (float(SWEEPING["SWEEP_SECONDS"]) + 0.5) if self.is_sweeping else self.kind.settle_seconds

    def rang(self) -> list[Rang]:
        """What the device got so far."""
        return [
            Rang(
                f"{message.topic.rpartition('/')[2]}/{json.loads(message.payload)['filename']}",
                dict(message.user_properties).get("etag", ""),
                message.received_at,
            )
            for message in self.subscriber.messages
        ]

    @contextlib.contextmanager
    def uploading(self, phase: str, per_second: float) -> Iterator[Uploads]:
        """Numbered uploads of a phase of their own."""
        self.phase = phase
        self.uploads = Uploads(lambda key: self.put(self.object_key(key)), per_second)
        with self.uploads:
            yield self.uploads

    def object_key(self, key: str) -> str:
        """The phase's own."""
        return key.replace("assets/", f"assets/{self.phase}/", 1)

    def heard(self) -> list[Heard]:
        """Those of this phase, by the uploads' keys."""
        prefix = f"assets/{self.phase}/"
        ours = (one for one in super().heard() if one.key.startswith(prefix))
        return [replace(one, key=f"assets/{one.key.removeprefix(prefix)}") for one in ours]

    def ask(self, path: str, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A JSON answer of the host to the device. Raises `PartError`."""
        with httpx.Client(base_url=self.host.url, timeout=ANSWER_SECONDS, trust_env=False) as http:
            headers = {"Authorization": f"Bearer {DEVICE_TOKEN}", "Accept": "application/json"}
            answer = http.get(path, params=dict(parameters or {}), headers=headers)
        if answer.status_code != httpx.codes.OK:
            raise PartError(f"GET {path} answered {answer.status_code}: {answer.text[:200]}")
        return dict(answer.json())

    def manifest(self) -> dict[str, tuple[str | None, int]]:
        """What a device is told that there is: ETag and size by key."""
        found: dict[str, tuple[str | None, int]] = {}
        parameters: dict[str, str] = {}
        while True:
            page = self.ask("/manifest", parameters)
            found |= {f"{one['kind']}s/{one['filename']}": (one["etag"], one["size"]) for one in page["objects"]}
            if not page["next"]:
                return found
            parameters = {"next": page["next"]}

    def wait(self, truth: Callable[[], object], patience_seconds: float) -> bool:
        """Whether it came true in time."""
        with contextlib.suppress(PartError):
            eventually(truth, "", patience_seconds)
            return True
        return bool(truth())

    def rest(self) -> None:
        """Let come what is going to."""
        time.sleep(self.settle_seconds)
