"""The deletion of an extractor is finished even if it is interrupted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("extractors", sa.Column("deleted_at", sa.Double()))


def downgrade() -> None:
    op.execute("DELETE FROM extractors WHERE deleted_at IS NOT NULL")
    op.drop_column("extractors", "deleted_at")
