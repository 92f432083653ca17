"""The engine: the loop that decides and commits, partitions and their owners, the auditor, the API, and Redis."""

from panels import dashboard, graph, heatmap, quantiles, query, stat, table

MUST_STAY_ZERO = [
    stat(
        "Torn commits",
        "Commits of which Redis did only a part. The partition is stopped at once. Not 0: a bug, or "
        "a stranger in our keys.",
        "none",
        "sum(stepfleet_owner_torn_commits_total{@})",
        steps=[(1, "red")],
    ),
    stat(
        "Repairs of the auditor",
        "Steps or runs that were in no place where they should be, and were put back. Not 0: keys "
        "were lost or changed.",
        "none",
        "sum(stepfleet_audit_repairs_total{@}) or vector(0)",
        steps=[(1, "red")],
    ),
    stat(
        "Quarantined",
        "Entries of logs that could not be decided: `stepfleet quarantine list`.",
        "none",
        "sum(stepfleet_quarantined_total{@})",
        steps=[(1, "orange")],
    ),
    stat(
        "Evicted keys",
        "Keys that Redis threw away. Not 0: data is lost, and `maxmemory-policy` is or was wrong.",
        "none",
        "sum(max by (node) (stepfleet_redis_evicted_keys{@}))",
        steps=[(1, "red")],
    ),
    stat(
        "Nodes that may evict",
        "Nodes whose `maxmemory-policy` is not `noeviction`.",
        "none",
        "sum(max by (node) (stepfleet_redis_eviction_policy_wrong{@}))",
        steps=[(1, "red")],
    ),
    stat(
        "Nodes that do not keep data",
        "Nodes without an append-only file, or whose last write to it failed.",
        "none",
        "sum(max by (node) (stepfleet_redis_persistence_broken{@}))",
        steps=[(1, "red")],
    ),
]

OWNERS = [
    graph(
        "Partitions by owner",
        "Each partition has one owner. A coordinator that ends gives its partitions to the others within a second.",
        "none",
        [query("sum by (instance) (stepfleet_partitions_owned{@})", "{{instance}}")],
        stack=True,
    ),
    graph(
        "Partitions without an owner, and paused ones",
        "Without an owner runs stand still. Paused: their slot moves to another node of a Cluster.",
        "none",
        [
            query("max(stepfleet_partitions_unowned{@})", "without an owner"),
            query("sum(stepfleet_partitions_paused{@})", "paused"),
            query("max(stepfleet_partitions{@})", "all"),
        ],
    ),
    graph(
        "Changes of ownership and doubts",
        "`fenced`: a commit came after another had taken over. `doubts`: it is not known whether a "
        "commit was done; it is looked up.",
        "short",
        [
            query("sum(increase(stepfleet_owner_fenced_total{@}[$__rate_interval]))", "fenced"),
            query("sum(increase(stepfleet_owner_doubts_total{@}[$__rate_interval]))", "doubts"),
        ],
    ),
]

LOOP = [
    graph(
        "Commit",
        "From its sending until Redis has acknowledged it, with what is decided meanwhile. It bounds how fast a partition is.",
        "s",
        quantiles("stepfleet_owner_commit_seconds"),
        lines=[(0.5, "orange")],
    ),
    graph(
        "Scheduling delay",
        "From the moment a step's needs are met until its job is on the stream, where nothing made it wait.",
        "s",
        quantiles("stepfleet_scheduling_delay_seconds"),
        lines=[(1, "orange")],
    ),
    graph(
        "Age of log entries when decided",
        "From the entry's arrival in the log. Worry when it grows: the owner does not follow.",
        "s",
        quantiles("stepfleet_owner_log_age_seconds"),
    ),
    graph(
        "Events and commits",
        "Events decided and commits made, a second. Commits ahead were sent before the one before was acknowledged.",
        "cps",
        [
            query("sum(rate(stepfleet_owner_events_total{@}[$__rate_interval]))", "events"),
            query("sum(rate(stepfleet_owner_commits_total{@}[$__rate_interval]))", "commits"),
            query("sum(rate(stepfleet_owner_commits_ahead_total{@}[$__rate_interval]))", "commits ahead"),
        ],
    ),
    graph(
        "Items of a commit",
        "How much one commit carries. Large under load; that is what makes it fast.",
        "short",
        quantiles("stepfleet_owner_batch_items"),
    ),
    graph(
        "Undecided log entries",
        "Entries that no owner has decided yet, over all partitions.",
        "short",
        [query("max(stepfleet_log_lag{@})", "entries")],
        lines=[(10000, "orange")],
    ),
    heatmap(
        "How scheduling delays spread",
        "From needs met to the job on its stream.",
        "s",
        "stepfleet_scheduling_delay_seconds",
        width=12,
    ),
    graph(
        "How late timers are",
        "Retries and time limits are looked at several times a second. Late by seconds: the owner is overloaded.",
        "s",
        quantiles("stepfleet_timer_late_seconds"),
        width=6,
    ),
    graph(
        "Results ignored",
        "Stale or doubled results, a second: the work was done twice, its result counts once. A few "
        "after deaths are right.",
        "cps",
        [query("sum(rate(stepfleet_results_ignored_total{@}[$__rate_interval]))", "ignored")],
        width=6,
    ),
]

