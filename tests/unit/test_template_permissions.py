"""What `template.yaml` allows, to whom: roles, queues, the bucket, secrets, the network and other web sites."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase

import pytest

from functions.settings import Settings
from infra.connect.documents import allow_bucket
from tests.template import ACCOUNT, BROKER_SECRET, BUCKET, EVERYTHING, KEY, REGION, Stack, accepts, source

TRUST_LAMBDA = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
# Lambda checks for exactly this on everything where a function is put into a VPC; X-Ray knows no resources.
NETWORK = {
    ("ec2:AssignPrivateIpAddresses", "*"),
    ("ec2:CreateNetworkInterface", "*"),
    ("ec2:DeleteNetworkInterface", "*"),
    ("ec2:DescribeNetworkInterfaces", "*"),
    ("ec2:DescribeSubnets", "*"),
    ("ec2:UnassignPrivateIpAddresses", "*"),
}
TRACING = {("xray:PutTelemetryRecords", "*"), ("xray:PutTraceSegments", "*")}
NOTIFY = {
    ("sqs:ReceiveMessage", "EventQueue.Arn"),
    ("sqs:DeleteMessage", "EventQueue.Arn"),
    ("sqs:GetQueueAttributes", "EventQueue.Arn"),
    ("sqs:SendMessage", "FailedInvocations.Arn"),
    ("logs:CreateLogStream", "NotifyLogs.Arn"),
    ("logs:PutLogEvents", "NotifyLogs.Arn"),
}
SECRET_ACTION = "secretsmanager:GetSecretValue"
SECRETS = {"BrokerSecret": {"NotifyRole", "IntegrationRole"}, "DownloadSecret": {"DownloadRole"}}
ROLES = {role for roles in SECRETS.values() for role in roles}


def test_every_function_has_a_role_of_our_own() -> None:
    """SAM makes none: those that it makes read every queue and write every log of the account."""
    for stack, more in ((Stack(), {}), (Stack(**EVERYTHING), {"IntegrationFunction": "IntegrationRole.Arn"})):
        roles = {name: one["Role"] for name, one in stack.of("AWS::Lambda::Function").items()}
        assert roles == {"NotifyFunction": "NotifyRole.Arn", "DownloadFunction": "DownloadRole.Arn"} | more
        assert {f"{role}.Arn" for role in stack.of("AWS::IAM::Role")} == set(roles.values())
        assert not {"AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"} & {one["Type"] for one in stack.resources.values()}


def test_notify_may_read_its_queue_and_nothing_else() -> None:
    """It cannot read objects, other queues, secrets or other logs; without cameras' events it never reads an object."""
    assert Stack().permissions("NotifyRole") == NOTIFY
    more = {(SECRET_ACTION, BROKER_SECRET), ("kms:Decrypt", KEY)}
    assert Stack(**EVERYTHING | {"EventsPrefix": ""}).permissions("NotifyRole") == NOTIFY | NETWORK | TRACING | more


@pytest.mark.parametrize("bucket", [BUCKET, "firmware.example"])
def test_with_cameras_events_notify_may_read_those_and_no_other_object(bucket: str) -> None:
    """And list the bucket, or S3 would call a picture that is not there forbidden, and the event would be retried."""
    arn = f"arn:aws:s3:::{bucket}"
    existing = "" if bucket == BUCKET else bucket
    assert Stack(EventsPrefix="cameras/", ExistingBucket=existing).permissions("NotifyRole") == NOTIFY | {
        *((f"s3:{do}", f"{arn}/cameras/*") for do in ("GetObject", "GetObjectVersion")),
        *((f"s3:{do}", arn) for do in ("GetBucketVersioning", "ListBucket", "ListBucketVersions")),
    }


def test_with_cameras_events_download_may_read_the_thumbnails_too() -> None:
    """As they are now, and not the documents beside them."""
    more = Stack(EventsPrefix="cameras/").permissions("DownloadRole") - Stack().permissions("DownloadRole")
    assert more == {("s3:GetObject", f"arn:aws:s3:::{BUCKET}/cameras/*.jpg")}


