"""Draws a trace as lanes, one a service: what Zipkin shows as a list of many spans, at one glance."""

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

_WIDTH, _LEFT, _RIGHT, _TOP = 1180, 118, 24, 46
_LANE, _BAR, _THIN = 62, 15, 7
_TICKS = 10
_STEPS = [base * 10**power for power in range(3, 9) for base in (1, 2, 5)]
"""Microseconds."""

_LONG_PAUSE, _PAUSE = 0.15, 110
"""A pause of such a share of the whole is drawn so wide, however long it was."""
_COLORS = ["#1f77b4", "#2a9d8f", "#8e6bbf", "#d1782f", "#b5485d", "#4f8f3a", "#6d7b8a", "#a08020", "#5577cc"]
_STYLE = """
  text { font: 12px Inter, system-ui, sans-serif; fill: #1b2129; }
  .quiet { fill: #5b6572; font-size: 11px; }
  .ground { fill: #ffffff; } .lane { fill: #f3f5f8; } .link { stroke: #9aa4b2; fill: none; } .grid { stroke: #e2e5ea; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e9ee; } .quiet { fill: #9aa4b2; } .ground { fill: #12151a; } .lane { fill: #1a1e25; }
    .link { stroke: #5b6572; } .grid { stroke: #2b313b; }
  }
"""

Span = Mapping[str, Any]


def draw(spans: Iterable[Span], labels: Mapping[str, str], title: str) -> str:
    """An SVG of a trace.

    Args:
        spans: as Zipkin gives them.
        labels: what to write at spans, by the end of their names.
        title: stands above.
    """
    drawing = _Drawing(sorted(spans, key=lambda one: (one["timestamp"], -one.get("duration", 0))))
    legend = "upper bars: the service; lower bars: its sidecar, with state and topics"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {drawing.height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{drawing.height}"/>',
        f'<text x="14" y="26" font-weight="600">{escape(title)}</text>',
        f'<text class="quiet" x="{_WIDTH - 14}" y="26" text-anchor="end">{legend}</text>',
        *drawing.lanes_and_times(),
        *drawing.links(),
        *drawing.bars(),
        *drawing.texts(labels),
        "</svg>",
        "",
    ]
    return "\n".join(parts)


