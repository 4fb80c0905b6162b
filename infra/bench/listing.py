"""The manifest of 1,000, 10,000 and 100,000 objects: what it asks of the store, its time beside a bare LIST's, memory.

The first two in MinIO. Filling it with 100,000 would take minutes: these are listed by a small program that answers
LIST and nothing else, faster than a store (`infra.bench.fast_store`), so that our own part shows more than it would.
"""

from __future__ import annotations

import http.client
import io
import json
import math
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from functions.devices.api import router
from functions.devices.downloads import Downloads
from functions.s3.objects import MAX_PAGE_OBJECTS
from functions.settings import load
from functions.web.api_gateway import respond
from infra.bench.fast_store import STEM
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared, milliseconds
from infra.bench.rig import BUCKET, asset_keys, device_token, download_variables, mac_address
from infra.local.process import Process, free_port
from infra.local.stack import Host
from infra.local.stores import Minio

MINIO_SIZES = (1_000, 10_000)
FAST_SIZE = 100_000
TIME_TARGETS = {10_000: 1.3}
OTHERS = 2  # a HEAD of the device's config, and once whether the bucket has versions; and a LIST for each page
ANSWER_SECONDS = 10.0
MIB = 1024 * 1024
SIDES = BARE, HANDLER, HOST = ("a bare LIST by boto3", "by the handler", "by the host")

Ask = Callable[[str], dict[str, Any]]
"""Asks for one page of the manifest, by the path and query of its URL."""


def measure(bench: Bench) -> list[Figure]:
    """A bare LIST, the handler in this process and the host in its own, in turn; medians of the rounds' ratios."""
    figures = []
    with Minio(bench.directory / "minio") as minio:
        s3 = minio.client()
        for size in MINIO_SIZES:
            bucket = f"{BUCKET}-{size}"
            bench.say(f"{size:,} objects are made")
            _fill(s3, bucket, size)
            variables = {**download_variables(minio), "BUCKET": bucket}
            store = _Store(s3, bucket, variables, f"of {size:,} objects")
            figures += _figures(bench, store, size, SIDES, bench.count(15, 5))
        with _fast_store(bench.directory / "store", minio) as store:
            figures += _figures(bench, store, FAST_SIZE, (BARE, HOST), 5)  # three sides would take two minutes
    return figures


@dataclass(frozen=True, slots=True)
class _Store:
    """A bucket, a client for it, what the host needs to know of it, and what to call its objects."""

    s3: Any
    bucket: str
    variables: dict[str, str]
    objects: str


def _figures(bench: Bench, store: _Store, size: int, timed: Sequence[str], rounds: int) -> list[Figure]:
    """All sides in a first round, which counts the calls and warms them; then those that are `timed`, in turn."""
    took: dict[str, list[float]] = {name: [] for name in timed}
    port = free_port()
    host = Host(bench.directory / f"host-{size}", port, store.variables)
    with host, _handler(store.variables) as (ask_handler, calls), _keep_alive(port) as ask_host:
        sides: Mapping[str, Callable[[], int]] = {
            BARE: lambda: _bare(store),
            HANDLER: lambda: _walk(ask_handler),
            HOST: lambda: _walk(ask_host),
        }
        bench.say(f"{size:,} objects, counted")
        for name in SIDES:
            _seconds(sides[name], size)
        counted = list(calls)
        memory = _Memory(host.pid)
        memory.begin()
        for number in range(rounds):
            bench.say(f"{size:,} objects, round {number + 1} of {rounds}")
            for name in timed if number % 2 else reversed(timed):
                took[name].append(_seconds(sides[name], size))
        peak_bytes, growth_bytes = memory.end()
    what = f"manifest {store.objects}"
    target = TIME_TARGETS.get(size)
    lists = math.ceil((size - 1) / MAX_PAGE_OBJECTS)
    return [
        Figure(f"{what}: calls of the store", len(counted), "≤", lists + OTHERS, "", _counted(counted)),
        *(
            compared(f"{what}, {name}", BARE, took[name], took[BARE], milliseconds, sense="≤", target=target)
            for name in timed
            if name != BARE
        ),
        Figure(
            f"{what}: memory of the host, highest above that after the first",
            growth_bytes / MIB,
            unit="MiB",
            detail=f"{peak_bytes / MIB:.1f} MiB in all, after {1 + rounds} manifests",
        ),
    ]


