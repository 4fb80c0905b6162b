"""How long `functions.notify` takes to import, beside the packages that it cannot do without."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import functions
from infra.bench.figures import TIMES, Bench, Figure, NotMeasuredError, milliseconds

TARGET = 1.1
RUN_SECONDS = 30.0

_BARE, _OURS, _PLAIN = (
    "pass",
    "import functions.notify",
    ("from aws_lambda_powertools import Logger, Metrics; import pydantic_settings; import paho.mqtt.client"),
)


def measure(bench: Bench) -> list[Figure]:
    """Fresh interpreters in turn; medians, the bare interpreter's subtracted from both."""
    count = bench.count(25, 15)
    took: dict[str, list[float]] = {code: [] for code in (_BARE, _OURS, _PLAIN)}
    for code in took:
        _run(code)  # writes the .pyc files
    for number in range(count):
        if number % 5 == 0:
            bench.say(f"round {number} of {count}")
        for code, seconds in took.items():
            seconds.append(_run(code))
    bare, ours, plain = (statistics.median(seconds) for seconds in took.values())
    return [
        Figure(
            "import of functions.notify, against Logger, Metrics, pydantic_settings and paho alone",
            (ours - bare) / (plain - bare),
            "≤",
            TARGET,
            TIMES,
            f"{milliseconds(ours - bare)} / {milliseconds(plain - bare)}, {count} runs each",
        )
    ]


def _run(code: str) -> float:
    """Seconds from starting an interpreter until it has ended."""
    # Without what would make it a Lambda function, which connects while it is imported.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON", "MQTT_"))
    }
    begun_at = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own interpreter and words
        [sys.executable, "-c", code],
        cwd=Path(functions.__path__[0]).parent,
        env=environment,
        capture_output=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    seconds = time.perf_counter() - begun_at
    if done.returncode != 0:
        raise NotMeasuredError(f"`{code}` failed: {done.stderr.decode(errors='replace').strip()}")
    return seconds
