"""Recording rules: what several alerts ask, and what is worth keeping for longer. Named `level:metric:operation`."""

from entry import FLEET, record

FAILED = 'outcome=~"failed|timed_out|lost"'
ENDED = 'outcome=~"completed|failed|timed_out|lost"'


def _job_failures(window):
    """The share of attempts that failed, ran out of time or died with their worker. NaN while nothing ends."""
    return record(
        f"queue:stepfleet_job_failures:ratio_rate{window}",
        f"""
        sum by (fleet, queue) (rate(stepfleet_jobs_finished_total{{{FAILED}}}[{window}]))
        /
        sum by (fleet, queue) (rate(stepfleet_jobs_finished_total{{{ENDED}}}[{window}]))
        """,
    )


def _run_failures(window):
    return record(
        f"fleet:stepfleet_run_failures:ratio_rate{window}",
        f"""
        sum by (fleet) (rate(stepfleet_runs_finished_total{{outcome="failed"}}[{window}]))
        /
        sum by (fleet) (rate(stepfleet_runs_finished_total{{outcome=~"completed|failed"}}[{window}]))
        """,
    )


def _quantile(level, metric, labels, quantile):
    return record(
        f"{level}:{metric}:p{quantile}_5m",
        f"histogram_quantile(0.{quantile}, sum by (le, {labels}) (rate({metric}_bucket[5m])))",
    )


RULES = [
    record(
        "queue:stepfleet_jobs_finished:rate5m", "sum by (fleet, queue) (rate(stepfleet_jobs_finished_total[5m]))"
    ),
    _job_failures("5m"),
    _job_failures("30m"),
    _run_failures("5m"),
    _run_failures("30m"),
    _quantile("queue", "stepfleet_job_wait_seconds", f"{FLEET}, queue", 95),
    _quantile("queue", "stepfleet_job_run_seconds", f"{FLEET}, queue", 95),
    _quantile("fleet", "stepfleet_run_seconds", FLEET, 95),
    _quantile("fleet", "stepfleet_owner_commit_seconds", FLEET, 99),
    _quantile("fleet", "stepfleet_scheduling_delay_seconds", FLEET, 99),
    _quantile("fleet", "stepfleet_timer_late_seconds", FLEET, 99),
    _quantile("fleet", "stepfleet_redis_trip_seconds", FLEET, 99),
    record(
        "fleet:stepfleet_worker_slots:used_ratio",
        "sum by (fleet) (stepfleet_worker_slots_used) / sum by (fleet) (stepfleet_worker_slots)",
    ),
]
