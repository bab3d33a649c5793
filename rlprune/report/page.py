"""``rlprune report``: one HTML file with everything in it, for a disk without a network.

The page is ``web/page.html`` with plotly.js, our style sheet, our scripts and the data put
in. Nothing in it can load anything: its Content-Security-Policy allows the scripts by their
hashes and no address at all, which also keeps markup in names of trials inert.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from rlprune.files import write_whole
from rlprune.report.page_data import page_data
from rlprune.report.source import ReportSource

# In this order: each uses only what stands before it.
_SCRIPTS = (
    "model.js",
    "dom.js",
    "charts.js",
    "methods.js",
    "curves.js",
    "front.js",
    "panel.js",
    "table.js",
    "main.js",
)
_PLACE = re.compile(r"@@([A-Z_]+)@@")


def write_page(source: ReportSource, path: str | Path, command: str = "") -> Path:
    """Writes the page, whole or not at all.

    Args:
        source: what to show.
        path: file to write; its folder is made if absent.
        command: the command line that makes this page, shown at its end.

    Returns:
        The path written.

    Raises:
        FileAccessError: the file cannot be written.
    """
    write_whole(path, render_page(page_data(source, command)).encode())
    return Path(path)


def render_page(data: dict[str, Any]) -> str:
    """The page's text.

    Args:
        data: of :func:`rlprune.report.page_data.page_data`.
    """
    plotly = _script_text(get_plotlyjs())
    own = _script_text("\n".join(["'use strict';", "(() => {", *map(_part, _SCRIPTS), "})();"]))
    title = " + ".join(data["header"]["experiments"])
    places = {
        "TITLE": html.escape(f"{title}: accuracy against cost"),
        "POLICY": html.escape(_policy(plotly, own)),
        "STYLE": _part("page.css"),
        "DATA": json_for_script(data),
        "PLOTLY": plotly,
        "SCRIPT": own,
    }
    # One pass: what was put in is never searched for places again.
    return _PLACE.sub(lambda place: places[place[1]], _part("page.html"))


def json_for_script(data: Any) -> str:
    """JSON that can stand inside a ``<script>`` element.

    Every ``<`` is written as an escape, so that neither ``</script`` nor ``<!--`` can occur.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _part(name: str) -> str:
    return resources.files("rlprune.report").joinpath("web", name).read_text(encoding="utf-8")


def _script_text(text: str) -> str:
    r"""As a browser will see it: its hash must agree, and nothing may end the element early.

    Inside a string of JavaScript the escape reads as the same sign.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"<(?=/script|!--)", r"\\x3c", text, flags=re.IGNORECASE)


def _policy(*scripts: str) -> str:
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
