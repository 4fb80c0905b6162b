"""What an administrator can ask of the MQTT integration: settings, status, a test; without HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from pydantic import SecretStr

from functions.admin.probe import WORDS, ProbeVerdict, probe
from functions.admin.schemas import (
    ConfigAnswer,
    DeviceTokensAnswer,
    DiscoveryAnswer,
    EndingTokenAnswer,
    ErrorAnswer,
    ProbeAnswer,
    ProcessAnswer,
    StatusAnswer,
    TopicAnswer,
)
from functions.mqtt.broker import BrokerConfig
from functions.settings.reach import Targets
from functions.stored.effective import broker_of
from functions.stored.errors import NoEncryptionKeyError, StoreUnavailableError
from functions.stored.model import MqttConfig, MqttConfigChange
from functions.telemetry import logger
from functions.web.messages import Problem

if TYPE_CHECKING:
    from functions.settings import Settings
    from functions.stored.store import ConfigStore, ProcessStatus, Stored
    from functions.web.tokens import SeenTokens

LIVE_PROBE_SECONDS = 2.5  # within a status: its reader waits
PROBE_KEPT_SECONDS = 5.0

PasswordOrigin = Literal["given", "stored", "none"]
T = TypeVar("T")


class CannotPublishError(Exception):
    """Something cannot be published here or now; the message says why, and what to do."""


class Publishing(Protocol):
    """What the API needs of the process that it runs in. Methods are called from several threads."""

    def status(self) -> ProcessStatus | None:
        """What this process says of its connection; None where it has none, because others publish."""

    def topics(self) -> Sequence[TopicVerdict]:
        """What the broker last said to this process, by topic."""

    def availability_topic(self, config: MqttConfig) -> str | None:
        """Where the broker would say `offline` of this process under these settings; None: nowhere."""

    def apply(self, stored: Stored | None) -> None:
        """Apply these settings in this process at once. It blocks for a few seconds at most."""

    def publish_discovery(self) -> int:
        """Publish every known camera's discovery again; return how many.

        Raises `CannotPublishError`, `StoreUnavailableError`.
        """

    def forget_camera(self, camera_id: str) -> bool:
        """Take a camera out of Home Assistant; False where it is not known. Raises as `publish_discovery`."""


@dataclass(frozen=True, slots=True)
class TopicVerdict:
    """What the broker last answered to a message on this topic (as metrics name it)."""

    topic: str
    accepted: bool
    reason: str
    reason_code: int | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """Something from the database, perhaps from earlier. `stale`: when that was, "never", or "" if it is fresh."""

    value: T
    stale: str = ""


class Administration:
    """What `functions.admin.openapi` lists. Thread-safe.

    Methods raise `Problem`, `StoreUnavailableError`, `VersionConflictError`.
    """

    def __init__(
        self,
        settings: Settings,
        store: ConfigStore | None,
        publishing: Publishing,
        *,
        seen_tokens: Callable[[], SeenTokens] | None = None,
    ) -> None:
        """`store` is None where DATABASE_URL is unset: the environment alone is in force then.

        `seen_tokens` is None where another process serves the devices. Raises SettingsError.
        """
        self._seen_tokens = seen_tokens
        self._settings = settings
        self.tokens = tuple(token.get_secret_value() for token in settings.admin_tokens)
        self._store = store
        self._publishing = publishing
        self._targets = Targets.parse(settings.mqtt_test_allowed_hosts)
        self._stored: _LastRead[Stored | None] = _LastRead()
        self._recorded: _LastRead[tuple[ProcessStatus, ...]] = _LastRead()
        self._probing = threading.Lock()
        self._probed: tuple[float, BrokerConfig, ProbeAnswer] | None = None

    def config(self) -> Read[ConfigAnswer]:
        """Return the settings in force."""
        read = self._load()
        return Read(self._shown(read.value), read.stale)

    def replace_config(self, change: MqttConfigChange, expected_version: int | None) -> ConfigAnswer:
        """Store settings and apply them. `expected_version` 0: nothing may be stored yet; None: anything."""
        if self._store is None:
            detail = "Settings cannot be stored: set DATABASE_URL. Until then the environment is in force."
            raise Problem(HTTPStatus.CONFLICT, "no_database", detail)
        if not self._targets.may_allow(change.broker_host):
            raise Problem(HTTPStatus.FORBIDDEN, "forbidden_target", WORDS["forbidden"])
        try:
            stored = self._store.save(change, expected_version=expected_version)
        except NoEncryptionKeyError as error:
            raise Problem(HTTPStatus.CONFLICT, "no_encryption_key", f"{error}.") from None
        self._stored.keep(stored)
        logger.info(
            "broker settings stored",
            extra={"version": stored.version, "broker": broker_of(self._settings, stored.config, None).url},
        )
        try:
            self._publishing.apply(stored)
        except Exception:  # noqa: BLE001 - they are stored: the status says what has become of them
            logger.exception("broker settings could not be applied")
        return self._shown(stored)

    def status(self) -> Read[StatusAnswer]:
        """Return the connection's status. Where others publish: what they recorded, and a live probe."""
        recorded = self._load_recorded()
        own = self._publishing.status()
        if own is not None:
            said, others = _process(own), [one for one in recorded.value if one.process != own.process]
            live = None
        else:
            others = list(recorded.value)
            newest = next((one for one in others if one.scope == "lambda"), None)
            said, live = _NOBODY if newest is None else _process(newest), self._live()
        answer = StatusAnswer(
            **dict(said),
            probe=live,
            topics=self._topics(),
            recorded=tuple(map(_process, others)),
            device_tokens=None if self._seen_tokens is None else _device_tokens(self._seen_tokens()),
        )
        return Read(answer, recorded.stale)

    def test(self, change: MqttConfigChange) -> ProbeAnswer:
        """Try these settings once."""
        password, which = self._password(change)
        broker = broker_of(self._settings, change.config, password)
        will = self._publishing.availability_topic(change.config)
        verdict = probe(replace(broker, availability_topic=will), self._targets)
        if verdict.outcome == "forbidden":
            raise Problem(HTTPStatus.FORBIDDEN, "forbidden_target", verdict.detail)
        answer = _probed(verdict, broker, which, _left_out(verdict, broker, change.config))
        known = self._publishing.status()
        return answer.model_copy(update={"topics": self._topics() if known and known.broker == broker.url else ()})

    def publish_discovery(self) -> DiscoveryAnswer:
        """Publish discovery again."""
        return DiscoveryAnswer(cameras=self._publish(self._publishing.publish_discovery))

    def forget_camera(self, camera_id: str) -> None:
        """Take a camera out of Home Assistant."""
        if not self._publish(lambda: self._publishing.forget_camera(camera_id)):
            raise Problem(HTTPStatus.NOT_FOUND, "no_such_camera", "There is no such camera.")

    def _publish(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except CannotPublishError as error:
            raise Problem(HTTPStatus.CONFLICT, "cannot_publish", str(error)) from None

    def _topics(self) -> tuple[TopicAnswer, ...]:
        return tuple(TopicAnswer(**asdict(one)) for one in self._publishing.topics())

    def _load(self) -> Read[Stored | None]:
        return Read(None) if self._store is None else self._stored.read(self._store.load)

    def _load_recorded(self) -> Read[tuple[ProcessStatus, ...]]:
        if self._store is None:
            return Read(())
        try:
            return self._recorded.read(self._store.recorded)
        except StoreUnavailableError:  # this process knows its own status all the same
            return Read((), "never")

    def _shown(self, stored: Stored | None) -> ConfigAnswer:
        if stored is not None:
            return ConfigAnswer(
                source="database",
                version=stored.version,
                credentials=_credentials(stored),
                has_password=stored.has_password,
                created_at=stored.created_at,
                updated_at=stored.updated_at,
                **dict(stored.config),
            )
        broker = BrokerConfig.of(self._settings)
        has_password = broker is not None and broker.password is not None
        return ConfigAnswer(
            source="environment",
            version=0,
            credentials="ok" if has_password else "none",
            has_password=has_password,
            broker_host=None if broker is None else broker.host,
            broker_port=None if broker is None else broker.port,
            username=None if broker is None else broker.username,
            use_tls=broker is not None and broker.tls,
            topic_prefix=self._settings.topic_prefix,
            qos=self._settings.mqtt_qos,
            enabled=broker is not None,
            discovery_enabled=False,
            discovery_prefix=str(MqttConfig.model_fields["discovery_prefix"].default),
            retain_messages=False,
            created_at=None,
            updated_at=None,
        )

    def _effective(self) -> tuple[BrokerConfig | None, bool]:
        """The effective broker (None: none, or switched off), and whether its password can be read."""
        stored = self._load().value
        if stored is None:
            return BrokerConfig.of(self._settings), True
        broker = broker_of(self._settings, stored.config, stored.password) if stored.config.enabled else None
        return broker, stored.credentials_readable

    def _password(self, change: MqttConfigChange) -> tuple[SecretStr | None, PasswordOrigin]:
        """Which password a test sends. The stored one goes nowhere else: who may test could fetch it that way."""
        if "password" in change.model_fields_set:
            return change.password, "none" if change.password is None else "given"
        try:
            stored = self._load().value
        except StoreUnavailableError:
            return None, "none"
        if stored is None:
            known, password = BrokerConfig.of(self._settings), self._settings.mqtt_password
        else:
            known, password = broker_of(self._settings, stored.config, None), stored.password
        if known is None or change.login != (known.host.casefold(), known.port, known.tls, known.username):
            return None, "none"
        if stored is not None and not stored.credentials_readable:
            detail = (
                "The stored password cannot be read (credentials_unreadable): send it along, or bring its key back."
            )
            raise Problem(HTTPStatus.CONFLICT, "credentials_unreadable", detail)
        return password, "none" if password is None else "stored"

    def _live(self) -> ProbeAnswer | None:
        """Try the settings in force, or return the result of a moment ago."""
        try:
            broker, readable = self._effective()
        except StoreUnavailableError:
            return None
        if broker is None or not readable:
            return None
        with self._probing:
            if self._probed is not None:
                at, tried, answer = self._probed
                if tried == broker and 0 <= time.time() - at < PROBE_KEPT_SECONDS:  # the wall clock: Lambda freezes
                    return answer
            verdict = probe(broker, broker.targets, timeout_seconds=LIVE_PROBE_SECONDS)
            answer = _probed(verdict, broker, "none" if broker.password is None else "stored")
            self._probed = time.time(), broker, answer
            return answer


class _LastRead(Generic[T]):
    """What the database last said."""

    def __init__(self) -> None:
        self._last: tuple[T, datetime] | None = None
        self._told = False

    def keep(self, value: T) -> None:
        self._last, self._told = (value, datetime.now(UTC)), False

    def read(self, load: Callable[[], T]) -> Read[T]:
        """Raises StoreUnavailableError where the database has never answered."""
        try:
            value = load()
        except StoreUnavailableError as error:
            if self._last is None:
                raise
            if not self._told:
                self._told = True
                logger.warning("database unavailable", extra={"problem": str(error)})  # which holds no credentials
            value, at = self._last
            return Read(value, at.isoformat(timespec="seconds").replace("+00:00", "Z"))
        self.keep(value)
        return Read(value)


_NOBODY = ProcessAnswer(
    process=None,
    scope="lambda",
    broker=None,
    connected=None,
    since=None,
    last_connected_at=None,
    last_error=None,
    messages_published=None,
    reconnect_attempts=None,
    recorded_at=None,
)


def _device_tokens(seen: SeenTokens) -> DeviceTokensAnswer:
    ending = tuple(EndingTokenAnswer(mac=mac, expires_at=expires_at) for mac, expires_at in seen.ending)
    return DeviceTokensAnswer(devices=seen.devices, ending=ending)


def _credentials(stored: Stored) -> Literal["ok", "unreadable", "none"]:
    if not stored.has_password:
        return "none"
    return "ok" if stored.credentials_readable else "unreadable"


def _process(status: ProcessStatus) -> ProcessAnswer:
    error = status.last_error
    return ProcessAnswer(
        process=status.process,
        scope=status.scope,
        broker=status.broker,
        connected=status.connected,
        since=status.since,
        last_connected_at=status.last_connected_at,
        last_error=None
        if error is None
        else ErrorAnswer(reason=error, reason_code=status.last_error_code, at=status.last_error_at),
        messages_published=status.messages_published,
        reconnect_attempts=status.reconnect_attempts,
        recorded_at=status.recorded_at,
    )


def _left_out(verdict: ProbeVerdict, broker: BrokerConfig, config: MqttConfig) -> tuple[str, ...]:
    """What the settings ask for and the broker does not give, although it accepts us."""
    if not verdict.ok:
        return ()
    found = []
    if verdict.will_refused:
        found.append(f"the cameras' availability, since the last will is refused: {verdict.will_refused}")
    if not verdict.retain_available and (config.discovery_enabled or config.retain_messages):
        found.append("retained messages: Home Assistant forgets the cameras when it restarts")
    if max(broker.qos, config.qos) > verdict.maximum_qos:
        found.append(f"QoS {max(broker.qos, config.qos)}: it grants {verdict.maximum_qos} at most")
    return tuple(found)


def _probed(
    verdict: ProbeVerdict, broker: BrokerConfig, password: PasswordOrigin, left_out: tuple[str, ...] = ()
) -> ProbeAnswer:
    detail = verdict.detail
    if left_out:
        detail += f" But not everything that is asked for: {'; '.join(left_out)}."
    if (
        broker.password is None
        and broker.username is not None
        and verdict.outcome in {"bad_credentials", "not_authorized"}
    ):
        detail += " No password was sent: the stored one only goes to the stored broker and user."
    return ProbeAnswer(
        ok=verdict.ok,
        outcome=verdict.outcome,
        detail=detail,
        reason_code=verdict.reason_code,
        broker=broker.url,
        address=verdict.address,
        password=password,
        duration_seconds=verdict.duration_seconds,
        at=datetime.now(UTC),
        left_out=left_out,
    )