def test_the_integration_may_read_its_secret_and_list_the_bucket() -> None:
    """No queue and no object: it tells which devices have which file."""
    granted = Stack(StoredSettings="true", BrokerSecret=BROKER_SECRET).permissions("IntegrationRole")
    logs = {(f"logs:{do}", "IntegrationLogs.Arn") for do in ("CreateLogStream", "PutLogEvents")}
    lists = {
        (f"s3:{do}", f"arn:aws:s3:::{BUCKET}") for do in ("GetBucketVersioning", "ListBucket", "ListBucketVersions")
    }
    assert granted == logs | lists | {(SECRET_ACTION, BROKER_SECRET)}
    everything = Stack(**EVERYTHING).permissions("IntegrationRole")
    of_existing = {(do, f"arn:aws:s3:::{EVERYTHING['ExistingBucket']}") for do, _ in lists}
    assert everything == (granted - lists) | of_existing | NETWORK | TRACING | {("kms:Decrypt", KEY)}


@pytest.mark.parametrize("bucket", [BUCKET, "firmware.example"])
def test_download_may_read_the_two_prefixes_and_list_the_bucket(bucket: str) -> None:
    """It cannot write, and it cannot read what else is in the bucket, be it ours or an existing one."""
    existing = "" if bucket == BUCKET else bucket
    assert Stack(ConfigsPrefix="a/b/", ExistingBucket=existing).permissions("DownloadRole") == {
        *((f"s3:{do}", f"arn:aws:s3:::{bucket}/a/b/*") for do in ("GetObject", "GetObjectVersion")),
        *((f"s3:{do}", f"arn:aws:s3:::{bucket}/assets/*") for do in ("GetObject", "GetObjectVersion")),
        *((f"s3:{do}", f"arn:aws:s3:::{bucket}") for do in ("GetBucketVersioning", "ListBucket", "ListBucketVersions")),
        ("logs:CreateLogStream", "DownloadLogs.Arn"),
        ("logs:PutLogEvents", "DownloadLogs.Arn"),
    }


@pytest.mark.parametrize("parameters", [{}, EVERYTHING], ids=["as is", "everything"])
def test_no_function_may_do_everything_or_to_everything(parameters: dict[str, str]) -> None:
    """No `*` in an action; none as a resource, but for network interfaces in a VPC and for tracing."""
    stack = Stack(**parameters)
    for role in stack.of("AWS::IAM::Role"):
        granted = stack.permissions(role)
        assert not [action for action, _ in granted if "*" in action]
        exceptions = TRACING | (NETWORK if role != "DownloadRole" else set()) if parameters else set()
        assert {one for one in granted if one[1] == "*"} == exceptions
        assert stack[role]["AssumeRolePolicyDocument"]["Statement"] == [TRUST_LAMBDA]


@pytest.mark.parametrize("parameter", SECRETS)
def test_a_function_may_read_its_own_secret_and_no_other(parameter: str) -> None:
    """By name, that is the name with the six characters that Secrets Manager adds; by ARN, exactly that one."""
    granted = {name: Stack(StoredSettings="true", **{parameter: name}) for name in ("bell/mqtt", BROKER_SECRET)}
    for stack in granted.values():
        assert {role for role in ROLES if any(a == SECRET_ACTION for a, _ in stack.permissions(role))} == SECRETS[
            parameter
        ]
    for role in SECRETS[parameter]:
        (by_name,) = (r for a, r in granted["bell/mqtt"].permissions(role) if a == SECRET_ACTION)
        assert by_name == f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:bell/mqtt-??????"
        assert fnmatchcase(BROKER_SECRET, by_name)
        assert not fnmatchcase(BROKER_SECRET.replace("-AbCdEf", "-prod-AbCdEf"), by_name)
        assert (SECRET_ACTION, BROKER_SECRET) in granted[BROKER_SECRET].permissions(role)


@pytest.mark.parametrize("parameter", SECRETS)
def test_a_key_of_ones_own_decrypts_secrets_only(parameter: str) -> None:
    """Only for who has a secret, and only through Secrets Manager."""
    given = {parameter: "bell", "StoredSettings": "true"}
    stack = Stack(**given, SecretsKeyArn=KEY)
    for role in ROLES:
        found = [one for one in stack.statements(role) if "kms:Decrypt" in one["Action"]]
        assert bool(found) == (role in SECRETS[parameter])
        for statement in found:
            assert statement["Resource"] == KEY
            via = {"kms:ViaService": f"secretsmanager.{REGION}.amazonaws.com"}
            assert statement["Condition"] == {"StringEquals": via}
        assert not [one for one in Stack(**given).permissions(role) if one[0] == "kms:Decrypt"]


