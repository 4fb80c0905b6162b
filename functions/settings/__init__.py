"""The settings: validated once, at the edge; the only reader of the environment. `load` is the way in."""

from functions.settings.environment import LambdaRuntime, Loaded, lambda_runtime, load
from functions.settings.model import Settings, SettingsError, setting_names

__all__ = ["LambdaRuntime", "Loaded", "Settings", "SettingsError", "lambda_runtime", "load", "setting_names"]
