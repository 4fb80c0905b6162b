"""A sender's JSON becomes frozen values: uploads to ring for, events to ignore, documents nobody can use.

Pure: no input or output, no settings, no logging, and nothing here raises on hostile input. This module opens
the wrappers (SQS, SNS, CloudEvents, EventBridge, in any sensible nesting) and tells the forms apart; `dialects`,
`seaweedfs` and `hosted` read what is inside.
"""

from __future__ import annotations

import binascii
import json
from typing import Any, NamedTuple

from functions.events.dialects import (
    Ignored,
    Malformed,
    ObjectCreated,
    Record,
    as_object,
    describe,
    eventbridge_event,
    excerpt,
    printable,
    s3_record,
)
from functions.events.hosted import b2_event, r2_event, tigris_event
from functions.events.seaweedfs import seaweedfs_event

__all__ = [
    "Ignored",
    "Malformed",
    "ObjectCreated",
    "Record",
    "SqsMessage",
    "parse",
    "parse_body",
    "sqs_messages",
]

MAX_WRAPPERS = 4
MAX_RECORDS = 1_000  # senders put one into a document; reading a megabyte of them would hold everybody else up
"""Wrappers around a record that are opened; the deepest known is SQS, SNS and a CloudEvent: three."""

_NO_BODY = "null"  # a JSON text that is no event, see `SqsMessage.of`


class SqsMessage(NamedTuple):
    """One message of an SQS batch; `body` goes to `parse_body`."""

    message_id: str
    body: str

    @classmethod
    def of(cls, message_id: object, body: object) -> SqsMessage:
        """Take what came for these two.

        Without a usable body it gets one that `parse_body` finds `Malformed`, not `Ignored` as a blank webhook is: so
        it ends in the dead-letter queue, kept for a person. Without an id it gets "": reported back to Lambda, that
        fails the whole batch, so nothing is lost (Lambda guide, "Handling errors for an SQS event source").
        """
        is_usable = isinstance(body, str) and body and not body.isspace()
        return cls(message_id if isinstance(message_id, str) else "", str(body) if is_usable else _NO_BODY)


def parse(document: object) -> list[Record]:
    """Read one decoded JSON document of any dialect, in any wrapper; never empty, never raises."""
    records: list[Record] = []
    _read_document(document, 0, records)
    return records


def parse_body(body: bytes | str) -> list[Record]:
    """Read one JSON text; never empty, never raises.

    A blank body is `Ignored("empty")`: MinIO of 2020 pinged its webhooks that way.
    """
    if not body or body.isspace():
        return [Ignored("empty")]
    records: list[Record] = []
    _read_text(body, 0, records)
    return records


def sqs_messages(event: object) -> list[SqsMessage] | None:
    """Return the messages of an SQS batch as Lambda delivers it, or None when `event` is something else."""
    records = event.get("Records") if isinstance(event, dict) else None
    if not isinstance(records, list) or not records or not _is_sqs(records[0]):
        return None
    return [SqsMessage.of(one.get("messageId"), one.get("body")) for one in map(as_object, records)]


def _is_sqs(record: object) -> bool:
    return isinstance(record, dict) and record.get("eventSource") == "aws:sqs"


