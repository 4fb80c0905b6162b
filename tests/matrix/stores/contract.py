"""What every store has to do: each upload rings once, nothing else rings, and a device gets the bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from botocore.exceptions import ClientError

from tests.chaos.verdict import judge
from tests.chaos.world import BUCKET
from tests.fakes.device_rig import MAC
from tests.integration.test_device import DeviceProcess
from tests.matrix.result import Check
from tests.matrix.stores.world import ANSWER_SECONDS, DEVICE_TOKEN, Rang, StoreWorld

HEAR_SECONDS = 45.0
FIRST_HEAR_SECONDS = 60.0  # the first event of a new topic of Ceph's takes up to half a minute
PART_BYTES = 5 << 20  # the smallest that S3 takes
LAST_BYTES = 1000
CUT_BYTES = 100
TIMED_UPLOADS = 40
TIMED_PER_SECOND = 10

ODD_KEYS = tuple(
    f"assets/odd/{name}.bin"
    for name in ("a b", "a+b", "100%41", "ü€😀", "a&b=c", "quote'(1)", "[x] {y}", "semi;colon,comma", "a@b:c$d!")
)
CONFIG = f"configs/{MAC}.json"
UPLOAD, REPLACED, SAME = "assets/upload.bin", "assets/replaced.bin", "assets/same.bin"
MULTIPART, COPY, EMPTY = "assets/multipart.bin", "assets/copy.bin", "assets/empty.bin"
DELETED, TAGGED, FOLDER, LAST = "assets/deleted.bin", "assets/tagged.bin", "assets/folder/", "assets/last.bin"

RINGING = {
    "config": (CONFIG,),
    "asset": (UPLOAD,),
    "another content under the same name": (REPLACED,),
    "the same bytes again": (SAME,),
    "upload in parts": (MULTIPART,),
    "copy": (COPY,),
    "odd names": ODD_KEYS,
    "empty file": (EMPTY,),
}
SILENT = {"delete is silent": DELETED, "folder marker is silent": FOLDER, "tagging is silent": TAGGED}


def rings(world: StoreWorld) -> bool:
    """Whether anything at all rings: probes are uploaded until one does."""
    probes = iter(range(1, 1_000_000))

    def heard() -> bool:
        world.put(f"assets/probe-{next(probes)}.bin")
        return world.wait(world.rang, 0.5)

    return world.wait(heard, FIRST_HEAR_SECONDS)


def contract(world: StoreWorld, directory: Path) -> Iterator[Check]:
    """One check for each line of the contract."""
    yield from _Uploads(world).checks()
    yield _check("manifest lists what is there", lambda: _manifest(world))
    yield _check("presigned Range with If-Match", lambda: _presigned(world))
    yield _check("the device has every file", lambda: _device(world, directory))


def p50_ms(world: StoreWorld) -> float:
    """The median from the beginning of a PUT to the message at the subscriber."""
    with world.uploading("timed", TIMED_PER_SECOND) as uploads:
        uploads.reach(TIMED_UPLOADS, HEAR_SECONDS)
    began = {key: upload.began_at for key, upload in uploads.answered.items()}
    world.wait(lambda: not judge(uploads.answered, world.heard()).missing, HEAR_SECONDS)
    first: dict[str, float] = {}
    for heard in world.heard():
        first.setdefault(heard.key, heard.at)
    waits = [at - began[key] for key, at in first.items() if key in began]
    return round(statistics.median(waits) * 1000, 1)


class _Uploads:
    """Two rounds of uploads: everything once, then what needs something that has rung before."""

    def __init__(self, world: StoreWorld) -> None:
        """Nothing is uploaded yet."""
        self._world = world
        self._s3 = world.s3
        self._expected: list[tuple[str, str]] = []
        self._refused: dict[str, str] = {}

    def checks(self) -> Iterator[Check]:
        """Upload, wait, and judge."""
        self._first_round()
        self._wait()
        before = len(self._world.rang())
        self._second_round()
        self._wait()
        self._world.rest()
        rang = self._world.rang()
        for name, keys in RINGING.items():
            yield once(name, keys, self._expected, rang, self._refused)
        for name, key in SILENT.items():
            yield silent(name, key, rang[before:], self._refused)

    def _first_round(self) -> None:
        for key in (CONFIG, UPLOAD, REPLACED, SAME, DELETED, TAGGED, *ODD_KEYS):
            self._put(key, f"first {key}".encode())
        self._put(EMPTY, b"")
        self._do(MULTIPART, self._in_parts)
        source = {"Bucket": BUCKET, "Key": UPLOAD}
        self._do(COPY, lambda: self._s3.copy_object(Bucket=BUCKET, Key=COPY, CopySource=source)["CopyObjectResult"])

    def _second_round(self) -> None:
        self._put(REPLACED, b"another content")
        self._put(SAME, f"first {SAME}".encode())
        tags = {"TagSet": [{"Key": "colour", "Value": "green"}]}
        self._do(TAGGED, lambda: self._s3.put_object_tagging(Bucket=BUCKET, Key=TAGGED, Tagging=tags), rings=False)
        self._do(FOLDER, lambda: self._s3.put_object(Bucket=BUCKET, Key=FOLDER, Body=b""), rings=False)
        self._do(DELETED, lambda: self._s3.delete_object(Bucket=BUCKET, Key=DELETED), rings=False)
        self._put(LAST, b"what comes after all these")

    def _put(self, key: str, body: bytes) -> None:
        self._do(key, lambda: self._s3.put_object(Bucket=BUCKET, Key=key, Body=body))

    def _in_parts(self) -> dict[str, Any]:
        begun = {"Bucket": BUCKET, "Key": MULTIPART}
        begun["UploadId"] = self._s3.create_multipart_upload(**begun)["UploadId"]
        parts = [
            {"PartNumber": number, "ETag": self._s3.upload_part(**begun, PartNumber=number, Body=body)["ETag"]}
            for number, body in enumerate((b"1" * PART_BYTES, b"2" * LAST_BYTES), 1)
        ]
        return dict(self._s3.complete_multipart_upload(**begun, MultipartUpload={"Parts": parts}))

    def _do(self, key: str, call: Callable[[], Any], *, rings: bool = True) -> None:
        """Note what has to ring, or that the store does not do such a thing."""
        try:
            answer = call()
        except ClientError as error:
            self._refused[key] = f"the store answers {error.response['Error'].get('Code', 'with an error')}"
        else:
            if rings:
                self._expected.append((key, answer["ETag"].strip('"')))

    def _wait(self) -> None:
        wanted = len(self._expected)
        keys = {key for key, _ in self._expected}
        self._world.wait(lambda: len([one for one in self._world.rang() if one.key in keys]) >= wanted, HEAR_SECONDS)


def once(
    name: str,
    keys: Sequence[str],
    expected: Sequence[tuple[str, str]],
    rang: Sequence[Rang],
    refused: Mapping[str, str],
) -> Check:
    """Each key as often as it was uploaded, in that order, with the ETag that the store had answered.

    `expected` are key and ETag of each upload; `refused` says of keys what the store answered instead.
    """
    wrong: list[str] = []
    for key in keys:
        wanted = [etag for one, etag in expected if one == key]
        came = [one.etag for one in rang if one.key == key]
        filename = key.rpartition("/")[2]
        if len(came) != len(wanted):
            wrong.append(f"{filename}: uploaded {len(wanted)} times, rang {len(came)} times")
        elif came != wanted:
            wrong.append(f"{filename}: rang with ETag {came}, the store says {wanted}")
    if wrong:
        return Check(name, "failed", "; ".join(wrong))
    left_out = [f"{key.rpartition('/')[2]}: {refused[key]}" for key in keys if key in refused]
    if len(left_out) == len(keys):
        return Check(name, "not possible", refused[keys[0]])
    return Check(name, "ok", "; ".join(left_out))


def silent(name: str, key: str, later: Sequence[Rang], refused: Mapping[str, str]) -> Check:
    """`later` is what rang from then on: `LAST` must be among it, and `key` must not."""
    if key in refused:
        return Check(name, "not possible", refused[key])
    keys = {one.key for one in later}
    if LAST not in keys:
        return Check(name, "failed", "the upload after it did not ring: silence shows nothing")
    return Check(name, "failed", "it rang") if key in keys else Check(name, "ok")


def _check(name: str, problem: Callable[[], str]) -> Check:
    """Whatever goes wrong is the check's own: the others are made all the same."""
    try:
        said = problem()
    except Exception as error:  # noqa: BLE001 - see above
        said = f"{type(error).__name__}: {error}"[:300]
    return Check(name, "failed" if said else "ok", said)


