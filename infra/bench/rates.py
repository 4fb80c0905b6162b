"""From the beginning of an upload until a subscriber has the message, at 1, 10 and 100 uploads a second.

Uploads of one bucket at a time, begun evenly by several threads: both doors, MinIO's own MQTT target, and the same with
`queue_dir`, in turn. At one upload a second they do not meet, and share the time.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from infra.bench.ear import Ear
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared_percentiles
from infra.bench.latency import OWN, OWN_QUEUED, PEERS, WHAT, collect, collect_all, rig_with, upload
from infra.bench.rig import BUCKET, Rig, asset_keys

ROUNDS = 5
THREADS = 8
WARM_UPLOADS = 40
SLACK = 0.9  # of the rate that was asked for: below, the uploading side was what was measured
PERCENTS = (50, 99)
BUCKETS = (BUCKET, OWN, OWN_QUEUED)


@dataclass(frozen=True, slots=True)
class _Pace:
    """How many uploads a second, and for how long each round; `apart`: one bucket after the other."""

    per_second: float
    full_seconds: float
    quick_seconds: float
    apart: bool = True


def measure_1(bench: Bench) -> list[Figure]:
    """One upload a second, to each of the three buckets."""
    return _measure(bench, _Pace(1, 8, 4, apart=False))


def measure_10(bench: Bench) -> list[Figure]:
    """Ten uploads a second."""
    return _measure(bench, _Pace(10, 3, 2))


def measure_100(bench: Bench) -> list[Figure]:
    """A hundred uploads a second."""
    return _measure(bench, _Pace(100, 3, 1))


def _measure(bench: Bench, pace: _Pace) -> list[Figure]:
    seconds = bench.count(round(pace.full_seconds), round(pace.quick_seconds))
    count = round(seconds * pace.per_second)
    took: dict[str, list[float]] = {bucket: [] for bucket in BUCKETS}
    rates: dict[str, list[float]] = {bucket: [] for bucket in BUCKETS}
    with rig_with(bench.directory, OWN, OWN_QUEUED) as (rig, ear), ThreadPoolExecutor(THREADS) as threads:
        uploads = _Uploads(rig, ear, threads)
        for number in range(-1, ROUNDS):
            bench.say(f"round {number + 1} of {ROUNDS}, {pace.per_second:g}/s")
            order = BUCKETS if number % 2 else BUCKETS[::-1]
            for buckets in [(bucket,) for bucket in order] if pace.apart else [order]:
                keys = asset_keys(f"rate-{number}", count if number >= 0 else WARM_UPLOADS // len(buckets))
                found = uploads.run(buckets, keys, pace.per_second if number >= 0 else WARM_UPLOADS)
                for bucket in buckets if number >= 0 else ():
                    took[bucket] += found[bucket].took_seconds
                    rates[bucket].append(found[bucket].per_second)
    means = {bucket: statistics.mean(of_rounds) for bucket, of_rounds in rates.items()}
    if min(means.values()) < SLACK * pace.per_second:
        raise NotMeasuredError(f"only {min(means.values()):.1f} uploads/s were begun instead of {pace.per_second:g}")
    return [
        compared_percentiles(
            f"{WHAT}, {pace.per_second:g} uploads/s",
            PEERS[own],
            took[BUCKET],
            took[own],
            percent,
            rounds=ROUNDS,
            sense="≤",
            detail=f"{len(took[own])} uploads each, begun at {means[BUCKET]:.1f}/s and {means[own]:.1f}/s",
        )
        for own in (OWN, OWN_QUEUED)
        for percent in PERCENTS
    ]


@dataclass(frozen=True, slots=True)
class _Found:
    """What one round found of a bucket: how long each upload took to be heard, and how many were begun a second."""

    took_seconds: list[float]
    per_second: float


class _Uploads:
    """What the rounds share."""

    def __init__(self, rig: Rig, ear: Ear, threads: ThreadPoolExecutor) -> None:
        self._rig = rig
        self._ear = ear
        self._threads = threads

    def run(self, buckets: tuple[str, ...], keys: list[str], per_second: float) -> dict[str, _Found]:
        """Put each key into each bucket at the rate; what was found, by bucket.

        With several buckets the rate is that of each, and their uploads take turns.
        """
        every_seconds = 1 / per_second / len(buckets)
        heard: dict[tuple[str, str], float] = {}
        places = [(bucket, key) for key in keys for bucket in buckets]
        begin_at = time.monotonic() + every_seconds
        putting = []
        for number, (bucket, key) in enumerate(places):
            collect(self._ear, heard, begin_at + number * every_seconds - time.monotonic())
            putting.append(self._threads.submit(upload, self._rig, bucket, key))
        began = dict(zip(places, [put.result() for put in putting], strict=True))
        collect_all(self._ear, heard, len(began))
        found = {}
        for bucket in buckets:
            moments = [began[bucket, key] for key in keys]
            took_seconds = [heard[bucket, key] - at for key, at in zip(keys, moments, strict=True)]
            found[bucket] = _Found(took_seconds, (len(keys) - 1) / (max(moments) - min(moments)))
        return found
