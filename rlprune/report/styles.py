"""How methods look, the same in every figure and on the page: colour, marker and line.

Colour is never alone: each method has a marker shape (and a line) of its own, so that
pictures can be read in grey and with any kind of colour vision.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        label: name in legends.
        color: on white, as ``#rrggbb``.
        dark: the same on a dark page.
        symbol: plotly's name of the marker; ``point`` is matplotlib's.
        point: matplotlib marker in scatter plots.
        width: of lines, in points.
        layer: drawing order, larger is nearer.
        line: matplotlib line style.
        marker: matplotlib marker on lines, "" for none.
        size: of that marker, in points.
        face: its fill, "none" for hollow.
        dodge: moves error bars apart, in units of R_r.
    """

    label: str
    color: str
    dark: str
    symbol: str
    point: str
    width: float
    layer: int
    line: str = "-"
    marker: str = ""
    size: float = 9.0
    face: str = "none"
    dodge: float = 0.0


# The baselines' markers are large and hollow, so that they show around the learned ones.
STYLES = {
    "learned": Style(
        "learned", "#0b6fb8", "#58b0ee", "circle", "o", 2.4, 6, marker="o", size=6, face="#0b6fb8"
    ),
    "uniform": Style(
        "uniform", "#e07b00", "#f3a04a", "square-open", "s", 1.5, 5, marker="s", dodge=-0.012
    ),
    "random": Style(
        "random",
        "#2a9d5c",
        "#55c98a",
        "triangle-up-open",
        "^",
        1.5,
        4,
        marker="^",
        size=10,
        dodge=0.012,
    ),
    "cascade": Style(
        "confidence cascade",
        "#c2458f",
        "#ee86c3",
        "pentagon-open",
        "p",
        1.5,
        4,
        marker="p",
        size=10,
        dodge=0.024,
    ),
    "static_l1": Style("static L1", "#8a5fb0", "#b892dd", "diamond-open", "D", 1.5, 3, line="-."),
    "dense": Style(
        "dense, nothing pruned", "#333333", "#d5d9de", "star-open", "*", 1.5, 2, line="--"
    ),
    "fbs": Style("FBS", "#b5442e", "#ef8468", "triangle-down-open", "v", 1.5, 3, marker="v"),
    "rnp": Style("RNP", "#7a5c00", "#d8b443", "triangle-left-open", "<", 1.5, 3, marker="<"),
    "fpgm": Style("FPGM", "#3d5a80", "#8fb1da", "hexagon-open", "h", 1.5, 3, line="-."),
    "slimming": Style("slimming", "#00808a", "#4cc7d1", "hourglass-open", "X", 1.5, 3, line="-."),
    "torch_pruning": Style(
        "Torch-Pruning", "#5b3a29", "#c29a84", "triangle-right-open", ">", 1.5, 3, line="-."
    ),
    "legr": Style("LeGR", "#6b8e23", "#aecb6e", "diamond-tall-open", "d", 1.5, 3, line="-."),
    "amc": Style("AMC", "#d1495b", "#f29aa6", "octagon-open", "8", 1.5, 3, line="-."),
}
