"""The schema that `gaggle db migrate` makes."""

from services.audit.migrations import upgrade
from tests.audit.database import Database


def test_migrating_again_changes_nothing(database: Database) -> None:
    """Whoever migrates a database that is up to date gets no error and no change."""
    before = database.run("SELECT version_num FROM goose.alembic_version")
    upgrade(database.url)
    assert database.run("SELECT version_num FROM goose.alembic_version") == before
