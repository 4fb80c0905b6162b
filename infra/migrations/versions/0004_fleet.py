"""Which devices there are, what each reported of its files, and the uploads that they are told of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from functions.stored.database import UtcDateTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the tables and what they are looked up by."""
    op.create_table(
        "fleet_devices",
        sa.Column("mac", sa.String(17), primary_key=True),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("known_since", UtcDateTime, nullable=False),
        sa.Column("is_online", sa.Boolean),
        sa.Column("online_at", UtcDateTime),
        sa.Column("reported_at", UtcDateTime),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("follows", sa.Text, nullable=False),
        sa.Column("assigned", sa.Text, nullable=False),
    )
    op.create_index("fleet_devices_following", "fleet_devices", ["follows"])
    op.create_index("fleet_devices_assigned", "fleet_devices", ["assigned"])
    op.create_table(
        "fleet_reports",
        sa.Column("mac", sa.String(17), primary_key=True),
        sa.Column("filename", sa.Text, primary_key=True),
        sa.Column("etag", sa.Text, nullable=False),
        sa.Column("version_id", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.Integer),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("arrived_at", UtcDateTime, nullable=False),
    )
    op.create_index("fleet_reports_of_file", "fleet_reports", ["filename", "state", "mac"])
    op.create_table(
        "fleet_history",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("mac", sa.String(17), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("etag", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("arrived_at", UtcDateTime, nullable=False),
    )
    op.create_index("fleet_history_of_device", "fleet_history", ["mac", "id"])
    op.create_index("fleet_history_of_file", "fleet_history", ["filename", "etag", "state"])
    op.create_index("fleet_history_by_age", "fleet_history", ["arrived_at"])
    op.create_table(
        "fleet_uploads",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("identity", sa.String(32), nullable=False, unique=True),
        sa.Column("object_key", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("etag", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("uploaded_at", UtcDateTime),
        sa.Column("rang_at", UtcDateTime, nullable=False),
        sa.Column("confirmed_at", UtcDateTime),
    )


def downgrade() -> None:
    """Drop them: devices report again what they have, each when it gets its next file."""
    for table in ("fleet_uploads", "fleet_history", "fleet_reports", "fleet_devices"):
        op.drop_table(table)
