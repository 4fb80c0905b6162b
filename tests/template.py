"""`template.yaml` after the same transformation that AWS applies to it, with its parameters filled in."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from boto3.session import Session
from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]  # it brings no types
from samtranslator.translator.translator import Translator  # type: ignore[import-untyped]  # as above
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-untyped]  # as above

ROOT = Path(__file__).parents[1]
ACCOUNT, REGION, STACK = "123456789012", "eu-central-1", "stack"
NOTHING = object()
PSEUDO: dict[str, object] = {
    "AWS::AccountId": ACCOUNT,
    "AWS::NoValue": NOTHING,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackName": STACK,
    "AWS::URLSuffix": "amazonaws.com",
}
BUCKET = f"bucketbell-{ACCOUNT}-{REGION}"
VARIABLE = re.compile(r"\$\{([^}]+)\}")

BROKER_SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:bell/mqtt-AbCdEf"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd"
EVERYTHING = {
    "ExistingBucket": "firmware.example",
    "BucketRegion": "af-south-1",
    "EventsPrefix": "events/",
    "MqttUrl": "mqtts://a1b2c3d4e5f6g7-ats.iot.eu-central-1.amazonaws.com:443",
    "BrokerSecret": BROKER_SECRET,
    "StoredSettings": "true",
    "MqttAlpn": "x-amzn-mqtt-ca",
    "DownloadSecret": "bell/download",
    "SecretsKeyArn": KEY,
    "CorsOrigins": "https://fleet.example,https://ops.example",
    "SubnetIds": "subnet-0a1b2c3d4e5f60718,subnet-18f7e6d5c4b3a2910",
    "SecurityGroupIds": "sg-0a1b2c3d4e5f60718",
    "SnapStart": "true",
    "Tracing": "true",
    "AlarmEmail": "ops@fleet.example",
}


@cache
def source() -> dict[str, Any]:
    """The template as written, with its intrinsic functions in their long form."""
    document: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text(encoding="utf-8"))
    return document


@cache
def transformed(code: str = "one", **parameters: str) -> dict[str, Any]:
    """The CloudFormation document that AWS makes of the template, that code and these parameters.

    SAM fills in parameters at some places by itself.
    """
    document = copy.deepcopy(source())
    document["Globals"]["Function"]["CodeUri"] = f"s3://artefacts/{code}"  # as `sam deploy` does
    document["Resources"]["DatabaseLayer"]["Properties"]["ContentUri"] = "s3://artefacts/layer"
    translator = Translator({}, Parser(), boto_session=Session(region_name=REGION))
    result: dict[str, Any] = json.loads(json.dumps(translator.translate(document, parameters)))
    return result


class Stack:
    """The template with these parameters, each `Ref`, `Sub` and `If` replaced by what it comes to.

    A resource's `Ref` becomes its logical name, but a layer's, which has a version; an attribute `<name>.<attribute>`.
    """

    def __init__(self, *, layer_version: str = "1", **parameters: str) -> None:
        declared = source()["Parameters"]
        assert parameters.keys() <= declared.keys()
        self._document = transformed(**parameters)
        layers = (
            name for name, one in self._document["Resources"].items() if one["Type"] == "AWS::Lambda::LayerVersion"
        )
        self._values = PSEUDO | {name: one["Default"] for name, one in declared.items()} | parameters
        self._values |= dict.fromkeys(layers, f"arn:aws:lambda:{REGION}:{ACCOUNT}:layer:{STACK}:{layer_version}")
        self.resources: dict[str, Any] = self._made("Resources")
        self.outputs: dict[str, str] = {name: one["Value"] for name, one in self._made("Outputs").items()}

    def __getitem__(self, name: str) -> dict[str, Any]:
        properties: dict[str, Any] = self.resources[name]["Properties"]
        return properties

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """The properties of every resource of a type, by logical name."""
        return {name: one["Properties"] for name, one in self.resources.items() if one["Type"] == kind}

    def statements(self, role: str) -> list[dict[str, Any]]:
        """What a role's own policies say; it has no others."""
        properties = self[role]
        assert "ManagedPolicyArns" not in properties
        return [one for policy in properties["Policies"] for one in policy["PolicyDocument"]["Statement"]]

    def permissions(self, role: str) -> set[tuple[str, str]]:
        """What a role may do: action and resource, one by one."""
        statements = self.statements(role)
        assert {one["Effect"] for one in statements} == {"Allow"}
        assert not any({"NotAction", "NotResource"} & one.keys() for one in statements)
        return {
            (action, resource)
            for one in statements
            for action in listed(one["Action"])
            for resource in listed(one["Resource"])
        }

    def environment(self, function: str) -> dict[str, str]:
        """A function's variables, as Lambda hands them on."""
        return {name: str(value) for name, value in self[function]["Environment"]["Variables"].items()}

    @property
    def broken_rules(self) -> list[str]:
        """What CloudFormation would refuse these parameters for."""
        return [
            assertion["AssertDescription"]
            for rule in self._document["Rules"].values()
            if self._resolve(rule.get("RuleCondition", True))
            for assertion in rule["Assertions"]
            if not self._resolve(assertion["Assert"])
        ]

    def holds(self, condition: str) -> bool:
        """Whether a condition is true."""
        return bool(self._resolve(self._document["Conditions"][condition]))

    def _made(self, section: str) -> dict[str, Any]:
        return {
            name: self._resolve({key: part for key, part in one.items() if key != "Condition"})
            for name, one in self._document[section].items()
            if "Condition" not in one or self.holds(one["Condition"])
        }

    def _resolve(self, node: object) -> Any:  # noqa: ANN401 - what it comes to, no type tells
        """`node` without intrinsic functions; an unknown one is an error."""
        if isinstance(node, list):
            return [one for one in map(self._resolve, node) if one is not NOTHING]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((name, argument),) = node.items()
            # IAM has a key of that name, too: with a block behind it.
            if name == "Ref" or name.startswith("Fn::") or (name == "Condition" and isinstance(argument, str)):
                return self._functions[name](argument)
        resolved = {name: self._resolve(one) for name, one in node.items()}
        return {name: one for name, one in resolved.items() if one is not NOTHING}

    @property
    def _functions(self) -> dict[str, Callable[[Any], object]]:
        return {
            "Ref": lambda name: self._values.get(name, name),
            "Condition": self.holds,
            "Fn::GetAtt": ".".join,
            "Fn::Sub": self._sub,
            "Fn::If": lambda one: self._resolve(one[1 if self.holds(one[0]) else 2]),
            "Fn::Equals": lambda two: str(self._resolve(two[0])) == str(self._resolve(two[1])),
            "Fn::And": lambda all_of: all(map(self._resolve, all_of)),
            "Fn::Or": lambda any_of: any(map(self._resolve, any_of)),
            "Fn::Not": lambda one: not self._resolve(one[0]),
            "Fn::Join": lambda two: two[0].join(self._resolve(two[1])),
            "Fn::Select": lambda two: self._resolve(two[1])[int(two[0])],
            "Fn::Split": lambda two: self._resolve(two[1]).split(two[0]),
        }

    def _sub(self, argument: str | list[Any]) -> str:
        text, own = (argument, {}) if isinstance(argument, str) else argument
        names = self._values | self._resolve(own)
        return VARIABLE.sub(lambda found: str(names.get(found[1], found[1])), text)


