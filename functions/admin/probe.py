"""One bounded attempt to connect to a broker: it publishes nothing, and says in words what came of it."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from functions.mqtt.broker import new_client_id
from functions.mqtt.client import UNSUPPORTED_PROTOCOL
from functions.mqtt.connection import (
    BAD_CREDENTIALS,
    NOT_AUTHORIZED,
    RETAIN_NOT_SUPPORTED,
    BrokerConnectionError,
    Connection,
)
from functions.settings.reach import Address, Targets, as_address

if TYPE_CHECKING:
    from functions.mqtt.broker import BrokerConfig

PROBE_SECONDS = 5.0  # name, TCP, TLS and CONNACK together
MAX_ADDRESSES = 4  # of one name
MAX_RESOLVING = 8  # names at a time: a resolver may hang, and its thread with it
POLL_SECONDS = 0.25

ProbeOutcome = Literal[
    "ok",
    "bad_credentials",
    "not_authorized",
    "wrong_protocol",
    "refused",
    "forbidden",
    "name_not_resolved",
    "unreachable",
    "silent",
    "tls_untrusted",
    "tls_name",
    "tls_failed",
    "tls_files",
    "client_certificate_needed",
    "not_mqtt",
]

WORDS: dict[ProbeOutcome, str] = {
    "ok": "The broker accepted the connection.",
    "bad_credentials": "The broker says that user name or password is wrong.",
    "not_authorized": "The broker does not let this client in. Many brokers, Mosquitto among them, also say so when "
    "user name or password is wrong or missing.",
    "wrong_protocol": "The broker does not speak this version of MQTT: set MQTT_PROTOCOL.",
    "refused": "The broker refused the connection.",
    "forbidden": "This address must not be connected to: it is link-local, a cloud's metadata service, multicast or "
    "none at all, or not among MQTT_TEST_ALLOWED_HOSTS.",
    "name_not_resolved": "The host name is unknown, or its resolver does not answer.",
    "unreachable": "Nobody takes connections there: is the broker running, are host and port right, is a firewall in "
    "between?",
    "silent": "No answer in time: the address is wrong, a firewall swallows the packets, or the broker hangs.",
    "tls_untrusted": "The broker's certificate is not trusted here: MQTT_CA_FILE must hold the authority that signed "
    "it, and it must not have expired.",
    "tls_name": "The broker's certificate is for another name: use the one that is in it as broker_host.",
    "tls_failed": "TLS failed: does this port speak TLS? Often 8883 does, and 1883 does not.",
    "tls_files": "The TLS files of this process cannot be used: see MQTT_CA_FILE, MQTT_CERT_FILE and MQTT_KEY_FILE.",
    "client_certificate_needed": "The broker wants a client certificate that it trusts: see MQTT_CERT_FILE and "
    "MQTT_KEY_FILE.",
    "not_mqtt": "What answers there does not speak MQTT this way: is it the port of another service, or does it want "
    "TLS?",
}
_CLOSED_IN_TLS = (
    "The connection was closed before the broker answered: it may want a client certificate (MQTT_CERT_FILE, "
    "MQTT_KEY_FILE), or this is not an MQTT port."
)
_BY_CERTIFICATE = "The broker does not let this client in, which it knows by its certificate only."
NO_RETAINED = "the broker keeps no retained messages"
_UNHEARD: tuple[ProbeOutcome, ...] = ("unreachable", "silent")  # by TCP: another address of the same name may be better


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """What came of an attempt. `reason_code` is the broker's (MQTT 5 §3.2.2.2), `detail` what a person can do."""

    outcome: ProbeOutcome
    detail: str
    duration_seconds: float
    reason_code: int | None = None
    address: str | None = None
    will_refused: str = ""
    """Why the broker accepts us only without our last will."""
    retain_available: bool = True
    maximum_qos: int = 2
    receive_maximum: int | None = None
    """How many messages the broker takes without having acknowledged them."""
    reason: str = ""
    """What exactly failed, without credentials."""
    certificate_expires_at: float | None = None
    """Until when the broker's certificate is valid (`time.time`); None without TLS."""

    @property
    def ok(self) -> bool:
        """Whether the broker accepted."""
        return self.outcome == "ok"


def probe(
    broker: BrokerConfig, targets: Targets | None = None, *, timeout_seconds: float = PROBE_SECONDS
) -> ProbeVerdict:
    """Connect and say DISCONNECT, with a client id of its own, within `timeout_seconds` for everything together.

    What is connected to is the address that was judged: the name is not resolved a second time.
    """
    began_at = time.monotonic()
    deadline = began_at + timeout_seconds
    targets = Targets() if targets is None else targets

    def verdict(
        outcome: ProbeOutcome, failure: BrokerConnectionError | None = None, address: Address | None = None
    ) -> ProbeVerdict:
        return ProbeVerdict(
            outcome,
            _detail(outcome, failure, broker),
            round(time.monotonic() - began_at, 3),
            None if failure is None else failure.reason_code,
            None if address is None else str(address),
            reason="" if failure is None else failure.reason,
        )

    addresses = _resolve(broker.host, deadline)
    if not addresses:
        return verdict("name_not_resolved")
    # If one of them is forbidden, all are: else the name's owner would choose by their order.
    if not all(targets.allow(broker.host, address) for address in addresses):
        return verdict("forbidden")
    for left in range(len(addresses), 0, -1):
        address = addresses[-left]
        share_seconds = (deadline - time.monotonic()) / left
        end = time.monotonic() + max(0.001, share_seconds)
        try:
            accepted, will_refused = _connect_as_host(broker, address, end)
        except BrokerConnectionError as failure:
            outcome = _outcome(failure, broker)
            if left == 1 or outcome not in _UNHEARD:
                return verdict(outcome, failure, address)
        else:
            return replace(
                verdict("ok", None, address),
                will_refused=will_refused,
                retain_available=accepted.retain_available,
                maximum_qos=accepted.maximum_qos,
                receive_maximum=accepted.receive_maximum,
                certificate_expires_at=accepted.certificate_expires_at,
            )
    raise AssertionError("the last address has been judged")


