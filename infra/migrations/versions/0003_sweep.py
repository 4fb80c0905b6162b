"""What was announced of each key, and how far the sweeps have got."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables and what they are looked up by."""
    op.create_table(
        "sweep_rings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("scope", sa.BigInteger, nullable=False),
        sa.Column("object_key", sa.LargeBinary, nullable=False),
        sa.Column("etag", sa.LargeBinary, nullable=False),
        sa.Column("modified", sa.BigInteger, nullable=False),
        sa.Column("is_exact", sa.Boolean, nullable=False),
        sa.Column("identity", sa.LargeBinary, nullable=False),
        sa.Column("rang_at", sa.BigInteger, nullable=False),
    )
    op.create_index("sweep_rings_of_key", "sweep_rings", ["scope", "object_key", "id"])
    op.create_table(
        "sweep_identities",
        sa.Column("scope", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("identity", sa.LargeBinary, primary_key=True),
        sa.Column("rang_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("sweep_identities_by_age", "sweep_identities", ["scope", "rang_at"])
    op.create_table(
        "sweep_prefixes",
        sa.Column("scope", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("prefix", sa.LargeBinary, primary_key=True),
        sa.Column("t0", sa.BigInteger, nullable=False),
        sa.Column("is_complete", sa.Boolean, nullable=False),
        sa.Column("is_lost", sa.Boolean, nullable=False),
    )
    op.create_table(
        "sweep_scopes",
        sa.Column("scope", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("bucket", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Drop them: the next release that sweeps takes what is in the bucket for announced."""
    for table in ("sweep_scopes", "sweep_prefixes", "sweep_identities", "sweep_rings"):
        op.drop_table(table)
