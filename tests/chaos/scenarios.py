"""The table: one row for each way in which something breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.chaos import broker_faults as broker
from tests.chaos import credential_faults as credentials
from tests.chaos import fleet_faults as fleet
from tests.chaos import freeze_faults as freeze
from tests.chaos import host_faults as host
from tests.chaos import jetstream_faults as jetstream
from tests.chaos import link_faults as link
from tests.chaos import queue_faults as queue
from tests.chaos import settings_faults as settings
from tests.chaos import store_faults as store
from tests.chaos import stranger_faults as strangers
from tests.chaos import sweep_faults as sweep
from tests.chaos.verdict import Verdict
from tests.chaos.world import Profile, World

Family = Literal[
    "broker", "link", "credentials", "host", "store", "sweep", "queue", "jetstream", "fleet", "freeze", "control"
]
Expectation = Literal["nothing missing", "a loss"]

FAMILIES: dict[Family, str] = {
    "broker": "The broker",
    "link": "The link to the broker",
    "credentials": "What the broker lets in",
    "host": "The host",
    "store": "The store",
    "sweep": "The sweep: what no event tells",
    "queue": "The queue (SQS)",
    "jetstream": "JetStream between store and hosts",
    "fleet": "What devices report",
    "freeze": "A frozen function",
    "control": "Control: the safety is switched off",
}

PROFILES = {
    "short": Profile("short", outage_seconds=3.0, deadline_seconds=1.0, pause_seconds=(0.5, 1.0), hear_seconds=45.0),
    "long": Profile("long", outage_seconds=30.0, deadline_seconds=5.0, pause_seconds=(3.0, 8.0), hear_seconds=240.0),
}


@dataclass(frozen=True, slots=True)
class Load:
    """At least `messages` uploads, `per_second`, while the fault happens `times` times."""

    messages: int
    per_second: float
    times: int = 1


SHORT = Load(60, 20)
LONG = Load(2600, 40, 2)
# moto's SQS takes time in proportion to what waits in it: at LONG's rate an outage would keep it busy for an hour.
LONG_SQS = Load(2000, 10, 2)

REPORTED = "a device reports each upload: all reports that the broker acknowledged are in the history, each once"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row.

    `fault` makes one occurrence, from its beginning until all is well again; `make` says what is special about the
    parts. `expects`: "nothing missing" but for the control, which shows "a loss", or the rig would be blind. `why`
    says what a reader may wonder at. `check` looks for what else must hold, while all parts still run, and returns a
    complaint or "".
    """

    name: str
    family: Family
    what: str
    fault: Callable[[World, Profile], None]
    make: Callable[[Path, Profile], World] = World
    short: Load = SHORT
    long: Load = LONG
    expects: Expectation = "nothing missing"
    why: str = ""
    check: Callable[[World, Verdict], str] | None = None

    def load(self, profile: Profile) -> Load:
        """How much is uploaded, and how often the fault happens."""
        return self.short if profile.name == "short" else self.long


