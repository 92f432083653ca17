"""Rules about dashboards: those of Grafana's dashboard-linter, written anew, and our own about layout and texts.

A rule takes a dashboard and yields its problems. `EXCEPTIONS` says where a rule does not hold, and why.
"""

import re

import promql

QUERIED = {"timeseries", "stat", "table", "heatmap"}
CORE = QUERIED | {"row"}
# The ids of units that Grafana knows, as far as they are used here.
UNITS = {"none", "short", "s", "h", "percentunit", "bytes", "cps", "reqps"}
VARIABLES = ["datasource", "cluster", "namespace", "fleet", "job"]

SINCE_START = "must stay 0: the count since the start is asked"
# (rule, part of the expression): why it is right all the same.
EXCEPTIONS = {
    ("target-job", "ALERTS{"): "alerts are made by Prometheus and have no job of their own",
    ("target-counter-agg", "sum(stepfleet_owner_torn_commits_total{"): SINCE_START,
    ("target-counter-agg", "sum(stepfleet_audit_repairs_total{"): SINCE_START,
    ("target-counter-agg", "sum(stepfleet_quarantined_total{"): SINCE_START,
    ("target-counter-agg", "sum(stepfleet_limit_leaks_total{"): SINCE_START,
}


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets(dashboard):
    return [(panel, target) for panel in panels(dashboard) for target in panel.get("targets", [])]


def _variables(dashboard, kind):
    return [variable for variable in dashboard["templating"]["list"] if variable["type"] == kind]


def template_datasource(dashboard):
    first = dashboard["templating"]["list"][0]
    if (first["name"], first["type"], first["query"], first["label"]) != (
        "datasource", "datasource", "prometheus", "Data source",
    ):
        yield "the first variable is not the data source"


def template_required(dashboard):
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    if names[:5] != VARIABLES or names[5:] not in ([], ["queue"]):
        yield f"the variables are {names}"


def template_query(dashboard):
    for variable in _variables(dashboard, "query"):
        name = variable["name"]
        if variable["datasource"].get("uid") != "${datasource}":
            yield f"variable `{name}` does not use the data source variable"
        if variable["refresh"] != 2:
            yield f"variable `{name}` is not read again when the time range changes"
        if not (variable["multi"] and variable["includeAll"] and variable["allValue"] in (".+", ".*")):
            yield f"variable `{name}` does not offer several and all"
        if not re.fullmatch(r"label_values\([a-z_]+(\{.*\})?, [a-z_]+\)", variable["query"]["query"]):
            yield f"variable `{name}` is not a list of label values: {variable['query']['query']}"
        if variable["label"] != name.capitalize():
            yield f"variable `{name}` is labelled `{variable['label']}`"


def template_unused(dashboard):
    text = " ".join(target["expr"] for _, target in targets(dashboard))
    for variable in _variables(dashboard, "query"):
        if f"${variable['name']}" not in text:
            yield f"no panel uses the variable `{variable['name']}`"


def uneditable(dashboard):
    if dashboard["editable"] or dashboard["id"] is not None:
        yield "it can be edited, or has an id"


def shape(dashboard):
    if not 39 <= dashboard["schemaVersion"] <= 41:
        yield f"schemaVersion is {dashboard['schemaVersion']}; allowed are 39 to 41"
    if not re.fullmatch(r"stepfleet-[a-z-]{1,30}", dashboard["uid"]):
        yield f"uid `{dashboard['uid']}` is not a short name"
    if dashboard["tags"] != ["stepfleet"] or dashboard["links"][0]["tags"] != ["stepfleet"]:
        yield "its tag or the links by that tag are missing"
    if "__inputs" in dashboard:
        yield "it has `__inputs`, so that it cannot be provisioned"
    if dashboard["refresh"] != "30s":
        yield f"it is refreshed every {dashboard['refresh']}"


def panel_kind(dashboard):
    for panel in dashboard["panels"]:
        if panel["type"] not in CORE:
            yield f"`{panel['title']}` is a `{panel['type']}`, which not every Grafana has"


def panel_datasource(dashboard):
    for panel in panels(dashboard):
        for part in [panel, *panel["targets"]]:
            if part.get("datasource", {}).get("uid") != "${datasource}":
                yield f"`{panel['title']}` does not use the data source variable"


def panel_title_description(dashboard):
    titles = [panel["title"] for panel in panels(dashboard)]
    for panel in panels(dashboard):
        title, description = panel["title"], panel.get("description", "")
        if not title or len(description) < 10 or not description.endswith("."):
            yield f"`{title}` has no title or no description of at least a sentence"
        if titles.count(title) > 1:
            yield f"two panels are titled `{title}`"


