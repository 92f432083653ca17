"""Runs, and what goes wrong in them: categories, retries, breakers, dead letters, campaigns, and who is told."""

from panels import dashboard, graph, heatmap, quantiles, query, stat

RUNS = [
    graph(
        "Runs that ended, by outcome",
        "A second. Worry when `failed` is more than a few of a hundred.",
        "cps",
        [query("sum by (outcome) (rate(stepfleet_runs_finished_total{@}[$__rate_interval]))", "{{outcome}}")],
        stack=True,
    ),
    graph(
        "Failed runs",
        "The share of failed among completed and failed runs. Above 5 % is an alert.",
        "percentunit",
        [query(
            'sum(rate(stepfleet_runs_finished_total{@, outcome="failed"}[$__rate_interval])) / clamp_min('
            'sum(rate(stepfleet_runs_finished_total{@, outcome=~"completed|failed"}[$__rate_interval])), 1e-9)',
            "failed",
        )],
        top=1,
        lines=[(0.05, "red")],
    ),
    graph(
        "Open runs",
        "`active` ones go on by themselves, `suspended` ones wait for a person: `stepfleet runs list "
        "--state suspended`.",
        "short",
        [query("max by (state) (stepfleet_runs{@})", "{{state}}")],
    ),
    graph(
        "Whole runs, p95 by workflow",
        "From submit to end. Fifty workflows have a line of their own, the rest is `other`.",
        "s",
        [query(
            "histogram_quantile(0.95, sum by (le, workflow) "
            "(rate(stepfleet_run_seconds_bucket{@}[$__rate_interval])))",
            "{{workflow}}",
        )],
    ),
    graph(
        "Ten busiest workflows",
        "Runs that ended, a second, by workflow.",
        "cps",
        [query("topk(10, sum by (workflow) (rate(stepfleet_run_seconds_count{@}[$__rate_interval])))", "{{workflow}}")],
    ),
    heatmap("How whole runs spread", "From submit to end, all workflows.", "s", "stepfleet_run_seconds"),
]

FAILURES = [
    graph(
        "Failed attempts by category",
        "`transient` and `timeout`: a dependency. `rate_limited`: too fast for it. `data`: bad "
        "input. `worker_lost`: dying workers.",
        "cps",
        [query(
            "sum by (category) (rate(stepfleet_attempt_failures_total{@queue}[$__rate_interval]))", "{{category}}"
        )],
        stack=True,
    ),
    graph(
        "Failed attempts by queue",
        "Where it fails.",
        "cps",
        [query("sum by (queue) (rate(stepfleet_attempt_failures_total{@queue}[$__rate_interval]))", "{{queue}}")],
        stack=True,
    ),
    graph(
        "Share of failed attempts by queue",
        "Failed, timed out or lost, of all attempts that came to an end. Above 5 % is an alert.",
        "percentunit",
        [query(
            'sum by (queue) (rate(stepfleet_jobs_finished_total{@queue, outcome=~"failed|timed_out|lost"}'
            "[$__rate_interval])) / clamp_min(sum by (queue) (rate("
            'stepfleet_jobs_finished_total{@queue, outcome=~"completed|failed|timed_out|lost"}'
            "[$__rate_interval])), 1e-9)",
            "{{queue}}",
        )],
        top=1,
        lines=[(0.05, "orange"), (0.25, "red")],
    ),
    graph(
        "Retries by category",
        "Tries that follow a failure, a second. As many as first tries: a storm.",
        "cps",
        [query("sum by (category) (rate(stepfleet_retries_total{@queue}[$__rate_interval]))", "{{category}}")],
        stack=True,
    ),
    graph(
        "Timers that came due",
        "Retries after their wait, time limits of attempts, of starts and of runs, a second.",
        "cps",
        [query("sum by (kind) (rate(stepfleet_timers_total{@}[$__rate_interval]))", "{{kind}}")],
    ),
    graph(
        "Waiting timers",
        "`overdue` ones should have come due already: worry when it is above 0 for minutes.",
        "short",
        [
            query("max(stepfleet_timers{@})", "waiting"),
            query("max(stepfleet_timers_overdue{@})", "overdue"),
        ],
    ),
]

BREAKERS = [
    graph(
        "Breakers and paused queues",
        "Gates that hold something back, by how they stand: `stepfleet breakers list`.",
        "none",
        [query("max by (stand) (stepfleet_gates{@})", "{{stand}}")],
        stack=True,
    ),
    graph(
        "Steps that wait at gates",
        "Parked, with their tries untouched. They go on in growing waves when the gate opens.",
        "short",
        [query("max(stepfleet_parked_steps{@})", "parked")],
    ),
    graph(
        "Changes of breakers",
        "A breaker that opens and closes all the time needs another limit, or its dependency does.",
        "short",
        [query("sum by (state) (increase(stepfleet_breaker_moves_total{@}[$__rate_interval]))", "{{state}}")],
    ),
    graph(
        "Begun under limits",
        "Jobs a second that a limit let begin: `stepfleet limits list`.",
        "cps",
        [query("sum(rate(stepfleet_limit_permits_total{@}[$__rate_interval]))", "permits")],
    ),
    stat(
        "Leaked places",
        "Places under limits that no job had any more. They are given back; must stay 0.",
        "none",
        "sum(stepfleet_limit_leaks_total{@})",
        steps=[(1, "red")],
    ),
    stat(
        "Version of the policies",
        "What the coordinators decide by. Two numbers for long: one of them cannot read the newest.",
        "none",
        'count_values("version", stepfleet_policies_version{@})',
        legend="{{version}}",
    ),
    stat(
        "Policies not read",
        "Times in the last hour that a coordinator could not read the policies and went on by those it had.",
        "none",
        "sum(increase(stepfleet_policies_unread_total{@}[1h]))",
        steps=[(1, "orange")],
    ),
]

