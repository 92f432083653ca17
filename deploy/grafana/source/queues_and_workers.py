"""Each queue, and who serves it: what waits, for how long, and whether the workers are enough and well."""

from panels import dashboard, graph, heatmap, quantiles, query, stat, table

QUEUES = [
    table(
        "Queues now",
        "A queue with waiting jobs and no worker does not move. `wanted` is what the fleet would like to have for it.",
        "short",
        [
            ("waiting", "max by (queue) (stepfleet_queue_depth{@queue})"),
            ("at workers", "max by (queue) (stepfleet_queue_pending{@queue})"),
            ("oldest (s)", "max by (queue) (stepfleet_queue_oldest_seconds{@queue})"),
            ("workers", "max by (queue) (stepfleet_queue_workers{@queue})"),
            ("wanted", "max by (queue) (stepfleet_queue_wanted_workers{@queue})"),
            ("slots", "max by (queue) (stepfleet_queue_slots{@queue})"),
            ("paused", "max by (queue) (stepfleet_queue_paused{@queue})"),
        ],
        by=["queue"],
        width=24,
    ),
    graph(
        "Waiting: ready, not yet on a stream",
        "Steps whose needs are met, in the ready sets. They are held back when streams are full "
        "enough for the workers there are.",
        "short",
        [query("max by (queue) (stepfleet_queue_ready{@queue})", "{{queue}}")],
    ),
    graph(
        "Waiting: on streams, not taken",
        "The lag of the consumer groups. Growing while slots are free: workers cannot read, see the runbooks.",
        "short",
        [query("max by (queue) (stepfleet_queue_lag{@queue})", "{{queue}}")],
    ),
    graph(
        "At workers",
        "Jobs that workers have taken and not yet reported. A flat line without results is a hanging handler.",
        "short",
        [query("max by (queue) (stepfleet_queue_pending{@queue})", "{{queue}}")],
    ),
    graph(
        "Jobs in and out",
        "Dispatched (in) and ended (out), a second, over the chosen queues. The difference is the "
        "slope of the backlog.",
        "cps",
        [
            query("sum(rate(stepfleet_jobs_dispatched_total{@queue}[$__rate_interval]))", "dispatched"),
            query("sum(rate(stepfleet_jobs_finished_total{@queue}[$__rate_interval]))", "ended"),
        ],
    ),
    graph(
        "Steps by outcome",
        "Steps that are over for good, a second; retries are not counted here.",
        "cps",
        [query("sum by (outcome) (rate(stepfleet_steps_finished_total{@queue}[$__rate_interval]))", "{{outcome}}")],
        stack=True,
    ),
    graph(
        "Workers: there and wanted",
        "`wanted` counts running work too, so that nobody is taken away in the middle. Far apart for "
        "long: scaling does not follow.",
        "none",
        [
            query("max by (queue) (stepfleet_queue_workers{@queue})", "{{queue}} there"),
            query("max by (queue) (stepfleet_queue_wanted_workers{@queue})", "{{queue}} wanted"),
        ],
    ),
]

LATENCY = [
    graph(
        "Wait for a worker, p95 by queue",
        "From the stream to the begin of the handler.",
        "s",
        [query(
            "histogram_quantile(0.95, sum by (le, queue) "
            "(rate(stepfleet_job_wait_seconds_bucket{@queue}[$__rate_interval])))",
            "{{queue}}",
        )],
    ),
    graph(
        "Run time, p95 by queue",
        "How long attempts take, as the coordinators see them.",
        "s",
        [query(
            "histogram_quantile(0.95, sum by (le, queue) "
            "(rate(stepfleet_job_run_seconds_bucket{@queue}[$__rate_interval])))",
            "{{queue}}",
        )],
    ),
    graph(
        "Run time, p95 by handler",
        "As the workers see it, by handler. It shows which one became slow.",
        "s",
        [query(
            "histogram_quantile(0.95, sum by (le, handler) "
            "(rate(stepfleet_worker_run_seconds_bucket{@}[$__rate_interval])))",
            "{{handler}}",
        )],
    ),
    heatmap(
        "How waits spread",
        "Two bands mean two kinds of jobs, or one queue that is served worse than the others.",
        "s",
        "stepfleet_job_wait_seconds",
        "@queue",
        width=12,
    ),
    heatmap(
        "How run times spread",
        "A new band at the top is often a dependency that began to time out.",
        "s",
        "stepfleet_job_run_seconds",
        "@queue",
        width=12,
    ),
]

