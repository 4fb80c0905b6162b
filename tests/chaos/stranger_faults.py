"""What strangers do to the host: they present wrong tokens, from the very address that everybody has behind a proxy."""

from __future__ import annotations

import base64
import secrets
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError

from functions.web.tokens import Keyring
from infra.local.process import PartError
from tests.chaos.host_faults import stop
from tests.chaos.world import Profile, World

KEYS = "DEVICE_TOKEN_KEYS"
DEVICES = 20
WRONG_AT_LEAST = 60  # twice what one address may get wrong in a minute before short secrets are refused
GUESSERS = 4
GUESS_PAUSE_SECONDS = 0.05
ANSWER_SECONDS = 10.0


def with_devices(directory: Path, profile: Profile) -> World:
    """A host that knows devices' tokens."""
    return World(directory, profile, variables={KEYS: f"k1:{_key()}"})


def lock_out(world: World, profile: Profile) -> None:
    """Devices with an old key, and somebody who guesses, while the host is stopped and started again (SIGTERM).

    The host remembers nobody then. Each of twenty devices that were never there before must be let in while that
    lasts, and MinIO too, which comes from the same address. Raises AssertionError for those that are not.
    """
    ring, old = Keyring.parse([world.host.environment[KEYS]]), Keyring.parse([f"k1:{_key()}"])
    over = threading.Event()
    refused: list[int] = []

    def guess(number: int) -> None:
        while not over.wait(GUESS_PAUSE_SECONDS):
            token = secrets.token_hex(12) if number % 2 else old.mint(_mac(number))
            refused.extend(_status(world, path, token) for path in ("/manifest", "/events"))

    with ThreadPoolExecutor(GUESSERS + DEVICES) as pool:
        try:
            guessers = [pool.submit(guess, number) for number in range(GUESSERS)]
            stop(world.host)
            world.host.start()
            time.sleep(profile.outage_seconds / 2)
            until = time.monotonic() + profile.outage_seconds / 2
            tokens = [ring.mint(_mac(number)) for number in range(DEVICES)]
            let_in = sum(pool.map(lambda token: _is_let_in(world, token, until), tokens))
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            over.set()
        for one in guessers:
            one.result()
    world.healed()
    if refused.count(HTTPStatus.UNAUTHORIZED) < WRONG_AT_LEAST:
        raise PartError(
            f"the fault did not bite: only {refused.count(HTTPStatus.UNAUTHORIZED)} wrong tokens were judged"
        )
    if let_in < DEVICES:
        raise AssertionError(f"{DEVICES - let_in} of {DEVICES} devices with a right token were not let in")


def _is_let_in(world: World, token: str, until: float) -> bool:
    """Ask as a device does: again when it is told to."""
    while (status := _status(world, "/manifest", token)) != HTTPStatus.OK:
        if time.monotonic() > until:
            return False
        if status == HTTPStatus.UNAUTHORIZED:
            raise AssertionError("a right token was called wrong")
        time.sleep(GUESS_PAUSE_SECONDS)
    return True


def _status(world: World, path: str, token: str) -> int:
    """What is answered; 0 where nothing is."""
    body = b"{}" if path == "/events" else None
    request = urllib.request.Request(  # noqa: S310 - an http URL of ours
        f"{world.host.url}{path}", body, {"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - as above
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except OSError:  # the host is being started
        return 0


def _mac(number: int) -> str:
    return f"00-00-00-00-00-{number:02x}"


def _key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()
