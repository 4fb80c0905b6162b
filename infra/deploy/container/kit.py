"""What compose.yaml needs beside `bucketbell`: secrets at the first start, and an upload without an S3 client.

`kit.py secrets` makes those that are missing; `kit.py upload KEY` stores what it reads from standard input.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import sys
from pathlib import Path

HOST, BROKER, STORE = 10001, 1883, 10002  # the users of the three images
ITERATIONS = 101  # Mosquitto's own; the password is 32 random bytes, which nobody guesses
READ_SECONDS = 60.0


def make_secrets(directory: Path) -> None:
    """Make what is missing, a folder for each service. What is there stays; what is edited counts at once."""

    def kept(name: str, new: str) -> str:
        file = directory / "host" / name
        if not file.exists():
            write(file, new, HOST)
        return file.read_text()

    tokens = kept("WEBHOOK_TOKENS", secrets.token_hex(24))
    user = kept("AWS_ACCESS_KEY_ID", f"bucketbell-{secrets.token_hex(4)}")
    password = kept("AWS_SECRET_ACCESS_KEY", secrets.token_hex(24))
    kept("ADMIN_TOKENS", secrets.token_hex(24))
    kept("DEVICE_TOKEN_KEYS", f"first:{base64.b64encode(secrets.token_bytes(32)).decode()}")
    kept("ENCRYPTION_KEYS", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    name = kept("MQTT_USERNAME", "bucketbell").strip()
    of_broker = kept("MQTT_PASSWORD", secrets.token_hex(24))

    token = tokens.split(",")[0].strip()
    variables = {"MINIO_ROOT_USER": user, "MINIO_ROOT_PASSWORD": password} | {
        f"MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_{target}": token for target in ("BUCKETBELLFAST", "BUCKETBELLSURE")
    }
    text = "".join(f"export {name}={value.strip()}\n" for name, value in variables.items())
    write(directory / "store" / "config.env", text, STORE)

    passwords = directory / "broker" / "passwords"
    of_others = passwords.read_text().splitlines(keepends=True) if passwords.exists() else []
    lines = [line for line in of_others if not line.startswith(f"{name}:")]
    write(passwords, f"{name}:{hashed(of_broker.strip())}\n{''.join(lines)}", BROKER)


def hashed(password: str) -> str:
    """Return what `mosquitto_passwd` would write: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    return f"$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def write(file: Path, text: str, owner: int) -> None:
    """Write it for this user alone, never half."""
    os.chown(file.parent, owner, owner)
    file.parent.chmod(0o700)
    fresh = file.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    os.chown(fresh, owner, owner)
    fresh.replace(file)


def upload(key: str) -> None:
    """Store standard input under this key, with the host's settings."""
    from functions.s3 import clients  # noqa: PLC0415 - the secrets need none of it
    from functions.settings import load  # noqa: PLC0415 - as above

    settings = load(env_file=None).settings
    s3 = clients.client("s3", settings, read_timeout_seconds=READ_SECONDS)
    s3.put_object(Bucket=settings.bucket or "devices", Key=key, Body=sys.stdin.buffer.read())


if __name__ == "__main__":
    if sys.argv[1] == "secrets":
        make_secrets(Path("/secrets"))
    else:
        upload(sys.argv[2])
