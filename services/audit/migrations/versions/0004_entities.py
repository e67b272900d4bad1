"""Recipes, executions, extensions and sessions can be made again from the log."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    """Make the functions that do it."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute((_SQL / "0004_entities.sql").read_text())


def downgrade() -> None:
    """Rows and functions do no harm to what came before."""
