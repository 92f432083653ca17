"""What an alert and a recording rule are made of, and the short words of their expressions.

`fleet` in `by (fleet ...)` and `on (fleet ...)` means the labels that tell one fleet from another: `cluster`,
`namespace` and `fleet`. Each may be missing, as in a Prometheus that scrapes one fleet only.

What every process counts for itself is summed; what one coordinator tells for the whole fleet is read with `max`, so
that nothing counts twice while that duty moves to another coordinator.
"""

import textwrap

# The chart puts its own addresses in place of these two.
RUNBOOKS = "https://stepfleet.example.org/docs/runbooks"
GRAFANA = "http://localhost:3000"

FLEET = "cluster, namespace, fleet"
SEVERITIES = {
    "critical": "somebody is woken",
    "warning": "somebody looks today",
    "info": "good to know while looking at something else",
}


def _spelled(expression):
    text = textwrap.dedent(expression).strip()
    for word in ("by", "on"):
        text = text.replace(f"{word} (fleet", f"{word} ({FLEET}")
    return text


def grew(counter, labels, window, more_than=0):
    """That a counter became larger. A series that is born with 1 counts as well; `increase` does not see it."""
    return (
        f"sum by ({labels}) (increase({counter}[{window}])) > {more_than}\n"
        f"or\n"
        f"sum by ({labels}) ({counter} unless {counter} offset {window}) > {more_than}"
    )


def record(name, expression):
    return {"record": name, "expr": _spelled(expression)}


def alert(name, severity, expression, *, wait, summary, description, dashboard, about=()):
    """`wait` is how long it must hold. `about` are labels that the link to the dashboard passes on too."""
    variables = "".join(f"&var-{label}={{{{ $labels.{label} }}}}" for label in ("namespace", "fleet", *about))
    return {
        "alert": name,
        "expr": _spelled(expression),
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": f"{RUNBOOKS}/{name}.md",
            "dashboard_url": f"{GRAFANA}/d/stepfleet-{dashboard}?orgId=1{variables}",
        },
    }
