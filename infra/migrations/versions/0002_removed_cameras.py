"""The cameras that were removed from Home Assistant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "removed_cameras",
        sa.Column("camera_id", sa.String(128), primary_key=True),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Drop it: cameras that were removed come back."""
    op.drop_table("removed_cameras")
