"""Extractors are trained by jobs that are about no single document, and say what they were trained on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_OF_ONE_DOCUMENT = ("document_id", "revision_id")


def upgrade() -> None:
    _let_jobs_be_of_no_document(nullable=True)
    op.add_column("extractors", sa.Column("name", sa.String()))
    op.add_column("extractors", sa.Column("job_id", sa.String()))
    op.add_column("extractors", sa.Column("gate", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("extractors", sa.Column("row_version", sa.BigInteger(), nullable=False, server_default="1"))
    op.create_index("ix_extractors_job_id", "extractors", ["job_id"])
    _extractor_documents()
    _extractor_questions()


def downgrade() -> None:
    """Trainings of extractors go: the older schema has no place for them."""
    op.drop_table("extractor_questions")
    op.drop_table("extractor_documents")
    op.drop_index("ix_extractors_job_id", "extractors")
    for column in ("row_version", "gate", "job_id", "name"):
        op.drop_column("extractors", column)
    op.execute("DELETE FROM jobs WHERE document_id IS NULL")
    _let_jobs_be_of_no_document(nullable=False)


def _let_jobs_be_of_no_document(*, nullable: bool) -> None:
    with op.batch_alter_table("jobs") as jobs:
        for column in _OF_ONE_DOCUMENT:
            jobs.alter_column(column, existing_type=sa.String(), nullable=nullable)


def _extractor_documents() -> None:
    op.create_table(
        "extractor_documents",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("document_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("revision_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.PrimaryKeyConstraint("job_id", "document_id"),
    )
    op.create_index("ix_extractor_documents_document", "extractor_documents", ["tenant_id", "document_id"])


def _extractor_questions() -> None:
    op.create_table(
        "extractor_questions",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("document_id", sa.String(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("answers", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.PrimaryKeyConstraint("job_id", "ordinal"),
    )
    op.create_index("ix_extractor_questions_document", "extractor_questions", ["tenant_id", "document_id"])
