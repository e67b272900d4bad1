"""A chatbot's project, as there are many: two tables, made by Alembic, in a schema of the test's own."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from bench.chat_tables import fill
from cli.mesh.data import PROJECT_ROOT
from tests.mesh_fixture import Mesh

_SECONDS = 120
_TABLES_REVISION = '''
"""chat tables"""
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade():
    op.create_table(
        "users", sa.Column("id", sa.String(), primary_key=True), sa.Column("email", sa.String(), nullable=True)
    )
    op.create_table(
        "conversations",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("user_id", sa.String(), nullable=False, index=True),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.DateTime(), nullable=False, server_default=sa.func.now()),
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column(
            "conversation_id", sa.Integer(), sa.ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("tool_calls", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False, server_default=sa.func.now()),
    )
    op.create_index("ix_messages_conversation_id", "messages", ["conversation_id"])


def downgrade():
    op.drop_table("messages")
    op.drop_table("conversations")
    op.drop_table("users")
'''


@dataclass(frozen=True)
class Said:
    """What a command gave."""

    code: int
    out: str
    err: str


class Chatbot:
    """The project, its database, and a person at a terminal in its folder."""

    def __init__(self, mesh: Mesh, schema: str, folder: Path) -> None:
        self.mesh = mesh
        self.schema = schema
        self.folder = folder
        self.url = f"{mesh.description.database_url}&options={quote(f'-csearch_path={schema}')}"
        self.work = folder / "work"

    def sql(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; give its rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def make(self) -> None:
        """Set the project up: `alembic init`, a first revision, `alembic upgrade head`."""
        self.sql(f"CREATE SCHEMA {self.schema}")
        self.alembic("init", "migrations")
        ini = self.folder / "alembic.ini"
        driver_url = self.url.replace("postgresql://", "postgresql+psycopg://").replace("%", "%%")
        lines = [
            f"sqlalchemy.url = {driver_url}" if line.startswith("sqlalchemy.url") else line
            for line in ini.read_text().splitlines()
        ]
        ini.write_text("\n".join(lines) + "\n")
        (self.folder / "migrations" / "versions" / "0001_chat_tables.py").write_text(_TABLES_REVISION)
        self.alembic("upgrade", "head")

    def fill(self, conversations: int, messages: int, users: list[str]) -> int:
        """Fill the tables; gives how many messages there are."""
        with psycopg.connect(self.url) as connection:
            return fill(connection, conversations, messages, users)

    def alembic(self, *arguments: str, code: int = 0) -> str:
        """Run Alembic's own command, which must end with `code`; give what it said."""
        ended = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert ended.returncode == code, ended.stderr
        return ended.stdout + ended.stderr

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """All that both tables hold."""
        return {
            "conversations": self.sql("SELECT * FROM conversations ORDER BY id"),
            "messages": self.sql("SELECT * FROM messages ORDER BY id"),
        }

    async def start(self, command: str, *arguments: object, **environment: str) -> asyncio.subprocess.Process:
        """Start `gaggle migrate chat-tables COMMAND`."""
        path = os.pathsep.join([str(PROJECT_ROOT), str(PROJECT_ROOT / "gen")])
        given = {"GAGGLE_DATA": str(self.mesh.data.path), "DATABASE_URL": self.url, "PYTHONPATH": path}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", "migrate", "chat-tables", command, "--work", str(self.work)),
            *map(str, arguments),
            cwd=self.folder,
            env=os.environ | given | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, command: str, *arguments: object, **environment: str) -> Said:
        """Run it to its end."""
        process = await self.start(command, *arguments, **environment)
        out, err = await asyncio.wait_for(process.communicate(), _SECONDS)
        return Said(process.returncode or 0, out.decode(), err.decode())

    async def __call__(self, command: str, *arguments: object, **environment: str) -> str:
        """Run it to its end, which must be a good one; give its standard output."""
        said = await self.run(command, *arguments, **environment)
        assert said.code == 0, said.err
        return said.out


@contextmanager
def chatbot(mesh: Mesh, schema: str, folder: Path) -> Iterator[Chatbot]:
    """A project of its own; its schema goes at the end."""
    made = Chatbot(mesh, schema, folder)
    made.make()
    yield made
    made.sql(f"DROP SCHEMA {schema} CASCADE")
