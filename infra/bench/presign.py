"""Presigning a URL on a warm process, beside boto3's own `generate_presigned_url` for the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl, urlsplit

from functions.s3.objects import Objects, content_disposition
from functions.settings import load
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared, per_second
from infra.bench.rig import BUCKET, asset_keys

TARGET = 2.5
URLS = 250  # of one round, each for another key
TTL_SECONDS = 900
# Nobody is asked: signing needs no network.
VARIABLES = {
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000",
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench-bench-bench-bench",
    "AWS_REGION": "us-east-1",
}
SIGNED = {"X-Amz-Date", "X-Amz-Signature"}  # what may differ between two moments


def measure(bench: Bench) -> list[Figure]:
    """Both sides in turn, round after round, the same URLs."""
    rounds = bench.count(30, 10)
    objects = Objects(load(VARIABLES).settings, BUCKET, url_ttl_seconds=TTL_SECONDS)
    s3 = objects.client  # boto3's own, with the same configuration

    def ours(key: str) -> str:
        return objects.presign(key, filename=key).url

    def boto3s(key: str) -> str:
        parameters = {"Bucket": BUCKET, "Key": key, "ResponseContentDisposition": content_disposition(key)}
        return s3.generate_presigned_url("get_object", Params=parameters, ExpiresIn=TTL_SECONDS)

    keys = asset_keys("signed", URLS)
    if _unsigned(ours(keys[0])) != _unsigned(boto3s(keys[0])):
        raise NotMeasuredError("the two sides do not sign the same URL")
    took: dict[Callable[[str], str], list[float]] = {ours: [], boto3s: []}
    for number in range(rounds):
        if number % 5 == 0:
            bench.say(f"round {number} of {rounds}")
        keys = asset_keys(f"signed-{number}", URLS)
        for sign in (ours, boto3s) if number % 2 else (boto3s, ours):
            took[sign].append(_seconds(sign, keys))
    return [
        compared(
            "URLs presigned a second, on a warm process",
            "boto3's generate_presigned_url",
            [URLS / seconds for seconds in took[ours]],
            [URLS / seconds for seconds in took[boto3s]],
            per_second,
            sense="≥",
            target=TARGET,
            detail=f"{URLS} URLs a round",
        )
    ]


def _seconds(sign: Callable[[str], str], keys: Sequence[str]) -> float:
    begun_at = time.perf_counter()
    for key in keys:
        sign(key)
    return time.perf_counter() - begun_at


def _unsigned(url: str) -> tuple[str, dict[str, str]]:
    parts = urlsplit(url)
    query = {name: value for name, value in parse_qsl(parts.query) if name not in SIGNED}
    return parts.netloc + parts.path, query
