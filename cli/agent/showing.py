"""A turn on the terminal: text as it comes, tools as they run, what it cost."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gaggle.agent.v1 import agent_service_pb2, session_pb2, turn_pb2

_MOST_SHOWN = 200


class TurnView:
    """Shows one turn. Text goes out as it is; all else is dimmed and on lines of its own."""

    def __init__(self, console: Console) -> None:
        """`console` is where it goes."""
        self._console = console
        self._in_text = False
        self.conversation_id = ""
        self.turn_id = ""
        self.position = 0
        self.waiting: list[turn_pb2.ApprovalRequested] = []
        self.ended: turn_pb2.TurnEnded | None = None

    def show(self, event: turn_pb2.TurnEvent) -> None:
        """Show an event."""
        self.position = max(self.position, event.position)
        kind = str(event.WhichOneof("event"))
        shower = getattr(self, f"_{kind}", None)
        if shower is not None:
            shower(getattr(event, kind))

    def _line(self, text: str) -> None:
        if self._in_text:
            self._console.print()
            self._in_text = False
        self._console.print(text)

    def _started(self, started: turn_pb2.TurnStarted) -> None:
        self.conversation_id, self.turn_id = started.conversation_id, started.turn_id
        if started.history == turn_pb2.HISTORY_UNAVAILABLE:
            self._line("[yellow]The state store is away: no history, no tools, and nothing of this is saved.[/]")
        if started.context_incomplete:
            self._line("[dim]The beginning of the conversation does not fit the model's budget.[/]")

    def _queued(self, queued: turn_pb2.TurnQueued) -> None:
        self.conversation_id, self.turn_id = queued.conversation_id, queued.turn_id
        self._line(f"[dim]waiting behind {queued.ahead} other(s)[/]")

    def _text_delta(self, delta: turn_pb2.TextDelta) -> None:
        self._in_text = True
        self._console.print(delta.text, end="", markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _thinking_delta(self, delta: turn_pb2.ThinkingDelta) -> None:
        self._in_text = True
        self._console.print(
            delta.text, end="", markup=False, emoji=False, highlight=False, soft_wrap=True, style="dim italic"
        )

    def _restarted(self, restarted: turn_pb2.StepRestarted) -> None:
        self._line(f"[yellow]begun again ({escape(restarted.reason)}); forget the half above[/]")

    def _tool_call(self, call: turn_pb2.ToolCallRequested) -> None:
        self._line(f"[cyan]> {escape(call.name)}[/] [dim]{escape(_short(call.arguments_json))}[/]")

    def _tool_result(self, answered: turn_pb2.ToolCallAnswered) -> None:
        response = answered.response
        failed = bool(response.error) or response.result.is_error
        text = response.error or " ".join(part.text.text for part in response.result.content)
        mark = "[red]x[/]" if failed else "[green]<[/]"
        self._line(f"{mark} [dim]{escape(_short(text))} ({answered.duration_ms} ms)[/]")

    def _approval_requested(self, asked: turn_pb2.ApprovalRequested) -> None:
        self.waiting.append(asked)

    def _approval_decided(self, decided: turn_pb2.ToolCallDecided) -> None:
        self.waiting = [one for one in self.waiting if one.call_id != decided.call_id]

    def _ended(self, ended: turn_pb2.TurnEnded) -> None:
        self.ended = ended
        self.conversation_id = ended.conversation_id or self.conversation_id
        if ended.status != turn_pb2.TURN_STATUS_COMPLETED:
            name = turn_pb2.TurnStatus.Name(ended.status).removeprefix("TURN_STATUS_").lower()
            reason = f": {ended.error.message} ({ended.error.reason})" if ended.HasField("error") else ""
            self._line(f"[red]{name}{escape(reason)}[/]")
        used = ended.usage
        cost = f", ${used.cost:.4f}" if used.cost else ""
        unsaved = " [yellow]unsaved[/]" if ended.unsaved else ""
        self._line(f"[dim]{used.input_tokens} in, {used.output_tokens} out{cost}[/]{unsaved}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}..."


def session_table(sessions: list[session_pb2.Session]) -> Table:
    """Sessions, a line each."""
    table = Table(box=None, pad_edge=False)
    for heading in ("ID", "NAME", "STATUS", "TURNS", "TOKENS", "COST", "CREATED"):
        table.add_column(heading, justify="right" if heading in {"TURNS", "TOKENS", "COST"} else "left")
    for one in sessions:
        used = one.accumulated_usage
        table.add_row(
            one.id,
            escape(one.name),
            session_pb2.SessionStatus.Name(one.status).removeprefix("SESSION_STATUS_").lower(),
            str(one.turn_count),
            str(used.total_tokens),
            f"${used.cost:.4f}",
            one.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M"),
        )
    return table


def usage_table(days: list[agent_service_pb2.DailyUsage]) -> Table:
    """Usage, a line for each day and model, and the sum."""
    table = Table(box=None, pad_edge=False, show_footer=True)
    columns = ("CALLS", "INPUT", "OUTPUT", "CACHE READ", "CACHE WRITE", "COST")
    sums = [0, 0, 0, 0, 0]
    cost = 0.0
    rows = []
    for one in days:
        used = one.usage
        counts = [
            used.model_calls,
            used.input_tokens,
            used.output_tokens,
            used.cache_read_input_tokens,
            used.cache_write_input_tokens,
        ]
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        cost += used.cost
        rows.append((one.day, escape(one.model), *map(str, counts), f"${used.cost:.4f}"))
    table.add_column("DAY", footer="in all")
    table.add_column("MODEL")
    for heading, footer in zip(columns, (*map(str, sums), f"${cost:.4f}"), strict=True):
        table.add_column(heading, footer=footer, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