AUDIT = [
    graph(
        "Runs that the auditor looked at",
        "A second. None for long while runs are open: nobody would notice a lost step.",
        "cps",
        [query("sum(rate(stepfleet_audit_runs_total{@}[$__rate_interval]))", "runs")],
    ),
    graph(
        "Repairs by what was missing",
        "See docs/operations.md for what each word means.",
        "short",
        [query("sum by (what) (increase(stepfleet_audit_repairs_total{@}[$__rate_interval]))", "{{what}}")],
    ),
    graph(
        "Deleted by retention",
        "Runs, plans, events and audit entries that were kept for as long as the settings say, a second.",
        "cps",
        [
            query("sum(rate(stepfleet_runs_expired_total{@}[$__rate_interval]))", "runs"),
            query("sum(rate(stepfleet_plans_expired_total{@}[$__rate_interval]))", "plans"),
            query("sum(rate(stepfleet_events_expired_total{@}[$__rate_interval]))", "events"),
            query("sum(rate(stepfleet_audit_expired_total{@}[$__rate_interval]))", "audit entries"),
        ],
    ),
    table(
        "Counters of the partitions",
        "Sums that the partitions keep in Redis, since the installation began. They survive every restart.",
        "short",
        [("Total", "max by (name) (stepfleet_partition_incidents{@})")],
        by=["name"],
        width=24,
    ),
]

API = [
    graph(
        "Requests by status",
        "Of the HTTP API. 503 `server_full`: Redis has no room for new runs.",
        "reqps",
        [query("sum by (status) (rate(stepfleet_http_requests_total{@}[$__rate_interval]))", "{{status}}")],
        stack=True,
        width=6,
    ),
    graph(
        "Ten busiest routes",
        "Requests a second.",
        "reqps",
        [query(
            "topk(10, sum by (method, route) (rate(stepfleet_http_requests_total{@}[$__rate_interval])))",
            "{{method}} {{route}}",
        )],
        width=6,
    ),
    graph(
        "Slowest routes, p95",
        "Routes that wait for a run or follow one are slow on purpose.",
        "s",
        [query(
            "topk(10, histogram_quantile(0.95, sum by (le, method, route) "
            "(rate(stepfleet_http_request_seconds_bucket{@}[$__rate_interval]))))",
            "{{method}} {{route}}",
        )],
        width=6,
    ),
    graph(
        "Requests refused for their token",
        "`missing` and `unknown` tokens, or a `role` that is not enough. Many `unknown` ones: somebody guesses, or a token was "
        "withdrawn that is still in use.",
        "reqps",
        [query("sum by (why) (rate(stepfleet_http_denied_total{@}[$__rate_interval]))", "{{why}}")],
        stack=True,
        width=6,
    ),
]

REDIS = [
    graph(
        "Memory by node",
        "As a share of `maxmemory`. New runs are refused from 80 %, commands from 90 %.",
        "percentunit",
        [query("max by (node) (stepfleet_redis_memory_ratio{@})", "{{node}}")],
        top=1,
        lines=[(0.8, "orange"), (0.9, "red")],
        width=6,
    ),
    graph(
        "Memory in bytes",
        "Used memory of each node.",
        "bytes",
        [query("max by (node) (stepfleet_redis_memory_bytes{@})", "{{node}}")],
        width=6,
    ),
    graph(
        "Time until full",
        "At the rate of the last ten minutes. There is no line while memory does not grow.",
        "s",
        [query("max by (node) (stepfleet_redis_memory_full_in_seconds{@})", "{{node}}")],
        width=6,
    ),
    graph(
        "A trip to Redis",
        "From the API, those who look around, and subscribers; the owners' own is the commit. "
        "A busy server or a slow disk under the append-only file shows here.",
        "s",
        quantiles("stepfleet_redis_trip_seconds"),
        lines=[(0.25, "orange")],
        width=6,
    ),
]

PROGRAMS = [
    graph(
        "Up",
        "1 for each scraped program that answers.",
        "none",
        [query("sum by (job, instance) (up{@})", "{{job}} {{instance}}")],
        top=1,
        width=12,
    ),
    graph(
        "Age of the programs",
        "Time since each started. A saw means that it restarts.",
        "s",
        [query("time() - max by (job, instance) (process_start_time_seconds{@})", "{{instance}}")],
        width=12,
    ),
]

DASHBOARD = dashboard(
    "stepfleet-coordinator-redis",
    "Coordinator and Redis",
    "The engine: what must stay 0, partitions and owners, the loop that commits, the auditor, the API, Redis.",
    [
        ("Must stay 0", MUST_STAY_ZERO),
        ("Partitions and owners", OWNERS),
        ("The loop that decides and commits", LOOP),
        ("Auditor and retention", AUDIT),
        ("API", API),
        ("Redis", REDIS),
        ("Programs", PROGRAMS),
    ],
    with_queue=False,
)
