"""URLs are signed as boto3 signs them, only faster; a real store takes them for what they are and nothing else."""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import botocore.auth
import botocore.credentials
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from functions import storage
from functions.objects import (
    MAX_SAVED_NAME_BYTES,
    S3_DEADLINE_SECONDS,
    Flights,
    Objects,
    content_disposition,
)
from functions.settings import Settings, load
from functions.storage import SESSION_PROMISE_SECONDS, Signer, StorageError
from infra.local.process import free_port
from infra.local.stores import Minio, MotoServer, VersityGateway
from tests.fakes.proxy import TcpProxy

BUCKET = "devices"
TTL_SECONDS = 900
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
SECRET = "s3cr3t/+" * 5
HOSTILE_KEYS = [
    "assets/fw.bin",
    "assets/with space and  two.bin",
    "assets/plus+plus.bin",
    "assets/100%.bin",
    "assets/%2Fencoded%20already.bin",
    "assets/a&b=c?d#e.bin",
    "assets/quote\"quote'quote.bin",
    "assets/back\\slash.bin",
    "assets/semi;colon,comma.bin",
    "assets/~tilde!*()$@:.bin",
    "assets/gr\u00fc\u00dfe/\u4e16\u754c/\U0001f514.bin",
    "assets/e\u0301 is not \u00e9.bin",
    "assets/" + "long/" * 40 + "x" * (1000 - 207),
    "assets/" + "\u4e16" * 331,
]


def configured(**variables: str) -> Settings:
    """Settings with made-up credentials."""
    mine = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET}
    return load(mine | variables).settings


def of_store(store: Minio | MotoServer | VersityGateway, endpoint_url: str | None = None) -> Settings:
    """Settings for a real store."""
    return configured(
        AWS_ENDPOINT_URL_S3=endpoint_url or store.endpoint_url,
        AWS_ACCESS_KEY_ID=store.access_key,
        AWS_SECRET_ACCESS_KEY=store.secret_key,
    )


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock that botocore signs by."""
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: NOW)


# --- the same bytes as boto3's


@dataclass(frozen=True, slots=True)
class Case:
    """One way to be configured."""

    variables: dict[str, str]
    endpoint_url: str | None = None
    bucket: str = BUCKET


CASES = {
    "custom endpoint": Case({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000"}),
    "public endpoint": Case({"AWS_ENDPOINT_URL_S3": "http://minio:9000"}, "https://s3.example.com"),
    "default port": Case({}, "https://s3.example.com:443"),
    "below a path": Case({}, "https://example.com/store"),
    "IPv6": Case({}, "http://[::1]:9000"),
    "AWS, virtual host": Case({"AWS_REGION": "eu-west-1"}),
    "AWS, us-east-1": Case({"AWS_REGION": "us-east-1"}),
    "AWS, China": Case({"AWS_REGION": "cn-north-1"}),
    "AWS, dotted bucket": Case({"AWS_REGION": "eu-central-1"}, bucket="devices.example.com"),
    "session token": Case({"AWS_REGION": "eu-west-1", "AWS_SESSION_TOKEN": "IQoJb3/+=" * 90}),
}




def objects_of(case: Case) -> Objects:
    """Ours, configured the same."""
    return Objects(
        configured(**case.variables), case.bucket, url_ttl_seconds=TTL_SECONDS, public_endpoint_url=case.endpoint_url
    )


hostile_keys = st.one_of(
    st.sampled_from(HOSTILE_KEYS),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=200).map("assets/{}".format),
    st.text(st.sampled_from(" %+&=?#/.~\"'\\;:@[]é\n\t"), min_size=1, max_size=40),
)


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("name", CASES)
def test_a_url_is_byte_for_byte_boto3s(name: str) -> None:
    """Whatever the endpoint, the region, the credentials, the key, the version."""
    case = CASES[name]
    ours = objects_of(case)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(key=hostile_keys, version_id=st.sampled_from(["", "null", "3/L4+kq=%&"]) | st.text("abc+/=%& ", max_size=20))
    def compare(key: str, version_id: str) -> None:
        presigned = ours.presign(key, version_id=version_id, filename=key)
        assert presigned.url == theirs(key, version_id)

    s3 = storage.client("s3", configured(**case.variables), endpoint_url=case.endpoint_url)

    def theirs(key: str, version_id: str) -> str:
        version: dict[str, Any] = {"VersionId": version_id} if version_id else {}
        disposition = content_disposition(key)
        params = {"Bucket": case.bucket, "Key": key, "ResponseContentDisposition": disposition, **version}
        return s3.generate_presigned_url("get_object", Params=params, ExpiresIn=TTL_SECONDS)

    compare()
