"""An append to a long conversation costs the log no more than to a short one."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    """Replace the function that read all of its messages."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute((_SQL / "0006_settling.sql").read_text())


def downgrade() -> None:
    """Rows and functions do no harm to what came before."""
