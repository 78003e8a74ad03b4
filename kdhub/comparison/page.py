"""A comparison as one HTML page that needs no network: tables that sort, plots with tooltips, the recipe.

Every number of the plots stands in a table too, so that nothing is told by a picture alone.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kdhub.comparison.comparison import START, SUBJECTS, Result, cell_folder
from kdhub.comparison.plots import interval, look, ranked
from kdhub.errors import UsageError
from kdhub.evaluation.report import TEACHER, Table
from kdhub.files import atomic_write
from kdhub.recipes.run import Run

SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "p": "pentagon"}
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --link: light-dark(#0b57d0, #8ab4f8) }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem 1rem 4rem }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; min-width: 100%; font-size: .93rem }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .7rem; text-align: left; vertical-align: top }
td { font-variant-numeric: tabular-nums; white-space: nowrap } thead th { white-space: nowrap }
th button { all: unset; cursor: pointer; font-weight: 600 } th button:focus-visible { outline: 2px solid var(--link) }
th[aria-sort=ascending] button::after { content: " \\25B2" }
th[aria-sort=descending] button::after { content: " \\25BC" }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: .4rem; overflow-x: auto; font-size: .85rem }
figure { margin: 1rem 0 } img { max-width: 100%; background: #fff; border-radius: .4rem }
.plot { background: #fff; border-radius: .4rem } .note { opacity: .8 } caption { text-align: left; padding: .3rem 0 }
"""

_DRAW = """
for (const [id, f] of Object.entries(plots))
  Plotly.newPlot(id, f.data, f.layout, {responsive: true, displayModeBar: false});
"""

_SORT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const column = [...head.parentElement.children].indexOf(head), up = head.ariaSort !== "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.ariaSort = up ? "ascending" : "descending";
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => { const x = parseFloat(key(a)), y = parseFloat(key(b));
    return isNaN(x) || isNaN(y) ? key(a).localeCompare(key(b)) : x - y; };
  const rows = [...body.rows].filter(row => !row.hasAttribute("data-below")).sort(order);
  if (!up) rows.reverse();
  body.prepend(...rows);
});
"""


def write_page(result: Result, folder: Path) -> Path:
    """Write `page.html` into a folder.

    Raises:
        UsageError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UsageError("a page needs plotly", hint="pip install 'kdhub[page]'") from error
    path = folder / "page.html"
    atomic_write(path, page(result, get_plotlyjs()))
    return path


def page(result: Result, plotly: str) -> str:
    """The HTML, with the library in it."""
    plots = {"seeds": _seeds(result), "cost": _cost(result), "learning": _learning(result)}
    plots = {name: figure for name, figure in plots.items() if figure["data"]}
    parts = [f"<h1>{escape(result.name)}: {escape(result.metric)} on {escape(result.data)}</h1>"]
    if result.plan.get("summary"):
        parts.append(f"<p>{escape(result.plan['summary'])}</p>")
    parts += [f'<p class="note">{escape(note)}</p>' for note in result.notes()]
    parts += [_table(table) for table in result.tables()]
    for name, (title, said) in _PLOTS.items():
        if name in plots:
            parts.append(f"<h2>{title}</h2><p>{said}</p>")
            parts.append(f'<div class="plot" id="{name}" role="img" aria-label="{title}: {said}"></div>')
    parts.append(_values(result))
    parts += _pictures(result)
    shown = {key: value for key, value in result.plan.items() if key != "claims"}
    parts.append(f"<h2>What was run</h2><pre>{escape(yaml.safe_dump(shown, sort_keys=False, width=90))}</pre>")
    parts.append(f"<h2>Where</h2><pre>{escape(yaml.safe_dump(_environment(result), sort_keys=False))}</pre>")
    # "</script>" inside a text would end the script.
    figures = json.dumps(plots).replace("</", "<\\/")
    draw = f"const plots = {figures};{_DRAW}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src
'unsafe-inline'; img-src data: blob:"><title>{escape(result.name)}: {escape(result.metric)}</title>
<style>{_STYLE}</style></head><body><main>{"".join(parts)}</main>
<script>{plotly}</script><script>{draw}{_SORT}</script></body></html>
"""


_PLOTS = {
    "seeds": ("Each seed", "a mark a seed, and the mean of each arm with its 95 % interval"),
    "cost": ("Quality and training time", "the mean of each arm with its interval, against the time a training takes"),
    "learning": ("Learning", "the metric while each arm learned, mean over seeds"),
}


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col"><button>{escape(column)}</button></th>' for column in table.columns)
    rows = ""
    for row in table.rows:
        # Teacher and untrained student stay below, however the arms are sorted.
        below = " data-below" if row[0] in (START, TEACHER) and len(table.columns) == 6 else ""
        first, *rest = row
        cells = "".join(f"<td{_order(cell)}>{escape(cell)}</td>" for cell in rest)
        rows += f'<tr{below}><th scope="row">{escape(first)}</th>{cells}</tr>'
    return f"""<h2>{escape(table.title)}</h2><div class="scroll" tabindex="0"><table>
