"""200 devices told of one asset at the same moment: all have it verified, and they do not all come at once."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Sequence

from infra.bench.devices import Devices, Fleet
from infra.bench.figures import TIMES, Bench, Figure
from infra.bench.rig import BUCKET, Rig, device_token, download_variables, mac_address

DEVICES = 200
SPREAD_SECONDS = 5.0
SIZE_BYTES = 256 * 1024
WINDOW_SECONDS = 1.0
PEAK_TARGET = 2.0
FILENAME = "firmware.bin"


def measure(bench: Bench) -> list[Figure]:
    """One upload."""
    macs = [mac_address(number) for number in range(DEVICES)]
    rig = Rig(bench.directory)
    rig.host.environment |= download_variables(rig.minio)
    fleet = Fleet(
        {mac: device_token(number) for number, mac in enumerate(macs)},
        str(bench.directory / "devices"),
        rig.host.url,
        rig.broker.url,
        SPREAD_SECONDS,
    )
    body = os.urandom(SIZE_BYTES)
    with rig:
        bench.say(f"{DEVICES} devices catch up")
        with Devices(fleet) as devices:
            bench.say(f"{DEVICES} devices are told of one asset, spread over {SPREAD_SECONDS:g} s")
            began_at = time.monotonic()
            rig.s3.put_object(Bucket=BUCKET, Key=f"assets/{FILENAME}", Body=body)
            pulled = devices.wait(FILENAME)
    verified = sum(fleet.file(mac, FILENAME).read_bytes() == body for mac in pulled.moments)
    last_seconds = max((verified_at - began_at for _, _, verified_at in pulled.moments.values()), default=0.0)
    detail = f"{SIZE_BYTES:,} bytes each, the last {last_seconds:.2f} s after the upload began"
    if pulled.failures:
        detail += f"; {len(pulled.failures)} failed attempts"
    return [
        Figure(f"of {DEVICES} devices told of one asset, verified", verified, "=", DEVICES, "", detail),
        *(
            _peak(whose, [at for at in asked_at if at >= began_at])
            for whose, asked_at in (("host", pulled.asked_server_at), ("store", pulled.asked_store_at))
        ),
    ]


def _peak(whose: str, asked_at: Sequence[float]) -> Figure:
    even = DEVICES * WINDOW_SECONDS / SPREAD_SECONDS
    peak = busiest(sorted(asked_at), WINDOW_SECONDS)
    what = f"most requests to the {whose} within {WINDOW_SECONDS:g} s, against {SPREAD_SECONDS:g} s of an even spread"
    return Figure(what, peak / even, "≤", PEAK_TARGET, TIMES, f"{peak} / {even:g}, {len(asked_at)} in all")


def busiest(moments: Sequence[float], window_seconds: float) -> int:
    """How many of these moments, in order, the fullest window of that length holds, wherever it begins."""
    return max(
        (bisect_left(moments, begin + window_seconds) - at for at, begin in enumerate(moments)),
        default=0,
    )
