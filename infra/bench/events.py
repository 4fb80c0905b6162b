"""Events as MinIO posts them, 1 KB each, all different; and the requests for them and for files."""

from __future__ import annotations

import asyncio

# The shape, order and spelling of tests/events/minio-put.json, which a real MinIO sent.
_EVENT = (
    b'{"EventName":"s3:ObjectCreated:Put","Key":"%(bucket)s/%(folder)s/%(name)s","Records":'
    b'[{"eventVersion":"2.0","eventSource":"minio:s3","awsRegion":"","eventTime":"2026-11-20T21:20:33.475Z",'
    b'"eventName":"s3:ObjectCreated:Put","userIdentity":{"principalId":"bucketbell"},"requestParameters":'
    b'{"principalId":"bucketbell","region":"","sourceIPAddress":"127.0.0.1"},"responseElements":'
    b'{"x-amz-id-2":"30e85ff70d98debf508bd343adbcfeeeef690019bcf5936452da2577c7015f73",'
    b'"x-amz-request-id":"18E9DDA67484FDD8","x-minio-deployment-id":"9200d4ee-bd7f-469f-88e4-d557f6c161ab",'
    b'"x-minio-origin-endpoint":"http://127.0.0.1:9000"},"s3":{"s3SchemaVersion":"1.0",'
    b'"configurationId":"Config","bucket":{"name":"%(bucket)s","ownerIdentity":{"principalId":"bucketbell"},'
    b'"arn":"arn:aws:s3:::%(bucket)s"},"object":{"key":"%(folder)s%%2F%(name)s","size":2,'
    b'"eTag":"6654c734ccab8f440ff0825eb443dc7f","contentType":"binary/octet-stream",'
    b'"userMetadata":{"content-type":"binary/octet-stream"},"sequencer":"18E9DDA%(number)09X"}},'
    b'"source":{"host":"127.0.0.1","port":"","userAgent":"bench"}}]}'
)


def minio_event(bucket: str, stem: str, number: int) -> bytes:
    """The event of an upload of `assets/<stem>-<number>.bin`."""
    return _event(bucket, b"assets", b"%s-%09d.bin" % (stem.encode(), number), number)


def config_event(bucket: str, mac: str, number: int) -> bytes:
    """The event of an upload of that device's config, in the millisecond `number`: what tells it from other uploads."""
    return _event(bucket, b"configs", f"{mac}.json".encode(), number * 1_000_000)


def _event(bucket: str, folder: bytes, name: bytes, number: int) -> bytes:
    return _EVENT % {b"bucket": bucket.encode(), b"folder": folder, b"name": name, b"number": number}


def post(path: str, port: int, token: str, body: bytes) -> bytes:
    """The whole HTTP/1.1 request that brings `body`, as MinIO's webhook target writes it."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: bench\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def get(path: str, port: int, token: str) -> bytes:
    """The whole HTTP/1.1 request that asks for `path`."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: bench\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()


async def ask(port: int, request: bytes) -> int:
    """The status of one request, over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return int((await reader.readuntil(b"\r\n")).split()[1])
    finally:
        writer.close()
