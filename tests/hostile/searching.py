"""How hard the searches here try: a moment in `make test`, and FUZZ times as hard where that variable is set.

By default every run tries the same inputs: a red test is red again, and a commit is judged by its own change. With
FUZZ each run tries others; what fails is kept in `.hypothesis`, tried first the next time, and printed so that
`@reproduce_failure` repeats it anywhere. What was found belongs into a plain test.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import quote, quote_plus

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from functions.telemetry import logger

FUZZ = int(os.environ.get("FUZZ", "0"))
MAX_CHANGES = 6
SHORTEST_LEAK = 8  # characters: fewer are there by chance

Example = TypeVar("Example")


class Draw(Protocol):
    """What draws examples: within a composite strategy, or `st.data()`."""

    def __call__(self, strategy: st.SearchStrategy[Example], label: object = None) -> Example:
        """One example."""


Path = tuple[str | int, ...]


def tries(number: int) -> settings:
    """The settings of a search that takes `number` examples, by default."""
    return settings(
        max_examples=number * (FUZZ or 1),
        derandomize=not FUZZ,
        database=settings.get_profile("default").database if FUZZ else None,
        print_blob=True,
        deadline=None,  # other processes are at work, too: pytest's own time-out finds what hangs
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


# Structure-aware mutation: a document of a real sender, a few places of which are not what they were.

ODD_TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6).map(quote_plus),
    st.sampled_from(
        [
            "",
            " ",
            ".",
            "..",
            "/",
            "\\",
            "\0",
            "%00",
            "%",
            "%2",
            "%zz",
            "%2F",
            "%252F",
            "%2e%2e%2f",
            "%ff%fe",
            "%ed%a0%80",
            "\ud800",
            "\udfff\ud800",
            "\ufeff",
            "\u202e",
            "\x1b[31m",
            "{}",
            "[]",
            "null",
            "NaN",
            "configs/",
            "configs/aa-bb-cc-dd-ee-ff.json",
            "configs%2FAA-bb-cc-dd-ee-ff.json",
            "configs/../assets/x",
            "assets/..",
            "assets/a//b",
            "assets/a%2F..%2Fb",
            "assets/a+b",
            "assets//",
            "assets/x" + "y" * 1100,
            "events/c/e.json",
            "events/+/#.json",
            "é" * 600,
            "x" * 70_000,
            "ObjectCreated:Put",
            "s3:ObjectCreated:Put",
            "ObjectRemoved:Delete",
            "Object Created",
            "aws:s3",
            "aws:sqs",
            "aws.s3",
            "minio:s3",
            "ceph:s3",
            "PutObject",
            "OBJECT_CREATED_PUT",
            "b2:ObjectCreated:Upload",
            "/buckets/devices/assets/x",
            "/buckets/.system/x",
        ]
    ),
)
LEAVES = st.one_of(
    ODD_TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1 << 63, 1 << 64, 10**400, -0.0, 1e308, float("inf"), float("nan")]),
    st.floats(),
    st.sampled_from(["[]", "{}", "[[]]", "[{}]", '{"": {}}']).map(json.loads),  # a new one each time: it may be changed
)


def paths(document: object, at: Path = ()) -> list[Path]:
    """Where everything in `document` is, itself among it."""
    found = [at]
    if isinstance(document, dict):
        for name, value in document.items():
            found += paths(value, (*at, name))
    elif isinstance(document, list):
        for place, value in enumerate(document):
            found += paths(value, (*at, place))
    return found


def part(document: Any, path: Path) -> Any:  # noqa: ANN401 - JSON
    """What is there."""
    for step in path:
        document = document[step]
    return document


def replaced(document: Any, path: Path, value: object) -> Any:  # noqa: ANN401 - JSON
    """The document with something else there."""
    if not path:
        return value
    part(document, path[:-1])[path[-1]] = value
    return document


def changed(draw: Draw, document: Any, path: Path, donors: list[Any]) -> Any:  # noqa: ANN401 - JSON
    """The document with one change at `path`."""
    value = part(document, path)
    ways = ["leaf", "leaf", "leaf", "text", "donor", "nest"]
    if path:
        ways += ["drop", "rename"] if isinstance(path[-1], str) else ["drop", "twice"]
    if isinstance(value, str):
        ways += ["splice", "splice"]
    way = draw(st.sampled_from(ways))
    if way == "drop":
        del part(document, path[:-1])[path[-1]]
    elif way == "rename":
        holder = part(document, path[:-1])
        holder[draw(st.sampled_from(NAMES) | ODD_TEXTS)] = holder.pop(path[-1])
    elif way == "twice":
        part(document, path[:-1]).append(copy.deepcopy(value))
    elif way == "leaf":
        return replaced(document, path, draw(LEAVES))
    elif way == "text":
        return replaced(document, path, as_text(draw, value))
    elif way == "donor":
        donor = one_of(draw, donors)
        return replaced(document, path, part(donor, draw(st.sampled_from(paths(donor)))))
    elif way == "nest":
        nests: list[Any] = [[value], {"Records": [value]}, {"data": value}]
        return replaced(document, path, nests[draw(st.integers(0, 2))])
    else:
        at = draw(st.integers(0, min(len(value), 2_000)))
        return replaced(document, path, value[:at] + draw(ODD_TEXTS) + value[at + draw(st.integers(0, 3)) :])
    return document


NAMES = [
    *("Records", "eventName", "eventSource", "eventTime", "s3", "bucket", "name", "object", "key", "size", "eTag"),
    *("versionId", "sequencer", "body", "messageId", "Sns", "Message", "Type", "Event", "Bucket", "specversion"),
    *("data", "data_base64", "detail-type", "detail", "reason", "time"),
    *("events", "eventType", "bucketName", "objectName", "account", "action", "event_type", "message"),
    *("old_entry", "new_entry", "new_parent_path", "attributes", "extended", "chunks", "is_directory"),
]


def as_text(draw: Draw, value: object) -> str:
    """JSON as one of the many ways to write it."""
    return json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 1])))


def one_of(draw: Draw, documents: list[Any]) -> Any:  # noqa: ANN401 - JSON
    """A copy of one of the documents; by its place, because Hypothesis would print them all."""
    return copy.deepcopy(documents[draw(st.integers(0, len(documents) - 1))])


def mutants(documents: list[Any], *, most: int = MAX_CHANGES) -> st.SearchStrategy[Any]:
    """One of the documents with up to `most` changes anywhere."""

    @st.composite
    def mutant(draw: Draw) -> Any:  # noqa: ANN401 - JSON
        document = one_of(draw, documents)
        for _ in range(draw(st.integers(0, most))):
            document = changed(draw, document, draw(st.sampled_from(paths(document))), documents)
        return document

    return mutant()


@st.composite
def damaged(draw: Draw, whole: st.SearchStrategy[bytes], *, most: int = 4) -> bytes:
    """Bytes with up to `most` places overwritten, cut out, doubled or put in."""
    raw = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 8)))
        new = draw(st.one_of(st.binary(max_size=4), st.just(bytes(raw[start:end]) * 2), st.just(b"")))
        raw[start:end] = new
    return bytes(raw)


def written(document: object) -> bytes:
    """JSON as a sender would write it, half surrogate pairs and all."""
    return json.dumps(document).encode()


# What comes out.


@contextmanager
def strict_log(level: str = "DEBUG") -> Iterator[io.StringIO]:
    """What is logged meanwhile; a line that cannot be made, is no JSON, or no UTF-8, fails the test."""
    handler = logger.registered_handler
    assert isinstance(handler, logging.StreamHandler)
    lines = io.StringIO()
    before = handler.setStream(lines), logger.log_level
    handler.handleError = _fail  # type: ignore[method-assign]  # logging's own way to have it otherwise
    logger.setLevel(level)
    try:
        yield lines
    finally:
        logger.setLevel(before[1])
        handler.setStream(before[0] or handler.stream)
        del handler.handleError
    for line in lines.getvalue().rstrip("\n").split("\n") if lines.getvalue() else ():
        line.encode()
        json.loads(line)


def _fail(record: logging.LogRecord) -> NoReturn:
    raise AssertionError(f"this cannot be logged: {record.msg}")


def forms(secret: str) -> set[str]:
    """How a secret may show: itself, and as it looks in URLs, JSON, base64 and hex; without what is too short."""
    raw = secret.encode()
    found = {
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        raw.hex(),
    }
    return {form for form in found if len(form) >= SHORTEST_LEAK} | _base64_forms(raw)


def _base64_forms(raw: bytes) -> set[str]:
    """Its base64 wherever it may begin in a longer text, as far as it depends on nothing else."""
    found = set[str]()
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + raw).decode().rstrip("=")
        kept = encoded[-(-shift * 8 // 6) : len(encoded) - 1]
        found |= {kept, kept.replace("+", "-").replace("/", "_")}
    return {form for form in found if len(form) >= SHORTEST_LEAK}


def assert_discreet(secret: str, error: BaseException) -> None:
    """Nothing of a secret is in an exception, nor in what led to it as far as a traceback tells."""
    assert not leaks(secret, f"{error!r} {vars(error)} {''.join(traceback.format_exception(error))}")


def leaks(secret: str, text: str) -> set[str]:
    """Which parts of a secret, of `SHORTEST_LEAK` characters and in any of its forms, are in `text`."""
    return {
        window
        for form in forms(secret)
        for start in range(len(form) - SHORTEST_LEAK + 1)
        if (window := form[start : start + SHORTEST_LEAK]) in text
    }
