"""Says what went wrong while setting a bucket up, and what a person can do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from functions.s3.clients import NO_CREDENTIALS, UNREACHABLE, StorageError

# The second is what the JSON protocol's exception is called, the first what it was called before.
NO_SUCH_QUEUE = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
NO_EVENTS = "This store sends no events that the host can read: there is nothing to set up in it."
_WRONG_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId"})


class ConnectError(Exception):
    """The bucket could not be set up: `code` for scripts, the message, and `advice`: what to do next.

    `server` is the kind of store, where it matters. `rest` is what `advice` speaks of.
    """

    def __init__(self, code: str, message: str, advice: str, *, server: str = "", rest: Rest | None = None) -> None:
        """Keep the parts as data."""
        self.server = server
        self.rest = rest
        self.code = code
        self.message = message
        self.advice = advice
        super().__init__(f"{message} {advice}")


@dataclass(frozen=True, slots=True)
class Rest:
    """What people have to do themselves, and should know; `document` is for scripts.

    With a `problem` nothing arrives before that.
    """

    todo: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    problem: ConnectError | None = None


def unsupported(server: str = "", title: str = "This store", rest: Rest | None = None) -> ConnectError:
    """The store has neither rules nor a queue that `connect` could set up."""
    return ConnectError(
        "UnsupportedStore",
        f"{title} does not let connect set up its notifications.",
        "Set them up by hand, with the store's own means:",
        server=server,
        rest=rest,
    )


def no_events() -> ConnectError:
    """The store has no notifications at all, and SWEEP_SECONDS is not set."""
    return ConnectError(
        "NoEvents",
        f"{NO_EVENTS} The host can find new files itself, by listing the bucket again and again (the sweep).",
        "Put these lines into the host's environment, and restart it:",
    )


@contextmanager
def explained(actions: str, name: str) -> Iterator[None]:
    """Turns a StorageError, met while using `actions` on the bucket or queue `name`, into a ConnectError."""
    try:
        yield
    except StorageError as error:
        raise explain(error, actions, name) from None


def explain(error: StorageError, actions: str, name: str) -> ConnectError:
    """What a person can do about `error`, met while using `actions` on the bucket or queue `name`."""
    if error.code == "NotImplemented":
        return unsupported()
    message, advice = error.message, "Correct that, then run this again."
    if error.is_of_region:
        advice = "Set S3_REGION to the store's region, then run this again."
    elif error.code == UNREACHABLE:
        advice = "Is the store running, and is --endpoint-url right? Then run this again."
    elif error.code == NO_CREDENTIALS:
        advice = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    elif error.code in _WRONG_CREDENTIALS:
        advice = "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    elif error.status == HTTPStatus.FORBIDDEN:
        message = f"These credentials may not use {actions} on {name}: {error.message}"
        advice = "Allow that, or use others (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)."
    elif error.code == "NoSuchBucket":
        message, advice = f"There is no bucket {name}.", "Make it, or correct --bucket."
    elif error.code in NO_SUCH_QUEUE:
        message, advice = f"There is no queue {name}.", "Correct --queue-url."
    elif error.status is not None:
        message = f"The store refused ({error.code}): {error.message}"
    return ConnectError(error.code, message, advice)
