"""HiveMQ CE and ActiveMQ Artemis, from what their authors publish for Maven."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from infra.local.process import PartError, Process
from tests.matrix.brokers import install
from tests.matrix.brokers.brand import FORBIDDEN, LIMITED, PASSWORD, USERS, Brand, Limits, listening

CREATE_SECONDS = 60.0
MEMORY = "-Xmx1g"
HIVEMQ_SOURCE = Path(__file__).with_name("hivemq") / "Broker.java"
HIVEMQ_OPENS = (  # as HiveMQ's own start script
    *("--add-opens", "java.base/java.lang=ALL-UNNAMED", "--add-opens", "java.base/java.nio=ALL-UNNAMED"),
    *("--add-opens", "java.base/sun.nio.ch=ALL-UNNAMED", "--add-exports", "java.base/jdk.internal.misc=ALL-UNNAMED"),
)
LOG = """<configuration><appender name="out" class="ch.qos.logback.core.ConsoleAppender"><encoder>
<pattern>%d %level %msg%n</pattern></encoder></appender><root level="INFO"><appender-ref ref="out"/></root>
</configuration>"""

EVERYTHING = (
    *("createNonDurableQueue", "deleteNonDurableQueue", "createDurableQueue", "deleteDurableQueue"),
    *("createAddress", "deleteAddress", "consume", "browse", "send", "manage"),
)


def _hivemq(directory: Path, port: int, limits: Limits) -> Process:
    told = ""
    if limits.packet_bytes is not None:
        told += f"<packets><max-packet-size>{limits.packet_bytes}</max-packet-size></packets>"
    if limits.receive_maximum is not None:
        maximum = f"<server-receive-maximum>{limits.receive_maximum}</server-receive-maximum>"
        told += f"<receive-maximum>{maximum}</receive-maximum>"
    (directory / "config.xml").write_text(
        f"<?xml version='1.0'?><hivemq><listeners><tcp-listener><port>{port}</port>"
        f"<bind-address>127.0.0.1</bind-address></tcp-listener></listeners><mqtt>{told}</mqtt>"
        "<anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics></hivemq>"
    )
    (directory / "logback.xml").write_text(LOG)
    java = ["java", MEMORY, f"-Dlogback.configurationFile={directory}/logback.xml", *HIVEMQ_OPENS]
    arguments = [str(directory), PASSWORD, LIMITED, FORBIDDEN]
    return Process(
        "hivemq",
        [*java, "-cp", f"{install.hivemq()}/*", str(HIVEMQ_SOURCE), *arguments],
        directory,
        ready=lambda: listening(port),
    )


def _missing(home: Path, name: str) -> str | None:
    return None if home.exists() and shutil.which("java") else f"make {name}"


HIVEMQ = Brand(
    "com.hivemq:hivemq-community-edition-embedded, with Maven",
    _hivemq,
    install.HIVEMQ,
    lambda: _missing(install.hivemq(), "hivemq"),
    frozenset({"packet_bytes", "receive_maximum"}),
)


def _artemis(directory: Path, port: int, limits: Limits) -> Process:
    instance = directory / "instance"
    without = [f"--no-{name}" for name in ("amqp-acceptor", "hornetq-acceptor", "stomp-acceptor", "web", "autotune")]
    account = ["--user", USERS[0], "--password", PASSWORD, "--require-login"]
    created = subprocess.run(
        [
            "/bin/sh",
            str(install.artemis() / "bin" / "artemis"),
            "create",
            str(instance),
            *account,
            *without,
            "--silent",
        ],
        capture_output=True,
        text=True,
        timeout=CREATE_SECONDS,
        check=False,
    )
    if created.returncode:
        raise PartError(f"Artemis could not make an instance: {created.stdout[-500:]}{created.stderr[-500:]}")
    options = "protocols=MQTT"
    if limits.packet_bytes is not None:
        options += f";maximumPacketSize={limits.packet_bytes}"
    if limits.receive_maximum is not None:
        options += f";receiveMaximum={limits.receive_maximum}"
    forbidden = FORBIDDEN.replace("/", ".")
    (instance / "etc" / "broker.xml").write_text(
        '<configuration xmlns="urn:activemq"><core xmlns="urn:activemq:core"><name>bell</name>'
        "<thread-pool-max-size>-1</thread-pool-max-size><journal-type>NIO</journal-type><max-disk-usage>100</max-disk-usage><acceptors>"
        f'<acceptor name="mqtt">tcp://127.0.0.1:{port}?{options}</acceptor></acceptors><security-settings>'
        f'<security-setting match="#">{_permissions({})}</security-setting>'
        f'<security-setting match="{forbidden}">{_permissions({"send": "all"})}</security-setting>'
        "</security-settings></core></configuration>"
    )
    etc = instance / "etc"
    (etc / "artemis-users.properties").write_text("".join(f"{user} = {PASSWORD}\n" for user in USERS))
    (etc / "artemis-roles.properties").write_text(f"all = {USERS[0]}\nlimited = {LIMITED}\n")
    return Process(
        "artemis",
        ["sh", str(instance / "bin" / "artemis"), "run"],
        directory,
        environment={"JAVA_ARGS_APPEND": MEMORY},
        ready=lambda: listening(port),
    )


def _permissions(narrower: dict[str, str]) -> str:
    """Everything to both roles, but what is `narrower`."""
    roles = dict.fromkeys(EVERYTHING, "all,limited") | narrower
    return "".join(f'<permission type="{kind}" roles="{who}"/>' for kind, who in roles.items())


ARTEMIS = Brand(
    "org.apache.activemq:apache-artemis, with Maven",
    _artemis,
    install.ARTEMIS,
    lambda: _missing(install.artemis(), "artemis"),
    frozenset({"packet_bytes", "receive_maximum"}),
)
