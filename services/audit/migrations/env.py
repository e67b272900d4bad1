"""Alembic's way in: connects, and runs the migrations in one transaction under a lock."""

import os

import psycopg
from alembic import context
from sqlalchemy import create_engine, pool, text

_LOCK = 4438520553971


def _database_url() -> str:
    url = (
        context.config.attributes.get("database_url")
        or context.config.get_main_option("sqlalchemy.url")
        or os.environ.get("DATABASE_URL")
    )
    if not url:
        raise SystemExit("set DATABASE_URL")
    return str(url).replace("postgresql+psycopg://", "postgresql://", 1)


def _migrate() -> None:
    # libpq reads the URL, not SQLAlchemy: so key=value strings and sockets work, and sidecars take the same value.
    url = _database_url()
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=pool.NullPool)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS goose"))
        context.configure(connection=connection, version_table="alembic_version", version_table_schema="goose")
        context.run_migrations()
    engine.dispose()


_migrate()
