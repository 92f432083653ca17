"""The numbers of the alerts that a fleet may want otherwise, with their defaults.

An expression names one by `limit("commitSeconds")`, or by its severity as well: `limit("redisMemoryRatio", "warning")`.
What Prometheus reads has the defaults in it. The chart's copy of the rules keeps the places open, as
`<<commitSeconds>>`, and fills them from `prometheusRule.thresholds`, which has the same names.
"""

import re

DEFAULTS = {
    "queueOldestSeconds": {"warning": 300, "critical": 1800},
    "queueDrainSeconds": 3600,
    "workerSlotsUsedRatio": 0.95,
    "jobsLostRatio": 0.01,
    "attemptFailureRatio": {"warning": 0.05, "critical": 0.25},
    "runFailureRatio": 0.05,
    "retryRatio": 0.5,
    "resultsIgnoredRatio": 0.01,
    "deadLettersNew": 0,
    "runsStuckSeconds": 1200,
    "outboxLag": 1000,
    "commitSeconds": 0.5,
    "schedulingDelaySeconds": 1,
    "logLag": 10000,
    "timerLateSeconds": 10,
    "apiErrorRatio": 0.05,
    "redisMemoryRatio": {"warning": 0.7, "critical": 0.8},
    "redisFullInSeconds": 21600,
    "redisTripSeconds": 0.25,
}
PLACE = re.compile(r"<<([A-Za-z]+)(?:\.([a-z]+))?>>")


def _default(name, severity):
    found = DEFAULTS[name]
    return found[severity] if severity else found


def limit(name, severity=None):
    """The place of a number in an expression. A name that is not there is an error here and not in Prometheus."""
    _default(name, severity)
    return f"<<{name}.{severity}>>" if severity else f"<<{name}>>"


def filled(expression):
    """The expression with the defaults."""
    return PLACE.sub(lambda found: str(_default(*found.groups())), expression)
