"""Alembic's entry: runs the migrations over the connection, and in the transaction, that migrate.py opened."""

from __future__ import annotations

from alembic import context

from server.db.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