def listed(value: str | list[str]) -> list[str]:
    """IAM's one-or-many as many."""
    return [value] if isinstance(value, str) else value


def references(node: object) -> Iterator[str]:
    """The names that a resource's declaration refers to: what CloudFormation makes before it."""
    if isinstance(node, list):
        for one in node:
            yield from references(one)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in {"Ref", "DependsOn"}:
                yield from listed(value)
            elif name == "Fn::GetAtt":
                yield value[0]
            elif name == "Fn::Sub":
                text = value if isinstance(value, str) else value[0]
                yield from (found.partition(".")[0] for found in VARIABLE.findall(text))
            yield from references(value)


def order(resources: dict[str, Any]) -> list[str]:
    """An order in which the resources can be made; CycleError when there is none."""
    return list(TopologicalSorter({name: set(references(one)) for name, one in resources.items()}).static_order())


def accepts(parameter: str, value: str) -> bool:
    """Whether CloudFormation would take this value for a parameter."""
    declared: dict[str, Any] = source()["Parameters"][parameter]
    if "AllowedValues" in declared:
        return value in [str(one) for one in declared["AllowedValues"]]
    if declared["Type"] == "Number":
        return bool(declared["MinValue"] <= float(value) <= declared.get("MaxValue", float("inf")))
    fits = declared.get("MinLength", 0) <= len(value) <= declared.get("MaxLength", 4096)
    return bool(fits) and re.fullmatch(declared.get("AllowedPattern", ".*"), value) is not None
