"""Chinese, Japanese and Korean are found by any part of a clause."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    """Index their signs by pairs, and what was indexed before anew."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute((_SQL / "0005_signs.sql").read_text())


def downgrade() -> None:
    """Rows and functions do no harm to what came before."""
