"""Redirects a second for one asset, beside the same server whose handler answers a constant 307."""

from __future__ import annotations

from contextlib import ExitStack

from infra.bench.child import Child
from infra.bench.figures import Bench, Figure, compared, per_second
from infra.bench.load import Order
from infra.bench.rig import BUCKET, device_token, download_variables
from infra.bench.throughput import TOKEN, rate, side_process
from infra.local.process import free_port
from infra.local.stack import Host
from infra.local.stores import Minio

CONNECTIONS = 32
WARM_SECONDS = 0.4
SECONDS = 2.0
TARGET = 0.5
BODY_BYTES = 4096
SIDES = ("host", "constant", "shared")


def measure(bench: Bench) -> list[Figure]:
    """The sides in turn, round after round."""
    rounds = bench.count(6, 4)
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    with ExitStack() as parts:
        minio = parts.enter_context(Minio(bench.directory / "minio"))
        s3 = minio.client()
        s3.create_bucket(Bucket=BUCKET)
        s3.put_object(Bucket=BUCKET, Key="assets/x.bin", Body=bytes(BODY_BYTES))
        ports = {name: free_port() for name in SIDES}
        variables = {**download_variables(minio), "WEBHOOK_TOKENS": TOKEN}
        parts.enter_context(Host(bench.directory / "host", ports["host"], variables))
        for name in SIDES[1:]:
            parts.enter_context(side_process(bench.directory / name, name, ports[name], 0))
        load = parts.enter_context(Child("infra.bench.load"))
        token = device_token(0)
        for number in range(rounds):
            bench.say(f"round {number + 1} of {rounds}")
            for name in SIDES if number % 2 else reversed(SIDES):
                order = Order(ports[name], 0, token, number, CONNECTIONS, WARM_SECONDS, SECONDS, path="/assets/x.bin")
                rates[name].append(rate(load, order))
    return [
        compared(
            f"redirects/s to an asset at {CONNECTIONS} connections",
            f"a constant 307{how}",
            rates["host"],
            rates[side],
            per_second,
            sense="≥",
            target=TARGET,
        )
        for side, how in (("constant", ""), ("shared", " that those who ask at once share"))
    ]
