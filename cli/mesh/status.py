"""The state of a mesh as data, for `gaggle status --json`, and as a table, for a person."""

from typing import Any

from rich.table import Table
from rich.text import Text

_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "restarting": "yellow",
    "stopping": "yellow",
    "unwell": "red",
    "failed": "bold red",
    "waiting": "dim",
    "stopped": "dim",
}


def status_table(status: dict[str, Any]) -> Table:
    """The live table: one row for each replica with its sidecar, then the stores and the control plane."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("SERVICE", "APP ID"):
        table.add_column(heading)
    for heading in ("GRPC PORT", "SIDECAR PORT"):
        table.add_column(heading, justify="right")
    table.add_column("STATE")
    table.add_column("RESTARTS", justify="right")
    table.add_column("MEMORY", justify="right")
    for row in status["services"]:
        table.add_row(
            row["name"],
            row["app_id"],
            _port(row["address"]),
            _port(row["sidecar_grpc"]),
            _pair(row["state"], row["sidecar_state"]),
            str(row["restarts"] + row["sidecar_restarts"]),
            _megabytes(row["memory_bytes"] + row["sidecar_memory_bytes"]),
        )
    for row in status["infrastructure"]:
        table.add_row(
            row["name"],
            "",
            _port(row["address"]),
            "",
            _styled(row["state"]),
            str(row["restarts"]),
            _megabytes(row["memory_bytes"]),
        )
    return table


def _port(address: str) -> str:
    """The port of host:port; a Unix socket has none."""
    return "socket" if "://" in address else address.rpartition(":")[2]


def _pair(state: str, sidecar: str) -> Text:
    return _styled(state) if state == sidecar else Text.assemble(_styled(state), ", sidecar ", _styled(sidecar))


def _styled(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, ""))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size else ""
