"""What `template.yaml` has switched off by default: cameras' detection events, and stored broker settings."""

from __future__ import annotations

import re

import pytest

from functions.settings import Settings, load
from infra.connect.documents import EVENTS, SUFFIXES
from tests.template import ACCOUNT, EVERYTHING, REGION, ROOT, STACK, Stack, source


def test_the_bucket_tells_of_cameras_documents_where_it_is_asked_to() -> None:
    """Of the documents and not of the pictures, for each way of uploading; the other rules stay as they are."""
    without, with_it = (
        stack["Bucket"]["NotificationConfiguration"]["QueueConfigurations"]
        for stack in (Stack(), Stack(EventsPrefix="cameras/"))
    )
    rules = [{"Name": "prefix", "Value": "cameras/"}, {"Name": "suffix", "Value": SUFFIXES["events"]}]
    documents = [{"Event": event, "Queue": "EventQueue.Arn", "Filter": {"S3Key": {"Rules": rules}}} for event in EVENTS]
    assert with_it == without + documents


def test_an_existing_bucket_is_connected_with_what_the_command_says() -> None:
    """The variables before `bucketbell connect` are settings that it takes, EVENTS_PREFIX among them where it is on."""
    for events_prefix in ("", "cameras/"):
        command = Stack(ExistingBucket="firmware.example", EventsPrefix=events_prefix).outputs["ConnectBucket"]
        variables, _, _ = command.partition("bucketbell ")
        settings = load(dict(one.split("=", 1) for one in variables.split())).settings
        assert (settings.configs_prefix, settings.assets_prefix) == ("configs/", "assets/")
        assert settings.events_prefix == (events_prefix or None)


def test_cameras_events_are_settings_where_they_are_asked_for() -> None:
    """Both functions learn the prefix; none otherwise."""
    for prefix in ("", "cameras/"):
        stack = Stack(EventsPrefix=prefix)
        for function in ("NotifyFunction", "DownloadFunction"):
            assert load(stack.environment(function)).settings.events_prefix == (prefix or None)


@pytest.mark.parametrize("left_out", ["", "EventsPrefix", "BrokerSecret", "DownloadSecret"])
def test_thumbnails_links_lead_to_the_api_where_it_answers(left_out: str) -> None:
    """It takes the keys in both secrets; without them links are presigned, as nobody could follow any other."""
    given = {"EventsPrefix": "events/", "BrokerSecret": "bell", "DownloadSecret": "bell"}
    stack = Stack(**{name: value for name, value in given.items() if name != left_out})
    assert stack.environment("NotifyFunction")["PUBLIC_BASE_URL"] == ("" if left_out else stack.outputs["ApiUrl"])
    assert "PUBLIC_BASE_URL" not in stack.environment("DownloadFunction")


def test_stored_settings_bring_a_function_and_a_layer_where_they_are_asked_for() -> None:
    """Both functions that look into the database get its packages; DownloadFunction, and the default, have none."""
    off, on = Stack(), Stack(StoredSettings="true", BrokerSecret="bell")
    more = {name: one["Type"] for name, one in on.resources.items() if name not in off.resources}
    ((layer, properties),) = on.of("AWS::Lambda::LayerVersion").items()
    assert {name: kind for name, kind in more.items() if kind != "AWS::Lambda::Version"} == {
        layer: "AWS::Lambda::LayerVersion",
        "IntegrationFunction": "AWS::Lambda::Function",
        "IntegrationRole": "AWS::IAM::Role",
        "IntegrationLogs": "AWS::Logs::LogGroup",
        "IntegrationErrorsAlarm": "AWS::CloudWatch::Alarm",
        "IntegrationThrottlesAlarm": "AWS::CloudWatch::Alarm",
        "ApiMayAdminister": "AWS::Lambda::Permission",
    }
    assert (properties["CompatibleRuntimes"], properties["CompatibleArchitectures"]) == (["python3.13"], ["x86_64"])
    layers = {name: one.get("Layers") for name, one in on.of("AWS::Lambda::Function").items()}
    arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:layer:{STACK}:1"
    assert layers == {"NotifyFunction": [arn], "DownloadFunction": None, "IntegrationFunction": [arn]}
    assert on.resources[layer]["DeletionPolicy"] == "Delete"
    assert not any(one.get("Layers") for one in off.of("AWS::Lambda::Function").values())


def test_the_layer_is_built_from_the_list_of_the_database() -> None:
    """By `sam build`, for the processor and the runtime of the functions."""
    declared = source()["Resources"]["DatabaseLayer"]
    assert declared["Metadata"] == {"BuildMethod": "python3.13", "BuildArchitecture": {"Ref": "Architecture"}}
    assert (ROOT / declared["Properties"]["ContentUri"] / "requirements.txt").is_file()


def test_administrators_get_the_environment_that_notify_gets() -> None:
    """The same broker, and the same secret: what the API calls the environment's settings are those in force."""
    stack = Stack(**EVERYTHING)
    notify, integration = (stack.environment(name) for name in ("NotifyFunction", "IntegrationFunction"))
    assert integration.items() <= notify.items()
    assert notify.keys() - integration.keys() == {"PUBLIC_BASE_URL"}


@pytest.mark.parametrize("stored", ["false", "true"])
def test_a_new_layer_makes_a_new_snapshot_where_it_is_attached(stored: str) -> None:
    """Its version is a part of the description."""
    given = {"SnapStart": "true", "BrokerSecret": "bell", "StoredSettings": stored}
    descriptions = {
        version["Description"]
        for number in ("1", "2")
        for version in Stack(layer_version=number, **given).of("AWS::Lambda::Version").values()
    }
    assert len(descriptions) == (2 if stored == "true" else 1)


def test_stored_settings_are_tried_by_a_command() -> None:
    """At the API's address."""
    outputs = Stack(StoredSettings="true", BrokerSecret="bell").outputs
    assert outputs["TryIntegration"] == f"BUCKETBELL_SERVER={outputs['ApiUrl']} bucketbell mqtt status"


@pytest.mark.parametrize("parameter", ["BrokerSecret", "DownloadSecret", "StoredSettings"])
def test_the_keys_of_a_secret_that_a_parameter_names_are_settings(parameter: str) -> None:
    """One that is none would make the whole secret unusable."""
    named = set(re.findall(r"[A-Z]+(?:_[A-Z]+)+", source()["Parameters"][parameter]["Description"]))
    assert named
    assert named <= {name.upper() for name in Settings.model_fields}
