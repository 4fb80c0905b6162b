"""A file of our own goes the way of an upload: into the bucket, and to the host at each of its doors, which it passes.

The host never announces it. It tells when it heard of it, and then the file is taken away.
"""

from __future__ import annotations

import atexit
import base64
import secrets
import time
import zlib
from typing import TYPE_CHECKING, Any

from functions.events.names import CANARY_KEY
from functions.s3.clients import StorageError, storage_errors
from functions.s3.objects import unquoted
from infra.connect import documents
from infra.doctor.checks import Checkup, NotCheckedError, WrongError
from infra.doctor.host import HOST, READY
from infra.doctor.store import BUCKET, FORBIDDEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.doctor.host import HostLeg
    from infra.doctor.hosts import HostsLeg
    from infra.doctor.rules import RulesLeg
    from infra.doctor.store import StoreLeg

CANARY = "canary"

SEEN_SECONDS = 6.0
"""MinIO looks into the queue of its sure door every 3 s."""

FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.05, 0.5  # between two questions
STORE_SECONDS = 6.0  # to write and to remove it

DOORS = {"fast": "POST /events/fast", "sure": "POST /events", "sqs": "SQS_QUEUE_URL"}
_REMEDIES = {
    "fast": "Compare the store's target for /events/fast with the host's address and WEBHOOK_TOKENS, and look into the "
    "store's log. Something between them may not pass it on.",
    "sure": "Compare the store's target for /events with the host's address and WEBHOOK_TOKENS, and look into the "
    "store's log and its queue: what the host puts off keeps back all that is behind.",
    "sqs": "Look whether its messages wait in the queue, or whether somebody else takes them (another host, a Lambda "
    "function). If neither, the queue's policy does not let the bucket send: run `bucketbell connect`.",
}


class CanaryLeg:
    """The whole way from an upload to the host."""

    def __init__(self, store: StoreLeg, rules: RulesLeg, host: HostLeg, hosts: HostsLeg) -> None:
        """Nothing is asked yet."""
        self._store = store
        self._rules = rules
        self._host = host
        self._hosts = hosts

    def checks(self) -> tuple[Checkup, ...]:
        """One. It goes on where the rules cannot be read, for there is a store that posts without any."""
        return (Checkup(CANARY, self._fly, (BUCKET, HOST, READY), seconds=SEEN_SECONDS + STORE_SECONDS),)

    def _fly(self) -> str:
        wanted = self._wanted()
        self._host.events_of(CANARY_KEY)  # so that nothing is written where nobody would tell
        began_at = time.monotonic()
        etag, version = self._write()
        atexit.register(self._remove, version)  # somebody may have no patience, and this thread ends with the process
        try:
            seen = self._seen(etag, began_at, wanted)
        finally:
            left = self._remove(version)
            atexit.unregister(self._remove)
        missing = [door for door in wanted if door not in seen]
        told = ", ".join(f"{DOORS[door]} after {seen[door]:.0f} ms" for door in sorted(seen, key=seen.__getitem__))
        if missing and self._hosts.count() > 1:
            raise NotCheckedError(f"{told or 'not here'}; other hosts share the database, and may have taken it")
        if missing:
            where = " and ".join(DOORS[door] for door in missing)
            raise WrongError(
                f"The host has not heard of an upload at {where} within {SEEN_SECONDS:.0f} s"
                f"{told and f', although it has at {told}'}{left}.",
                _REMEDIES[missing[0]],
            )
        if left or not seen:
            raise NotCheckedError((told or f"no event of it came within {SEEN_SECONDS:.0f} s") + left)
        return told

    def _wanted(self) -> tuple[str, ...]:
        """The doors that the rules name for it; none where the store has no rules that can be read."""
        if self._rules.posts_without_rules:
            return ()
        rules = self._rules.before
        doors = {"sqs" if door == "queue" else door for door in documents.doors_of(rules, CANARY_KEY)}
        if not doors and not documents.has_ours(rules):
            raise NotCheckedError("the bucket has no rule that tells the host of an upload")
        if not doors:
            raise NotCheckedError(f"there is no rule for {CANARY_KEY} yet: run `bucketbell connect` again")
        if "sqs" in doors and self._store.settings.sqs_queue_url is None:
            raise NotCheckedError("SQS_QUEUE_URL is not set: another program takes the events")
        return tuple(door for door in DOORS if door in doors)

    def _write(self) -> tuple[str, dict[str, Any]]:
        """Return its ETag, by which ours is told from another doctor's, and what names this version of it."""
        body = secrets.token_hex().encode()
        checksum = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()  # boto3's own would come behind it
        try:
            with storage_errors():
                answer = self._store.s3.put_object(
                    Bucket=self._store.bucket, Key=CANARY_KEY, Body=body, ChecksumCRC32=checksum
                )
        except StorageError as error:
            if error.status == FORBIDDEN:
                raise NotCheckedError(f"these credentials may not write {CANARY_KEY}; the host need not") from None
            raise NotCheckedError(f"{CANARY_KEY} cannot be written: {error.message}") from None
        version = answer.get("VersionId")
        return unquoted(answer["ETag"]), {"VersionId": version} if version else {}

    def _seen(self, etag: str, began_at: float, wanted: tuple[str, ...]) -> Mapping[str, float]:
        """By door, after how many milliseconds it was heard of there; it waits for all of them, else for any."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            heard = self._host.events_of(CANARY_KEY)
            asked = time.monotonic() - began_at
            mine = [one for one in reversed(heard) if one.etag == etag and one.door in DOORS]  # the first one wins
            seen = {one.door: max(0.0, asked - one.seconds) * 1000 for one in mine}
            if (seen.keys() >= set(wanted) if wanted else seen) or asked > SEEN_SECONDS:
                return seen
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_SECONDS)

    def _remove(self, version: Mapping[str, Any]) -> str:
        """Take it away; return what is to be said of that, if it failed."""
        try:
            with storage_errors():
                self._store.s3.delete_object(Bucket=self._store.bucket, Key=CANARY_KEY, **version)
        except StorageError as error:
            return f" ({CANARY_KEY} stays in the bucket: {error.message})"
        return ""