def _fill(s3: Any, bucket: str, size: int) -> None:  # noqa: ANN401 - boto3 makes its clients at run time
    """One config and assets, by one upload that MinIO unpacks."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for key in [f"configs/{mac_address(0)}.json", *asset_keys(STEM, size - 1)]:
            entry = tarfile.TarInfo(key)
            entry.size = len(key)
            tar.addfile(entry, io.BytesIO(key.encode()))
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="unpack.tar", Body=archive.getvalue(), Metadata={"snowball-auto-extract": "true"})


@contextmanager
def _fast_store(directory: Path, minio: Minio) -> Iterator[_Store]:
    """The program that only lists, with MinIO's credentials, which it does not ask for."""
    port = free_port()
    command = [sys.executable, "-m", "infra.bench.fast_store", str(port), str(FAST_SIZE - 1)]
    endpoint_url = f"http://127.0.0.1:{port}"
    variables = {**download_variables(minio), "AWS_ENDPOINT_URL_S3": endpoint_url}
    downloads = Downloads.of(load(variables).settings)
    if downloads.objects is None:
        raise NotMeasuredError("the handler has no bucket")
    with Process("fast-store", command, directory, ready=lambda: _answers(port)):
        yield _Store(downloads.objects.client, BUCKET, variables, f"of {FAST_SIZE:,} objects, listed by a fake store")


def _answers(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)) as connection:
        try:
            connection.request("HEAD", "/")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False


def _bare(store: _Store) -> int:
    """How many objects the bucket lists; the program that only lists has no config among them."""
    pages = store.s3.get_paginator("list_objects_v2").paginate(Bucket=store.bucket)
    return sum(len(page.get("Contents", ())) for page in pages)


def _walk(ask: Ask) -> int:
    """How many objects the manifest lists, page by page."""
    count, query = 0, ""
    while True:
        page = ask(f"/manifest{query}")
        count += len(page["objects"])
        if page["next"] is None:
            return count
        query = "?" + urlencode({"next": page["next"]})


def _seconds(side: Callable[[], int], size: int) -> float:
    begun_at = time.perf_counter()
    found = side()
    seconds = time.perf_counter() - begun_at
    if found not in {size, size - 1}:
        raise NotMeasuredError(f"{found:,} objects were listed instead of {size:,}")
    return seconds


class _Memory:
    """The most memory that a process has held (Linux: proc(5), `clear_refs` and `status`)."""

    def __init__(self, pid: int) -> None:
        self._process = Path("/proc", str(pid))
        self._before_bytes = 0

    def begin(self) -> None:
        """Forget what has been so far."""
        (self._process / "clear_refs").write_text("5")
        self._before_bytes = self._highest_bytes()

    def end(self) -> tuple[int, int]:
        """The most since `begin`, and how much that is more than was held then; in bytes."""
        highest_bytes = self._highest_bytes()
        return highest_bytes, highest_bytes - self._before_bytes

    def _highest_bytes(self) -> int:
        status = (self._process / "status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextmanager
def _handler(variables: dict[str, str]) -> Iterator[tuple[Ask, list[str]]]:
    """The handler in this process, and the operations that it asks of the store."""
    downloads = Downloads.of(load(variables).settings)
    if downloads.objects is None:
        raise NotMeasuredError("the handler has no bucket")
    calls: list[str] = []
    downloads.objects.client.meta.events.register("before-send.s3", lambda event_name, **_: calls.append(event_name))
    routes = router(downloads)
    headers = {"authorization": f"Bearer {device_token(0)}"}

    def ask(target: str) -> dict[str, Any]:
        path, _, query = target.partition("?")
        asked = {"http": {"method": "GET"}}
        answer = respond(
            routes, {"rawPath": path, "rawQueryString": query, "headers": headers, "requestContext": asked}
        )
        return _page(answer["statusCode"], answer["body"])

    yield ask, calls


@contextmanager
def _keep_alive(port: int) -> Iterator[Ask]:
    """The host, over one connection."""
    headers = {"Authorization": f"Bearer {device_token(0)}"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)) as connection:

        def ask(target: str) -> dict[str, Any]:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            return _page(answer.status, answer.read())

        yield ask


def _page(status: int, body: str | bytes) -> dict[str, Any]:
    if status != http.HTTPStatus.OK:
        raise NotMeasuredError(f"the manifest was answered with {status}")
    page: dict[str, Any] = json.loads(body)
    return page


def _counted(calls: list[str]) -> str:
    names = [name.rpartition(".")[2] for name in calls]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
