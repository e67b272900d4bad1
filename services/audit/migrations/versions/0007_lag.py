"""The log knows how far it is behind."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    """Make the function that tells."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute((_SQL / "0007_lag.sql").read_text())


def downgrade() -> None:
    """Rows and functions do no harm to what came before."""
