"""The Alembic revisions that end the tables, written into the project whose tables they are.

The first deprecates them: comments, and triggers that refuse writes. The second drops them; its downgrade makes them
again as they were, empty, for `restore` to fill. Both stop where rows are left that were never moved, so that they can
run in every environment of the project, whose empty development databases included.
"""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.errors import CommandError
from cli.migrate.chats.freezing import FUNCTION, TRIGGER
from cli.migrate.chats.source import Tables, database_url

DEPRECATE = "deprecate chat tables"
DROP = "drop chat tables"

_GUARD = """\
connection = op.get_bind()
for table in {tables!r}:
    moved = connection.execute(
        sa.text(
            "SELECT NOT EXISTS (SELECT FROM {schema}." + table + ") OR EXISTS ("
            "SELECT FROM pg_trigger WHERE tgname = '{trigger}' AND tgrelid = '{schema}." + table + "'::regclass)"
        )
    ).scalar()
    if not moved:
        raise RuntimeError(table + " has rows that were not moved: run `gaggle migrate chat-tables switch` first")
"""

_DEPRECATE = '''\
op.execute(
    """
    CREATE OR REPLACE FUNCTION {schema}.{function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      RAISE EXCEPTION '% has moved to Gaggle and takes no more writes', TG_TABLE_NAME
        USING ERRCODE = 'read_only_sql_transaction';
    END $$
    """
)
for table in {tables!r}:
    op.execute(
        "CREATE OR REPLACE TRIGGER {trigger} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}." + table
        + " FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{function}()"
    )
    op.execute(
        "COMMENT ON TABLE {schema}." + table + " IS "
        "'Deprecated: its rows are in the conversation service of Gaggle. The next revision drops it.'"
    )
'''

_UNDO_DEPRECATE = """\
for table in {tables!r}:
    op.execute("DROP TRIGGER IF EXISTS {trigger} ON {schema}." + table)
    op.execute("COMMENT ON TABLE {schema}." + table + " IS NULL")
op.execute("DROP FUNCTION IF EXISTS {schema}.{function}()")
"""

_DROP = """\
op.execute("DROP TABLE {schema}.{messages}")
op.execute("DROP TABLE {schema}.{conversations}")
op.execute("DROP FUNCTION IF EXISTS {schema}.{function}()")
"""


@dataclass(frozen=True)
class Written:
    """A revision and its file; `new` if it was made now."""

    revision: str
    path: Path
    new: bool


def write(url: str, tables: Tables, ini: Path) -> list[Written]:
    """Writes both after the project's head; those that are there already are left as they are.

    Args:
        url: the database, whose tables the downgrade shall make again.
        tables: those in it.
        ini: the project's alembic.ini.

    Raises:
        CommandError: that is no Alembic project, or it has several heads.
    """
    # Heavy, and needed by this phase alone.
    import alembic.script
    import alembic.util

    if not ini.is_file():
        raise CommandError(f"{ini} is not there: name the project's alembic.ini with --alembic.")
    try:
        script = alembic.script.ScriptDirectory.from_config(_config(ini))
        known = {one.revision: one for one in script.walk_revisions()}
        written = []
        for message in (DEPRECATE, DROP):
            revision = _revision(tables, message)
            found = known.get(revision)
            # After the project's newest: what it has put between the two meanwhile comes before the second.
            made = found or script.generate_revision(revision, message, head="head", **_body(url, tables, message))
            assert made is not None
            written.append(Written(revision, Path(made.path), new=found is None))
    except alembic.util.CommandError as error:
        raise CommandError(f"Alembic says: {error}") from error
    return written


def _config(ini: Path) -> Any:
    """The project's configuration; a folder of scripts that it names relatively lies beside it."""
    import alembic.config

    # Its own words about each file would stand among ours.
    config = alembic.config.Config(str(ini), cmd_opts=argparse.Namespace(quiet=True))
    location = config.get_main_option("script_location") or ""
    if (ini.parent / location).is_dir():
        config.set_main_option("script_location", str((ini.parent / location).absolute()).replace("%", "%%"))
    return config


def _revision(tables: Tables, kind: str) -> str:
    """An id that is the same at every run, and another one for other tables."""
    names = f"{tables.conversations.schema}.{tables.conversations.name} {tables.messages.name} {kind}"
    return hashlib.sha256(names.encode()).hexdigest()[:12]


def _body(url: str, tables: Tables, message: str) -> dict[str, Any]:
    c, m = tables.conversations, tables.messages
    for name in (c.schema, c.name, m.name):
        if not name.isidentifier() or name != name.lower():
            raise CommandError(f"The name {name!r} would need quotes; write the revisions by hand.")
    names = {
        "tables": [m.name, c.name],
        "schema": c.schema,
        "conversations": c.name,
        "messages": m.name,
        "trigger": TRIGGER,
        "function": FUNCTION,
    }
    guard = _GUARD.format(**names)
    if message == DEPRECATE:
        return _texts(guard + _DEPRECATE.format(**names), _UNDO_DEPRECATE.format(**names), "")
    return _texts(guard + _DROP.format(**names), *_creation(url, tables))


def _creation(url: str, tables: Tables) -> tuple[str, str]:
    """Python that makes the tables as they are now, as Alembic's autogenerate would write it, and its imports."""
    import psycopg
    import sqlalchemy as sa
    from alembic.autogenerate import render_python_code
    from alembic.migration import MigrationContext
    from alembic.operations import ops

    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database_url(url)))
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            metadata = sa.MetaData()
            # It knows of sequences that belong to a column, which are made with it.
            sa.event.listen(metadata, "column_reflect", context.impl.autogen_column_reflect)
            names = [tables.conversations.name, tables.messages.name]
            schema = tables.conversations.schema
            default = connection.scalar(sa.text("SELECT current_schema()"))
            metadata.reflect(connection, schema=None if schema == default else schema, only=names)
            operations: list[Any] = []
            for table in metadata.sorted_tables:
                if table.name in names:
                    operations.append(ops.CreateTableOp.from_table(table))
                    operations += (ops.CreateIndexOp.from_index(index) for index in table.indexes)
            code = render_python_code(ops.UpgradeOps(ops=operations), migration_context=context)
    finally:
        engine.dispose()
    lines = [line.removeprefix("    ") for line in code.splitlines() if "# ###" not in line]
    return "\n".join(lines), "from sqlalchemy.dialects import postgresql"


def _texts(upgrade: str, downgrade: str, imports: str) -> dict[str, Any]:
    """As a template of revisions takes them: the first line of a function is indented there already."""

    def body(code: str) -> str:
        first, *others = (line for line in code.splitlines() if line.strip())
        return "\n".join([first, *(f"    {line}" for line in others)])

    return {"upgrades": body(upgrade), "downgrades": body(downgrade), "imports": imports}
