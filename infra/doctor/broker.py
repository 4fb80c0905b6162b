"""The broker: its name, TCP, TLS, whether it lets us in, and whether it takes our last will. Nothing is published."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from functions.admin.probe import probe
from functions.cameras.discovery import availability_topic
from functions.mqtt.tls import client_context
from functions.stored.errors import CredentialsUnreadableError
from infra.doctor.checks import Checkup, NotCheckedError, WrongError

if TYPE_CHECKING:
    from functions.admin.probe import ProbeVerdict
    from functions.mqtt.broker import BrokerConfig
    from infra.doctor.database import DatabaseLeg

SOON_SECONDS = 14 * 24 * 3600.0
PROBE_SECONDS = 5.0

NAME, TCP, TLS, LOGIN = "broker's name", "broker's port", "broker's TLS", "broker's login"
CERTIFICATE, WILL = "broker's certificate", "last will"

# How far an attempt came that ended so.
_ENDED_AT = {
    "name_not_resolved": NAME,
    "forbidden": NAME,
    "unreachable": TCP,
    "silent": TCP,
    "tls_untrusted": TLS,
    "tls_name": TLS,
    "tls_failed": TLS,
    "tls_files": TLS,
    "client_certificate_needed": TLS,
}


class BrokerLeg:
    """The broker in force, by one attempt to connect as the host does."""

    def __init__(self, database: DatabaseLeg, host_url: str, needs: tuple[str, ...]) -> None:
        """`needs` are the checks that tell which broker it is. The host's name for itself is ours with its port."""
        self._database = database
        self._needs = needs
        parts = urlsplit(host_url)
        self._process = f"{socket.gethostname()}:{parts.port or {'https': 443}.get(parts.scheme, 80)}"
        self._verdict: ProbeVerdict | None = None
        self.broker: BrokerConfig | None = None

    def checks(self) -> tuple[Checkup, ...]:
        """All of them, in order."""
        return (
            Checkup(NAME, self._name, self._needs, seconds=PROBE_SECONDS + 1),
            Checkup(TCP, lambda: self._leg(TCP, f"{self._address} takes connections"), (NAME,)),
            Checkup(TLS, self._tls, (TCP,)),
            Checkup(LOGIN, lambda: self._leg(LOGIN, self._login()), (TLS,)),
            Checkup(CERTIFICATE, self._certificate, (LOGIN,)),
            Checkup(WILL, self._will, (LOGIN,)),
        )

    @property
    def receive_maximum(self) -> int | None:
        """How many messages the broker takes without having acknowledged them, where it was asked."""
        return None if self._verdict is None else self._verdict.receive_maximum

    @property
    def _address(self) -> str:
        return "" if self.broker is None else self.broker.url

    def _ask(self) -> tuple[BrokerConfig, ProbeVerdict]:
        try:
            broker = self._database.broker()
        except CredentialsUnreadableError:
            raise NotCheckedError("the stored password cannot be read") from None
        if broker is None:
            raise WrongError(
                "No broker is configured: nothing is published.", "Set MQTT_URL for the host, and restart it."
            )
        stored = self._database.stored
        if stored is not None and stored.config.discovery_enabled:
            topic = availability_topic(stored.config.topic_prefix, self._process)
            broker = replace(broker, availability_topic=topic)
        self.broker = broker
        if self._verdict is None:
            self._verdict = probe(broker, timeout_seconds=PROBE_SECONDS)
        return broker, self._verdict

    def _name(self) -> str:
        broker, verdict = self._ask()
        if verdict.outcome == "name_not_resolved":
            raise WrongError(
                f"The name {broker.host} is unknown here, or its resolver does not answer.",
                "Correct the host in MQTT_URL (or in the stored settings), or this machine's name server.",
            )
        return self._leg(NAME, verdict.address or broker.host)

    def _leg(self, leg: str, well: str) -> str:
        """Say that all went well as far as `leg`, or what the broker said there."""
        broker, verdict = self._ask()
        if verdict.ok or self._ended_at(verdict) != leg:
            return well
        if verdict.outcome in {"bad_credentials", "not_authorized"} and broker.username is not None:
            raise WrongError(
                f"{broker.url} refuses the user {broker.username}: {verdict.detail}",
                "Set MQTT_USERNAME and MQTT_PASSWORD to what the broker knows (or store them: `bucketbell mqtt set "
                "--password prompt`), and restart the host.",
            )
        if leg == TCP:
            raise WrongError(
                f"Nobody answers at {verdict.reason}.",
                "Start the broker, or correct host and port in MQTT_URL (or in the stored settings). If these are "
                "right, let this machine through the firewall in between.",
            )
        raise WrongError(f"{broker.url}: {verdict.reason.removeprefix(f'{broker.url}: ')}", verdict.detail)

    def _ended_at(self, verdict: ProbeVerdict) -> str:
        if verdict.outcome == "silent" and "CONNECT" in verdict.reason:
            return LOGIN
        return _ENDED_AT.get(verdict.outcome, LOGIN)

    def _tls(self) -> str:
        broker, verdict = self._ask()
        if not broker.tls:
            return "not used"
        variable = "MQTT_CA_PEM" if broker.ca_pem else "MQTT_CA_FILE"
        if verdict.outcome == "tls_untrusted" and "expired" in verdict.reason:
            raise WrongError(
                "The broker's certificate has expired, or that of its authority.",
                "Renew the certificate on the broker, and reload the broker. If the authority's own has expired, make "
                f"a new one, and put it into {variable} too.",
            )
        if verdict.outcome == "tls_untrusted" and "not yet valid" in verdict.reason:
            raise WrongError(
                "The broker's certificate is not valid yet.", "Set this machine's clock: it is most likely behind."
            )
        if verdict.outcome == "tls_untrusted" and "key usage" not in verdict.reason:
            raise WrongError(
                f"The broker's certificate is of an authority that is not trusted here: {verdict.reason}",
                f"Set {variable} to the certificate of the authority that signed the broker's, and restart the host.",
            )
        return self._leg(TLS, "trusted")

    def _login(self) -> str:
        broker, verdict = self._ask()
        who = broker.username or "without a user name"
        return f"accepted, {who}, QoS up to {min(broker.qos, verdict.maximum_qos)}"

    def _certificate(self) -> str:
        broker, verdict = self._ask()
        ends_at = verdict.certificate_expires_at
        if not broker.tls:
            return "none: no TLS"
        if ends_at is None:
            raise NotCheckedError("the broker's certificate does not say when it ends")
        if ends_at - time.time() < SOON_SECONDS:
            raise WrongError(
                f"The broker's certificate ends soon: {_day(ends_at)}.",
                "Renew it on the broker, and reload the broker, before that day: then nobody can connect.",
            )
        authorities = client_context(broker).get_ca_certs()
        # Of several, such as the system's, we do not know which one it is.
        if len(authorities) == 1:
            authority_ends_at = float(ssl.cert_time_to_seconds(str(authorities[0]["notAfter"])))
            if authority_ends_at - time.time() < SOON_SECONDS:
                variable = "MQTT_CA_PEM" if broker.ca_pem else "MQTT_CA_FILE"
                raise WrongError(
                    f"The certificate of the broker's authority ends soon: {_day(authority_ends_at)}.",
                    f"Make a new one, put it into {variable} and into every device beside the old one, and then sign "
                    "the broker's certificate with it.",
                )
            ends_at = min(ends_at, authority_ends_at)
        return f"valid until {_day(ends_at)}"

    def _will(self) -> str:
        broker, verdict = self._ask()
        if broker.availability_topic is None:
            return "none: no discovery"
        if not verdict.retain_available:
            raise WrongError(
                "The broker keeps no retained messages, and Home Assistant needs them: it forgets the cameras.",
                "Switch retained messages on at the broker, or discovery off: `bucketbell mqtt set --no-discovery`.",
            )
        if verdict.will_refused:
            who = f"the user {broker.username}" if broker.username else "this client"
            raise WrongError(
                f"The broker does not take our last will on {broker.availability_topic}: {verdict.will_refused}",
                f"Allow {who} to write {broker.availability_topic.rpartition('/bucketbell/')[0]}/bucketbell/# in the "
                "broker's rules, and reload the broker. Until then Home Assistant does not see that the host is away.",
            )
        return broker.availability_topic


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