class _Drawing:
    """Where things are: `spans` by time, the outer ones first."""

    def __init__(self, spans: list[Span]) -> None:
        self._spans = spans
        self._by_id = {one["id"]: one for one in spans}
        self._began = int(spans[0]["timestamp"])
        self._ended = max(int(one["timestamp"] + one.get("duration", 1)) for one in spans)
        self._lanes = list(dict.fromkeys(self._lane(one) for one in spans))
        lasts = self._ended - self._began
        self._pauses = _pauses(spans, lasts * _LONG_PAUSE)
        shown = lasts - sum(end - start for start, end in self._pauses)
        self._scale = (_WIDTH - _LEFT - _RIGHT - _PAUSE * len(self._pauses)) / shown
        self.height = _TOP + len(self._lanes) * _LANE + 34

    def lanes_and_times(self) -> Iterator[str]:
        """The ground."""
        for number, lane in enumerate(self._lanes):
            top = _TOP + number * _LANE
            yield f'<rect class="lane" x="8" y="{top}" width="{_WIDTH - 16}" height="{_LANE - 5}" rx="5"/>'
            yield f'<text x="16" y="{top + 31}" font-weight="600">{escape(lane)}</text>'
            yield f'<text class="quiet" x="16" y="{top + 48}">sidecar</text>'
        for start, end in self._pauses:
            middle = (self._x(start) + self._x(end)) / 2
            yield f'<rect class="ground" x="{middle - 22}" y="{_TOP}" width="44" height="{self.height - _TOP - 34}"/>'
            yield self._time(middle, f"{(end - start) / 1e6:.1f} s later")
        for at in _ticks(self._began, self._ended, self._pauses):
            yield f'<path class="grid" d="M{self._x(at)} {_TOP}V{self.height - 30}"/>'
            yield self._time(self._x(at), f"{(at - self._began) / 1000:.0f} ms")

    def links(self) -> Iterator[str]:
        """From what asked to what was asked, where that is another service."""
        for one in self._spans:
            parent = self._by_id.get(one.get("parentId", ""))
            if parent is not None and self._lane(parent) != self._lane(one):
                ends = f"{self._y(parent) + 4}V{self._y(one) + 4}"
                yield f'<path class="link" d="M{self._x(one["timestamp"])} {ends}"/>'

    def bars(self) -> Iterator[str]:
        """The spans."""
        for one in self._spans:
            own = _is_own(one)
            width = max(round(one.get("duration", 1) * self._scale, 1), 1.6)
            color = _COLORS[self._lanes.index(self._lane(one)) % len(_COLORS)]
            place = (
                f'x="{self._x(one["timestamp"])}" y="{self._y(one)}" width="{width}" height="{_BAR if own else _THIN}"'
            )
            fill = f'rx="2" fill="{color}" fill-opacity="{0.85 if own else 0.5}"'
            tip = f"{one['localEndpoint']['serviceName']}: {one['name']}, {one.get('duration', 0) / 1000:.1f} ms"
            yield f"<rect {place} {fill}><title>{escape(tip)}</title></rect>"

    def texts(self, labels: Mapping[str, str]) -> Iterator[str]:
        """Names of some spans, where there is room."""
        taken: dict[str, float] = {}
        for one in filter(_is_own, self._spans):
            text = next((label for end, label in labels.items() if one["name"].endswith(end)), "")
            at, lane, wide = self._x(one["timestamp"]), self._lane(one), len(text) * 6.4
            if text and at > taken.get(lane, 0):
                taken[lane] = at + wide
                anchor = ' text-anchor="end"' if at > _WIDTH - _RIGHT - wide else ""
                yield f'<text class="quiet" x="{at}" y="{self._y(one) - 5}"{anchor}>{escape(text)}</text>'

    def _time(self, x: float, text: str) -> str:
        return f'<text class="quiet" x="{x}" y="{self.height - 12}" text-anchor="middle">{text}</text>'

    def _x(self, moment: int) -> float:
        place, at = float(_LEFT), self._began
        for start, end in self._pauses:
            if moment <= start:
                break
            place += (start - at) * self._scale + _PAUSE * min((moment - start) / (end - start), 1)
            at = end
        return round(place + max(moment - at, 0) * self._scale, 1)

    def _y(self, one: Span) -> int:
        return _TOP + self._lanes.index(self._lane(one)) * _LANE + (24 if _is_own(one) else 44)

    def _lane(self, one: Span) -> str:
        service = str(one["localEndpoint"]["serviceName"])
        if service.endswith("store") and (parent := self._by_id.get(one.get("parentId", ""))) is not None:
            return self._lane(parent)
        return service.removesuffix(".daprd")


def _pauses(ordered: list[Span], least: float) -> list[tuple[int, int]]:
    """Times in which nothing happened."""
    found: list[tuple[int, int]] = []
    end = ordered[0]["timestamp"]
    for one in ordered:
        if one["timestamp"] - end > least:
            found.append((end, one["timestamp"]))
        end = max(end, one["timestamp"] + one.get("duration", 1))
    return found


def _ticks(start: int, end: int, pauses: list[tuple[int, int]]) -> list[int]:
    """Round times in which something happened."""
    shown = end - start - sum(later - earlier for earlier, later in pauses)
    step = next(one for one in _STEPS if shown / one <= _TICKS)
    return [at for at in range(start, end, step) if not any(earlier < at < later for earlier, later in pauses)]


def _is_own(one: Span) -> bool:
    """A service's span, not its sidecar's."""
    return not _of_sidecar(str(one["localEndpoint"]["serviceName"]))


def _of_sidecar(service: str) -> bool:
    # daprd tells reads of a component under the component's name.
    return service.endswith((".daprd", "store"))