def test_no_secret_is_in_the_template_or_in_a_functions_configuration() -> None:
    """A secret setting is no variable, no parameter holds one, and nothing is resolved when the stack is deployed."""
    stack = Stack(**EVERYTHING)
    secret = {name.upper() for name, one in Settings.model_fields.items() if "SecretStr" in str(one.annotation)}
    assert {"MQTT_PASSWORD", "DEVICE_TOKEN_KEYS", "ADMIN_TOKENS"} <= secret
    for function in stack.of("AWS::Lambda::Function"):
        assert not secret & stack.environment(function).keys()
    assert "{{resolve:" not in json.dumps(source())
    named = {stack.environment(one)["SECRET_ID"] for one in stack.of("AWS::Lambda::Function")}
    assert named == {EVERYTHING[parameter] for parameter in SECRETS}
    assert not accepts("MqttUrl", "mqtt://user:password@broker")


def test_only_this_bucket_of_this_account_may_fill_the_queue() -> None:
    """The policy is what `bucketbell connect` writes, for a bucket of ours and for an existing one."""
    for bucket, stack in {BUCKET: Stack(), "firmware.example": Stack(ExistingBucket="firmware.example")}.items():
        (policy,) = stack.of("AWS::SQS::QueuePolicy").values()
        written = allow_bucket(None, bucket=bucket, queue_arn=f"arn:aws:sqs:{REGION}:{ACCOUNT}:events")
        assert written is not None
        (wanted,) = json.loads(written)["Statement"]
        (statement,) = policy["PolicyDocument"]["Statement"]
        assert policy["Queues"] == ["EventQueue"]
        assert statement == wanted | {"Sid": statement["Sid"], "Resource": "EventQueue.Arn"}


def test_the_bucket_takes_tls_only() -> None:
    """Whoever comes without is refused, whatever else allows them."""
    (policy,) = Stack().of("AWS::S3::BucketPolicy").values()
    assert policy["Bucket"] == "Bucket"
    assert policy["PolicyDocument"]["Statement"] == [
        {
            "Sid": "OnlyOverTls",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": ["Bucket.Arn", "Bucket.Arn/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    ]


def test_nobody_but_the_http_api_may_invoke_the_functions_behind_it() -> None:
    """This API and no other; NotifyFunction has an event source mapping, which needs no permission."""
    of_the_api = {
        "Action": "lambda:InvokeFunction",
        "Principal": "apigateway.amazonaws.com",
        "SourceArn": f"arn:aws:execute-api:{REGION}:{ACCOUNT}:DownloadApi/*",
    }
    for stack, functions in (
        (Stack(), ["DownloadFunction"]),
        (Stack(**EVERYTHING), ["DownloadFunction", "IntegrationFunction"]),
    ):
        permissions = stack.of("AWS::Lambda::Permission").values()
        assert list(permissions) == [of_the_api | {"FunctionName": name} for name in functions]


def test_the_network_is_a_vpc_where_one_is_named() -> None:
    """Who talks to the broker or the database is put into the named subnets, DownloadFunction never."""
    stack, outside = Stack(**EVERYTHING), Stack(StoredSettings="true")
    for function in ("NotifyFunction", "IntegrationFunction"):
        assert "VpcConfig" not in outside[function]
        assert stack[function]["VpcConfig"] == {
            "SubnetIds": EVERYTHING["SubnetIds"].split(","),
            "SecurityGroupIds": [EVERYTHING["SecurityGroupIds"]],
        }
    assert "VpcConfig" not in stack["DownloadFunction"]


def test_no_other_web_site_may_read_unless_it_is_named() -> None:
    """CORS is off; with origins, it is on for the API and for the bucket that its links lead to."""
    off, on = Stack(), Stack(CorsOrigins="https://a.example,https://b.example")
    assert "x-amazon-apigateway-cors" not in off["DownloadApi"]["Body"]
    assert "CorsConfiguration" not in off["Bucket"]
    cors = on["DownloadApi"]["Body"]["x-amazon-apigateway-cors"]
    assert cors["allowOrigins"] == ["https://a.example", "https://b.example"]
    assert cors["allowMethods"] == ["GET", "HEAD"]
    assert "authorization" in cors["allowHeaders"]
    assert "allowCredentials" not in cors
    (rule,) = on["Bucket"]["CorsConfiguration"]["CorsRules"]
    assert (rule["AllowedOrigins"], rule["AllowedMethods"]) == (cors["allowOrigins"], ["GET"])
