"""The settings of the fleet: topics of devices' own, and what is kept of their reports."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class FleetSettings(BaseSettings):
    """Part of `Settings`."""

    model_config = SettingsConfigDict(defer_build=True)  # nothing is validated by a part

    device_topics: Literal["off", "on", "only"] = Field(
        default="off",
        description="`on`: a config is announced on its device's own topic too, `<prefix>/devices/<mac>/updates`, and "
        "`bucketbell ring --device` works. `only`: not on `<prefix>/updates/configs` any more, which spares a large "
        "fleet the configs of all others; devices must subscribe to their own topics before.",
    )
    fleet_accept_unknown: Literal["off", "on"] = Field(
        default="off",
        description="`on`: a report alone makes a device known. Otherwise it needs a config in the bucket, an "
        "assignment, or a token that it has used.",
    )
    fleet_retention_days: int = Field(
        default=90,
        ge=1,
        le=3650,
        description="How long the states that devices reported are kept (DATABASE_URL); the last of each file stays.",
    )
