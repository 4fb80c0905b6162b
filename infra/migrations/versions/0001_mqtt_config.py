"""The stored broker settings, and what each process last said of its connection."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "mqtt_config",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("broker_host", sa.String(253), nullable=False),
        sa.Column("broker_port", sa.Integer, nullable=False),
        sa.Column("username", sa.String(256)),
        sa.Column("password_encrypted", sa.Text),
        sa.Column("use_tls", sa.Boolean, nullable=False),
        sa.Column("topic_prefix", sa.String(128), nullable=False),
        sa.Column("qos", sa.Integer, nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("discovery_enabled", sa.Boolean, nullable=False),
        sa.Column("discovery_prefix", sa.String(128), nullable=False),
        sa.Column("retain_messages", sa.Boolean, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.CheckConstraint("id = 1", name="mqtt_config_one_row"),
        sa.CheckConstraint("broker_port BETWEEN 1 AND 65535", name="mqtt_config_broker_port"),
        sa.CheckConstraint("qos IN (0, 1, 2)", name="mqtt_config_qos"),
        sa.CheckConstraint("version >= 1", name="mqtt_config_version"),
    )
    op.create_table(
        "mqtt_process_status",
        sa.Column("process", sa.String(128), primary_key=True),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("broker", sa.String(512)),
        sa.Column("connected", sa.Boolean, nullable=False),
        sa.Column("since", MOMENT, nullable=False),
        sa.Column("last_connected_at", MOMENT),
        sa.Column("last_error", sa.Text),
        sa.Column("last_error_code", sa.Integer),
        sa.Column("last_error_at", MOMENT),
        sa.Column("messages_published", sa.BigInteger, nullable=False),
        sa.Column("reconnect_attempts", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", MOMENT, nullable=False),
    )


def downgrade() -> None:
    """Drop both, with what they hold."""
    op.drop_table("mqtt_process_status")
    op.drop_table("mqtt_config")
