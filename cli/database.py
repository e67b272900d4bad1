"""`gaggle db migrate`: the SQL read model, made before any sidecar starts."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandError, NotRunning
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.description import MeshDescription
from cli.mesh_commands import DataOption

app = typer.Typer(help="The database.", no_args_is_help=True)

_MIGRATIONS = PROJECT_ROOT / "services" / "audit" / "migrations"


@app.callback()
def database() -> None:
    """The database."""


@app.command(epilog="Examples: gaggle db migrate; DATABASE_URL=postgresql://... gaggle db migrate --revision head")
def migrate(
    *,
    revision: Annotated[str, typer.Option(help="The Alembic revision to go to.")] = "head",
    data: DataOption = None,
) -> None:
    """Bring the schema `goose` up to date, in the database of $DATABASE_URL or, without it, of the running mesh."""
    url = os.environ.get("DATABASE_URL")
    if not url:
        try:
            url = MeshDescription.load(DataDirectory.at(data).mesh_file).database_url
        except NotRunning as error:
            raise CommandError("Set DATABASE_URL, or start the mesh whose database is meant.") from error
    run_migrations(url, revision, _MIGRATIONS)


def run_migrations(url: str, revision: str, scripts: Path) -> None:
    """Creates the schema and runs Alembic's `upgrade`, one process at a time.

    Args:
        url: postgresql://...; it reaches the migrations' env.py as the option `sqlalchemy.url`.
        revision: where to go.
        scripts: the folder of migrations; where there is none, the schema alone is made.

    Raises:
        CommandError: the database cannot be reached, or a migration failed and was rolled back.
    """
    # The one place that loads a PostgreSQL driver.
    import alembic.command
    import alembic.config
    import alembic.util
    import psycopg
    import sqlalchemy.exc

    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            # daprd makes its state table in it, and does not make it.
            connection.execute("CREATE SCHEMA IF NOT EXISTS goose")
            if not (scripts / "env.py").is_file():
                return
            # Replicas of a deployment may come here together: one migrates, the others wait and find it done.
            connection.execute("SELECT pg_advisory_lock(hashtext('gaggle db migrate'))")
            configuration = alembic.config.Config()
            configuration.set_main_option("script_location", str(scripts).replace("%", "%%"))
            configuration.set_main_option("path_separator", "os")
            driver_url = f"postgresql+psycopg://{url.partition('://')[2]}"
            configuration.set_main_option("sqlalchemy.url", driver_url.replace("%", "%%"))
            alembic.command.upgrade(configuration, revision)
    except (psycopg.Error, sqlalchemy.exc.SQLAlchemyError, alembic.util.CommandError) as error:
        raise CommandError(f"The database could not be migrated: {error}") from error
