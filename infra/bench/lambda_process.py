"""A Lambda function's process: imports a handler, then calls it with each event. Run by the runtime's Python alone.

`python3.13 -I -B lambda_process.py <folder> <module> <descriptor>`: an event on each line of standard input; what came
of it on each line of the descriptor. Imports only what a bare interpreter has loaded, and json, which Lambda's own
runtime loads too, so that what is measured is the function's.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time

DEADLINE_MILLISECONDS = 9_000  # the function's time-out in template.yaml


class Context:
    """What a handler asks of Lambda's context."""

    function_name = "bench"
    function_version = "$LATEST"
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:bench"
    memory_limit_in_mb = 512
    aws_request_id = "00000000-0000-0000-0000-000000000000"

    def get_remaining_time_in_millis(self) -> int:
        """All of it."""
        return DEADLINE_MILLISECONDS


def main(folder: str, module: str, descriptor: int) -> None:
    """Init, then invocations until standard input ends. Each answer: [module imported at, returned at, the result]."""
    sys.path.insert(0, folder)
    handler = importlib.import_module(module).handler
    imported_at = time.monotonic()
    for line in sys.stdin.buffer:
        result = handler(json.loads(line), Context())
        os.write(descriptor, json.dumps([imported_at, time.monotonic(), result]).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
