"""What a broker does to us: it dies, freezes, forgets, stops answering, or takes one message at a time."""

from __future__ import annotations

import time
from pathlib import Path

from infra.local.mosquitto import Mosquitto
from tests.chaos.verdict import Verdict
from tests.chaos.world import KEEP_ALL, Profile, World, eventually
from tests.fakes.broker import Kind
from tests.fakes.proxy import TcpProxy

LATE_SECONDS = 1.0  # and up to a second more until the subscriber tries again: within the host's patience of five
SETTLE_SECONDS = 0.1  # what the broker has confirmed has reached the subscriber's socket after this


def kill_broker(world: World, profile: Profile) -> None:
    """SIGKILL, and a new start over the same files after the outage.

    Like a crash, or a container that ran out of memory. The broker writes its sessions to disk at every change, so that
    the subscriber's is there again; the host comes back whenever it likes, also before the subscriber.
    """
    world.broker.kill()
    world.suffer(profile.outage_seconds)
    world.broker.start()
    world.healed()


def freeze_broker(world: World, profile: Profile) -> None:
    """SIGSTOP, and SIGCONT after the outage.

    Like a broker that swaps, or whose machine is suspended: connections stay open, the kernel still takes what is
    sent, nothing answers. On waking the broker reads what was sent to the old connection meanwhile, and passes it on,
    although the host has given it up: repeats.
    """
    world.broker.freeze()
    world.suffer(profile.outage_seconds)
    world.broker.thaw()
    world.healed()


def forgetful_broker(directory: Path, profile: Profile) -> World:
    """A broker that keeps nothing on disk, as is Mosquitto's default."""
    return World(directory, profile, broker=Mosquitto(directory / "mosquitto", extra=KEEP_ALL))


def restart_forgetful_broker(world: World, profile: Profile) -> None:
    """SIGTERM and a new start, after which the broker knows no session any more.

    The host's session holds nothing (Clean Start), so there is nothing to lose with it. The subscriber's is another
    matter, and its own: what such a broker confirms before the subscriber is back reaches nobody, and the host cannot
    know. So the line to the broker opens only once the subscriber listens again.
    """
    world.proxy.refuse_new = True
    world.proxy.cut()
    time.sleep(SETTLE_SECONDS)
    world.broker.stop()
    world.suffer(profile.outage_seconds)
    world.broker.start()
    eventually(lambda: world.subscriber.connected, "the subscriber did not come back")
    world.proxy.refuse_new = False
    world.healed()


class LateEar(World):
    """A broker that keeps nothing on disk, and a subscriber whose line to it, `ear_line`, can be held back."""

    def __init__(self, directory: Path, profile: Profile) -> None:
        """See `World`."""
        broker = Mosquitto(directory / "mosquitto", extra=KEEP_ALL)
        self.ear_line = TcpProxy("127.0.0.1", broker.port)
        super().__init__(directory, profile, broker=broker, ear={"url": self.ear_line.url})

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self.ear_line.stop()


def come_back_first(world: World, profile: Profile) -> None:
    """The line is lost, the broker restarts, knows no session any more, and the host is back before the subscriber.

    What waited for the broker is confirmed at once by a broker that knows no subscriber: it says so, with 0x10.
    """
    assert isinstance(world, LateEar)
    world.proxy.refuse_new = True
    world.proxy.cut()
    world.suffer(profile.outage_seconds)
    world.ear_line.refuse_new = True
    world.ear_line.cut()
    world.broker.stop()
    world.broker.start()
    world.proxy.refuse_new = False
    eventually(world.host.is_ready, "the host did not come back")
    time.sleep(LATE_SECONDS)
    world.ear_line.refuse_new = False
    eventually(lambda: world.subscriber.connected, "the subscriber did not come back")
    world.healed()


def swallow_pubacks(world: World, profile: Profile) -> None:
    """The line passes everything but PUBACKs; then the link is lost and all is well.

    The broker delivers each message, and the host cannot know: every one of them is sent again. Real brokers do this
    when they die between delivering and acknowledging, or when a middlebox loses one direction.
    """
    world.proxy.swallowed = {Kind.PUBACK}
    time.sleep(profile.outage_seconds)
    world.proxy.swallowed = ()
    world.healed()


def heard_again(world: World, verdict: Verdict) -> str:
    """Whether anything was sent again at all."""
    del world
    return "" if verdict.repeats else "the fault did not bite: nothing was heard twice"


def swallow_connacks(world: World, profile: Profile) -> None:
    """The link is lost, and no CONNECT is answered during the outage, although TCP connects.

    Like a broker that accepts and then hangs: in a slow authentication plug-in, say.
    """
    world.proxy.swallowed = {Kind.CONNACK}
    world.proxy.cut()
    world.suffer(profile.outage_seconds)
    world.proxy.swallowed = ()
    world.healed()


def one_at_a_time(directory: Path, profile: Profile) -> World:
    """A broker whose Receive Maximum is 1: one unacknowledged message at any time (MQTT 5 §3.2.2.3.3)."""
    broker = Mosquitto(directory / "mosquitto", persistent=True, receive_maximum=1, extra=KEEP_ALL)
    return World(directory, profile, broker=broker)


def cut_link(world: World, profile: Profile) -> None:
    """The link is reset, and can be made again at once.

    At a broker with Receive Maximum 1 whatever the host sent beyond one message would end the connection again.
    """
    del profile
    world.proxy.cut()
    world.healed()


def kill_broker_without_safety(world: World, profile: Profile) -> None:
    """As `kill_broker`, but the sure door's rule has been taken out of the bucket: only the fast door is left.

    What is uploaded during the outage is gone, and the rig has to see it.
    """
    world.without_sure_door()
    kill_broker(world, profile)
