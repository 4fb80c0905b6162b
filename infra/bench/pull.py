"""From the beginning of an upload until a device has the verified file on its disk, leg by leg."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from infra.bench.devices import Devices, Fleet, Pulled
from infra.bench.figures import Bench, Figure, NotMeasuredError, milliseconds, percentile
from infra.bench.rig import BUCKET, Rig, asset_keys, device_token, download_variables, mac_address

SIZE_BYTES = 1_000_000
WARM_UPLOADS = 5
PAUSE_SECONDS = 0.05


def measure(bench: Bench) -> list[Figure]:
    """One upload at a time, all different, to one device that waits for nothing."""
    count = bench.count(200, 40)
    mac = mac_address(0)
    rig = Rig(bench.directory)
    rig.host.environment |= download_variables(rig.minio)
    fleet = Fleet(
        {mac: device_token(0)}, str(bench.directory / "devices"), rig.host.url, rig.broker.url, spread_seconds=0
    )
    legs: dict[str, list[float]] = {}
    with rig, Devices(fleet) as devices:
        for number, key in enumerate(asset_keys("pull", WARM_UPLOADS + count)):
            if number % 20 == 0:
                bench.say(f"upload {number} of {WARM_UPLOADS + count}, {SIZE_BYTES:,} bytes each")
            body = os.urandom(SIZE_BYTES)
            began_at = time.monotonic()
            rig.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
            uploaded_at = time.monotonic()
            filename = key.removeprefix("assets/")
            took = _legs(began_at, uploaded_at, devices.wait(filename), mac)
            if fleet.file(mac, filename).read_bytes() != body:
                raise NotMeasuredError(f"{filename} on the device's disk is not what was uploaded")
            if number >= WARM_UPLOADS:
                for leg, seconds in took.items():
                    legs.setdefault(leg, []).append(seconds)
            time.sleep(PAUSE_SECONDS)
    return [_figure(leg, seconds) for leg, seconds in legs.items()]


def _legs(began_at: float, uploaded_at: float, pulled: Pulled, mac: str) -> Mapping[str, float]:
    if mac not in pulled.moments or pulled.failures:
        raise NotMeasuredError(f"the device had trouble: {', '.join(pulled.failures) or 'it did not hear'}")
    heard_at, located_at, verified_at = pulled.moments[mac]
    return {
        "upload (the client's own PUT)": uploaded_at - began_at,
        "upload began → heard": heard_at - began_at,
        "heard → URL": located_at - heard_at,
        "URL → verified and on disk": verified_at - located_at,
        "upload began → verified and on disk": verified_at - began_at,
    }


def _figure(leg: str, seconds: Sequence[float]) -> Figure:
    detail = f"p95 {milliseconds(percentile(seconds, 95))}, {len(seconds)} uploads of {SIZE_BYTES:,} bytes"
    return Figure(f"{leg}, p50", percentile(seconds, 50) * 1e3, unit="ms", detail=detail)
