"""What the device's server would say about a real S3 store: tickets presigned by boto3, LIST as the manifest."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import urlsplit

from infra.local.stores import Store
from tests.fakes.slow_store import listed

StoreT = TypeVar("StoreT", bound=Store)


def emptied(store: StoreT, bucket: str) -> StoreT:
    """The store, with nothing in this bucket, which is made if need be."""
    s3 = store.client()
    if bucket not in {one["Name"] for one in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=bucket)
    for one in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
        s3.delete_object(Bucket=bucket, Key=one["Key"])
    return store


class RealStore:
    """Speaks for one bucket. `port` stands in the URLs, for a proxy in front; `ttl_seconds` is how long they live."""

    def __init__(self, store: Store, bucket: str, *, port: int | None = None) -> None:
        self.s3 = store.client()
        self.s3.create_bucket(Bucket=bucket)
        self.bucket = bucket
        self.ttl_seconds: list[int] = []
        self.with_checksum = False
        self.ticket_changes: dict[str, Any] = {}
        # The host and port are signed: only for the one that the device will talk to.
        self._signer = self.s3
        if port is not None:
            real, store.port = store.port, port
            self._signer = store.client()
            store.port = real

    def put(self, path: str, body: bytes) -> str:
        """Upload in one piece; returns the ETag without quotes."""
        return str(self.s3.put_object(Bucket=self.bucket, Key=path, Body=body)["ETag"]).strip('"')

    def ticket(self, path: str) -> dict[str, Any] | None:
        """As `download.handler` answers in JSON mode; the next of `ttl_seconds` is used up."""
        try:
            found = self.s3.head_object(Bucket=self.bucket, Key=path)
        except self.s3.exceptions.ClientError:
            return None
        parameters = {"Bucket": self.bucket, "Key": path}
        if self.with_checksum:
            parameters["ChecksumMode"] = "ENABLED"
        url = self._signer.generate_presigned_url(
            "get_object", Params=parameters, ExpiresIn=self.ttl_seconds.pop(0) if self.ttl_seconds else 600
        )
        assert urlsplit(url).scheme == "http"
        return {
            "url": url,
            "etag": found["ETag"],
            "size": found["ContentLength"],
            "version_id": None,
            **self.ticket_changes,
        }

    def listing(self) -> list[dict[str, Any]]:
        """As the manifest lists them."""
        found = self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return [listed(entry["Key"], entry["ETag"], entry["Size"]) for entry in found]
