"""The schema `goose` and how it comes to be.

`gaggle db migrate` calls `upgrade` before any sidecar starts: the sidecars' state store makes its own tables in this
schema, and the audit service reads and writes the rest through a binding. This package alone holds a PostgreSQL driver.
"""

from pathlib import Path

__all__ = ["upgrade"]


def upgrade(database_url: str) -> None:
    """Bring the database up to the newest schema; at the newest already, change nothing.

    `database_url` is a libpq URL or a key=value string. Two at once wait for each other. Raises
    `sqlalchemy.exc.OperationalError` if the database can't be reached.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["database_url"] = database_url
    command.upgrade(config, "head")
