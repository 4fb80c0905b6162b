"""The settings: validated once, at the edge; the only reader of the environment. `load` is the way in."""

from functions.settings.model import LambdaRuntime, Loaded, Settings, SettingsError, lambda_runtime, load

__all__ = ["LambdaRuntime", "Loaded", "Settings", "SettingsError", "lambda_runtime", "load"]
