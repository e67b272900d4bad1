"""Extensions that are shared have no user, and stand in the read model under the empty one."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    """Replace the function that reads them out of events."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute((_SQL / "0002_shared_extensions.sql").read_text())


def downgrade() -> None:
    """Rows and function do no harm to what came before."""