def _connect_as_host(broker: BrokerConfig, address: Address, deadline: float) -> tuple[Connection, str]:
    """Connect, without the last will where the broker refuses it, and tell why. Raises `BrokerConnectionError`."""
    try:
        accepted = _connect(broker, address, deadline)
    except BrokerConnectionError as failure:
        if broker.availability_topic is None or not (failure.refused or failure.cause == "closed"):
            raise
        accepted = _connect(replace(broker, availability_topic=None), address, deadline)
        accepted.retain_available &= failure.reason_code != RETAIN_NOT_SUPPORTED  # mochi says so to a will only
        return accepted, failure.reason
    lost = broker.availability_topic is not None and not accepted.retain_available
    return accepted, NO_RETAINED if lost else ""


def _connect(broker: BrokerConfig, address: Address, deadline: float) -> Connection:
    """Return a connection that was accepted and is closed. Raises `BrokerConnectionError`."""
    connection = Connection(broker, new_client_id(broker.client_id_prefix), address=str(address))
    try:
        connection.open(max(0.001, deadline - time.monotonic()))
        while not connection.answered and (left_seconds := deadline - time.monotonic()) > 0:
            poller = select.poll()  # not `select.select`, which knows no file descriptor beyond 1023
            poller.register(connection.fileno(), select.POLLIN | (select.POLLOUT if connection.wants_write else 0))
            for _, events in poller.poll(min(POLL_SECONDS, left_seconds) * 1000):
                if events & ~select.POLLOUT:
                    connection.read()
                if events & select.POLLOUT and not connection.closed:
                    connection.write()
        if not connection.connected:
            raise connection.unanswered()
    finally:
        connection.close()
    return connection


def _detail(outcome: ProbeOutcome, failure: BrokerConnectionError | None, broker: BrokerConfig) -> str:
    words = WORDS[outcome]
    if failure is None:
        return words
    if outcome in {"bad_credentials", "not_authorized"} and broker.known_by_certificate:
        look = broker.credentials_hint
        words = f"{_BY_CERTIFICATE} {look[0].upper()}{look[1:]}{'' if look[-1] == '?' else '.'}"
    elif outcome == "client_certificate_needed" and failure.cause == "closed":
        words = _CLOSED_IN_TLS
    if failure.cause in {"closed", "unanswered", "tls_untrusted"} and failure.hint:
        words += f" {failure.hint[0].upper()}{failure.hint[1:]}"
    return f"{words} The broker says: {failure.said}" if failure.said else words


def _outcome(failure: BrokerConnectionError, broker: BrokerConfig) -> ProbeOutcome:
    if failure.refused:
        codes: dict[int | None, ProbeOutcome] = {
            BAD_CREDENTIALS: "bad_credentials",
            NOT_AUTHORIZED: "not_authorized",
            UNSUPPORTED_PROTOCOL: "wrong_protocol",
        }
        return codes.get(failure.reason_code, "refused")
    if failure.cause == "closed" and broker.tls and not (broker.cert_file or broker.cert_pem):
        return "client_certificate_needed"  # perhaps: the alert that says so is lost in the reset that follows it
    causes: dict[str, ProbeOutcome] = {
        "unreachable": "unreachable",
        "silent": "silent",
        "unanswered": "silent",
        "tls_file": "tls_files",
        "tls_untrusted": "tls_untrusted",
        "tls_name": "tls_name",
        "tls": "tls_failed",
        "tls_alert": "client_certificate_needed",
        "forbidden": "forbidden",
    }
    return causes.get(failure.cause, "not_mqtt")


_resolving = threading.BoundedSemaphore(MAX_RESOLVING)


def _resolve(host: str, deadline: float) -> tuple[Address, ...]:
    """Return the first addresses of `host`; none where it has none, or the resolver has not answered by `deadline`."""
    if (literal := as_address(host)) is not None:
        return (literal,)
    if not _resolving.acquire(timeout=max(0.0, deadline - time.monotonic())):
        return ()
    found: list[Address] = []
    done = threading.Event()

    def resolve() -> None:
        try:
            found.extend(_lookup(host))
        finally:
            _resolving.release()
            done.set()

    threading.Thread(target=resolve, name="probe-resolve", daemon=True).start()
    return tuple(found)[:MAX_ADDRESSES] if done.wait(max(0.0, deadline - time.monotonic())) else ()


def _lookup(host: str) -> Iterator[Address]:
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a name that IDNA refuses
        return
    for *_, target in answers:
        if (address := as_address(str(target[0]))) is not None:
            yield address
