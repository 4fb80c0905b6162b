"""The manifest of 10,000 objects: what it asks of the store, and how long it takes, beside a bare LIST of the same."""

from __future__ import annotations

import http.client
import io
import json
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlencode

from functions.download import Downloads, respond
from functions.settings import load
from infra.bench.figures import TIMES, Bench, Figure, NotMeasuredError, milliseconds
from infra.bench.rig import BUCKET, asset_keys, device_token, download_variables, mac_address
from infra.host.gateway import Context, api_gateway_event
from infra.local.process import free_port
from infra.local.stack import Host
from infra.local.stores import Minio

OBJECTS = 10_000
CALLS_TARGET = 11  # a LIST for each 1,000 objects, and one HEAD of the config
TIME_TARGET = 1.3
ANSWER_SECONDS = 10.0

Ask = Callable[[str], dict[str, Any]]
"""Asks for one page of the manifest, by the path and query of its URL."""


def measure(bench: Bench) -> list[Figure]:
    """A bare LIST, the handler in this process and the host in its own, in turn; medians of the rounds' ratios."""
    rounds = bench.count(15, 5)
    with Minio(bench.directory / "minio") as minio:
        s3 = minio.client()
        bench.say(f"{OBJECTS:,} objects are made")
        _fill(s3)
        variables = download_variables(minio)
        port = free_port()
        host = Host(bench.directory / "host", port, variables)
        with host, _handler(variables) as (ask_handler, calls), _keep_alive(port) as ask_host:
            sides: dict[str, Callable[[], int]] = {
                "bare": lambda: _bare(s3),
                "handler": lambda: _walk(ask_handler),
                "host": lambda: _walk(ask_host),
            }
            took: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(1 + rounds):
                bench.say(f"round {number} of {rounds}")
                calls.clear()
                for name in sides if number % 2 else reversed(sides):
                    took[name].append(_seconds(sides[name]))
    # The first round has warmed all of them.
    seconds = {name: values[1:] for name, values in took.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    what = f"manifest of {OBJECTS:,} objects"
    return [
        Figure(f"{what}: calls of the store", len(calls), "≤", CALLS_TARGET, "", _counted(calls)),
        *(
            Figure(
                f"{what}, {where}, against a bare LIST by boto3",
                statistics.median(ours / bare for ours, bare in zip(seconds[name], seconds["bare"], strict=True)),
                "≤",
                TIME_TARGET,
                TIMES,
                f"{milliseconds(medians[name])} / {milliseconds(medians['bare'])}, {rounds} rounds",
            )
            for name, where in (("handler", "by the handler"), ("host", "from the host"))
        ),
    ]


def _fill(s3: Any) -> None:  # noqa: ANN401 - boto3 makes its clients at run time
    """One config and assets, by one upload that MinIO unpacks."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for key in [f"configs/{mac_address(0)}.json", *asset_keys("listed", OBJECTS - 1)]:
            entry = tarfile.TarInfo(key)
            entry.size = len(key)
            tar.addfile(entry, io.BytesIO(key.encode()))
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key="unpack.tar", Body=archive.getvalue(), Metadata={"snowball-auto-extract": "true"})


def _bare(s3: Any) -> int:  # noqa: ANN401 - as above
    return sum(len(page.get("Contents", ())) for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET))


def _walk(ask: Ask) -> int:
    """How many objects the manifest lists, page by page."""
    count, query = 0, ""
    while True:
        page = ask(f"/manifest{query}")
        count += len(page["objects"])
        if page["next"] is None:
            return count
        query = "?" + urlencode({"next": page["next"]})


def _seconds(side: Callable[[], int]) -> float:
    begun_at = time.perf_counter()
    found = side()
    seconds = time.perf_counter() - begun_at
    if found != OBJECTS:
        raise NotMeasuredError(f"{found:,} objects were listed instead of {OBJECTS:,}")
    return seconds


@contextmanager
def _handler(variables: dict[str, str]) -> Iterator[tuple[Ask, list[str]]]:
    """The handler in this process, and the operations that it asks of the store."""
    downloads = Downloads.of(load(variables).settings)
    if downloads.objects is None:
        raise NotMeasuredError("the handler has no bucket")
    calls: list[str] = []
    downloads.objects.client.meta.events.register("before-send.s3", lambda event_name, **_: calls.append(event_name))
    context: Any = Context("bench")  # what of Lambda's own is read
    authorization = f"Bearer {device_token(0)}".encode()

    def ask(target: str) -> dict[str, Any]:
        path, _, query = target.partition("?")
        scope = {
            "method": "GET",
            "path": path,
            "query_string": query.encode(),
            "headers": [(b"authorization", authorization)],
            "http_version": "1.1",
        }
        answer = respond(downloads, api_gateway_event(scope), context)
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
