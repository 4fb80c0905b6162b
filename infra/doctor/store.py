"""The store: does it answer, is its clock ours, which region, is the bucket there, and what may we do in it."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from functions.s3 import clients as storage
from functions.s3.clients import NO_CREDENTIALS, UNREACHABLE, StorageError, storage_errors
from functions.s3.objects import S3_CONNECT_TIMEOUT_SECONDS, S3_READ_TIMEOUT_SECONDS, Objects
from functions.s3.regions import mismatch, remedy, sentence
from infra.doctor.checks import Checkup, NotCheckedError, Timed, WrongError
from infra.host.sweep.marker import KEY as SWEEP_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_s3.client import S3Client

    from functions.settings import Settings

MAX_CLOCK_SECONDS = 60.0
"""More than clocks that are kept by NTP ever differ. A link's life is counted by both clocks."""

TARGETS_SECONDS = 30.0
LOOKED_AT_KEYS = 20  # of each prefix, for one that is a file

STORE, CLOCK, CREDENTIALS, REGION, BUCKET = "store", "clock", "store credentials", "region", "bucket"
LIST, GET, PUT, VERSIONS = "s3:ListBucket", "s3:GetObject", "s3:PutObject", "versioning"

FORBIDDEN = 403
_SKEWED = "RequestTimeTooSkewed"
_BAD_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
# The MD5 of nothing: a store that would let us write refuses the byte that comes with it, and writes nothing.
_MD5_OF_NOTHING = "1B2M2Y8AsgTpgAmY7PhCfg=="
_NEVER_WRITTEN = ".bucketbell/doctor"


