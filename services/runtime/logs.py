"""Logs: one JSON object a line, on stdout, with the trace that it belongs to; and the level, changed while it runs.

Those of the standard library join in. An unsampled call's line has its trace id as well: traces are for some calls,
log lines for all of them.
"""

import asyncio
import logging
import sys
from typing import Any

import structlog

from services.runtime.telemetry import current_trace

LEVELS = ("debug", "info", "warning", "error")

_DEBUG, _INFO, _WARNING = logging.DEBUG, logging.INFO, logging.WARNING
_EVERYTHING: Any = structlog.make_filtering_bound_logger(logging.DEBUG)


class LogLevel:
    """What this process logs. Made once; the loggers ask it at each line."""

    def __init__(self, name: str) -> None:
        """`name` is one of LEVELS, in any case: what the process was started with."""
        self.configured = name.lower()
        self.number = logging.getLevelNamesMapping()[name.upper()]
        self._reverting: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """The level now."""
        return logging.getLevelName(self.number).lower()

    def set(self, name: str, seconds: float = 0) -> None:
        """Log at another level, from the next line on; after `seconds`, if given, as configured again."""
        if self._reverting is not None:
            self._reverting.cancel()
            self._reverting = None
        self._apply(name)
        if seconds:
            self._reverting = asyncio.get_running_loop().call_later(seconds, self._apply, self.configured)

    def _apply(self, name: str) -> None:
        self.number = logging.getLevelNamesMapping()[name.upper()]
        logging.getLogger().setLevel(_foreign(self.number))


def configure_logging(level: str, **bound: str) -> LogLevel:
    """Send JSON lines to stdout, each with what is `bound`, and give what changes the level."""
    current = LogLevel(level)

    def bind(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.update(bound)
        if "trace_id" not in event and (trace := current_trace.get()) is not None:
            event["trace_id"] = trace.trace_id
        return event

    shared: list[structlog.typing.Processor] = [
        bind,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=_logger_class(current),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=_foreign(current.number), force=True)
    # Python's own warnings would be lines of plain text on stderr.
    logging.captureWarnings(capture=True)
    return current


def _foreign(number: int) -> int:
    """Libraries are heard of from warnings on, unless one looks for a fault: they say much of what we say ourselves."""
    return number if number <= _DEBUG else max(number, _WARNING)


def _logger_class(level: LogLevel) -> Any:
    """A logger that asks `level` before it does anything; structlog's own filter is fixed once loggers are cached."""

    class Leveled(_EVERYTHING):  # type: ignore[misc]
        def debug(self, event: str, *arguments: Any, **fields: Any) -> Any:
            return super().debug(event, *arguments, **fields) if level.number <= _DEBUG else None

        def info(self, event: str, *arguments: Any, **fields: Any) -> Any:
            return super().info(event, *arguments, **fields) if level.number <= _INFO else None

        def warning(self, event: str, *arguments: Any, **fields: Any) -> Any:
            return super().warning(event, *arguments, **fields) if level.number <= _WARNING else None

    return Leveled
