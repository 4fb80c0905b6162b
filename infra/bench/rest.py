"""The host while nobody asks anything of it: how often it wakes up, its processor time and its memory.

A wake-up is a voluntary switch of one of its threads (Linux: proc(5), `status`), without those that have ended since:
with stored settings that is a handful every ten seconds.
"""

from __future__ import annotations

import base64
import os
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infra.bench.figures import Bench, Figure, NotMeasuredError
from infra.bench.rig import download_variables
from infra.bench.throughput import TOKEN
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stack import EVENTS_PREFIX, HostProcess
from infra.local.stores import Minio

CALM_SECONDS = 5.0  # after the start, and after the broker's end
CONNECTED, DOWN = "connected", "broker down"
TARGETS = {CONNECTED: (2.0, 0.4), DOWN: (4.0, 0.8)}  # wake-ups a second, percent of a core
MEMORY_TARGET_MB = 90.0
MB = 1e6
UTIME = 11  # in `stat`, behind the name; then stime; both of ended threads, too


@dataclass(frozen=True, slots=True)
class _Sample:
    wake_ups: int
    cpu_seconds: float

    @classmethod
    def of(cls, pid: int) -> _Sample:
        """What the process has used so far."""
        process = Path("/proc", str(pid))
        statuses = [(thread / "status").read_text() for thread in (process / "task").iterdir()]
        wake_ups = sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in statuses)
        ticks = (process / "stat").read_text().rpartition(")")[2].split()[UTIME : UTIME + 2]
        return cls(wake_ups, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))


def measure(bench: Bench) -> list[Figure]:
    """With downloads; then as `make run` has it, with cameras, stored settings and a new database too."""
    if not Path("/proc").exists():
        raise NotMeasuredError("there is no /proc here: run it on Linux")
    seconds = bench.count(60, 20)
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(bench.directory / "mosquitto"))
        minio = parts.enter_context(Minio(bench.directory / "minio"))
        variables = {"MQTT_URL": broker.url, "WEBHOOK_TOKENS": TOKEN, **download_variables(minio)}
        minio.client().create_bucket(Bucket=variables["BUCKET"])
        more = {
            "EVENTS_PREFIX": EVENTS_PREFIX,
            "ADMIN_TOKENS": TOKEN,
            "PUBLIC_BASE_URL": "http://127.0.0.1",
            "DATABASE_URL": f"sqlite:///{bench.directory}/bucketbell.db",
            "ENCRYPTION_KEYS": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        }
        figures = []
        for name, all_variables in (("with downloads", variables), ("with everything", variables | more)):
            with HostProcess(bench.directory / name.replace(" ", "-"), free_port(), all_variables) as host:
                for state in (CONNECTED, DOWN):
                    bench.say(f"{name}, {state}")
                    if state == DOWN:
                        broker.kill()
                    figures += _figures(host.pid, name, state, seconds)
                figures.append(_memory(host.pid, name))
            broker.start()
    return figures


def _figures(pid: int, name: str, state: str, seconds: float) -> list[Figure]:
    time.sleep(CALM_SECONDS)
    before = _Sample.of(pid)
    time.sleep(seconds)
    after = _Sample.of(pid)
    most_wake_ups, most_percent = TARGETS[state]
    wake_ups = (after.wake_ups - before.wake_ups) / seconds
    percent = 100 * (after.cpu_seconds - before.cpu_seconds) / seconds
    what = f"the host at rest, {name}, {state}"
    return [
        Figure(f"{what}: wake-ups a second", wake_ups, "≤", most_wake_ups),
        Figure(f"{what}: share of a core", percent, "≤", most_percent, "%"),
    ]


def _memory(pid: int, name: str) -> Figure:
    status = Path("/proc", str(pid), "status").read_text()
    resident_mb = int(status.partition("VmRSS:")[2].split()[0]) * 1024 / MB
    target = MEMORY_TARGET_MB if name == "with downloads" else None
    return Figure(f"the host at rest, {name}: resident memory", resident_mb, "≤" if target else None, target, "MB")
