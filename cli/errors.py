"""What goes wrong on the command line and is not our fault: told in a sentence, without a stack trace.

- CommandError: exit code 1
  - NotRunning: exit code 3
  - Refused: exit code 4
  - MissingTool: exit code 5

Usage errors (an unknown option, a missing argument) are Typer's and exit with 2.
"""


class CommandError(Exception):
    """A command could not do what it was asked to; its text is for the person at the terminal."""

    exit_code = 1


class NotRunning(CommandError):
    """No mesh runs on the data directory that was named."""

    exit_code = 3


class Refused(CommandError):
    """Doing it would harm something that exists: another mesh, a port in use, data of another kind."""

    exit_code = 4


class MissingTool(CommandError):
    """A program that the mesh needs can neither be found nor built."""

    exit_code = 5
