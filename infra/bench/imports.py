"""How long `functions.notify` takes to import, beside the packages that it cannot do without."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import functions
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared, milliseconds

TARGET = 1.1
RUN_SECONDS = 30.0

_BARE, _OURS, _PLAIN = (
    "pass",
    "import functions.notify",
    ("from aws_lambda_powertools import Logger, Metrics; import pydantic_settings; import paho.mqtt.client"),
)


def measure(bench: Bench) -> list[Figure]:
    """Fresh interpreters in turn."""
    count = bench.count(15, 9)
    took: dict[str, list[float]] = {code: [] for code in (_BARE, _OURS, _PLAIN)}
    for code in took:
        _run(code)  # writes the .pyc files
    for number in range(count):
        if number % 5 == 0:
            bench.say(f"round {number} of {count}")
        for code, seconds in took.items():
            seconds.append(_run(code))
    bare = statistics.median(took[_BARE])
    return [
        compared(
            "import of functions.notify",
            "Logger, Metrics, pydantic_settings and paho alone",
            [seconds - bare for seconds in took[_OURS]],
            [seconds - bare for seconds in took[_PLAIN]],
            milliseconds,
            sense="≤",
            target=TARGET,
            detail="a bare interpreter's median subtracted from both",
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