_ROWS = (
    Scenario(
        "broker-killed",
        "broker",
        "Mosquitto is killed (SIGKILL), and started again over the sessions on its disk",
        broker.kill_broker,
    ),
    Scenario(
        "broker-frozen",
        "broker",
        "Mosquitto is stopped (SIGSTOP) and goes on later, with all connections open meanwhile",
        broker.freeze_broker,
    ),
    Scenario(
        "broker-forgets",
        "broker",
        "Mosquitto restarts without its sessions: it keeps nothing on disk",
        broker.restart_forgetful_broker,
        broker.forgetful_broker,
    ),
    Scenario(
        "early-flush",
        "broker",
        "Mosquitto restarts without its sessions, and the host is back before the subscriber",
        broker.come_back_first,
        broker.LateEar,
    ),
    Scenario(
        "puback-swallowed",
        "broker",
        "messages get through, their PUBACKs do not",
        broker.swallow_pubacks,
        check=broker.heard_again,
    ),
    Scenario(
        "connack-never",
        "broker",
        "the link is lost, and CONNECT is not answered although TCP connects",
        broker.swallow_connacks,
    ),
    Scenario(
        "receive-maximum-1",
        "broker",
        "the broker takes one unacknowledged message at a time, and the link is reset again and again",
        broker.cut_link,
        broker.one_at_a_time,
        short=Load(60, 20, 3),
        long=Load(2000, 40, 10),
    ),
    Scenario(
        "blackhole", "link", "packets vanish in both directions, and nobody says that anything ended", link.blackhole
    ),
    Scenario(
        "slow-link",
        "link",
        "every byte takes 0.4 s each way, and more is uploaded than gets through",
        link.slow_down,
        short=Load(150, 50),
        long=Load(2600, 40, 3),
        check=link.took_long,
    ),
    Scenario(
        "torn-packets",
        "link",
        "each connection is reset after a random number of bytes, mostly in the middle of a packet",
        link.tear_packets,
    ),
    Scenario(
        "dns-lost",
        "link",
        "the link is lost while the broker's name cannot be resolved: SERVFAIL, then silence",
        link.lose_name,
        link.NamedWorld,
    ),
    Scenario(
        "acl-revoked",
        "credentials",
        "the broker forbids the topic during the run, and allows it again",
        credentials.revoke_acl,
        credentials.with_password,
    ),
    Scenario(
        "acl-revoked-sqs",
        "credentials",
        "the same with events from SQS",
        credentials.revoke_acl,
        credentials.with_password_on_sqs,
        long=LONG_SQS,
    ),
    Scenario(
        "poisoned-link",
        "credentials",
        "uploads for a topic that the broker forbids by closing the connection, beside all others",
        credentials.poison_link,
        credentials.closing,
        check=credentials.others_went_on,
    ),
    Scenario(
        "password-restart",
        "credentials",
        "the password changes at the broker; later the host gets it in its environment, and is restarted",
        credentials.change_password_and_restart,
        credentials.with_password,
    ),
    Scenario(
        "password-stored",
        "credentials",
        "the password changes at the broker; later it is stored through the running host's API",
        credentials.change_password_and_store_it,
        credentials.with_password,
    ),
    Scenario(
        "birth-message",
        "credentials",
        "Home Assistant is switched on, and the broker hangs up over whatever is meant for it",
        credentials.switch_home_assistant_on,
        credentials.with_password_and_a_broker_that_hangs_up,
        long=Load(2600, 40),
    ),
    Scenario(
        "certificate-expired",
        "credentials",
        "the broker's certificate expires, the link is lost, and the certificate is renewed",
        credentials.expire_certificate,
        credentials.with_tls,
    ),
    Scenario("host-killed", "host", "the host is killed (SIGKILL) and started again later", host.kill_host),
    Scenario(
        "host-restarted",
        "host",
        "the host is stopped (SIGTERM) and started again at once, over and over",
        host.terminate_host,
        short=Load(60, 20, 2),
        long=Load(2000, 40, 10),
    ),
    Scenario("host-frozen", "host", "the host is stopped (SIGSTOP) and goes on later", host.freeze_host),
    Scenario(
        "two-hosts",
        "host",
        "two hosts behind one address: one is killed, later the other one restarted",
        host.update_hosts_in_turn,
        host.TwoHosts,
    ),
    Scenario(
        "late-settings",
        "host",
        "the host is restarted and cannot read the stored settings for a while; what is uploaded are cameras' events",
        settings.start_without_settings,
        settings.CameraWorld,
        short=Load(60, 20, 2),
        long=Load(2000, 40, 4),
        check=settings.went_nowhere_else,
    ),
    Scenario(
        "clock-jumps",
        "host",
        "the host's clock jumps 20 minutes ahead, 40 back, and to the right time",
        host.jump_clock,
        host.host_with_a_clock_of_its_own,
    ),
    Scenario(
        "lock-out",
        "host",
        "devices with an old key and somebody who guesses come from everybody's address, and the host is restarted",
        strangers.lock_out,
        strangers.with_devices,
        short=Load(60, 20, 2),
    ),
    Scenario(
        "store-killed", "store", "MinIO is killed (SIGKILL) and started again, while uploads go on", store.kill_store
    ),
    Scenario(
        "store-killed-later",
        "store",
        "the host is down, and MinIO, which keeps its events, is killed and started again",
        store.kill_store_with_full_hands,
    ),
    Scenario(
        "host-hangs-store-dies",
        "store",
        "the host hangs, MinIO's workers wait for it, and MinIO is killed",
        store.hang_host_and_kill_store,
        short=Load(60, 20, 2),
        long=Load(2000, 40, 10),
    ),
    Scenario(
        "queue-ample",
        "store",
        "the host is down, and MinIO's queue has room for all that is uploaded",
        store.stay_away,
        store.ample_queue,
        check=store.dropped_nothing,
    ),
    Scenario(
        "queue-full",
        "store",
        "the host is down for longer than MinIO's queue has room; the sweep is on",
        store.overflow,
        store.small_queue,
        long=Load(2000, 40),
        why="MinIO forgets events beyond QUEUE_LIMIT, and answers the upload with 200; the sweep finds the objects",
        check=store.swept_what_was_dropped,
    ),
    Scenario(
        "queue-disk-full",
        "store",
        "the host is down, and the disk under MinIO's queue has no room; the sweep is on",
        store.overflow,
        store.small_disk,
        long=Load(2000, 40),
        why="MinIO forgets events that it cannot write, and answers the upload with 200; the sweep finds the objects",
        check=store.swept_what_was_dropped,
    ),
    Scenario(
        "queue-file-torn",
        "store",
        "the host is down, MinIO dies and leaves half a file in its queue; later somebody removes it; the sweep is on",
        store.tear_queue_file,
        store.sweeping,
        why="MinIO cannot read the event in it, and lets all others wait until it is removed; the sweep does not",
        check=store.found_by_sweep,
    ),
    Scenario(
        "queue-blocked",
        "store",
        "the host may not read cameras' documents, and MinIO's queue, the only way, waits for the first of them",
        store.block_queue,
        store.BlockedQueue,
        check=store.gave_up_only_what_was_refused,
    ),
    Scenario(
        "token-rotated",
        "store",
        "the webhook's token is changed as documented: the host knows both for a while",
        store.rotate_overlapping,
    ),
    Scenario(
        "token-store-first",
        "store",
        "MinIO presents a new token, and the host is told of it later",
        store.rotate_store_first,
    ),
    Scenario(
        "token-host-first",
        "store",
        "the host wants a new token, and MinIO is told of it later",
        store.rotate_host_first,
    ),
    Scenario(
        "no-rules",
        "sweep",
        "a bucket without any rule: the store tells nobody of an upload, and the host is killed and started again",
        host.kill_host,
        sweep.Silent,
        check=store.found_by_sweep,
    ),
    Scenario(
        "told-once",
        "sweep",
        "the host is away, and Versity Gateway tells of each upload once",
        sweep.restart_host,
        sweep.TellsOnce,
        check=store.found_by_sweep,
    ),
    Scenario(
        "state-lost",
        "sweep",
        "the host is killed, and the file that says what was announced has gone; no event tells of an upload",
        sweep.lose_state,
        sweep.with_state_in_a_file,
        check=sweep.heard_again,
    ),
    Scenario(
        "state-torn",
        "sweep",
        "half of what the host has saved in the bucket is left when it is started again; no event tells of an upload",
        sweep.tear_state,
        sweep.Silent,
        check=sweep.heard_again,
    ),
    Scenario(
        "sweeper-killed",
        "sweep",
        "two hosts with one PostgreSQL, a door each; the bucket's rules are gone for a while, and the host that "
        "announces what no event told is killed",
        sweep.kill_sweeper,
        sweep.OneSweeps,
        check=sweep.the_other_went_on,
    ),
    Scenario(
        "sqs-redelivers",
        "queue",
        "the broker is down for longer than messages stay invisible in the queue",
        queue.lose_broker,
        queue.short_visibility,
        long=LONG_SQS,
        check=queue.came_back,
    ),
    Scenario(
        "sqs-visible-too-soon",
        "queue",
        "two hosts poll, and messages become visible again while they are being published",
        queue.slow_broker,
        queue.two_hosts_at_one_queue,
        long=LONG_SQS,
        check=queue.rang_again,
    ),
    Scenario(
        "sqs-host-killed",
        "queue",
        "a host that polls is killed (SIGKILL) and started again later",
        host.kill_host,
        queue.short_visibility,
        long=LONG_SQS,
    ),
    Scenario(
        "sqs-frozen",
        "queue",
        "the queue's server is stopped (SIGSTOP) and goes on later",
        queue.freeze_queue,
        queue.short_visibility,
        long=LONG_SQS,
    ),
    Scenario(
        "sqs-function-redelivers",
        "queue",
        "as `sqs-redelivers`, with a function instead of a host",
        queue.lose_broker,
        queue.function_with_short_visibility,
        long=LONG_SQS,
    ),
    Scenario(
        "jetstream-killed",
        "jetstream",
        "nats-server is killed (SIGKILL), and started again over its directory",
        jetstream.kill_nats,
        jetstream.JetStreamWorld,
    ),
    Scenario(
        "jetstream-frozen",
        "jetstream",
        "nats-server is stopped (SIGSTOP) and goes on later",
        jetstream.freeze_nats,
        jetstream.JetStreamWorld,
    ),
    Scenario(
        "jetstream-no-consumer",
        "jetstream",
        "the durable consumer is deleted",
        jetstream.delete_consumer,
        jetstream.JetStreamWorld,
        short=Load(60, 20, 2),
    ),
    Scenario(
        "jetstream-broker-killed",
        "jetstream",
        "Mosquitto is killed (SIGKILL), and started again over the sessions on its disk",
        broker.kill_broker,
        jetstream.JetStreamWorld,
    ),
    Scenario(
        "jetstream-hosts",
        "jetstream",
        "two hosts share a stream; one is killed (SIGKILL), later the other one stopped (SIGTERM)",
        host.update_hosts_in_turn,
        jetstream.TwoHostsAtOneStream,
    ),
    Scenario(
        "reports-database-locked",
        "fleet",
        "somebody else has locked the database",
        fleet.lock_database,
        fleet.ReportingWorld,
        why=REPORTED,
        check=fleet.none_is_lost,
    ),
    Scenario(
        "reports-broker-killed",
        "fleet",
        "Mosquitto is killed (SIGKILL), and started again over the sessions on its disk",
        fleet.kill_broker,
        fleet.ReportingWorld,
        why=REPORTED,
        check=fleet.none_is_lost,
    ),
    Scenario(
        "reports-host-killed",
        "fleet",
        "the host is killed (SIGKILL), and started again",
        host.kill_host,
        fleet.ReportingWorld,
        why=REPORTED,
        check=fleet.none_is_lost,
    ),
    Scenario(
        "freeze-long",
        "freeze",
        "the function is frozen between every two events, now and then beyond its keep alive",
        freeze.outlast_keepalive,
        freeze.frozen_function,
        short=Load(60, 20, 2),
        long=Load(3000, 25, 10),
        check=freeze.was_frozen,
    ),
    Scenario(
        "freeze-broker-killed",
        "freeze",
        "the same, and the broker is killed and started again meanwhile",
        freeze.restart_broker_meanwhile,
        freeze.frozen_function,
        short=Load(60, 20, 2),
        long=Load(3000, 25, 3),
        check=freeze.was_frozen,
    ),
    Scenario(
        "freeze-deaf",
        "freeze",
        "the same, and packets vanish meanwhile",
        freeze.go_deaf_meanwhile,
        freeze.frozen_function,
        long=Load(2500, 10, 2),
        check=freeze.was_frozen,
    ),
    Scenario(
        "freeze-sandbox-killed",
        "freeze",
        "the function's process is killed, perhaps in the middle of a batch",
        freeze.kill_sandbox,
        freeze.frozen_function,
        short=Load(60, 20, 2),
        long=Load(2000, 25, 5),
        check=freeze.was_frozen,
    ),
    Scenario(
        "control",
        "control",
        "as `broker-killed`, with the fast door only: nothing on disk",
        broker.kill_broker_without_safety,
        expects="a loss",
    ),
)

SCENARIOS = {row.name: row for row in _ROWS}
