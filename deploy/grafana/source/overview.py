"""The first look: does the fleet keep up, does what it does succeed, and is anything about to break?"""

from panels import dashboard, graph, quantiles, query, stat, table

NOW = [
    stat(
        "Firing alerts",
        "Alerts of Stepfleet that fire now. Not 0: read the table below and follow the runbook of each.",
        "none",
        'count(ALERTS{alertname=~"Stepfleet.+", alertstate="firing"}) or vector(0)',
        steps=[(1, "red")],
    ),
    stat(
        "Oldest waiting job",
        "How long the oldest job that no worker has taken waits, over the chosen queues. Worry when "
        "it grows for minutes.",
        "s",
        "max(stepfleet_queue_oldest_seconds{@queue})",
        steps=[(300, "orange"), (1800, "red")],
    ),
    stat(
        "Failed attempts",
        "The share of attempts that failed, timed out or were lost with their worker in the last "
        "five minutes. Above 5 % is an alert.",
        "percentunit",
        'sum(rate(stepfleet_jobs_finished_total{@queue, outcome=~"failed|timed_out|lost"}[$__rate_interval]))'
        " / clamp_min(sum(rate("
        'stepfleet_jobs_finished_total{@queue, outcome=~"completed|failed|timed_out|lost"}[$__rate_interval])), 1e-9)',
        steps=[(0.05, "orange"), (0.25, "red")],
    ),
    stat(
        "Open dead letters",
        "Steps that gave up and wait for somebody: `stepfleet dead-letters groups`. Worry when it grows.",
        "short",
        "max(stepfleet_dead_letters{@})",
        steps=[(1, "orange")],
    ),
    stat(
        "Partitions without an owner",
        "Runs in these partitions stand still. Not 0 for more than some seconds: a coordinator is "
        "missing or cannot reach Redis.",
        "none",
        "max(stepfleet_partitions_unowned{@})",
        steps=[(1, "red")],
    ),
    stat(
        "Fullest Redis node",
        "Used memory as a share of `maxmemory`. From 80 % new runs are refused, from 90 % commands too.",
        "percentunit",
        "max(stepfleet_redis_memory_ratio{@})",
        steps=[(0.7, "orange"), (0.8, "red")],
    ),
]

THROUGHPUT = [
    graph(
        "Runs",
        "Runs that begin and that end, a second. More that begin than end for long: the fleet falls behind.",
        "cps",
        [
            query("sum(rate(stepfleet_runs_submitted_total{@}[$__rate_interval]))", "submitted"),
            query("sum by (outcome) (rate(stepfleet_runs_finished_total{@}[$__rate_interval]))", "{{outcome}}"),
        ],
    ),
    graph(
        "Attempts by outcome",
        "Jobs that ended, a second, one for each attempt. Worry when `failed`, `timed_out` or `lost` "
        "are a visible part.",
        "cps",
        [query("sum by (outcome) (rate(stepfleet_jobs_finished_total{@queue}[$__rate_interval]))", "{{outcome}}")],
        stack=True,
    ),
    graph(
        "Jobs dispatched by queue",
        "Jobs that were put on streams, a second.",
        "cps",
        [query("sum by (queue) (rate(stepfleet_jobs_dispatched_total{@queue}[$__rate_interval]))", "{{queue}}")],
        stack=True,
    ),
]

BACKLOG = [
    graph(
        "Waiting jobs by queue",
        "Ready steps and jobs that no worker has taken. A level is fine; a slope is not.",
        "short",
        [query("max by (queue) (stepfleet_queue_depth{@queue})", "{{queue}}")],
        stack=True,
    ),
    graph(
        "Age of the oldest waiting job",
        "The best single sign that a queue is served too slowly.",
        "s",
        [query("max by (queue) (stepfleet_queue_oldest_seconds{@queue})", "{{queue}}")],
        lines=[(300, "orange")],
    ),
    graph(
        "Time to drain",
        "How long the present backlog takes at the present rate. There is no line while nothing is taken.",
        "s",
        [query("max by (queue) (stepfleet_queue_drain_seconds{@queue})", "{{queue}}")],
    ),
]

LATENCY = [
    graph(
        "Wait for a worker",
        "From the job's entry on its stream until its handler begins. Worry when p95 is no longer "
        "below what your users expect.",
        "s",
        quantiles("stepfleet_job_wait_seconds", "@queue"),
    ),
    graph(
        "Run time of a handler",
        "How long handlers take, over all chosen queues.",
        "s",
        quantiles("stepfleet_job_run_seconds", "@queue"),
    ),
    graph(
        "Whole runs",
        "From the submit of a run to its end, over all workflows.",
        "s",
        quantiles("stepfleet_run_seconds"),
    ),
]

FLEET = [
    graph(
        "Workers by state",
        "`silent` workers were not heard of lately: their jobs are about to be given to others.",
        "none",
        [query("max by (state) (stepfleet_workers{@})", "{{state}}")],
        stack=True,
        width=6,
    ),
    graph(
        "Slots in use",
        "The share of all slots that is busy. At 100 % with a backlog the fleet needs more workers.",
        "percentunit",
        [query("sum(stepfleet_worker_slots_used{@}) / clamp_min(sum(stepfleet_worker_slots{@}), 1)", "used")],
        top=1,
        lines=[(0.95, "orange")],
        width=6,
    ),
    graph(
        "Active and suspended runs",
        "Runs that are open. `suspended` ones wait for a person.",
        "short",
        [query("max by (state) (stepfleet_runs{@})", "{{state}}")],
        width=6,
    ),
    stat(
        "Coordinators",
        "Coordinators that are heard of. With fewer than two nobody takes over when one dies.",
        "none",
        "max(stepfleet_coordinators{@})",
        width=3,
        height=8,
        steps=[],
    ),
    stat(
        "Programs of each version",
        "Coordinators and workers that answer, by version. Several versions are right only during an upgrade.",
        "none",
        "count by (version) (stepfleet_build_info{@})",
        width=3,
        height=8,
        legend="{{version}}",
    ),
    table(
        "Alerts that fire",
        "Each has a runbook in docs/runbooks, named like it.",
        "none",
        [("Firing", 'ALERTS{alertname=~"Stepfleet.+", alertstate="firing"}')],
        by=["severity", "alertname", "namespace", "fleet", "queue"],
        hidden=["__name__", "alertstate"],
        width=24,
        height=7,
    ),
]

DASHBOARD = dashboard(
    "stepfleet-overview",
    "Overview",
    "Whether the fleet keeps up, whether what it does succeeds, and what is about to break.",
    [
        ("Now", NOW),
        ("Throughput", THROUGHPUT),
        ("Backlog", BACKLOG),
        ("Latency", LATENCY),
        ("Fleet", FLEET),
    ],
)