def _listed(world: StoreWorld) -> dict[str, tuple[str, int]]:
    pages = world.s3.get_paginator("list_objects_v2").paginate
    prefixes = ("configs/", "assets/")
    found = [page for prefix in prefixes for page in pages(Bucket=BUCKET, Prefix=prefix)]
    entries = [entry for page in found for entry in page.get("Contents", ())]
    return {one["Key"]: (one["ETag"].strip('"'), one["Size"]) for one in entries if not one["Key"].endswith("/")}


def _manifest(world: StoreWorld) -> str:
    told = {key: (str(etag).strip('"'), size) for key, (etag, size) in world.manifest().items()}
    wanted = _listed(world)
    differ = sorted(key for key in told.keys() | wanted.keys() if told.get(key) != wanted.get(key))
    return "; ".join(f"{key}: {told.get(key)}, but a LIST says {wanted.get(key)}" for key in differ[:3])


def _presigned(world: StoreWorld) -> str:
    """As a device goes on with half a file: only if it is still the same."""
    granted = world.ask(f"/{MULTIPART}")
    with httpx.Client(timeout=ANSWER_SECONDS, trust_env=False) as http:
        from_there = {"Range": f"bytes={PART_BYTES + LAST_BYTES - CUT_BYTES}-"}
        etag = f'"{granted["etag"].strip(chr(34))}"'
        same = http.get(granted["url"], headers=from_there | {"If-Match": etag})
        other = http.get(granted["url"], headers=from_there | {"If-Match": '"00000000000000000000000000000000"'})
    if same.status_code != httpx.codes.PARTIAL_CONTENT or same.content != b"2" * CUT_BYTES:
        return f"the right ETag gets {same.status_code} and {len(same.content)} bytes"
    if other.status_code != httpx.codes.PRECONDITION_FAILED:
        return f"a wrong ETag gets {other.status_code}"
    return ""


def _device(world: StoreWorld, directory: Path) -> str:
    device = DeviceProcess(directory, world.host.url, "--once", environment={"DEVICE_TOKEN": DEVICE_TOKEN})
    status = device.run()
    wrong = []
    for key in _listed(world):
        file = device.files / key
        stored = world.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        if not file.is_file() or file.read_bytes() != stored:
            wrong.append(key)
    if wrong:
        return f"{len(wrong)} are not there or differ: {', '.join(wrong[:3])}"
    return f"the device ended with status {status}" if status else ""
