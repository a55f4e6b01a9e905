"""The health check of a worker's container: can this machine reach the broker and the database with the worker's own settings?

A worker that ended takes its container with it, and one that hangs loses its lease; so what is left to ask is what it depends on.
"""

from __future__ import annotations

import sys

from celery import Celery
from sqlalchemy import text

from server.broker import celery_options
from server.db.session import SyncDatabase
from server.settings import Settings, load_settings


def main() -> int:
    settings = load_settings()
    for name, reach in (("broker", reach_broker), ("database", reach_database)):
        try:
            reach(settings)
        except Exception as error:  # whatever the driver raises, the answer is no
            print(f"{name}: {type(error).__name__}", file=sys.stderr)
            return 1
    return 0


def reach_broker(settings: Settings) -> None:
    app = Celery("kmserve-health", set_as_current=False)
    app.conf.update(celery_options(settings))
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)


def reach_database(settings: Settings) -> None:
    database = SyncDatabase(settings.sql_url)
    try:
        with database.read() as session:
            session.execute(text("SELECT 1"))
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(main())
