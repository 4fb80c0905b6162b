"""Keeps out of an entry's imports what brings nothing: an entry imports this first, and calls `end` last.

Python's garbage collector: what imports create stays, and searching it again and again takes a tenth of a cold start.
And large modules that packages import for a use which is none of ours: another tenth.
"""

from __future__ import annotations

import gc
import importlib
import sys
from types import ModuleType

_UNUSED = (
    "asyncio",  # pydantic-settings: for command lines whose commands are coroutines
    "urllib.request",  # paho: for the proxies of WebSockets
    "zipfile",  # importlib.metadata: for packages in an archive
    "shutil",  # tempfile: to remove a folder
)


class _Later(ModuleType):
    """Stands in for a module until anything of it is used, and imports it then."""

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _begin() -> list[_Later]:
    gc.disable()
    stand_ins = [_Later(name) for name in _UNUSED if name not in sys.modules]
    for one in stand_ins:
        sys.modules[one.__name__] = one
        folder, _, name = one.__name__.rpartition(".")
        if folder:
            setattr(importlib.import_module(folder), name, one)  # as an import would
    return stand_ins


_stand_ins = _begin()


def end() -> None:
    """Import as ever from now on, and collect, but never search what exists already."""
    for one in _stand_ins:
        if sys.modules.get(one.__name__) is one:
            del sys.modules[one.__name__]  # who imports it now gets it; who has the stand-in already, at its first use
    gc.freeze()
    gc.enable()
