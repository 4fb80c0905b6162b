"""Entry: `functions.integration` under its former name, for deployments that name it; gone in the next release."""

from functions.integration import handler

__all__ = ["handler"]
