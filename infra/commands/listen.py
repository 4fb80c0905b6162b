"""`bucketbell listen`: prints each message as a device hears it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from functions.events.routes import Routes
from functions.mqtt.broker import BrokerConfig
from functions.settings import SettingsError
from infra.commands.common import fail, load_or_exit, plain, refuse, subscriber_arguments

if TYPE_CHECKING:
    from infra.incoming import Received
    from infra.subscriber import Subscriber

POLL_SECONDS = 0.5

EPILOG = (
    "Example, as a check in a script: `bucketbell listen --json --count 1 --seconds 30`\n\n"
    "Standard output holds nothing but messages."
)


def listen(
    *,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line: topic, payload, qos, retain, properties, received_at."),
    ] = False,
    count: Annotated[int | None, typer.Option(help="Stop after this many messages.", min=1)] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Stop after this long. Exit 1 if fewer messages came than --count says.", min=0),
    ] = None,
) -> None:
    """Subscribe to the update topics and print each message as a device hears it, until Ctrl-C.

    With EVENTS_PREFIX it also subscribes to the cameras' topics below TOPIC_PREFIX.

    It uses the host's `MQTT_…` settings, and connects again when the broker was gone.
    """
    settings = load_or_exit().settings
    broker = BrokerConfig.of(settings)
    if broker is None:
        refuse(SettingsError((("MQTT_URL", "must be set to listen, e.g. mqtt://broker.local"),)))
    from infra.subscriber import Subscriber, SubscriberError  # noqa: PLC0415 - paho is only for this command

    topics = Routes.of(settings).filters
    if settings.events_prefix is not None:
        topics = (*topics, f"{settings.topic_prefix}/camera/+/event")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` and supervisors end it as Ctrl-C does
    try:
        with Subscriber(topics=topics, **subscriber_arguments(broker)) as subscriber:
            typer.echo(f"listening on {broker.url}: {', '.join(topics)}", err=True)
            heard = _print_messages(subscriber, count, seconds, _as_json if as_json else _as_text)
    except SubscriberError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit from None
    if count is not None and heard < count:
        fail(f"heard {heard} of {count} messages in {seconds:g} s")


def _print_messages(
    subscriber: Subscriber, count: int | None, seconds: float | None, shape: Callable[[Received], str]
) -> int:
    """Print up to `count` messages for up to `seconds`, and say when the broker is lost; return how many came."""
    until = None if seconds is None else time.monotonic() + seconds
    heard = 0
    told = None
    while count is None or heard < count:
        left = POLL_SECONDS if until is None else min(POLL_SECONDS, until - time.monotonic())
        if left <= 0:
            break
        try:
            message = subscriber.next(left)
        except TimeoutError:
            lost = None if subscriber.last_error is None else str(subscriber.last_error)
            if lost != told:
                typer.echo(f"{lost}; trying again" if lost else "listening again", err=True)
            told = lost
        else:
            heard += 1
            typer.echo(shape(message))
    return heard


def _as_json(message: Received) -> str:
    return json.dumps(
        {
            "topic": message.topic,
            "payload": message.payload.decode(errors="replace"),
            "qos": message.qos,
            "retain": message.retain,
            "properties": dict(message.user_properties),
            "received_at": message.received_wall,
        }
    )


def _as_text(message: Received) -> str:
    moment = time.strftime("%H:%M:%S", time.localtime(message.received_wall))
    return f"{moment}  {message.topic}  {plain(message.payload.decode(errors='replace'))}"
