"""As much of PromQL as the checks need: which metrics an expression reads, with what matchers, ranges and functions.

It is no parser: whether an expression is right at all is said by promtool and by a running Prometheus.
"""

import re

# What Grafana puts in for its variables when a panel asks.
GRAFANA = {
    "$__rate_interval": "30s",
    "$__interval": "15s",
    "$__range": "1h",
    "$cluster": ".*",
    "$namespace": ".*",
    "$fleet": ".*",
    "$job": ".+",
    "$queue": ".+",
}
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan", "by", "without", "on", "ignoring"}
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\{[^}]*\})?\s*(\[[^\]]*\])?(\s*\()?")
MATCHER = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')


class Selector:
    """One metric that an expression reads. `function` is the call that directly surrounds it, or nothing."""

    def __init__(self, name, matchers, window, function):
        self.name = name
        self.matchers = matchers
        self.window = window
        self.function = function


def substituted(expression, variables=GRAFANA):
    """The expression with Grafana's variables replaced, longest names first."""
    for name in sorted(variables, key=len, reverse=True):
        expression = expression.replace(name, variables[name])
    return expression


def unknown_variables(expression):
    return sorted(set(re.findall(r"\$\{?\w+\}?", substituted(expression))))


def grouping_labels(expression):
    """All labels that are named in `by (...)`, `on (...)` and the like."""
    found = [label.strip() for _, labels in GROUPING.findall(expression) for label in labels.split(",")]
    return [label for label in found if label]


def selectors(expression):
    """Every metric that is read, in order."""
    text = GROUPING.sub(lambda found: " " * len(found.group(0)), expression)
    found = []
    at = 0
    while match := SELECTOR.search(text, at):
        at = match.end() if match.group(4) is None else match.end(1)
        quote = TEXT.search(text, 0)
        while quote and quote.end() <= match.start():
            quote = TEXT.search(text, quote.end())
        if quote and quote.start() <= match.start() < quote.end():
            at = quote.end()
            continue
        name, matchers, window, call = match.groups()
        before = text[match.start() - 1 : match.start()]
        if call is not None or name.lower() in WORDS or before.isalnum() or before == "$":
            continue
        function = re.search(r"([a-z_]+)\s*\(\s*$", text[: match.start()])
        parsed = {label: (operator, value) for label, operator, value in MATCHER.findall(matchers or "")}
        found.append(Selector(name, parsed, window, function.group(1) if function else None))
    return found