class StoreLeg:
    """One bucket. The first question tells most; the checks read what was answered."""

    def __init__(self, settings: Settings, bucket: str) -> None:
        """Nothing is asked yet."""
        self.settings = settings
        self.bucket = bucket
        self.keys: dict[str, str] = {}
        """By prefix: a file that is there."""
        self.server = ""
        """The store's own name for itself, in lower case."""
        self._offset_seconds: float | None = None  # of our clock from the store's
        self._regions: list[str] = []
        self._error: StorageError | None = None

    @property
    def prefixes(self) -> dict[str, str]:
        """By what they are for."""
        settings = self.settings
        both = {"configs": settings.configs_prefix, "assets": settings.assets_prefix}
        return both | ({"events": settings.events_prefix} if settings.events_prefix else {})

    @cached_property
    def objects(self) -> Objects:
        """The bucket as the host's downloads see it."""
        settings = self.settings
        return Objects(
            settings,
            self.bucket,
            url_ttl_seconds=settings.url_ttl_seconds,
            public_endpoint_url=settings.s3_public_endpoint_url,
        )

    @cached_property
    def s3(self) -> S3Client:
        """A client that makes one attempt within the host's own deadline. Raises StorageError."""
        s3 = storage.client(
            "s3",
            self.settings,
            connect_timeout_seconds=S3_CONNECT_TIMEOUT_SECONDS,
            read_timeout_seconds=S3_READ_TIMEOUT_SECONDS,
            attempts=1,
        )
        storage.on_other_region(s3, self._regions.append)
        s3.meta.events.register("before-parse.s3", self._hear)
        return s3

    @cached_property
    def patient(self) -> S3Client:
        """A client for what takes MinIO long: it tries each target for 5 s. Raises StorageError."""
        return storage.client(
            "s3",
            self.settings,
            connect_timeout_seconds=S3_CONNECT_TIMEOUT_SECONDS,
            read_timeout_seconds=TARGETS_SECONDS,
            attempts=1,
        )

    @property
    def endpoint(self) -> str:
        """Where the store is, for people."""
        return str(self.s3.meta.endpoint_url)

    @property
    def a_key(self) -> str | None:
        """A file that devices may fetch, if any was found."""
        return next(iter(self.keys.values()), None)

    def checks(self) -> tuple[Checkup, ...]:
        """All of them, in order."""
        checks = (
            Checkup(STORE, self._store),
            Checkup(CLOCK, self._clock, (STORE,)),
            Checkup(CREDENTIALS, self._credentials, (STORE, CLOCK)),
            Checkup(REGION, self._region, (CREDENTIALS,)),
            Checkup(BUCKET, self._bucket, (CREDENTIALS,)),
            Checkup(LIST, self._list, (BUCKET,)),
            Checkup(GET, self._get, (LIST,)),
            Checkup(VERSIONS, self._versions, (BUCKET,)),
        )
        # Elsewhere nothing of the sweep is at home in the bucket but a note, which it can do without.
        at_home = self.settings.database_url is None and self.settings.sweep_state_file is None
        return (*checks, Checkup(PUT, self._put, (BUCKET,))) if self.settings.sweep_seconds and at_home else checks

    def _hear(self, response_dict: Mapping[str, Any], **_: object) -> None:
        headers = {str(name).lower(): str(value) for name, value in response_dict.get("headers", {}).items()}
        self.server = headers.get("server", "").lower()
        try:
            self._offset_seconds = time.time() - parsedate_to_datetime(headers.get("date", "")).timestamp()
        except ValueError:  # a store that says no date
            self._offset_seconds = None

    def _store(self) -> Timed:
        began_at = time.monotonic()
        try:
            s3 = self.s3
            began_at = time.monotonic()  # boto3 has taken its half a second
            with storage_errors():
                s3.list_objects_v2(Bucket=self.bucket, MaxKeys=1)
        except StorageError as failure:
            self._error = failure
        error = self._error
        if error is None or (error.answered and error.status is not None):
            return Timed.since(began_at, f"{self.endpoint} answers")
        if error.code == NO_CREDENTIALS:
            raise WrongError(
                f"There are no credentials for the store: {error.message}.",
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the host.",
            )
        if error.code == UNREACHABLE and "certificate" in error.message.lower():
            raise WrongError(
                f"The store's certificate is not trusted: {error.message}",
                "Set AWS_CA_BUNDLE to a PEM file with the authority that signed it, for the host too.",
            )
        raise WrongError(
            f"The store does not answer: {error.message}",
            "Start it, or correct AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL (without one, it is AWS).",
        )

    def _clock(self) -> str:
        offset = self._offset_seconds
        skewed = self._error is not None and self._error.code == _SKEWED
        if offset is None:
            if not skewed:
                raise NotCheckedError("the store does not say what time it is")
            offset = 0.0
        if skewed or abs(offset) > MAX_CLOCK_SECONDS:
            raise WrongError(
                f"This machine's clock is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the store's.",
                "Set the clock of the one that is wrong, best by NTP (`timedatectl set-ntp true`). Links expire too "
                "early or too late until then, and beyond 15 minutes the store refuses everything.",
            )
        return f"within {max(1.0, abs(offset)):.0f} s of the store's"

    def _credentials(self) -> str:
        error = self._error
        if error is not None and error.code in _BAD_CREDENTIALS:
            raise WrongError(
                f"The store does not accept the credentials: {error.message} ({error.code}).",
                "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, if there is one).",
            )
        return "the store knows them"

    def _region(self) -> str:
        ours = storage.region(self.settings)
        if self._regions and self._regions[-1] != ours.name:
            theirs = self._regions[-1]
            raise WrongError(f"{sentence(mismatch(ours, theirs))}.", f"{sentence(remedy(theirs))} for the host.")
        if self._error is not None and self._error.is_of_region:
            raise WrongError(
                f"The store's region is not {ours.name}: {self._error.message}",
                "Set S3_REGION to the store's region, for the host too.",
            )
        return ours.name

    def _bucket(self) -> str:
        if self._error is not None and self._error.code in {"NoSuchBucket", "404"}:
            raise WrongError(
                f"There is no bucket {self.bucket}.",
                "Make it with `bucketbell connect --create`, or correct BUCKET.",
            )
        return self.bucket

    def _list(self) -> str:
        if self._error is not None:
            _refuse(self._error, LIST, f"the bucket {self.bucket}", f"arn:aws:s3:::{self.bucket}")
        counts = []
        for name, prefix in self.prefixes.items():
            try:
                with storage_errors():
                    found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=LOOKED_AT_KEYS)
            except StorageError as error:
                _refuse(error, LIST, f"{prefix} in the bucket {self.bucket}", f"arn:aws:s3:::{self.bucket}")
            keys = [entry["Key"] for entry in found.get("Contents", []) if not entry["Key"].endswith("/")]
            self.keys |= {prefix: keys[0]} if keys else {}
            counts.append(f"{name}: {'files' if keys else 'no file yet'}")
        return ", ".join(counts)

    def _get(self) -> str:
        if not self.keys:
            raise NotCheckedError("there is no file to ask for: upload one")
        for prefix, key in self.keys.items():
            try:
                self.objects.head(key)
            except StorageError as error:
                _refuse(error, GET, f"{prefix} in the bucket {self.bucket}", f"arn:aws:s3:::{self.bucket}/{prefix}*")
        return ", ".join(f"{prefix}*" for prefix in self.keys)

    def _versions(self) -> str:
        try:
            with storage_errors():
                status = self.s3.get_bucket_versioning(Bucket=self.bucket).get("Status")
        except StorageError as error:
            why = "s3:GetBucketVersioning is not allowed" if error.status == FORBIDDEN else error.code
            raise NotCheckedError(f"{why}; without it the manifest names no versions") from None
        return {"Enabled": "on", "Suspended": "suspended"}.get(str(status), "off")

    def _put(self) -> str:
        try:
            with storage_errors():
                answer = self.s3.put_object(
                    Bucket=self.bucket, Key=_NEVER_WRITTEN, Body=b"?", ContentMD5=_MD5_OF_NOTHING
                )
        except StorageError as error:
            if error.status == FORBIDDEN:
                _refuse(error, PUT, SWEEP_KEY, f"arn:aws:s3:::{self.bucket}/.bucketbell/*")
            if error.status is None or not error.answered:
                raise NotCheckedError(f"the store did not answer: {error.message}") from None
            return "the sweep may keep its state in the bucket"
        # It does not look at the checksum.
        version: dict[str, Any] = {"VersionId": answer["VersionId"]} if answer.get("VersionId") else {}
        with storage_errors():
            self.s3.delete_object(Bucket=self.bucket, Key=_NEVER_WRITTEN, **version)
        return "the sweep may keep its state in the bucket"


def _refuse(error: StorageError, action: str, what: str, resource: str) -> NoReturn:
    if error.status == FORBIDDEN:
        raise WrongError(
            f"These credentials may not use {action} on {what}.",
            f"Allow {action} on {resource} to the user of AWS_ACCESS_KEY_ID.",
        ) from None
    raise WrongError(
        f"The store refuses {action} on {what}: {error.message} ({error.code}).",
        "Look into the store's own log for the reason.",
    ) from None
