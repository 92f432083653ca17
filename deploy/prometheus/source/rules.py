"""All groups of rules, and their YAML: for Prometheus, and for the chart, which fills in thresholds itself."""

import json
import re

import coordinator
import failures
import queues
import recording
import storage
import thresholds

INTERVAL = "30s"
# With the places of thresholds open.
OPEN = {
    "stepfleet.recording": recording.RULES,
    "stepfleet.queues": queues.RULES,
    "stepfleet.failures": failures.RULES,
    "stepfleet.coordinator": coordinator.RULES,
    "stepfleet.storage": storage.RULES,
}
GROUPS = {
    name: [{**rule, "expr": thresholds.filled(rule["expr"])} for rule in entries] for name, entries in OPEN.items()
}
# A series, with the brace behind it if it has one.
SERIES = re.compile(r"\b(stepfleet_\w+|process_start_time_seconds|up|\w+:stepfleet_\w+:\w+)\b(\{?)")
HEAD = "# Written by `make dashboards` from deploy/prometheus/source. Changes here are lost.\n"


def _rule(rule):
    """Texts are quoted as JSON, which YAML reads too; expressions are blocks, so that they can be read."""
    lines = []
    for key, value in rule.items():
        if key == "expr":
            lines.append("expr: |-")
            lines += [f"  {line}" for line in value.splitlines()]
        elif isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {name}: {json.dumps(text, ensure_ascii=False)}" for name, text in value.items()]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(("      - " if number == 0 else "        ") + line for number, line in enumerate(lines))


def of_one_fleet(groups):
    """The same with a place in each selector, `<<own>>`, for the matchers of one fleet."""

    def selected(expression):
        return SERIES.sub(lambda found: f"{found[1]}{{<<own>>{',' if found[2] else '}'}", expression)

    return {
        name: [{**rule, "expr": selected(rule["expr"])} for rule in entries] for name, entries in groups.items()
    }


def text(groups):
    """The whole file, as Prometheus reads it: `groups:` and nothing else."""
    lines = []
    for name, entries in groups.items():
        lines.append(f"  - name: {name}\n    interval: {INTERVAL}\n    rules:")
        lines += [_rule(rule) for rule in entries]
    return HEAD + "groups:\n" + "\n".join(lines) + "\n"