def _read_text(text: bytes | str, depth: int, out: list[Record]) -> None:
    try:
        # Decoded here, because json.loads would also take UTF-16 and UTF-32, and lets surrogates pass.
        document = json.loads(text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError:
        out.append(Malformed("not_utf8", excerpt(text)))
    except RecursionError:
        out.append(Malformed("too_deep", excerpt(text)))
    except ValueError:  # JSONDecodeError, or an integer of more digits than Python converts
        out.append(Malformed("not_json", excerpt(text)))
    else:
        _read_document(document, depth, out)


def _read_document(document: object, depth: int, out: list[Record]) -> None:
    if depth > MAX_WRAPPERS:
        out.append(Malformed("too_deep", f"more than {MAX_WRAPPERS} wrappers"))
    elif not isinstance(document, dict):
        out.append(Malformed("not_an_event", describe(document)))
    elif isinstance(records := document.get("Records"), list):
        if _is_countable(records, out):
            for record in records:
                _read_record(record, depth, out)
    else:
        _read_wrapper(document, depth, out)


def _is_countable(records: list[object], out: list[Record]) -> bool:
    """Whether there are records, and not too many; otherwise it is told."""
    if not records:
        out.append(Ignored("empty"))
    elif len(records) > MAX_RECORDS:
        out.append(Malformed("too_many", f"{len(records)} records"))
        return False
    return True


def _read_record(record: object, depth: int, out: list[Record]) -> None:
    """Read one of `Records`: an S3 event, an SQS message, or what SNS hands to Lambda."""
    if not isinstance(record, dict):
        out.append(Malformed("not_an_event", describe(record)))
    elif isinstance(name := record.get("eventName"), str):
        out.append(s3_record(record, name))
    elif _is_sqs(record):
        _read_text(SqsMessage.of("", record.get("body")).body, depth + 1, out)
    elif isinstance(message := as_object(record.get("Sns")).get("Message"), str):
        _read_text(message, depth + 1, out)
    else:
        out.append(Malformed("not_an_event", describe(record)))


def _read_wrapper(document: dict[Any, Any], depth: int, out: list[Record]) -> None:
    """Read a document without `Records`; a bare S3 event is what CloudEvents carry (adapters/aws-s3.md)."""
    if isinstance(name := document.get("eventName"), str):
        out.append(s3_record(document, name))
    elif "specversion" in document:
        _read_cloudevent(document, depth, out)
    elif isinstance(detail_type := document.get("detail-type"), str):
        out.append(eventbridge_event(document, detail_type))
    elif document.get("Type") == "Notification" and isinstance(message := document.get("Message"), str):
        _read_text(message, depth + 1, out)
    elif document.get("Type") in ("SubscriptionConfirmation", "UnsubscribeConfirmation"):
        out.append(Ignored("subscription", printable(document["Type"])))
    elif document.get("Event") == "s3:TestEvent":
        out.append(Ignored("test_event", "TestEvent", printable(document.get("Bucket"))))
    else:
        _read_form(document, out)


def _read_form(document: dict[Any, Any], out: list[Record]) -> None:
    """Read a document of a form that is not S3's."""
    if isinstance(event_type := document.get("event_type"), str) and isinstance(document.get("message"), dict):
        out.append(seaweedfs_event(document, event_type))
    elif isinstance(events := document.get("events"), list):
        if _is_countable(events, out):
            out.extend(map(_hosted_event, events))
    elif isinstance(action := document.get("action"), str) and {"account", "bucket", "object"} <= document.keys():
        out.append(r2_event(document, action))
    else:
        out.append(Malformed("not_an_event", describe(document)))


def _hosted_event(event: object) -> Record:
    """Read one of `events`: Backblaze B2's, or Tigris'."""
    if isinstance(event, dict):
        if isinstance(event_type := event.get("eventType"), str):
            return b2_event(event, event_type)
        if isinstance(event_name := event.get("eventName"), str):
            return tigris_event(event, event_name)
    return Malformed("not_an_event", describe(event))


def _read_cloudevent(event: dict[Any, Any], depth: int, out: list[Record]) -> None:
    """Open a CloudEvent in structured mode (CloudEvents 1.0, JSON event format, §3.1)."""
    if isinstance(encoded := event.get("data_base64"), str):
        try:
            _read_text(binascii.a2b_base64(encoded, strict_mode=True), depth + 1, out)
        except ValueError:  # binascii.Error, or a character outside ASCII
            out.append(Malformed("not_base64", excerpt(encoded)))
    elif isinstance(data := event.get("data"), str):
        _read_text(data, depth + 1, out)
    elif isinstance(data, dict):
        _read_document(data, depth + 1, out)
    else:
        out.append(Malformed("not_an_event", describe(event)))
