"""The log, the read model, and the functions that the audit service calls."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    """Make all of it in the schema goose."""
    for name in ("0001_tables.sql", "0001_functions.sql"):
        _run((_SQL / name).read_text())
    _run("COMMENT ON SCHEMA goose IS 'Event log, read model and the state of the sidecars.'")
    _run("COMMENT ON TABLE goose.alembic_version IS 'Which migration this schema stands at.'")
    _run("COMMENT ON COLUMN goose.alembic_version.version_num IS 'The migration.'")


def downgrade() -> None:
    """There is nothing before it: the log would be lost."""
    raise NotImplementedError("the first migration has no way back")


def _run(script: str) -> None:
    # Straight to the driver: several statements at once, and no character of theirs means a parameter.
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(script)
