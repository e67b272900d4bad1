"""The `gaggle` command.

Exit codes: 0 done; 1 it failed, and stderr says why; 2 wrong usage; 3 no mesh runs there; 4 refused, since something
that exists is in the way; 5 a program that the mesh needs is missing.
"""

import sys

import typer

from cli import cluster, database, mesh_commands, token_command, tools
from cli.agent import commands as agent_commands
from cli.audit.commands import app as audit_app
from cli.conversations.commands import app as conversations_app
from cli.dashboard import command as dashboard_command
from cli.demo import command as demo_command
from cli.errors import CommandError
from cli.extensions.commands import app as extensions_app
from cli.goose.commands import app as goose_app
from cli.migrate import app as migrate_app
from cli.migrate import goose as migrate_goose
from cli.migrate.chat_tables import app as chat_tables_app
from cli.notifications.commands import app as notifications_app
from cli.observing import commands as observing_commands
from cli.recipes.commands import app as recipes_app
from cli.reminders.commands import app as reminders_app
from cli.task_tools import commands as task_tools_commands
from cli.tasks.commands import app as tasks_app
from cli.watch import commands as watch_command

app = typer.Typer(
    name="gaggle",
    help="Run the Gaggle mesh on this machine, and work with it.",
    epilog=(
        "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 no mesh runs there; 4 refused, something is in the way; "
        "5 a needed program is missing."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
mesh_commands.register(app)
token_command.register(app)
app.add_typer(database.app, name="db")
app.add_typer(audit_app, name="audit")
app.add_typer(cluster.app, name="cluster")
tools.register(app)
app.add_typer(conversations_app, name="conversations")
app.add_typer(tasks_app, name="tasks")
app.add_typer(reminders_app, name="reminders")
app.add_typer(notifications_app, name="notifications")
watch_command.register(app)
agent_commands.register(app)
app.add_typer(extensions_app, name="extensions")
app.add_typer(recipes_app, name="recipes")
app.add_typer(goose_app, name="goose")
migrate_app.add_typer(chat_tables_app, name="chat-tables")
migrate_goose.register(migrate_app)
app.add_typer(migrate_app, name="migrate")
task_tools_commands.register(app)
demo_command.register(app)
dashboard_command.register(app)
observing_commands.register(app)


def main() -> None:
    """Runs the command line; a person's mistake is answered in a sentence, never with a stack trace."""
    try:
        app()
    except CommandError as error:
        # Not through rich: the text may quote a log, whose brackets are no markup.
        print(f"gaggle: {error}", file=sys.stderr)  # noqa: T201 -- the one place that writes errors
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