def panel_units(dashboard):
    for panel in panels(dashboard):
        unit = panel["fieldConfig"]["defaults"].get("unit")
        if unit not in UNITS:
            yield f"`{panel['title']}` has the unit `{unit}`; known are {', '.join(sorted(UNITS))}"


def panel_targets(dashboard):
    for panel in panels(dashboard):
        if not panel.get("targets"):
            yield f"`{panel['title']}` asks nothing"
        names = [target["refId"] for target in panel["targets"]]
        if len(names) != len(set(names)):
            yield f"`{panel['title']}` has two queries of one name"


def panel_place(dashboard):
    """No two panels overlap, and none leaves the 24 columns."""
    taken = {}
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        if at["x"] + at["w"] > 24:
            yield f"`{panel['title']}` leaves the grid"
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                other = taken.setdefault((x, y), panel["title"])
                if other is not panel["title"]:
                    yield f"`{panel['title']}` lies on `{other}`"
                    return
    numbers = [panel["id"] for panel in dashboard["panels"]]
    if len(numbers) != len(set(numbers)):
        yield "two panels have one id"


def target_variables(dashboard):
    for panel, target in targets(dashboard):
        for name in promql.unknown_variables(target["expr"]):
            yield f"`{panel['title']}` uses `{name}`, which is no variable"


def target_rate_interval(dashboard):
    for panel, target in targets(dashboard):
        for selector in promql.selectors(target["expr"]):
            if selector.function in ("rate", "irate") and selector.window != "[$__rate_interval]":
                yield f"`{panel['title']}`: {selector.function} of {selector.name} over {selector.window}"


def target_counter_agg(dashboard):
    for panel, target in targets(dashboard):
        for selector in promql.selectors(target["expr"]):
            counts = selector.name.endswith(("_total", "_bucket", "_sum", "_count"))
            if counts and selector.function not in ("rate", "irate", "increase"):
                yield f"`{panel['title']}`: {selector.name} without a rate in `{target['expr']}`"
            if not counts and selector.function in ("rate", "irate", "increase"):
                yield f"`{panel['title']}`: the {selector.function} of {selector.name}, which is no counter"


def target_histogram(dashboard):
    for panel, target in targets(dashboard):
        expression = target["expr"]
        if "histogram_quantile" in expression and "le" not in promql.grouping_labels(expression):
            yield f"`{panel['title']}`: a quantile that does not keep `le`"
        heat = panel["type"] == "heatmap"
        if heat and (target.get("format") != "heatmap" or "le" not in promql.grouping_labels(expression)):
            yield f"`{panel['title']}`: a heatmap that is not by `le`"


def target_job(dashboard):
    for panel, target in targets(dashboard):
        for selector in promql.selectors(target["expr"]):
            for label in ("cluster", "namespace", "fleet", "job"):
                if selector.matchers.get(label) != ("=~", f"${label}"):
                    yield f"`{panel['title']}`: {selector.name} is not of the chosen {label} in `{target['expr']}`"


def target_queue(dashboard):
    """Where a dashboard lets choose queues, whatever knows its queue follows."""
    if "queue" not in [variable["name"] for variable in dashboard["templating"]["list"]]:
        return
    for panel, target in targets(dashboard):
        by_queue = "queue" in promql.grouping_labels(target["expr"])
        for selector in promql.selectors(target["expr"]):
            if by_queue and selector.matchers.get("queue") != ("=~", "$queue"):
                yield f"`{panel['title']}`: {selector.name} is by queue and not of the chosen ones"


def target_legend(dashboard):
    """Several lines that cannot be told apart help nobody."""
    for panel in panels(dashboard):
        legends = [target["legendFormat"] for target in panel["targets"]]
        if panel["type"] == "timeseries" and ("__auto" in legends or len(legends) != len(set(legends))):
            yield f"`{panel['title']}`: its legends are {legends}"
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                kept = promql.grouping_labels(target["expr"])
                if label not in kept and "count_values" not in target["expr"]:
                    yield f"`{panel['title']}`: the legend names {label}, which the query does not keep"


RULES = {
    function.__name__.replace("_", "-"): function
    for function in (
        template_datasource, template_required, template_query, template_unused, uneditable, shape, panel_kind,
        panel_datasource, panel_title_description, panel_units, panel_targets, panel_place, target_variables,
        target_rate_interval, target_counter_agg, target_histogram, target_job, target_queue, target_legend,
    )
}


def problems(dashboard, used=None):
    """Every problem of a dashboard that no exception covers. The exceptions that were needed are put into `used`."""
    found = []
    for name, rule in RULES.items():
        for problem in rule(dashboard):
            covered = [key for key in EXCEPTIONS if key[0] == name and key[1] in problem]
            if used is not None:
                used.update(covered)
            if not covered:
                found.append(f"{dashboard['uid']}: {name}: {problem}")
    return found
