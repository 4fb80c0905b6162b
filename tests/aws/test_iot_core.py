"""AWS IoT Core as MiniStack has it: client certificates, and the policies attached to them, over mqtts."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.incoming import Received
from infra.sam.image import ARCHITECTURE
from infra.sam.tool import ROOT
from infra.subscriber import Subscriber, SubscriberError
from tests.aws.cloud import HEAR_SECONDS, RETRY_SECONDS, SETTLE_SECONDS
from tests.aws.deployment import Deployment
from tests.aws.ministack_cloud import MiniStackCloud
from tests.template import ACCOUNT

SECRET = "iot/broker"
ASSETS = "iotsupport/updates/assets"
BURST = 30
TRY_SECONDS = 10  # MiniStack loses an invocation now and then when its function has just changed: SQS repeats it
EVERYTHING: dict[str, object] = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "iot:*", "Resource": "*"}],
}
MINISTACKS_ACCOUNT = "000000000000"


def documented_policy() -> dict[str, object]:
    """The policy that docs/aws.md tells people to make, for MiniStack's account."""
    page = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")
    text = page.partition("cat > policy.json <<'END'\n")[2].partition("END\n")[0]
    return dict(json.loads(text.replace(ACCOUNT, MINISTACKS_ACCOUNT)))


@dataclass(frozen=True, slots=True)
class Certificate:
    """One of IoT Core's, with its key, and what signed the broker's."""

    id: str
    pem: str
    key: str
    authority: str

    @classmethod
    def of(cls, cloud: MiniStackCloud, policy: tuple[str, dict[str, object]] | None) -> Certificate:
        """Make one, active, with a policy of that name attached or without any."""
        core = cloud.emulator.client("iot")
        made = core.create_keys_and_certificate(setAsActive=True)
        if policy is not None:
            name, document = policy
            core.create_policy(policyName=name, policyDocument=json.dumps(document))
            core.attach_policy(policyName=name, target=made["certificateArn"])
        return cls(
            made["certificateId"],
            made["certificatePem"],
            made["keyPair"]["PrivateKey"],
            cloud.emulator.iot_authority(),
        )

    def secret(self, cloud: MiniStackCloud) -> dict[str, str]:
        """What NotifyFunction has to know."""
        return {
            "MQTT_URL": f"mqtts://{cloud.emulator.iot_host}:{cloud.emulator.iot_port}",
            "MQTT_CERT_PEM": self.pem,
            "MQTT_KEY_PEM": self.key,
            "MQTT_CA_PEM": self.authority,
        }

    def subscriber(self, cloud: MiniStackCloud, directory: Path) -> Subscriber:
        """Somebody who is known by it, and wants to hear everything of ours."""
        both = directory / f"{self.id}.pem"
        both.write_text(self.pem + self.key)
        context = ssl.create_default_context(cadata=self.authority)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # from Python 3.13 on, more than MiniStack's authority fulfils
        context.load_cert_chain(both)
        return Subscriber(f"mqtts://localhost:{cloud.emulator.iot_port}", ["iotsupport/#"], qos=1, context=context)


@dataclass(frozen=True, slots=True)
class IotCore:
    """A stack that publishes to IoT Core, the certificate it does so by, and a subscriber by another one."""

    cloud: MiniStackCloud
    stack: Deployment
    certificate: Certificate
    ear: Subscriber

    def put(self, key: str) -> None:
        """Upload to the bucket of this stack."""
        self.cloud.s3.put_object(Bucket=self.stack.outputs["BucketName"], Key=key, Body=b"content")

    def hear(self, count: int = 1) -> list[Received]:
        """Take exactly the next messages."""
        messages = self.ear.wait_for(count, HEAR_SECONDS)
        assert self.ear.silence(SETTLE_SECONDS) == []
        return messages

    def says(self, key: str) -> str:
        """What the function says when it is invoked for an upload and cannot publish."""
        answer = self.cloud.invoke(self.stack, key)
        assert "errorMessage" in answer or answer["failed"] == 1, answer
        return json.dumps(answer)


@pytest.fixture(scope="module")
def core(deployed: MiniStackCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IotCore]:
    """Deployed as docs/aws.md says: the broker is in the secret, and the policy is that of the page."""
    certificate = Certificate.of(deployed, ("bucketbell", documented_policy()))
    listener = Certificate.of(deployed, ("ear", EVERYTHING))
    deployed.put_secret(SECRET, certificate.secret(deployed))
    parameters = {"Architecture": ARCHITECTURE, "BrokerSecret": SECRET, "BucketPrefix": "iot", "LogLevel": "DEBUG"}
    stack = deployed.deploy("iot", parameters)
    deployed.retry_after(TRY_SECONDS, stack)
    with listener.subscriber(deployed, tmp_path_factory.mktemp("iot")) as ear:
        yield IotCore(deployed, stack, certificate, ear)


@pytest.fixture
def changing(core: IotCore) -> Iterator[IotCore]:
    """The same for tests that change the function: it is as it was before the next one."""
    yield core
    core.cloud.restart(core.stack)


