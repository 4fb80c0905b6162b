"""The plot that a run writes: every ratio on one logarithmic scale, with its spread and its goal, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from textwrap import wrap
from xml.sax.saxutils import escape

from infra.bench.figures import TIMES, Figure, Result, number

NAMESPACE = "http://www.w3.org/2000/svg"
TITLE = "Ours divided by the peer's"
LEGEND = "dot: the ratio · bar: its spread over the rounds · bracket: its goal · arrow: where better is"
WIDTH = 1000
LEFT, RIGHT = 440, 835  # of the scale; labels before it, values behind
LOW, HIGH = -2, 1  # its decades: most ratios are near 1, and would be too close together on a longer one
TOP = 80
ROW = 34
GROUP = 26
LABEL_CHARACTERS = 68
ARROWS = {"≤": "←", "≥": "→"}  # where better is

STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 12px }
.paper { fill: #ffffff } .text { fill: #1f2328 } .dim { fill: #59636e } .missed { fill: #b3141f }
.head { font-size: 16px; font-weight: 600 } .group { font-weight: 600 } .end { text-anchor: end }
.middle { text-anchor: middle } .grid { stroke: #d1d9e0 } .equal { stroke: #59636e }
.spread { stroke: #0a5bbd; stroke-width: 5; stroke-opacity: .35; stroke-linecap: round } .dot { fill: #0a5bbd }
.spread.bad { stroke: #b3141f } .goal { stroke: #1f2328; stroke-width: 2; fill: none }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117 } .text { fill: #e6edf3 } .dim { fill: #9198a1 } .missed { fill: #ff7b72 }
.grid { stroke: #30363d } .equal { stroke: #9198a1 } .spread { stroke: #58a6ff } .dot { fill: #58a6ff }
.spread.bad { stroke: #ff7b72 } .goal { stroke: #e6edf3 } }
"""


def draw(results: Sequence[Result]) -> str:
    """The SVG; of what is no ratio nothing is drawn."""
    groups = [(result.name, ratios) for result in results if (ratios := [f for f in result.figures if _is_ratio(f)])]
    height = TOP + sum(GROUP + ROW * len(ratios) for _, ratios in groups) + 16
    body: list[str] = []
    y = TOP
    for name, ratios in groups:
        body.append(_text(16, y + 17, name, "group text"))
        y += GROUP
        for figure in ratios:
            body += _row(figure, y + ROW / 2)
            y += ROW
    return "\n".join(
        [
            f'<svg xmlns="{NAMESPACE}" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
            f"<title>{TITLE}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>',
            _text(16, 28, TITLE, "head text"),
            _text(16, 48, LEGEND, "dim"),
            *_grid(height),
            *body,
            "</svg>\n",
        ]
    )


def _is_ratio(figure: Figure) -> bool:
    return figure.unit == TIMES and figure.value > 0


def _x(ratio: float) -> float:
    """Where a ratio is; what is beyond the scale is at its end."""
    exponent = min(max(math.log10(ratio), LOW), HIGH) if ratio > 0 else LOW
    return round(LEFT + (exponent - LOW) / (HIGH - LOW) * (RIGHT - LEFT), 1)


def _grid(height: int) -> Iterator[str]:
    for exponent in range(LOW, HIGH + 1):
        x = _x(10.0**exponent)
        yield f'<path class="{"grid" if exponent else "equal"}" d="M{x} {TOP}V{height - 10}"/>'
        beyond = {LOW: "≤ ", HIGH: "≥ "}.get(exponent, "")
        yield _text(x, TOP - 6, f"{beyond}{10.0**exponent:g} {TIMES}" if exponent else "equal", "middle dim")


def _row(figure: Figure, y: float) -> Iterator[str]:
    lines = wrap(figure.what, LABEL_CHARACTERS, max_lines=1 if figure.peer else 2, placeholder=" …")
    for number_of_line, line in enumerate(lines):
        yield _text(24, y - 3 + 14 * number_of_line, line, "text")
    if figure.peer:
        (peer,) = wrap(f"against {figure.peer}", LABEL_CHARACTERS, max_lines=1, placeholder=" …")
        yield _text(24, y + 11, peer, "dim")
    missed = figure.passed is False
    if figure.spread is not None:
        low, high = figure.spread
        yield f'<path class="spread{" bad" if missed else ""}" d="M{_x(low)} {y}H{_x(high)}"/>'
    if figure.target is not None:
        x, inward = _x(figure.target), -5 if figure.sense == "≤" else 5
        yield f'<path class="goal" d="M{x + inward} {y - 10}H{x}V{y + 10}H{x + inward}"/>'
    yield f'<circle class="{"missed" if missed else "dot"}" cx="{_x(figure.value)}" cy="{y}" r="4.5"/>'
    arrow = ARROWS.get(figure.sense or "", "")
    yield _text(RIGHT + 16, y - 3, f"{number(figure.value)} {TIMES} {arrow}".rstrip(), "missed" if missed else "text")
    if figure.target is not None:
        words = f"goal {figure.sense} {number(figure.target)}"
        yield _text(RIGHT + 16, y + 11, f"MISSED, {words}" if missed else words, "missed" if missed else "dim")


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>'