DEAD_LETTERS = [
    graph(
        "New dead letters by cause",
        "Steps that gave up. `exhausted`: out of tries. `poison`: it killed its workers. `expired`: not begun in time.",
        "short",
        [query("sum by (cause) (increase(stepfleet_dead_letters_total{@queue}[$__rate_interval]))", "{{cause}}")],
        stack=True,
    ),
    graph(
        "New dead letters by queue",
        "Where they come from: `stepfleet dead-letters groups` has the fingerprints.",
        "short",
        [query("sum by (queue) (increase(stepfleet_dead_letters_total{@queue}[$__rate_interval]))", "{{queue}}")],
        stack=True,
    ),
    graph(
        "Open, replayed and expired",
        "Open ones now, and how many were replayed or deleted by retention in the last hour. Expired "
        "ones nobody looked at.",
        "short",
        [
            query("max(stepfleet_dead_letters{@})", "open"),
            query("sum(increase(stepfleet_dead_letters_replayed_total{@}[1h]))", "replayed in an hour"),
            query("sum(increase(stepfleet_dead_letters_expired_total{@}[1h]))", "expired in an hour"),
        ],
    ),
    graph(
        "Campaigns: letters a second",
        "What campaigns did with single letters, by outcome: `stepfleet campaigns list`.",
        "cps",
        [query("sum by (outcome) (rate(stepfleet_campaign_items_total{@}[$__rate_interval]))", "{{outcome}}")],
        stack=True,
        width=12,
    ),
    graph(
        "Campaigns under way",
        "Also those that are paused. `expired` ones were deleted long after their end.",
        "none",
        [
            query("max(stepfleet_campaigns_active{@})", "active"),
            query("sum(increase(stepfleet_campaigns_expired_total{@}[1h]))", "expired in an hour"),
        ],
        width=12,
    ),
]

OUTBOX = [
    graph(
        "Entries that wait for subscribers",
        "Entries of the outbox that a subscriber has not seen. Worry when it grows: it cannot follow or fails.",
        "short",
        [query("max by (subscriber) (stepfleet_outbox_lag{@})", "{{subscriber}}")],
    ),
    graph(
        "Deliveries",
        "Entries a second that subscribers took, and tries that failed.",
        "cps",
        [
            query(
                "sum by (subscriber) (rate(stepfleet_outbox_deliveries_total{@}[$__rate_interval]))", "{{subscriber}}"
            ),
            query(
                "sum by (subscriber) (rate(stepfleet_outbox_delivery_failures_total{@}[$__rate_interval]))",
                "{{subscriber}} failed",
            ),
        ],
    ),
    graph(
        "Entries that nobody was told of",
        "Set aside after five tries, or trimmed before they were seen, in the last hour. `stepfleet "
        "subscribers undelivered`.",
        "short",
        [
            query(
                "sum by (subscriber) (increase(stepfleet_outbox_undelivered_total{@}[1h]))",
                "{{subscriber}} undelivered",
            ),
            query("sum by (subscriber) (increase(stepfleet_outbox_missed_total{@}[1h]))", "{{subscriber}} missed"),
        ],
    ),
]

RUN_LENGTHS = [
    graph(
        "Whole runs",
        "The median and the slow ones, over all workflows.",
        "s",
        quantiles("stepfleet_run_seconds"),
        width=12,
    ),
    graph(
        "Attempts for each step",
        "Attempts that ended for each step that ended. 1 is best; 2 means that half the work is done twice.",
        "none",
        [query(
            "sum by (queue) (rate(stepfleet_jobs_finished_total{@queue}[$__rate_interval])) "
            '/ clamp_min(sum by (queue) (rate(stepfleet_steps_finished_total{@queue, outcome=~"completed|failed"}'
            "[$__rate_interval])), 1e-9)",
            "{{queue}}",
        )],
        width=12,
    ),
]

DASHBOARD = dashboard(
    "stepfleet-workflows-failures",
    "Workflows and failures",
    "Runs by outcome and length, and what goes wrong: categories, retries, breakers, dead letters, "
    "campaigns, subscribers.",
    [
        ("Runs", RUNS),
        ("How long and how often", RUN_LENGTHS),
        ("Failures", FAILURES),
        ("Breakers, limits and policies", BREAKERS),
        ("Dead letters and campaigns", DEAD_LETTERS),
        ("Who is told", OUTBOX),
    ],
    since="now-6h",
)