def test_an_upload_rings_at_iot_core_by_a_client_certificate(core: IotCore) -> None:
    """Another certificate's owner hears it, to the letter; again on the warm connection; and a config."""
    for key, topic in (
        ("assets/first", ASSETS),
        ("assets/second", ASSETS),
        ("configs/a1-b2-c3-d4-e5-f6.json", "iotsupport/updates/configs"),
    ):
        core.put(key)
        (message,) = core.hear()
        assert message.topic == topic
        assert message.payload == json.dumps({"filename": key.partition("/")[2]}).encode()
        assert (message.qos, message.retain, message.content_type) == (1, False, "application/json")
        assert dict(message.user_properties)["subject"] == key
    assert "certificate presented" in core.cloud.emulator.log_text()


def test_of_a_burst_at_iot_core_nothing_is_lost(core: IotCore) -> None:
    """Each once, in full batches."""
    names = [f"iot-{number:03}" for number in range(BURST)]
    with core.cloud.paused(core.stack), ThreadPoolExecutor(16) as people:
        list(people.map(lambda name: core.put(f"assets/{name}"), names))
    assert sorted(json.loads(one.payload)["filename"] for one in core.hear(BURST)) == names


@pytest.mark.parametrize(
    ("variables", "qos"),
    [
        ({"MQTT_ALPN": "x-amzn-mqtt-ca"}, 1),
        ({"MQTT_PROTOCOL": "3.1.1"}, 1),
        ({"MQTT_QOS": "0"}, 0),
        ({"MQTT_QOS": "2"}, 1),  # which IoT Core does not have: the function sends what it has
    ],
)
def test_each_way_to_publish_to_iot_core_works(changing: IotCore, variables: dict[str, str], qos: int) -> None:
    """By ALPN, with the older protocol, with each QoS."""
    changing.cloud.restart(changing.stack, **variables)
    changing.put("assets/way")
    (message,) = changing.hear()
    assert (message.topic, message.qos) == (ASSETS, qos)


def test_a_topic_that_the_certificates_policy_does_not_name_is_refused(changing: IotCore) -> None:
    """MiniStack answers 0x87, where AWS closes the connection; the function gives it up, and nobody hears."""
    changing.cloud.restart(changing.stack, TOPIC_PREFIX="iotsupport/secret")
    said = changing.says("assets/forbidden")
    assert "the broker answered 0x87" in said
    assert changing.ear.silence(SETTLE_SECONDS) == []


def test_a_certificate_without_a_policy_is_refused_and_the_function_says_where_to_look(changing: IotCore) -> None:
    """It names the broker and the certificate."""
    stranger = Certificate.of(changing.cloud, None)
    changing.cloud.secrets.put_secret_value(SecretId=SECRET, SecretString=json.dumps(stranger.secret(changing.cloud)))
    changing.cloud.restart(changing.stack)
    try:
        said = changing.says("assets/unpermitted")
    finally:
        content = json.dumps(changing.certificate.secret(changing.cloud))
        changing.cloud.secrets.put_secret_value(SecretId=SECRET, SecretString=content)
    assert changing.cloud.emulator.iot_host in said
    assert "the certificate in MQTT_CERT_PEM" in said
    assert "active" in said
    assert changing.ear.silence(SETTLE_SECONDS) == []


def test_nobody_subscribes_with_a_certificate_that_has_no_policy(core: IotCore, tmp_path: Path) -> None:
    """So that what the ear hears proves something."""
    with pytest.raises(SubscriberError), Certificate.of(core.cloud, None).subscriber(core.cloud, tmp_path):
        pass


def test_with_an_inactive_certificate_events_wait_and_ring_when_it_is_active_again(core: IotCore) -> None:
    """Nothing else has to be done."""
    certificates, queue = core.cloud.emulator.client("iot"), core.stack.outputs["QueueUrl"]
    core.cloud.retry_after(RETRY_SECONDS, core.stack)
    core.cloud.restart(core.stack)  # so that there are new copies, which have to connect
    certificates.update_certificate(certificateId=core.certificate.id, newStatus="INACTIVE")
    try:
        core.put("assets/refused")
        core.cloud.wait(lambda: '"publish failed"' in core.cloud.log_of("notify", "iot"), HEAR_SECONDS)
        assert core.cloud.queued(queue) == 1
        assert core.ear.drain() == []
    finally:
        certificates.update_certificate(certificateId=core.certificate.id, newStatus="ACTIVE")
    assert json.loads(core.hear()[0].payload) == {"filename": "refused"}
    core.cloud.retry_after(TRY_SECONDS, core.stack)


def test_where_nobody_listens_an_event_is_done_all_the_same(core: IotCore) -> None:
    """IoT Core never says that nobody does."""
    core.ear.stop()
    core.put("assets/unheard")
    core.cloud.wait(lambda: '"unheard"' in core.cloud.log_of("notify", "iot"), HEAR_SECONDS)
    core.cloud.wait(lambda: core.cloud.queued(core.stack.outputs["QueueUrl"]) == 0, HEAR_SECONDS)
    assert '"outcome":"no_subscribers"' not in core.cloud.log_of("notify", "iot")
