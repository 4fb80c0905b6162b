"""What figures were measured on: the machine without its name, and the programs without their places."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from infra.local.install import MINIO, find_minio, find_mosquitto

ASK_SECONDS = 5.0
UNKNOWN = "unknown"


def describe() -> dict[str, str]:
    """What it is → in words. To be asked before the run, which is what keeps the machine busy later."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores, {platform.machine()}",
        "busy before": f"{os.getloadavg()[0]:.1f} processes on average in the minute before",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1024**3:.1f} GiB",
        "system": f"{_system()}, kernel {platform.release()}",
        "bucketbell": metadata.version("bucketbell"),
        "Python": platform.python_version(),
        "Mosquitto": _version(find_mosquitto(), "-h"),
        "MinIO": _minio(),
        "Node.js": _version(shutil.which("node"), "--version"),
    }


def in_one_sentence() -> str:
    """The same without what only a comparison of speeds needs."""
    told = describe()
    named = [f"{name} {told[name]}" for name in ("Python", "Mosquitto", "MinIO")]
    return ", ".join([told["processor"], f"{told['memory']} of memory", told["system"], *named])


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or UNKNOWN


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _minio() -> str:
    binary = find_minio()
    version = _version(binary, "--version")
    # Built by `make minio` it does not know its own.
    return MINIO.version if binary is not None and "DEVELOPMENT" in version else version


def _version(program: Path | str | None, option: str) -> str:
    """What a program says of its version in its first line."""
    if program is None:
        return "not here"
    try:
        done = subprocess.run([program, option], capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    first, *_ = [*done.stdout.splitlines(), UNKNOWN]
    return first.rpartition("version ")[2].strip()
