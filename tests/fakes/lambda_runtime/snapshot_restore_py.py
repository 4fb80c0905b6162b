"""Stands in for the library of the same name that Lambda's Python has: same functions, same order.

Source: AWS Lambda, "Lambda SnapStart runtime hooks for Python"; awslambdaric, `lambda_runtime_hooks_runner`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_after_restore: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []


def register_after_restore(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:  # noqa: ANN401 - as there
    """Remember what to call after a restore."""
    _after_restore.append((func, args, kwargs))
    return func


def get_after_restore() -> list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    """What to call, in the order in which it was registered."""
    return _after_restore
