"""What is wrong with a transcript file, and where."""


class TranscriptError(Exception):
    """A file cannot be imported; `str()` gives `file:line:column: path: problem`, as compilers do."""

    def __init__(self, file: str, line: int, column: int, path: str, problem: str) -> None:
        """Line and column count characters from 1; `path` is empty where the whole document is meant."""
        self.file = file
        self.line = line
        self.column = column
        self.path = path
        self.problem = problem
        super().__init__(f"{file}:{line}:{column}: {f'{path}: ' if path else ''}{problem}")
