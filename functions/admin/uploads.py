"""What an administrator can ask of a file in the bucket: what became of it, and to announce it again; without HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from functions.admin.known import ANNOUNCED, Known
from functions.admin.operations import CannotPublishError
from functions.admin.schemas import FileAnswer, FilesAnswer, ObjectAnswer, RingAnswer, RouteAnswer, WhyAnswer
from functions.admin.story import answered, shown_route, unanswered
from functions.events.dialects import MAX_KEY_BYTES, ObjectCreated
from functions.events.names import config_name, is_config_name, normalise_mac
from functions.events.routes import Skip, Upload
from functions.s3.clients import StorageError
from functions.telemetry import logger
from functions.web.messages import Problem, unavailable, unfit

if TYPE_CHECKING:
    from functions.events.plan import Settled
    from functions.events.routes import Detection, Routes
    from functions.s3.objects import ObjectInfo, Objects

STORE_RETRY_SECONDS = 5
LIST_SECONDS = 4.0  # of one answer: the client asks on
MAX_LISTED = 1000

_NO_STORE = "BUCKET is not set"


class Ringing(Protocol):
    """What is needed of the process that publishes. Methods are called from several threads."""

    def known(self, key: str, found: ObjectInfo | None) -> Known:
        """What is known of `key`. `found` is the object as it is now, where that could be checked."""

    def has_heard(self, key: str) -> bool:
        """Whether an event of `key` is remembered."""

    def ring(self, found: ObjectInfo, device: str | None) -> Settled:
        """Announce this file under a new id, and wait for the broker's word. Raises `CannotPublishError`.

        `device`: the MAC, with dashes, of the only one to hear it.
        """


class Uploads:
    """Thread-safe. Methods raise `Problem`."""

    def __init__(self, routes: Routes, objects: Objects | None = None, ringing: Ringing | None = None) -> None:
        """`ringing` is None where another process publishes."""
        self._routes = routes
        self._objects = objects
        self._ringing = ringing

    def why(self, asked: str) -> WhyAnswer:
        """Tell what became of a file."""
        _check(asked)
        if self._ringing is None:
            key = next(self._candidates(asked))
            return unanswered(key, self._route(key))
        key, found, answer = self._find(asked, self._ringing)
        return answered(key, self._route(key), answer, self._ringing.known(key, found))

    def ring(self, asked: str, device: str | None = None) -> RingAnswer:
        """Announce a file again, to all or to the `device` of that MAC."""
        _check(asked)
        mac = None if device is None else self._listener(device)
        if self._ringing is None:
            words = "Only the host can announce a file again. On Lambda, upload it again, or copy it over itself."
            raise _cannot(words)
        if self._objects is None:
            raise _cannot(f"The file cannot be looked at: {_NO_STORE}.")
        key, found, answer = self._find(asked, self._ringing)
        route = self._route(key)
        if not route.announced:
            raise Problem(HTTPStatus.CONFLICT, "not_announced", f"It is not announced: {route.detail}. {route.remedy}")
        if route.camera and mac is not None:
            raise Problem(HTTPStatus.CONFLICT, "not_announced", "A camera's event is not announced to a device.")
        if found is None and answer.state == "absent":
            raise Problem(HTTPStatus.NOT_FOUND, "no_such_file", "There is no such file in the bucket.")
        if found is None:
            raise _store_down(answer.detail)
        try:
            settled = self._ringing.ring(found, mac)
        except CannotPublishError as error:
            raise _cannot(str(error)) from None
        return _rung(route, found, settled)

    def _listener(self, device: str) -> str:
        """The MAC of a device with a topic of its own. Raises Problem."""
        if self._routes.device_topics == "off":
            words = "Devices have no topics of their own: set DEVICE_TOPICS=on, and have devices subscribe to theirs."
            raise Problem(HTTPStatus.CONFLICT, "no_device_topics", words)
        try:
            return normalise_mac(device)
        except ValueError as error:
            raise unfit([{"field": "device", "problem": "is no MAC address", "expected": str(error)}]) from None

    def modified_since(self, since: str, after: str) -> FilesAnswer:
        """List the files that are announced and were modified since then, behind the key `after`."""
        try:
            moment = datetime.fromisoformat(since)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            right = "a time with its zone, e.g. 2026-11-30T12:00:00Z"
            raise unfit([{"field": "since", "problem": "is no such time", "expected": right}])
        if after:
            _check(after, "after")
        if self._ringing is None or self._objects is None:
            raise _cannot("Only a host with BUCKET can list its files.")
        prefixes = sorted((self._routes.configs_prefix, self._routes.assets_prefix), key=str.encode)
        try:
            return self._listed(self._objects, prefixes, moment.astimezone(UTC), after)
        except StorageError as error:
            raise _store_down(_words(error)) from None

    def _listed(self, objects: Objects, prefixes: list[str], since: datetime, after: str) -> FilesAnswer:
        until = time.monotonic() + LIST_SECONDS
        files: list[FileAnswer] = []
        for prefix in prefixes:
            if after.encode() > prefix.encode() and not after.startswith(prefix):
                continue
            start = after if after.startswith(prefix) else ""
            while True:
                page = objects.list_page(prefix, start_after=start)
                files += [
                    FileAnswer(
                        key=one.object_key, etag=one.etag or None, size=one.size, last_modified=one.last_modified
                    )
                    for one in page.objects
                    if one.last_modified >= since and self._route(one.object_key).announced
                ]
                start = page.next_start_after
                if not start:
                    break
                if len(files) >= MAX_LISTED or time.monotonic() > until:
                    return FilesAnswer(files=tuple(files), next=start)
        return FilesAnswer(files=tuple(files), next=None)

    def _find(self, asked: str, ringing: Ringing) -> tuple[str, ObjectInfo | None, ObjectAnswer]:
        """The key that is meant: the first that is in the bucket, else one that was heard of, else the likeliest."""
        candidates = list(self._candidates(asked))
        answers: dict[str, ObjectAnswer] = {}
        for key in candidates:
            found, answers[key] = self._head(key)
            if found is not None:
                return key, found, answers[key]
            if answers[key].state == "not_checked":
                break  # nor can the others be
        key = next(filter(ringing.has_heard, candidates), candidates[0])
        return key, None, answers.get(key) or answers[candidates[0]]

    def _candidates(self, asked: str) -> Iterator[str]:
        """Keys that may be meant, each once, the likeliest first."""
        configs, assets = self._routes.configs_prefix, self._routes.assets_prefix
        found = [asked]
        if not self._is_mapped(asked):
            name = asked.removesuffix(".json")
            try:
                mac = normalise_mac(name)
            except ValueError:
                if "/" not in asked or asked.startswith("/"):
                    found.insert(0, assets + asked.lstrip("/"))
                else:
                    found.append(assets + asked)
            else:
                found = [configs + config_name(one) for one in (mac, mac.lower(), mac.upper())] + found
        elif asked.startswith(configs) and is_config_name(asked.removeprefix(configs)):
            mac = asked.removeprefix(configs).removesuffix(".json")
            found += [configs + config_name(one) for one in (mac.lower(), mac.upper())]
        yield from (key for key in dict.fromkeys(found) if len(key.encode()) <= MAX_KEY_BYTES)

    def _is_mapped(self, key: str) -> bool:
        return self._route(key).reason != "unmapped"

    def _action(self, key: str) -> Upload | Detection | Skip:
        return self._routes.route(ObjectCreated(self._routes.bucket or "", key, "ObjectCreated:Put"))

    def _route(self, key: str) -> RouteAnswer:
        return shown_route(self._routes, self._action(key))

    def _head(self, key: str) -> tuple[ObjectInfo | None, ObjectAnswer]:
        if self._objects is None:
            return None, ObjectAnswer(state="not_checked", detail=_NO_STORE)
        try:
            found = self._objects.head(key)
        except StorageError as error:
            return None, ObjectAnswer(state="not_checked", detail=_words(error))
        if found is None:
            return None, ObjectAnswer(state="absent")
        return found, ObjectAnswer(
            state="present",
            etag=found.etag or None,
            size=found.size,
            last_modified=found.last_modified,
            version_id=found.version_id or None,
        )


def _rung(route: RouteAnswer, found: ObjectInfo, settled: Settled) -> RingAnswer:
    action = settled.step.action
    words = {
        "delivered": "Announced; the broker confirmed it.",
        "no_subscribers": "Announced; the broker says that nobody listens there.",
        "sent": "Sent; with QoS 0 nobody confirms that.",
        "refused": f"The broker refuses it: {settled.reason}.",
    }
    return RingAnswer(
        key=found.object_key,
        ok=settled.label in ANNOUNCED,
        outcome=settled.label,
        detail=words.get(settled.label) or f"Not announced: {settled.reason or 'no answer in time'}.",
        reason_code=settled.reason_code,
        id="" if isinstance(action, Skip) else action.identity.hex(),
        topic=action.message.topic if isinstance(action, Upload) else route.topic,
        etag=found.etag or None,
        size=found.size,
        version_id=found.version_id or None,
    )


def _check(key: str, field: str = "key") -> None:
    """Raise Problem for what no object can be called."""
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:  # half a surrogate pair
        size_bytes = 0
    if not 0 < size_bytes <= MAX_KEY_BYTES or "\0" in key:
        right = "an object's key: 1 to 1,024 bytes of UTF-8, without NUL"
        raise unfit([{"field": field, "problem": "is no object's key", "expected": right}])


def _words(error: StorageError) -> str:
    logger.info("the store cannot be asked", extra={"problem": str(error)})
    return f"the store cannot be asked ({error.code})"


def _cannot(words: str) -> Problem:
    return Problem(HTTPStatus.CONFLICT, "cannot_publish", words)


def _store_down(words: str) -> Problem:
    return unavailable("store_unavailable", f"Not now: {words}.", retry_after_seconds=STORE_RETRY_SECONDS)
