"""What all dashboards share: panels, queries, variables, layout, and the JSON that Grafana reads.

A query is PromQL with two short words for its selectors: `{@}` means the chosen cluster, namespace, fleet and job, and
`{@queue}` the chosen queues as well; more matchers may follow, as in `{@queue, outcome="failed"}`.

Series of two kinds: what every coordinator or worker counts for itself is summed; what one coordinator tells for the
whole fleet is read with `max`, so that nothing counts twice while that duty moves from one coordinator to another.
"""

SCHEMA_VERSION = 39
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF_FLEET = 'cluster=~"$cluster", namespace=~"$namespace", fleet=~"$fleet"'
SELECTED = OF_FLEET + ', job=~"$job"'
SELECTED_QUEUE = SELECTED + ', queue=~"$queue"'
COLUMNS = 24
QUANTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def expand(expression):
    """The PromQL of a query, with the selectors written out."""
    return expression.replace("{@queue", "{" + SELECTED_QUEUE).replace("{@", "{" + SELECTED)


def query(expression, legend="", *, table=False, heatmap=False):
    """One query of a panel. `table` asks for the newest value only."""
    target = {
        "datasource": DATASOURCE,
        "expr": expand(expression),
        "legendFormat": legend or "__auto",
        "range": not table,
        "instant": table,
        "exemplar": False,
    }
    if table or heatmap:
        target["format"] = "table" if table else "heatmap"
    return target


def quantiles(histogram, selector="@", by=""):
    """The median, 95th and 99th percentile of a histogram, whole or by a label."""
    labels = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return [
        query(
            f"histogram_quantile({quantile}, sum by ({labels}) "
            f"(rate({histogram}_bucket{{{selector}}}[$__rate_interval])))",
            legend + name,
        )
        for quantile, name in QUANTILES
    ]


def _panel(kind, title, description, unit, queries, width, height, defaults, options):
    targets = [dict(target, refId=chr(ord("A") + number)) for number, target in enumerate(queries)]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, **defaults}, "overrides": []},
        "options": options,
    }


def _thresholds(steps):
    """`steps` are pairs of a value and the colour from there on; below the first it is green."""
    first = [{"color": "green", "value": None}]
    return {"mode": "absolute", "steps": first + [{"color": color, "value": value} for value, color in steps]}


def graph(title, description, unit, queries, *, width=8, height=8, stack=False, top=None, lines=()):
    """Lines over time. `lines` are thresholds that are drawn, `top` is the end of the axis."""
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if stack else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if lines else "off"},
    }
    defaults = {"min": 0, "custom": custom, "thresholds": _thresholds(lines), "color": {"mode": "palette-classic"}}
    if top is not None:
        defaults["max"] = top
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", title, description, unit, queries, width, height, defaults, options)


def stat(title, description, unit, expression, *, width=4, height=4, steps=(), words=None, legend=""):
    """One number. `words` says what a number means, as {0: "no", 1: "yes"}."""
    defaults = {"thresholds": _thresholds(steps), "color": {"mode": "thresholds"}, "mappings": []}
    if words:
        named = {str(number): {"text": text, "index": index} for index, (number, text) in enumerate(words.items())}
        defaults["mappings"] = [{"type": "value", "options": named}]
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background" if steps else "value",
        "graphMode": "area",
        "textMode": "auto",
        "justifyMode": "auto",
        "orientation": "auto",
    }
    return _panel("stat", title, description, unit, [query(expression, legend)], width, height, defaults, options)


def heatmap(title, description, unit, histogram, selector="@", *, width=8, height=8):
    """How the values of a histogram spread over time."""
    expression = f"sum by (le) (increase({histogram}_bucket{{{selector}}}[$__rate_interval]))"
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "unit": unit},
        "rowsFrame": {"layout": "auto"},
    }
    targets = [query(expression, "{{le}}", heatmap=True)]
    return _panel("heatmap", title, description, unit, targets, width, height, {}, options)


def table(title, description, unit, columns, *, by, width=12, height=8, hidden=()):
    """The newest values, a row for each value of the labels `by`. `columns` are pairs of a name and an expression."""
    targets = [query(expression, table=True) for _, expression in columns]
    excluded = {"Time": True, **{label: True for label in hidden}}
    renamed = {"Value": columns[0][0]} if len(columns) == 1 else {}
    renamed.update({f"Value #{chr(ord('A') + number)}": name for number, (name, _) in enumerate(columns)})
    panel = _panel(
        "table", title, description, unit, targets, width, height, {"custom": {"align": "auto"}},
        {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": ["sum"], "fields": ""}},
    )
    panel["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": excluded, "indexByName": {label: index for index, label in
                                                                                  enumerate(by)},
                                       "renameByName": renamed}},
    ]
    return panel


def _variable(name, label, expression, *, every):
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": expression, "refId": f"variable-{name}"},
        "definition": expression,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": every,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "regex": "",
        "options": [],
        "skipUrlSync": False,
    }


def _variables(with_queue):
    """`.*` also matches a label that is not there: many have no clusters, namespaces or several fleets."""
    placed = 'cluster=~"$cluster", namespace=~"$namespace"'
    variables = [
        {
            "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0,
            "current": {}, "options": [], "refresh": 1, "regex": "", "multi": False, "includeAll": False,
            "skipUrlSync": False,
        },
        _variable("cluster", "Cluster", "label_values(stepfleet_build_info, cluster)", every=".*"),
        _variable(
            "namespace", "Namespace", 'label_values(stepfleet_build_info{cluster=~"$cluster"}, namespace)', every=".*"
        ),
        _variable("fleet", "Fleet", f"label_values(stepfleet_build_info{{{placed}}}, fleet)", every=".*"),
        _variable("job", "Job", f"label_values(stepfleet_build_info{{{OF_FLEET}}}, job)", every=".+"),
    ]
    if with_queue:
        expression = f"label_values(stepfleet_queue_workers{{{SELECTED}}}, queue)"
        variables.append(_variable("queue", "Queue", expression, every=".+"))
    return variables


def _place(rows):
    """Panels in rows of 24 columns, each row below a title, with ids that stay as long as the order does."""
    placed, top, number = [], 0, 0
    for title, panels in rows:
        number += 1
        placed.append({
            "type": "row", "title": title, "id": number, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        })
        top, left, tallest = top + 1, 0, 0
        for panel in panels:
            number += 1
            size = panel["gridPos"]
            if left + size["w"] > COLUMNS:
                top, left, tallest = top + tallest, 0, 0
            placed.append({**panel, "id": number, "gridPos": {"x": left, "y": top, **size}})
            left, tallest = left + size["w"], max(tallest, size["h"])
        top += tallest
    return placed


def dashboard(uid, title, description, rows, *, with_queue=True, since="now-1h"):
    """A whole dashboard. `rows` are pairs of a title and panels."""
    return {
        "id": None,
        "uid": uid,
        "title": f"Stepfleet / {title}",
        "description": description,
        "tags": ["stepfleet"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": since, "to": "now"},
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "annotations": {"list": []},
        "links": [{
            "title": "Stepfleet", "type": "dashboards", "tags": ["stepfleet"], "asDropdown": True,
            "icon": "external link", "includeVars": True, "keepTime": True, "targetBlank": False, "tooltip": "",
            "url": "",
        }],
        "templating": {"list": _variables(with_queue)},
        "panels": _place(rows),
    }
