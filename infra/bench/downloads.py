"""Redirects a second for one asset, beside the same server whose router answers a constant 307.

Each connection has a token of its own, as each device has, and both sides count the requests of each. Nobody meets the
limit.
"""

from __future__ import annotations

from contextlib import ExitStack

from infra.bench.child import Child
from infra.bench.figures import Bench, Figure, compared, per_second
from infra.bench.load import Order
from infra.bench.rig import BUCKET, device_token, download_variables
from infra.bench.sides import REQUESTS_PER_MINUTE
from infra.bench.throughput import TOKEN, rate, side_process
from infra.local.process import free_port
from infra.local.stack import HostProcess
from infra.local.stores import Minio

CONNECTIONS = 32
WARM_SECONDS = 0.4
SECONDS = 2.0
TARGET = 0.5
BODY_BYTES = 4096
SIDES = HOST, CONSTANT = ("host", "constant")


def measure(bench: Bench) -> list[Figure]:
    """Both sides in turn, round after round."""
    rounds = bench.count(6, 4)
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    with ExitStack() as parts:
        minio = parts.enter_context(Minio(bench.directory / "minio"))
        s3 = minio.client()
        s3.create_bucket(Bucket=BUCKET)
        s3.put_object(Bucket=BUCKET, Key="assets/x.bin", Body=bytes(BODY_BYTES))
        ports = {name: free_port() for name in SIDES}
        variables = download_variables(minio, requests_per_minute=REQUESTS_PER_MINUTE) | {"WEBHOOK_TOKENS": TOKEN}
        parts.enter_context(HostProcess(bench.directory / HOST, ports[HOST], variables))
        parts.enter_context(side_process(bench.directory / CONSTANT, CONSTANT, ports[CONSTANT], 0))
        load = parts.enter_context(Child("infra.bench.load"))
        tokens = [device_token(number) for number in range(CONNECTIONS)]
        for number in range(rounds):
            bench.say(f"round {number + 1} of {rounds}")
            for name in SIDES if number % 2 else reversed(SIDES):
                order = Order(ports[name], 0, tokens, number, CONNECTIONS, WARM_SECONDS, SECONDS, path="/assets/x.bin")
                rates[name].append(rate(load, order))
    return [
        compared(
            f"redirects/s to an asset at {CONNECTIONS} connections, each with its token",
            "a constant 307",
            rates[HOST],
            rates[CONSTANT],
            per_second,
            sense="≥",
            target=TARGET,
        )
    ]
