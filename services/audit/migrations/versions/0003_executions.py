"""Executions stand in the read model as their events say."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    """Replace the function that reads them out of events."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute((_SQL / "0003_executions.sql").read_text())


def downgrade() -> None:
    """Rows and functions do no harm to what came before."""
