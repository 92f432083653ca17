"""The metrics that exist, as the product documents them: docs/metrics.md. It is read by its tables: the names are in backticks in the first column. Kinds and labels are taken from
the columns whose titles begin with `kind` or `type`, and with `label`; labels may also stand behind the name, as in
`name{a,b}`.
"""

import pathlib
import re

TOP = pathlib.Path(__file__).resolve().parents[2]
# Labels that Prometheus adds, or the alerts themselves.
ADDED = {"cluster", "namespace", "fleet", "job", "instance", "le"}
OTHERS = {"up": {"labels": set(), "kind": "gauge"}, "ALERTS": {"labels": None, "kind": "gauge"}}


def from_document(text):
    """`labels` is None where the document does not tell them."""
    metrics, titles = {}, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            titles = []
        elif not titles:
            titles = [cell.lower() for cell in cells]
        for name, inside in re.findall(r"`([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([^}]*)\})?`", cells[0] if cells else ""):
            row = dict(zip(titles, cells))
            labels = next((value for title, value in row.items() if title.startswith("label")), None)
            kind = next((value for title, value in row.items() if title.startswith(("kind", "type"))), "")
            told = set(re.findall(r"[a-z_]+", inside)) | set(re.findall(r"`([a-z_]+)`", labels or ""))
            metrics[name] = {
                "kind": kind.strip("`").lower(),
                "labels": told if inside or labels is not None else None,
            }
    return metrics


def read():
    """Every metric by its name, and the file that says so."""
    source = "docs/metrics.md"
    metrics = from_document((TOP / source).read_text())
    if len(metrics) < 50:
        raise SystemExit(f"{source} names only {len(metrics)} metrics; is the name the first column?")
    return {**metrics, **OTHERS}, source


def family(name, metrics):
    """The metric that a series belongs to: a histogram has three kinds of series. None if nothing has that name."""
    if name in metrics:
        return name
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    if base != name and base in metrics and metrics[base]["kind"] in ("histogram", ""):
        return base
    return None
