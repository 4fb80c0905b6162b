"""The deployed function from a new process to the broker's PUBACK, against one written the usual way.

Ours as `make build` deploys it, the usual one (`infra/bench/usual`) by a plain `sam build`: Powertools' Logger and
Metrics, pydantic-settings, and paho with its thread. Processes of Python 3.13, fed as Lambda feeds them.
"""

from __future__ import annotations

import json
import os
import platform
import select
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Self

from infra.bench import lambda_process, usual
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared, milliseconds
from infra.bench.rig import BUCKET, TOPIC
from infra.local.mosquitto import Mosquitto
from infra.sam.build import BUILD_SECONDS, build_copy, compile_all
from infra.sam.tool import REGION, ROOT, runtime_python, sam
from infra.subscriber import Subscriber

PEER = "a usual function"
COLD_TARGET = 0.45
WARM_TARGET = 0.5
BATCH = 10  # the template's default
WARM_UP_CALLS = 10  # the interpreter specialises its byte code first
WARM_CALLS = 100
ANSWER_SECONDS = 20.0
LATE_SECONDS = 0.5
ARCHITECTURES = {"aarch64": "arm64", "arm64": "arm64", "x86_64": "x86_64", "AMD64": "x86_64"}

_numbers = count()


@dataclass(frozen=True, slots=True)
class Side:
    """A function's folder, as Lambda would have it in /var/task, and the module with its handler."""

    folder: Path
    module: str
    variables: Mapping[str, str] = field(default_factory=dict)
    """What the environment has besides."""


@dataclass(slots=True)
class Took:
    """Seconds, one of each for each round.

    `cold`: from the start of the process to the first answer; `init`: of that, until the module was there; `warm`: the
    median of calls with one upload, `batch`: of calls with `BATCH` uploads.
    """

    cold: list[float] = field(default_factory=list)
    init: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)


def measure(bench: Bench) -> list[Figure]:
    """All in turn, round by round; the medians of each round's ratio.

    Nothing writes .pyc files, as nothing can in /var/task: the usual side compiles what it imports at each start.
    """
    rounds = bench.count(15, 7)
    sides = _build(bench)
    took = {name: Took() for name in sides}
    with (
        Mosquitto(bench.directory / "mosquitto") as broker,
        Subscriber(broker.url, [TOPIC], qos=1) as subscriber,
    ):
        for number in range(-1, rounds):
            bench.say(f"round {number + 1} of {rounds}")
            if number == 0:
                took = {name: Took() for name in sides}  # the round before has warmed the page cache
            _round(sides, broker.url, took)
        time.sleep(LATE_SECONDS)
        heard = Counter(str(json.loads(message.payload)["filename"]) for message in subscriber.messages)
    announced = next(_numbers)
    if len(heard) != announced or heard.total() != announced:
        raise NotMeasuredError(f"of {announced} messages {len(heard)} were heard, {heard.total()} times")
    ours, theirs, compiled = (took[name] for name in ("ours", "usual", "usual, compiled"))
    return [
        _ratio("cold: process start to PUBACK", PEER, ours.cold, theirs.cold, COLD_TARGET),
        _ratio("warm: a batch of ten, the template's default", PEER, ours.batch, theirs.batch, WARM_TARGET),
        # Without a target: the broker's own round trip is about half of either side.
        _ratio("warm: one upload", PEER, ours.warm, theirs.warm),
        _ratio("cold: process start to PUBACK", f"{PEER}, with .pyc files", ours.cold, compiled.cold),
        Figure(
            "cold, with an empty handler",
            statistics.median(took["bare"].cold) * 1e3,
            unit="ms",
            detail=f"imported after: ours {milliseconds(statistics.median(ours.init))}, "
            f"usual {milliseconds(statistics.median(theirs.init))}",
        ),
    ]


def _build(bench: Bench) -> dict[str, Side]:
    """Both with `sam build`, ours as `make build` does it. Raises `SamError`."""
    architecture = ARCHITECTURES[platform.machine()]
    bench.say("building ours")
    ours = build_copy(bench.directory / "ours", architecture).folders[0]
    bench.say("building the usual one")
    source, output = bench.directory / "usual", bench.directory / "usual-built"
    shutil.copytree(Path(usual.__path__[0]), source, ignore=shutil.ignore_patterns("__*"))
    shutil.copyfile(ROOT / "functions" / "requirements.txt", source / "requirements.txt")
    sam("build", "--build-dir", str(output), deadline_seconds=BUILD_SECONDS, directory=source)
    plain, compiled, bare = output / "Usual", bench.directory / "compiled", bench.directory / "bare"
    if any(plain.rglob("*.pyc")):
        raise NotMeasuredError("`sam build` has begun to ship .pyc files")
    shutil.copytree(plain, compiled)
    compile_all(compiled)
    bare.mkdir()
    (bare / "handler.py").write_text("def handler(event, context):\n    return {'batchItemFailures': []}\n")
    return {
        "ours": Side(ours, "functions.notify", {"PYDANTIC_DISABLE_PLUGINS": "1"}),  # as template.yaml has it
        "usual": Side(plain, "handler"),
        "usual, compiled": Side(compiled, "handler"),
        "bare": Side(bare, "handler"),
    }