WORKERS = [
    graph(
        "Slots: used and there",
        "Over all workers that are scraped. Used at the top with a backlog: add workers or concurrency.",
        "none",
        [
            query("sum(stepfleet_worker_slots_used{@})", "used"),
            query("sum(stepfleet_worker_slots{@})", "there"),
        ],
    ),
    graph(
        "Slots used by worker",
        "One that stays at 0 while others are full is not served, or drains.",
        "percentunit",
        [query(
            "sum by (instance) (stepfleet_worker_slots_used{@}) "
            "/ clamp_min(sum by (instance) (stepfleet_worker_slots{@}), 1)",
            "{{instance}}",
        )],
        top=1,
    ),
    graph(
        "Jobs by worker",
        "Jobs that each worker ended, a second. It should be much the same for equal workers.",
        "cps",
        [query("sum by (instance) (rate(stepfleet_worker_jobs_total{@queue}[$__rate_interval]))", "{{instance}}")],
    ),
    graph(
        "Jobs of workers by outcome",
        "What workers reported, a second.",
        "cps",
        [query("sum by (outcome) (rate(stepfleet_worker_jobs_total{@queue}[$__rate_interval]))", "{{outcome}}")],
        stack=True,
    ),
    graph(
        "External calls on record",
        "Calls of two phases by what is known of them. `unknown` ones need a look: `stepfleet runs calls RUN`.",
        "cps",
        [query("sum by (outcome) (rate(stepfleet_worker_external_calls_total{@}[$__rate_interval]))", "{{outcome}}")],
    ),
    graph(
        "Results told at once",
        "How many results a worker puts into one message. Large under load; that is what makes it cheap.",
        "short",
        quantiles("stepfleet_worker_batch_results"),
    ),
    stat(
        "Handlers that do not stop",
        "Handlers that were told to stop and go on. Each holds a slot. Not 0: look at that handler.",
        "none",
        "sum(stepfleet_worker_stuck_handlers{@})",
        steps=[(1, "red")],
    ),
    stat(
        "Connections begun anew",
        "Connections of workers to Redis that broke and were made again, in the last hour.",
        "none",
        "sum(increase(stepfleet_worker_reconnects_total{@}[1h]))",
        steps=[(10, "orange")],
    ),
    stat(
        "Jobs nobody could read",
        "Jobs that a worker could not decode in the last hour: written by a newer version, or by a stranger.",
        "none",
        "sum(increase(stepfleet_worker_unreadable_total{@}[1h]))",
        steps=[(1, "red")],
    ),
]

DEATHS = [
    graph(
        "Workers that died, by how it was seen",
        "A closed channel is seen within seconds; silence takes half a minute.",
        "short",
        [query("sum by (way) (increase(stepfleet_worker_deaths_total{@}[$__rate_interval]))", "{{way}}")],
        stack=True,
    ),
    graph(
        "Jobs taken back from dead workers",
        "They go to others at once and use up no try.",
        "short",
        [
            query("sum(increase(stepfleet_jobs_lost_total{@}[$__rate_interval]))", "jobs"),
            query("sum(increase(stepfleet_workers_dead_total{@}[$__rate_interval]))", "workers"),
        ],
    ),
    graph(
        "From death to taken back",
        "How long the fleet did not notice. Some five seconds are usual; half a minute means that "
        "channels are not watched.",
        "s",
        quantiles("stepfleet_jobs_lost_after_seconds"),
    ),
    graph(
        "Watched channels and live workers",
        "Each coordinator watches a channel of every worker. Fewer channels than workers: some deaths are seen late.",
        "none",
        [
            query("sum by (instance) (stepfleet_worker_channels_watched{@})", "{{instance}}"),
            query('sum(max by (state) (stepfleet_workers{@, state=~"running|draining"}))', "live workers"),
        ],
        width=12,
    ),
    graph(
        "Watched pods and errors of the watch",
        "Where coordinators watch pods of Kubernetes: how many each knows, and how often its watch failed.",
        "none",
        [
            query("sum by (instance) (stepfleet_pods_watched{@})", "{{instance}}"),
            query("sum by (instance) (increase(stepfleet_pod_watch_errors_total{@}[$__rate_interval]))",
                  "errors of {{instance}}"),
        ],
        width=12,
    ),
    stat(
        "Mass deaths held back",
        "More than a third of the fleet fell silent at once, in the last day: the coordinators "
        "waited, as that is usually the network.",
        "none",
        "sum(increase(stepfleet_mass_deaths_held_total{@}[1d]))",
        width=12,
        height=8,
        steps=[(1, "red")],
    ),
]

PROGRAMS = [
    graph(
        "Processor",
        "Cores in use by each program.",
        "none",
        [query("sum by (job, instance) (rate(process_cpu_seconds_total{@}[$__rate_interval]))", "{{instance}}")],
    ),
    graph(
        "Memory",
        "Resident memory of each program. Growing over days is a leak.",
        "bytes",
        [query("sum by (job, instance) (process_resident_memory_bytes{@})", "{{instance}}")],
    ),
    graph(
        "Open files and connections",
        "File descriptors, as a share of what the process may open. A line that only grows ends there.",
        "percentunit",
        [query(
            "sum by (job, instance) (process_open_fds{@}) / sum by (job, instance) (process_max_fds{@})", "{{instance}}"
        )],
        top=1,
    ),
    graph(
        "Busy threads of the runtime",
        "The share of the time in which the runtime's threads worked. Near 100 % the program is "
        "short of processor or a handler blocks.",
        "percentunit",
        [query(
            "sum by (instance) (rate(stepfleet_tokio_busy_seconds_total{@}[$__rate_interval])) "
            "/ clamp_min(sum by (instance) (stepfleet_tokio_workers{@}), 1)",
            "{{instance}}",
        )],
        top=1,
    ),
    graph(
        "Tasks of the runtime",
        "Tasks that are alive. It follows the load; a line that only grows is a leak.",
        "short",
        [query("sum by (instance) (stepfleet_tokio_alive_tasks{@})", "{{instance}}")],
    ),
    graph(
        "Tasks that wait for a thread",
        "The runtime's global queue. Above 0 for long: too few threads, or a handler that blocks.",
        "short",
        [query("sum by (instance) (stepfleet_tokio_global_queue_depth{@})", "{{instance}}")],
    ),
]

DASHBOARD = dashboard(
    "stepfleet-queues-workers",
    "Queues and workers",
    "What waits in each queue and for how long, and whether the workers are enough and well.",
    [
        ("Queues", QUEUES),
        ("Latency", LATENCY),
        ("Workers", WORKERS),
        ("Deaths", DEATHS),
        ("Programs", PROGRAMS),
    ],
)