<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"""


def _order(cell: str) -> str:
    """By what a cell is sorted, where its text has a prefix: 64.0 k is more than 300."""
    found = re.fullmatch(r"([\d.,]+) ([kMGTP])B?", cell)
    if not found:
        return ""
    return f' data-value="{float(found[1].replace(",", "")) * 1000 ** (1 + "kMGTP".index(found[2])):g}"'


def _values(result: Result) -> str:
    """Every seed of every arm."""
    seeds = result.plan["seeds"]
    rows = []
    for arm in ranked(result):
        found = result.of(arm)
        rows.append([arm, *(f"{found[seed]:.4f}" if seed in found else "–" for seed in seeds)])
    return _table(Table(f"{result.metric} of each seed", ["arm", *(f"seed {seed}" for seed in seeds)], rows))


def _pictures(result: Result) -> list[str]:
    """What the task drew in the cells of the first seed, arm by arm, where they are here."""
    parts, seed = [], result.plan["seeds"][0]
    for arm in result.arms if result.folder else ():
        folder = cell_folder(result.folder, arm, seed)
        for one in Run.open(folder).provenance.get("pictures", ()) if (folder / "recipe.yaml").is_file() else ():
            if not (path := folder / one["file"]).is_file():
                continue
            source = f"data:image/{path.suffix[1:]};base64,{b64encode(path.read_bytes()).decode()}"
            said = escape(f"{arm}, seed {seed}: {one['sentence']} Shown: {one['of']}.")
            parts.append(f'<figure><img src="{source}" alt="{said}"><figcaption>{said}</figcaption></figure>')
    return ["<h2>On the same rows</h2>", *parts] if parts else []


def _environment(result: Result) -> dict[str, Any]:
    keys = ("started", "command", "versions", "python", "system", "hardware", "jobs", "threads_each", "wall_seconds")
    return {key: result.environment[key] for key in keys if result.environment.get(key) is not None}


# -- plots ----------------------------------------------------------------------------------------------------


def _layout(x: str, y: str, height: int, **more: Any) -> dict[str, Any]:
    return {
        "template": None,
        "height": height,
        "margin": {"l": 70, "r": 20, "t": 20, "b": 55},
        "font": {"family": "system-ui, sans-serif", "size": 14, "color": "#222"},
        "xaxis": {"title": {"text": x}, "gridcolor": "#e3e3e3", "zeroline": False, "automargin": True},
        "yaxis": {"title": {"text": y}, "gridcolor": "#e3e3e3", "zeroline": False, "automargin": True},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        **more,
    }


def _marks(result: Result, arm: str, size: int) -> dict[str, Any]:
    own = look(result, arm)
    return {"color": own["color"], "symbol": SYMBOLS[own["marker"]], "size": size}


def _bars(values: list[float], mean: float) -> dict[str, Any]:
    """The interval of a mean, as lengths to both sides."""
    low, high = interval(values) or (mean, mean)
    return {"type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low], "thickness": 2}


def _seeds(result: Result) -> dict[str, Any]:
    data = []
    for arm in reversed(ranked(result)):
        found = result.of(arm)
        values, mean = list(found.values()), float(np.mean(list(found.values())))
        own = _marks(result, arm, 9)
        told = [f"seed {seed}" for seed in found]
        data.append(
            {"type": "scatter", "mode": "markers", "x": values, "y": [arm] * len(values), "text": told, "name": arm,
             "marker": {**own, "opacity": 0.5}, "hovertemplate": "%{y}, %{text}: %{x:.4f}<extra></extra>"}
        )  # fmt: skip
        data.append(
            {"type": "scatter", "mode": "markers", "x": [mean], "y": [arm], "name": f"{arm}, mean",
             "marker": {"color": "#222", "symbol": "line-ns-open", "size": 16, "line": {"width": 3}},
             "error_x": {**_bars(values, mean), "color": own["color"]},
             "hovertemplate": "%{y}: mean %{x:.4f}<extra></extra>"}
        )  # fmt: skip
    lines = []
    for subject, title in SUBJECTS:
        found = list(result.of_subject(subject).values())
        lines += [(float(np.mean(found)), title)] if found else []
    everything = [x for trace in data for x in trace["x"]]
    near = [(x, t) for x, t in lines if everything and abs(x - np.mean(everything)) < 2 * np.ptp(everything)]
    shapes = [
        {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "#666", "dash": "dash"}}
        for x, _ in near
    ]
    notes = [{"x": x, "yref": "paper", "y": 1, "text": t, "showarrow": False, "xanchor": "right"} for x, t in near]
    layout = _layout(f"{result.metric} on {result.data}", "", 130 + 42 * len(ranked(result)), showlegend=False)
    return {"data": data, "layout": {**layout, "shapes": shapes, "annotations": notes}}


def _cost(result: Result) -> dict[str, Any]:
    data = []
    for arm in ranked(result):
        if seconds := result.fact(arm, "train_seconds"):
            values = list(result.of(arm).values())
            mean = float(np.mean(values))
            data.append(
                {"type": "scatter", "mode": "markers", "x": [float(np.mean(seconds))], "y": [mean], "name": arm,
                 "marker": _marks(result, arm, 12), "error_y": _bars(values, mean),
                 "hovertemplate": f"{arm}: %{{y:.4f}} in %{{x:.3g}} s<extra></extra>"}
            )  # fmt: skip
    layout = _layout("training time, seconds", result.metric, 420)
    layout["xaxis"]["rangemode"] = "tozero"
    return {"data": data if len(data) > 1 else [], "layout": layout}


def _learning(result: Result) -> dict[str, Any]:
    data = []
    for arm in ranked(result):
        if curve := result.curve(arm):
            steps, means = zip(*curve)
            own = look(result, arm)
            data.append(
                {"type": "scatter", "mode": "lines+markers", "x": steps, "y": means, "name": arm,
                 "marker": _marks(result, arm, 7), "line": {"color": own["color"], "dash": DASHES[own["linestyle"]]}}
            )  # fmt: skip
    return {"data": data, "layout": _layout("optimiser step", f"{result.metric} on {result.data}", 440)}
