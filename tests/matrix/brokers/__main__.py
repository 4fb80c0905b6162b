"""`python -m tests.matrix.brokers NAME` brings a broker: what the Makefile types."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infra.local.install import InstallError
from tests.matrix.brokers.install import BRING


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    if len(arguments) != 1 or arguments[0] not in BRING:
        return _end(f"usage: python -m tests.matrix.brokers {'|'.join(BRING)}", 2)
    try:
        BRING[arguments[0]](lambda line: print(line, flush=True))  # noqa: T201 - a command
    except InstallError as error:
        return _end(str(error), 1)
    return 0


def _end(why: str, status: int) -> int:
    print(why, file=sys.stderr)  # noqa: T201 - a command
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
