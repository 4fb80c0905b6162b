"""What a process on Lambda goes through: a start, perhaps a snapshot and its restores, and secrets that change."""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from functions.settings import lambda_runtime, load
from functions.settings.secret import import_botocore

if TYPE_CHECKING:
    from functions.settings import Settings


class Renewal:
    """The settings, read again now and then while the process is warm: a secret changes without a deployment."""

    def __init__(self, *, after_seconds: float, read: Callable[[], Settings] = lambda: load().settings) -> None:
        """Read them. Raises SettingsError."""
        self._after_seconds = after_seconds
        self._read = read
        self.settings = read()
        self._tried_at = time.time()

    def renew(self) -> bool:
        """Read again if there is a SECRET_ID and the last try is long enough ago; tell whether anything has changed.

        Raises SettingsError; `settings` are the last good ones then.
        """
        # The wall clock: the monotonic one may stand still while Lambda has the process frozen.
        if self.settings.secret_id is None or 0 <= time.time() - self._tried_at < self._after_seconds:
            return False
        self._tried_at = time.time()
        before, self.settings = self.settings, self._read()
        return self.settings != before


def begin(start: Callable[[], None], *, asks_aws: bool = False) -> None:
    """Call `start` on Lambda only: now, or under SnapStart after each restore.

    A snapshot may be old, and many processes begin with it: it gets imports, no socket and no secret. What `start`
    raises fails the start, or the restore, and Lambda tries again. `asks_aws`: botocore is needed, secret or not.
    Source: AWS Lambda, "Lambda SnapStart runtime hooks for Python".
    """
    runtime = lambda_runtime()
    if runtime is None:
        return
    if not runtime.snap_start:
        start()
        return
    if asks_aws or runtime.has_secret:
        import_botocore()
    try:
        hooks = importlib.import_module("snapshot_restore_py")
    except ModuleNotFoundError:  # only Lambda's own Python has it; without it the first call starts
        return
    hooks.register_after_restore(_restored, start)


def _restored(start: Callable[[], None]) -> None:
    random.seed()  # or all restored processes would wait equally long before they connect again
    start()
