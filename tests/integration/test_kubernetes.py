"""The manifests, rendered by Kustomize: valid, and at one with the image and the settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml  # type: ignore[import-untyped]  # samtranslator's parser, which others use, reads one document

from functions.settings import Settings, load
from infra.local.install import find_kustomize
from tests.conftest import missing

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "infra/deploy/kubernetes"
DOCKERFILE = (ROOT / "infra/deploy/container/Dockerfile").read_text(encoding="utf-8")
RENDER_SECONDS = 60.0
OVERLAYS = ("base", "two-replicas")
VERSIONS = ("1.30", "1.37")  # the oldest that has all that the manifests say, and the newest
# The Prometheus Operator's, which no package has a schema of.
WITHOUT_SCHEMA = {"ServiceMonitor"}
LABEL = {"app.kubernetes.io/name": "bucketbell"}

Document = dict[str, Any]


@cache
def rendered(folder: Path) -> dict[str, Document]:
    """What `kubectl apply -k` would apply, by kind."""
    program = find_kustomize() or missing("kustomize", "`make kustomize`")
    done = subprocess.run(
        [str(program), "build", str(folder)], capture_output=True, text=True, timeout=RENDER_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    documents: list[Document] = list(yaml.safe_load_all(done.stdout))
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


@pytest.fixture(params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> dict[str, Document]:
    """One of the two ways to run it."""
    return rendered(MANIFESTS / request.param)


@pytest.fixture
def monitored(tmp_path: Path) -> dict[str, Document]:
    """The base with the component for the Prometheus Operator, as a person adds it."""
    copied = tmp_path / "kubernetes"
    shutil.copytree(MANIFESTS, copied)
    with (copied / "base/kustomization.yaml").open("a") as file:
        file.write("components: [../monitoring]\n")
    return rendered(copied / "base")


def pod(documents: dict[str, Document]) -> Document:
    """The pod that the Deployment makes."""
    template: Document = documents["Deployment"]["spec"]["template"]
    return template


def host(documents: dict[str, Document]) -> Document:
    """Its one container."""
    (container,) = pod(documents)["spec"]["containers"]
    found: Document = container
    return found


def probes(documents: dict[str, Document]) -> Iterator[tuple[str, Document]]:
    """Each probe, by its name."""
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        yield name, host(documents)[name]["httpGet"]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_is_what_the_published_schema_says(documents: dict[str, Document], version: str) -> None:
    """Nothing is misspelt and nothing is missing: schemas that refuse what they do not know."""
    assert documents.keys() == {"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"}
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_is_refused(documents: dict[str, Document]) -> None:
    """So the schemas do look."""
    wrong = {**documents["Service"], "spec": {**documents["Service"]["spec"], "prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_settings_are_settings(documents: dict[str, Document]) -> None:
    """Each name is one that bucketbell knows, all values are right, and none is a secret."""
    values = documents["ConfigMap"]["data"]
    known = {name.upper(): field for name, field in Settings.model_fields.items()}
    assert values.keys() <= known.keys()
    assert not [name for name in values if "Secret" in str(known[name].annotation)]
    assert host(documents)["envFrom"] == [{"configMapRef": {"name": documents["ConfigMap"]["metadata"]["name"]}}]
    assert load(values, env_file=None).settings.sweep_seconds > 0


def test_the_secrets_that_are_asked_for_are_settings() -> None:
    """What the comments say of the Secret names variables that bucketbell knows."""
    comment = (MANIFESTS / "base/settings.env").read_text().partition("\nMQTT_URL")[0]
    names = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", comment))
    assert {"WEBHOOK_TOKENS", "MQTT_PASSWORD"} <= names <= {name.upper() for name in Settings.model_fields}


def test_ports_and_paths_match(documents: dict[str, Document]) -> None:
    """Service, probes and policy name the port of the image, and the probes ask what the host answers."""
    (port,) = host(documents)["ports"]
    assert f"EXPOSE {port['containerPort']}\n" in DOCKERFILE
    assert f'"--port", "{port["containerPort"]}"' in DOCKERFILE
    assert documents["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert documents["NetworkPolicy"]["spec"]["ingress"] == [{"ports": [{"port": port["name"]}]}]
    assert {name: (probe["path"], probe["port"]) for name, probe in probes(documents)} == {
        "startupProbe": ("/healthz", "http"),
        "livenessProbe": ("/healthz", "http"),
        "readinessProbe": ("/readyz?for=downloads", "http"),
    }


def test_each_selects_the_host_and_nothing_else(documents: dict[str, Document]) -> None:
    """An empty selector would mean every pod of the namespace, a missing one none."""
    assert pod(documents)["metadata"]["labels"] == LABEL
    assert documents["Service"]["spec"]["selector"] == LABEL
    selectors = (("Deployment", "selector"), ("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector"))
    for kind, name in selectors:
        assert documents[kind]["spec"][name] == {"matchLabels": LABEL}, kind


def test_the_host_has_few_rights(documents: dict[str, Document]) -> None:
    """The image's user, a root file system that it cannot write, no capability, no token of the cluster."""
    spec, container = pod(documents)["spec"], host(documents)
    user = spec["securityContext"]["runAsUser"]
    assert f"USER {user}:{spec['securityContext']['runAsGroup']}\n" in DOCKERFILE
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (directory,) = [one["value"] for one in container["env"] if one["name"] == "SECRETS_DIR"]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "secrets"]
    assert (mount["mountPath"], mount["readOnly"]) == (directory, True)


def test_it_has_time_to_end(documents: dict[str, Document]) -> None:
    """The host needs three seconds after what it waits for the balancers."""
    waits = host(documents)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(documents)["spec"]["terminationGracePeriodSeconds"] >= waits + 3 + 2


def test_one_host_is_alone() -> None:
    """Where nothing is shared there are never two at the same time, not even during an update."""
    spec = rendered(MANIFESTS / "base")["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_two_hosts_share_a_database() -> None:
    """Neither starts without DATABASE_URL, both may reach it, and one of them is always there."""
    documents = rendered(MANIFESTS / "two-replicas")
    spec = documents["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]["rollingUpdate"]["maxUnavailable"]) == (2, 0)
    reference = {"secretKeyRef": {"name": "bucketbell", "key": "DATABASE_URL"}}  # not `optional`
    assert {"name": "DATABASE_URL", "valueFrom": reference} in host(documents)["env"]
    assert {"ports": [{"port": 5432}]} in documents["NetworkPolicy"]["spec"]["egress"]
    assert documents["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_prometheus_finds_the_host(monitored: dict[str, Document]) -> None:
    """The component's ServiceMonitor selects the Service, and names its port."""
    assert monitored.keys() >= WITHOUT_SCHEMA
    spec = monitored["ServiceMonitor"]["spec"]
    service = monitored["Service"]
    assert spec["selector"] == {"matchLabels": service["metadata"]["labels"]}
    assert [(one["port"], one["path"]) for one in spec["endpoints"]] == [
        (service["spec"]["ports"][0]["name"], "/metrics")
    ]
