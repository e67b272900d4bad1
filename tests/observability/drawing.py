"""Draws a trace as lanes, one a service: what Zipkin shows as a list of many spans, at one glance."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_WIDTH, _LEFT, _RIGHT, _TOP = 1180, 118, 24, 46
_LANE, _BAR, _THIN = 62, 15, 7
_TICKS = 6
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
    ordered = sorted(spans, key=lambda one: (one["timestamp"], -one.get("duration", 0)))
    began = ordered[0]["timestamp"]
    lasts = max(one["timestamp"] + one.get("duration", 1) for one in ordered) - began
    by_id = {one["id"]: one for one in ordered}
    lanes = list(dict.fromkeys(_lane(one, by_id) for one in ordered))
    scale = (_WIDTH - _LEFT - _RIGHT) / lasts

    def x(moment: int) -> float:
        return round(float(_LEFT + (moment - began) * scale), 1)

    def y(one: Span) -> float:
        return _TOP + lanes.index(_lane(one, by_id)) * _LANE + (24 if _is_own(one) else 44)

    height = _TOP + len(lanes) * _LANE + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{height}"/>',
        f'<text x="14" y="26" font-weight="600">{escape(title)}</text>',
    ]
    legend = "upper bars: the service; lower bars: its sidecar, with state and topics"
    parts.append(f'<text class="quiet" x="{_WIDTH - 14}" y="26" text-anchor="end">{legend}</text>')
    for number, lane in enumerate(lanes):
        top = _TOP + number * _LANE
        parts.append(f'<rect class="lane" x="8" y="{top}" width="{_WIDTH - 16}" height="{_LANE - 5}" rx="5"/>')
        parts.append(f'<text x="16" y="{top + 31}" font-weight="600">{escape(lane)}</text>')
        parts.append(f'<text class="quiet" x="16" y="{top + 48}">sidecar</text>')
    for tick in range(_TICKS + 1):
        at = began + lasts * tick // _TICKS
        parts.append(f'<path class="grid" d="M{x(at)} {_TOP}V{height - 30}"/>')
        milliseconds = f"{(at - began) / 1000:.0f} ms"
        parts.append(f'<text class="quiet" x="{x(at)}" y="{height - 12}" text-anchor="middle">{milliseconds}</text>')
    for one in ordered:
        parent = by_id.get(one.get("parentId", ""))
        if parent is not None and _lane(parent, by_id) != _lane(one, by_id):
            start, end = y(parent) + 4, y(one) + 4
            parts.append(f'<path class="link" d="M{x(one["timestamp"])} {start}V{end}"/>')
    for one in ordered:
        own = _is_own(one)
        width = max(round(one.get("duration", 1) * scale, 1), 1.6)
        color = _COLORS[lanes.index(_lane(one, by_id)) % len(_COLORS)]
        place = f'x="{x(one["timestamp"])}" y="{y(one)}" width="{width}" height="{_BAR if own else _THIN}"'
        tip = f"{one['localEndpoint']['serviceName']}: {one['name']}, {one.get('duration', 0) / 1000:.1f} ms"
        fill = f'rx="2" fill="{color}" fill-opacity="{0.85 if own else 0.5}"'
        parts.append(f"<rect {place} {fill}><title>{escape(tip)}</title></rect>")
    said: dict[str, float] = {}
    for one in ordered:
        text = next((label for end, label in labels.items() if one["name"].endswith(end)), "")
        at = x(one["timestamp"])
        if text and _is_own(one) and at > said.get(_lane(one, by_id), 0):
            said[_lane(one, by_id)] = at + len(text) * 6.4
            anchor = ' text-anchor="end"' if at > _WIDTH - _RIGHT - len(text) * 6.4 else ""
            parts.append(f'<text class="quiet" x="{at}" y="{y(one) - 5}"{anchor}>{escape(text)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _is_own(one: Span) -> bool:
    """A service's span, not its sidecar's."""
    return not _of_sidecar(str(one["localEndpoint"]["serviceName"]))


def _of_sidecar(service: str) -> bool:
    # daprd tells reads of a component under the component's name.
    return service.endswith((".daprd", "store"))


def _lane(one: Span, by_id: Mapping[str, Span]) -> str:
    service = str(one["localEndpoint"]["serviceName"])
    if service.endswith("store") and (parent := by_id.get(one.get("parentId", ""))) is not None:
        return _lane(parent, by_id)
    return service.removesuffix(".daprd")
