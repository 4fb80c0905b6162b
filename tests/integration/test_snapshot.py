"""SnapStart, imitated: one process initialises, copies of it begin as restored ones do, on a real Mosquitto.

A copy is a fork that keeps the process id and the state of `random`, as a restored snapshot does. What stands in for
the library that only Lambda's Python has is `tests/fakes/lambda_runtime`; see there for its source.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.local.mosquitto import Mosquitto
from infra.local.stores import MotoServer
from infra.subscriber import Subscriber

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0
CANARY = "canary-5f3a"

PROGRAM = """
import gc, json, os, random, socket, sys
from functions import notify

class Context:
    def get_remaining_time_in_millis(self):
        return 5000

def event(name):
    s3 = {"bucket": {"name": "devices"}, "object": {"key": "assets/" + name, "eTag": "e", "size": 1}}
    record = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "eventTime": "2026-11-20T00:00:00.000Z"}
    return {"Records": [{**record, "s3": s3}]}

def sockets():
    return [s.fileno() for s in gc.get_objects() if isinstance(s, socket.socket) and s.fileno() >= 0]

def restore(name):
    from snapshot_restore_py import get_after_restore
    for hook, arguments, keywords in get_after_restore():
        hook(*arguments, **keywords)
    begun = len(sockets())
    answer = notify.handler(event(name), Context())
    print(json.dumps({"answer": answer, "sockets": begun, "random": random.random()}), flush=True)
    notify.notifier().close()

if "before" in sys.argv:
    notify.handler(event("before"), Context())
snapshot = {"sockets": len(sockets()), "pid": os.getpid(), "random": random.getstate()}
print(json.dumps({"snapshot": snapshot["sockets"]}), flush=True)
sys.stdin.readline()
for name in ("one", "two"):
    child = os.fork()
    if not child:
        os.getpid = lambda: snapshot["pid"]
        random.setstate(snapshot["random"])
        try:
            restore(name)
        except BaseException as error:
            print(json.dumps({"error": repr(error)}), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
if "before" in sys.argv:
    print(json.dumps({"answer": notify.handler(event("after"), Context())}), flush=True)
"""


def run(*arguments: str, meanwhile: Callable[[], object] = lambda: None, **environ: str) -> list[dict[str, Any]]:
    """What the program says, but for metrics and logs; `meanwhile` is called between snapshot and restore."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'fakes' / 'lambda_runtime'}",
            "AWS_LAMBDA_FUNCTION_NAME": "notify",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start",
            **environ,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        end = threading.Timer(DEADLINE_SECONDS, process.kill)
        end.start()
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(json.loads(line))
            if "snapshot" in said[-1]:
                meanwhile()
                print(file=process.stdin, flush=True)
        end.cancel()
    assert process.returncode == 0
    assert not [one for one in said if "error" in one]
    return [one for one in said if "_aws" not in one and "level" not in one]


def client_ids(mosquitto: Mosquitto) -> list[str]:
    """Whom the broker let in, in order."""
    return re.findall(r"New client connected from \S+ as (bucketbell-[0-9a-f]{12})", mosquitto.log_text())


DONE = {"published": 1, "skipped": 0, "failed": 0}


def test_each_restored_process_connects_by_itself(mosquitto: Mosquitto) -> None:
    """The snapshot has no socket and no notifier; the hook connects, with a client id and chances of its own."""
    with Subscriber(mosquitto.url, ["#"]) as subscriber:
        snapshot, one, two = run(MQTT_URL=mosquitto.url)
        assert snapshot == {"snapshot": 0}
        assert one["answer"] == two["answer"] == DONE
        assert one["sockets"] == two["sockets"] == 1, "connecting began before the first invocation"
        assert one["random"] != two["random"]
        assert {subscriber.next().payload, subscriber.next().payload} == {
            b'{"filename": "one"}',
            b'{"filename": "two"}',
        }
    assert len(set(client_ids(mosquitto))) == len(client_ids(mosquitto)) == 2


def test_what_a_snapshot_holds_is_not_used(mosquitto: Mosquitto) -> None:
    """Even where the process had published before: each copy has a connection of its own, and the first lives on."""
    with Subscriber(mosquitto.url, ["#"]) as subscriber:
        snapshot, one, two, after = run("before", MQTT_URL=mosquitto.url)
        assert snapshot == {"snapshot": 1}
        assert [said["answer"] for said in (one, two, after)] == [DONE] * 3
        heard = [json.loads(subscriber.next().payload)["filename"] for _ in range(4)]
        assert heard == ["before", "one", "two", "after"]
    assert len(set(client_ids(mosquitto))) == len(client_ids(mosquitto)) == 3


def test_a_secret_is_read_after_the_restore_and_is_not_in_the_snapshot(
    moto: MotoServer, tmp_path: Path, mosquitto_binary: Path
) -> None:
    """A snapshot may be old, and the password another since: here there was none at all before."""
    del mosquitto_binary
    with Mosquitto(tmp_path, users={"bell": CANARY}) as mosquitto:
        content = {"MQTT_URL": mosquitto.url, "MQTT_USERNAME": "bell", "MQTT_PASSWORD": CANARY}
        vault = moto.client("secretsmanager")
        snapshot, one, two = run(
            meanwhile=lambda: vault.create_secret(Name="snapshot", SecretString=json.dumps(content)),
            SECRET_ID="snapshot",
            AWS_ENDPOINT_URL_SECRETS_MANAGER=moto.endpoint_url,
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing",
        )
        assert snapshot == {"snapshot": 0}
        assert one["answer"] == two["answer"] == DONE
        assert len(set(client_ids(mosquitto))) == 2


DOWNLOAD = """
import sys
from functions import download
from snapshot_restore_py import get_after_restore
print("botocore.session" in sys.modules, "boto3" in sys.modules, download._router)
before = download._ready()
for hook, arguments, keywords in get_after_restore():
    hook(*arguments, **keywords)
print("boto3" in sys.modules, download._router is download._ready() is not before)
"""


def test_a_restored_download_function_is_made_anew() -> None:
    """From keys of today; its dearest imports are in the snapshot, its clients are not."""
    answer = subprocess.run(
        [sys.executable, "-c", DOWNLOAD],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'fakes' / 'lambda_runtime'}",
            "AWS_LAMBDA_FUNCTION_NAME": "download",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "BUCKET": "devices",
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    assert answer.stdout.splitlines() == ["True False None", "True True"]