def _round(sides: Mapping[str, Side], mqtt_url: str, took: Mapping[str, Took]) -> None:
    """One cold start of each; then warm calls of the two that count, in turn, so that both meet the same noise."""
    with ExitStack() as running:
        processes = {}
        for name, side in sides.items():
            process = running.enter_context(_Process(side, mqtt_url))
            asked = process.ask(0 if name == "bare" else 1)
            took[name].cold.append(asked.returned_at - process.begun_at)
            took[name].init.append(asked.imported_at - process.begun_at)
            if name in {"ours", "usual"}:
                processes[name] = process
            else:
                process.end()
        for size, kind in ((1, "warm"), (BATCH, "batch")):
            calls: dict[str, list[float]] = {name: [] for name in processes}
            for number in range(-WARM_UP_CALLS, WARM_CALLS):
                for name, process in processes.items():
                    asked = process.ask(size)
                    if number >= 0:
                        calls[name].append(asked.returned_at - asked.asked_at)
            for name, seconds in calls.items():
                getattr(took[name], kind).append(statistics.median(seconds))


@dataclass(frozen=True, slots=True)
class _Invocation:
    """One invocation, in `time.monotonic`, which all processes share: begun, module imported, handler returned."""

    asked_at: float
    imported_at: float
    returned_at: float


class _Process:
    """A function's process, as Lambda keeps it between invocations."""

    def __init__(self, side: Side, mqtt_url: str) -> None:
        """Starts it."""
        answers, answering = os.pipe()
        self._answers = open(answers, "rb", buffering=0)  # noqa: PTH123, SIM115 - a descriptor; closed by `end`
        self.begun_at = time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 - our own words
            [runtime_python(), "-I", "-B", lambda_process.__file__, side.folder, side.module, str(answering)],
            env={**_environment(side.folder, mqtt_url), **side.variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[answering],
            bufsize=0,
        )
        os.close(answering)

    def ask(self, uploads: int) -> _Invocation:
        """Invoke it once with a batch of that many uploads. Raises `NotMeasuredError` where any fails."""
        messages = [_message(f"{next(_numbers)}.bin") for _ in range(uploads)]
        event = json.dumps({"Records": messages}).encode() + b"\n"
        asked_at = time.monotonic()
        if self._process.stdin is not None:
            self._process.stdin.write(event)
        if not select.select([self._answers], [], [], ANSWER_SECONDS)[0] or not (line := self._answers.readline()):
            raise NotMeasuredError(f"no answer within {ANSWER_SECONDS:g} s")
        imported_at, returned_at, answer = json.loads(line)
        if answer != {"batchItemFailures": []}:
            raise NotMeasuredError(f"answered {answer}")
        return _Invocation(asked_at, imported_at, returned_at)

    def end(self) -> None:
        """As Lambda does, without a word; paho's thread would outlive the end of standard input. Idempotent."""
        self._process.kill()
        self._process.communicate()
        self._answers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _environment(folder: Path, mqtt_url: str) -> Mapping[str, str]:
    """Source: AWS Lambda, "Defined runtime environment variables"."""
    return {
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_LAMBDA_FUNCTION_NAME": "bench",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_REGION": REGION,
        "BUCKET": BUCKET,
        "LAMBDA_TASK_ROOT": str(folder),
        "LANG": "en_US.UTF-8",
        "MQTT_URL": mqtt_url,
        "PATH": os.defpath,
    }


def _message(filename: str) -> dict[str, Any]:
    body = {
        "Records": [
            {
                "eventVersion": "2.1",
                "eventSource": "aws:s3",
                "awsRegion": REGION,
                "eventTime": "2026-11-20T12:00:00.000Z",
                "eventName": "ObjectCreated:Put",
                "s3": {
                    "s3SchemaVersion": "1.0",
                    "bucket": {"name": BUCKET, "arn": f"arn:aws:s3:::{BUCKET}"},
                    "object": {
                        "key": f"assets/{filename}",
                        "size": 11,
                        "eTag": "5eb63bbbe01eeed093cb22bb8f5acdc3",
                        "sequencer": "0055AED6DCD90281E5",
                    },
                },
            }
        ]
    }
    return {"messageId": filename, "body": json.dumps(body), "eventSource": "aws:sqs", "awsRegion": REGION}


def _ratio(what: str, peer: str, ours: Sequence[float], theirs: Sequence[float], target: float | None = None) -> Figure:
    return compared(what, peer, ours, theirs, milliseconds, sense="≤", target=target)
