"""Makes what NATS JetStream needs between MinIO and the hosts, and says which lines MinIO's environment needs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from functions.settings.addresses import parse_nats_url
from functions.settings.jetstream import WAYS_IN
from infra.connect.documents import FAST_TARGET, SURE_TARGET
from infra.connect.errors import ConnectError
from infra.connect.minio import QUEUE_LIMIT_EVENTS, Doors

if TYPE_CHECKING:
    from collections.abc import Callable

    from functions.settings import Settings

TOTAL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Streams(Doors):
    """MinIO's two NATS targets, in place of its two webhooks. Both publish into one subject."""

    address: str
    subject: str
    tls: bool

    @classmethod
    def of(cls, settings: Settings, *, sure_only: bool, queue_directory: str) -> Streams:
        """As the settings say; MinIO takes one server's address."""
        tls, host, port = parse_nats_url(settings.nats_url[0])
        address = f"{f'[{host}]' if ':' in host else host}:{port}"
        scheme = "https" if tls else "http"  # the report asks only whose machine it is
        subject = f"{settings.nats_stream}.events"
        return cls(f"{scheme}://{address}", sure_only, queue_directory, None, address, subject, tls)

    can_be_configured = False

    def arns(self, *, rustfs: bool) -> dict[str, str]:
        """See `Doors.arns`."""
        del rustfs
        sure = {"sure": f"arn:minio:sqs::{SURE_TARGET}:nats"}
        return sure if self.sure_only else {"fast": f"arn:minio:sqs::{FAST_TARGET}:nats", **sure}

    def values(self) -> dict[str, dict[str, str]]:
        """See `Doors.values`. Source: MinIO's internal/event/target/nats.go."""
        both = {"enable": "on", "address": self.address, "subject": self.subject, "jetstream": "on"}
        both |= {"tls": "on"} if self.tls else {}
        sure = {**both, "queue_dir": self.queue_directory, "queue_limit": str(QUEUE_LIMIT_EVENTS)}
        return {SURE_TARGET: sure} if self.sure_only else {SURE_TARGET: sure, FAST_TARGET: both}

    def variable(self, key: str, target: str) -> str:
        """See `Doors.variable`."""
        return f"MINIO_NOTIFY_NATS_{key.upper()}_{target}"


def host_lines(settings: Settings) -> str:
    """What is left to do besides MinIO's lines."""
    lines = [f"The host's environment needs this line, too:\n\nNATS_URL={','.join(settings.nats_url)}"]
    if any(getattr(settings, name) is not None for name in WAYS_IN):
        lines.append(
            "\nNATS asks for a login. Give MinIO one of its own, which may publish on "
            f"{settings.nats_stream}.events and subscribe to _INBOX.>: MINIO_NOTIFY_NATS_USERNAME_… and …_PASSWORD_…, "
            "…_TOKEN_…, …_USER_CREDENTIALS_… or …_NKEY_SEED_…, for both targets."
        )
    if settings.nats_ca_file is not None:
        lines.append(
            "NATS has a certificate of its own authority: MINIO_NOTIFY_NATS_CERT_AUTHORITY_…, for both targets."
        )
    return "\n".join(lines)


def set_up(settings: Settings, say: Callable[[str], None], *, dry_run: bool) -> None:
    """Make stream, consumer and what lies beside them where they are missing. Raises `ConnectError`."""
    from infra.jetstream.connection import JetStreamError  # noqa: PLC0415 - NATS' client is for this only

    try:
        asyncio.run(_set_up(settings, say, dry_run=dry_run))
    except (JetStreamError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        advice = "Is NATS running with JetStream (`nats-server -js`), and are NATS_URL and its login right?"
        raise ConnectError("JetStream", f"JetStream could not be set up: {reason}.", advice) from None


async def _set_up(settings: Settings, say: Callable[[str], None], *, dry_run: bool) -> None:
    from infra.jetstream import layout  # noqa: PLC0415 - as above
    from infra.jetstream.connection import JetStreamError, on_jetstream  # noqa: PLC0415 - as above

    names = layout.Names.of(settings)
    publish_seconds = settings.mqtt_publish_timeout_seconds
    async with asyncio.timeout(TOTAL_SECONDS), on_jetstream(settings, "bucketbell connect") as js:
        await js.account_info()  # one clear word where there is no JetStream
        stream = await layout.found_stream(js, names.stream)
        consumer = None if stream is None else await layout.found_consumer(js, names)
        if dry_run:
            missing = [f"the stream {names.stream}"] if stream is None else []
            missing += [f"the consumer {names.consumer}"] if consumer is None else []
            say(f"It would make in JetStream: {', '.join(missing) or 'nothing'}.")
            return
        if stream is None:
            stream = await js.add_stream(layout.stream_config(names))
            say(
                f"Made the stream {names.stream}: on disk, at most {layout.MAX_BYTES >> 20} MB; when it is full it "
                "refuses new events, which the store then keeps."
            )
        if consumer is None:
            consumer = await js.add_consumer(names.stream, layout.consumer_config(names, publish_seconds))
            say(f"Made its durable consumer {names.consumer}.")
        for made in await layout.make_beside(js, names):
            say(f"Made {made}.")
        if problem := layout.unfit(consumer.config):
            raise JetStreamError(f"the consumer {names.consumer} cannot be used: {problem}. Delete it")
        for remark in layout.remarks(stream.config, consumer.config, publish_seconds):
            say(remark)
