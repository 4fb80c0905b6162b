"""RabbitMQ and ejabberd, from Debian's packages, each in a folder of its own and beside whatever else runs there."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from infra.local.process import Process, free_port
from tests.matrix.brokers import install
from tests.matrix.brokers.brand import (
    ASSETS,
    CONFIGS,
    DISCOVERY,
    FORBIDDEN,
    HOME,
    LIMITED,
    PASSWORD,
    USERS,
    Brand,
    Limits,
)

# RabbitMQ starts a port mapper that outlives it. In a PID namespace everything ends with the first process, however
# that ends; and the mounts go with their namespace.
IN_ANOTHER_ROOT = """
mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount --bind "$2" "$1/run/bell" || exit 1
exec chroot "$1" "$3"
"""
INSIDE = "/run/bell"
EJABBERD_HOST = "localhost"


def _rabbitmq(directory: Path, port: int, limits: Limits) -> Process:
    salt = b"salt"
    hashed = base64.b64encode(salt + hashlib.sha256(salt + PASSWORD.encode()).digest()).decode()
    everything = {"vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    topic = re.escape(FORBIDDEN.replace("/", "."))
    rules = {"vhost": "/", "exchange": "amq.topic", "write": f"^(?!{topic}$).*", "read": ".*"}
    definitions = {
        "vhosts": [{"name": "/"}],
        "users": [
            {
                "name": user,
                "password_hash": hashed,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            }
            for user in USERS
        ],
        "permissions": [{"user": user, **everything} for user in USERS],
        "topic_permissions": [{"user": LIMITED, **rules}],
    }
    (directory / "definitions.json").write_text(json.dumps(definitions))
    settings = [
        f"listeners.tcp.1 = 127.0.0.1:{free_port()}",
        f"mqtt.listeners.tcp.1 = 127.0.0.1:{port}",
        f"load_definitions = {INSIDE}/definitions.json",
        "log.console = true",
        "disk_free_limit.absolute = 1MB",
    ]
    if limits.packet_bytes is not None:
        settings.append(f"mqtt.max_packet_size_authenticated = {limits.packet_bytes}")
    (directory / "rabbitmq.conf").write_text("\n".join(settings) + "\n")
    (directory / "plugins").write_text("[rabbitmq_mqtt].\n")
    root = install.debian()
    (root / INSIDE.lstrip("/")).mkdir(exist_ok=True)
    server = next(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"))
    environment = {
        "HOME": INSIDE,
        "LANG": "C.UTF-8",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(free_port()),
        "RABBITMQ_CONFIG_FILE": f"{INSIDE}/rabbitmq.conf",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{INSIDE}/plugins",
        "RABBITMQ_LOG_BASE": f"{INSIDE}/log",
        "RABBITMQ_MNESIA_BASE": f"{INSIDE}/data",
        "RABBITMQ_NODENAME": f"bell{port}@localhost",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    inside = f"/{server.relative_to(root)}"
    return _Logged(
        "Server startup complete",
        "rabbitmq",
        [*unshare, "sh", "-c", IN_ANOTHER_ROOT, "sh", str(root), str(directory), inside],
        directory,
        environment=environment,
    )


def _rabbitmq_missing() -> str | None:
    if os.geteuid() != 0:
        return "make rabbitmq, as root"
    return None if install.debian().exists() else "make rabbitmq"


RABBITMQ = Brand(
    f"Debian {install.DEBIAN}, package rabbitmq-server",
    _rabbitmq,
    re.compile(r"Starting RabbitMQ (\S+)"),
    _rabbitmq_missing,
    frozenset({"packet_bytes"}),
)


def _ejabberd(directory: Path, port: int, limits: Limits) -> Process:
    limit = "" if limits.packet_bytes is None else f"\n    max_payload_size: {limits.packet_bytes}"
    allowed = "".join(f'\n      "{topic}": [{{allow: all}}]' for topic in (ASSETS, f"{HOME}/#", f"{DISCOVERY}/#"))
    assert FORBIDDEN == CONFIGS
    (directory / "ejabberd.yml").write_text(f"""\
hosts: [{EJABBERD_HOST}]
loglevel: info
acl:
  limited: {{user: "{LIMITED}@{EJABBERD_HOST}"}}
listen:
  - port: {port}
    ip: "127.0.0.1"
    module: mod_mqtt
    backlog: 1000{limit}
modules:
  mod_mqtt:
    access_publish:
      "{FORBIDDEN}": [{{deny: limited}}, {{allow: all}}]{allowed}
    access_subscribe:
      "#": [{{allow: all}}]
""")
    # Not by ejabberdctl, which becomes another user. Without a name the node has no port mapper either.
    users = "".join(
        f'ejabberd_auth:try_register(<<"{user}">>, <<"{EJABBERD_HOST}">>, <<"{PASSWORD}">>), ' for user in USERS
    )
    return _Logged(
        "users are registered",
        "ejabberd",
        [
            *("erl", "-noinput", "+K", "true", "-mnesia", "dir", f'"{directory}/data"', "-s", "ejabberd"),
            *("-eval", f'{users}io:format("users are registered~n").'),
        ],
        directory,
        environment={
            "EJABBERD_CONFIG_PATH": str(directory / "ejabberd.yml"),
            "EJABBERD_LOG_PATH": str(directory / "ejabberd-own.log"),
            "ERL_CRASH_DUMP": str(directory / "crash"),
            "ERL_LIBS": next((str(found.parent) for found in Path("/usr/lib").glob("*/ejabberd-*")), ""),
            "ERL_MAX_PORTS": "32000",
            "HOME": str(directory),
        },
    )


class _Logged(Process):
    """Its port is open for a while before it has all that it needs: ready is what it says in its log."""

    def __init__(
        self, last_word: str, name: str, command: list[str], directory: Path, *, environment: dict[str, str]
    ) -> None:
        super().__init__(name, command, directory, environment=environment)
        self._last_word = last_word

    def is_ready(self) -> bool:
        return self._last_word in self.new_log_text()


EJABBERD = Brand(
    "Debian's package ejabberd",
    _ejabberd,
    re.compile(r"ejabberd (\d\S*) is started"),
    lambda: None if install.EJABBERD.exists() and shutil.which("erl") else "make ejabberd",
    frozenset({"packet_bytes"}),
    user_suffix=f"@{EJABBERD_HOST}",
)
