"""JetStream between store and hosts: is it there, how full is it, what can be lost with its limits, who reaches it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from functions.settings.jetstream import WAYS_IN
from infra.doctor import minio
from infra.doctor.checks import Checkup, NotCheckedError, WrongError
from infra.doctor.rules import RULES

if TYPE_CHECKING:
    from nats.js.api import ConsumerInfo, StreamInfo

    from functions.settings import Settings
    from infra.doctor.rules import RulesLeg
    from infra.jetstream.layout import Names

JETSTREAM, REACHES = "JetStream", "store reaches JetStream"
JETSTREAM_SECONDS = 15.0
FULL = 0.8

_CONNECT = "Run `bucketbell connect` with the same settings: it makes what is missing, and leaves the rest alone."


class JetStreamLeg:
    """`rules` is None where the store is not looked at."""

    def __init__(self, settings: Settings, rules: RulesLeg | None) -> None:
        """Nothing is asked yet."""
        self._settings = settings
        self._rules = rules

    def checks(self) -> tuple[Checkup, ...]:
        """All of them, in order."""
        reaches = () if self._rules is None else (Checkup(REACHES, self._reaches, (RULES, JETSTREAM)),)
        return (Checkup(JETSTREAM, lambda: asyncio.run(self._look()), seconds=JETSTREAM_SECONDS), *reaches)

    async def _look(self) -> str:
        from infra.jetstream import layout  # noqa: PLC0415 - NATS' client is for those who use it
        from infra.jetstream.connection import JetStreamError, on_jetstream  # noqa: PLC0415 - as above

        names = layout.Names.of(self._settings)
        try:
            async with on_jetstream(self._settings, "bucketbell doctor") as js:
                await js.account_info()
                stream = await layout.found_stream(js, names.stream)
                consumer = None if stream is None else await layout.found_consumer(js, names)
                dead = await layout.found_stream(js, names.dead_stream)
        except JetStreamError as error:
            raise WrongError(
                f"JetStream cannot be used: {error}.", "Correct that (NATS_URL and its login), or start that server."
            ) from None
        if stream is None or consumer is None:
            what = f"stream {names.stream}" if stream is None else f"consumer {names.consumer}"
            raise WrongError(f"There is no {what}.", _CONNECT)
        if problem := layout.unfit(consumer.config):
            raise WrongError(
                f"The consumer {names.consumer} cannot be used: {problem}.", "Delete it, and run `connect`."
            )
        publish_seconds = self._settings.mqtt_publish_timeout_seconds
        if found := layout.remarks(stream.config, consumer.config, publish_seconds):
            raise WrongError(
                found[0], "Correct that with the `nats` command: `nats stream edit`, `nats consumer edit`."
            )
        _judge_room(names, stream, consumer)
        given_up = 0 if dead is None else dead.state.messages
        return f"{_in_words(stream, consumer)}; {given_up} given up ({names.dead_stream})"

    def _reaches(self) -> str:
        rules = self._rules
        if rules is None or rules.targets is None:
            raise NotCheckedError("only MinIO tells" if rules is None or not rules.reason else rules.reason)
        states = rules.targets.states
        away = [name for name in rules.names if states.get(name) != minio.ONLINE]
        if away:
            login = any(getattr(self._settings, name) is not None for name in WAYS_IN)
            raise WrongError(
                f"MinIO cannot reach JetStream: its target {' and '.join(away)} is offline.",
                "Let MINIO_NOTIFY_NATS_ADDRESS_… be the address as MinIO's machine reaches it"
                f"{', with a login of its own' if login else ''}, and restart MinIO.",
            )
        return ", ".join(rules.names)


def _judge_room(names: Names, stream: StreamInfo, consumer: ConsumerInfo) -> None:
    used, limit = stream.state.bytes, stream.config.max_bytes or 0
    events, most = stream.state.messages, stream.config.max_msgs or 0
    if (limit > 0 and used >= FULL * limit) or (most > 0 and events >= FULL * most):
        raise WrongError(
            f"The stream {names.stream} is nearly full: {_in_words(stream, consumer)}. When it is full, MinIO keeps "
            "new events in its own queue.",
            "See that a host takes them (`nats_up` in its metrics), or raise the limit: `nats stream edit`.",
        )


def _in_words(stream: StreamInfo, consumer: ConsumerInfo) -> str:
    config, state = stream.config, stream.state
    most_bytes, most_events = config.max_bytes or 0, config.max_msgs or 0
    limit = f" of {most_bytes / (1 << 20):.0f}" if most_bytes > 0 else ""
    most = f" of {most_events}" if most_events > 0 else ""
    return (
        f"{state.messages}{most} events in the stream {config.name}, {state.bytes / (1 << 20):.1f}{limit} MB; "
        f"{consumer.num_ack_pending or 0} of them in hand or put off"
    )
