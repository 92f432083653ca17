"""Alerts about what fails: attempts, runs, retries, dead letters, breakers, campaigns, and those who should be told."""

from entry import alert, grew
from thresholds import limit

BOARD = "workflows-failures"


def _failure_ratio(severity):
    share = limit("attemptFailureRatio", severity)
    return alert(
        "StepfleetFailureRatioHigh",
        severity,
        f"""
        queue:stepfleet_job_failures:ratio_rate5m > {share}
        and queue:stepfleet_job_failures:ratio_rate30m > {share}
        and on (fleet, queue) sum by (fleet, queue) (increase(stepfleet_jobs_finished_total[30m])) >= 10
        """,
        wait="5m",
        summary="Attempts of queue {{ $labels.queue }} fail",
        description=(
            "{{ $value | humanizePercentage }} of the attempts failed, timed out or were lost, now and "
            "over half an hour."
        ),
        dashboard=BOARD,
        about=["queue"],
    )


RULES = [
    _failure_ratio("warning"),
    _failure_ratio("critical"),
    alert(
        "StepfleetRunFailureRatioHigh",
        "critical",
        f"""
        fleet:stepfleet_run_failures:ratio_rate5m > {limit("runFailureRatio")}
        and fleet:stepfleet_run_failures:ratio_rate30m > {limit("runFailureRatio")}
        and on (fleet) sum by (fleet) (increase(stepfleet_runs_finished_total[30m])) >= 10
        """,
        wait="5m",
        summary="Too many runs fail",
        description="{{ $value | humanizePercentage }} of the runs that ended in the last five minutes failed.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetRetryStorm",
        "warning",
        f"""
        sum by (fleet, queue) (rate(stepfleet_retries_total[10m]))
        / sum by (fleet, queue) (rate(stepfleet_jobs_dispatched_total[10m])) > {limit("retryRatio")}
        and on (fleet, queue) sum by (fleet, queue) (increase(stepfleet_retries_total[10m])) > 50
        """,
        wait="10m",
        summary="Many jobs of queue {{ $labels.queue }} are retries",
        description="{{ $value | humanizePercentage }} of what is dispatched was tried before.",
        dashboard=BOARD,
        about=["queue"],
    ),
    alert(
        "StepfleetDeadLettersGrowing",
        "warning",
        grew("stepfleet_dead_letters_total", "fleet, queue", "10m", limit("deadLettersNew")),
        wait="15m",
        summary="Steps of queue {{ $labels.queue }} give up, one after the other",
        description="New dead letters came in every ten minutes for a quarter of an hour.",
        dashboard=BOARD,
        about=["queue"],
    ),
    alert(
        "StepfleetPoisonJobs",
        "warning",
        grew('stepfleet_dead_letters_total{cause="poison"}', "fleet, queue", "15m"),
        wait="0m",
        summary="A job of queue {{ $labels.queue }} kills its workers",
        description="A step gave up because worker after worker died with it.",
        dashboard=BOARD,
        about=["queue"],
    ),
    alert(
        "StepfleetDeadLettersExpired",
        "info",
        "sum by (fleet) (increase(stepfleet_dead_letters_expired_total[1h])) > 0",
        wait="0m",
        summary="Retention deleted dead letters",
        description="{{ $value | humanize }} went in the last hour, alone or with their runs. Nobody can replay them.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetBreakerOpen",
        "warning",
        'max by (fleet) (stepfleet_gates{stand="open"}) > 0',
        wait="5m",
        summary="Circuit breakers are open",
        description="{{ $value }} breakers hold their steps back for five minutes: a dependency is down.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetRunsStuck",
        "critical",
        f"""
        max by (fleet) (stepfleet_runs{{state="active"}}) > 0
        unless on (fleet) sum by (fleet) (rate(stepfleet_owner_events_total[{limit("runsStuckSeconds")}s])) > 0
        unless on (fleet) max by (fleet) (stepfleet_queue_pending) > 0
        unless on (fleet) max by (fleet) (stepfleet_queue_depth) > 0
        unless on (fleet) max by (fleet) (stepfleet_parked_steps) > 0
        """,
        wait="10m",
        summary="Runs are open and nothing moves",
        description="{{ $value }} runs are active, and for long nothing was decided, waits or runs.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetCampaignStalled",
        "info",
        """
        max by (fleet) (stepfleet_campaigns_active) > 0
        unless on (fleet) sum by (fleet) (rate(stepfleet_campaign_items_total[30m])) > 0
        """,
        wait="30m",
        summary="A campaign does nothing",
        description="{{ $value }} campaigns are under way, and no letter was taken up in half an hour.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetOutboxBacklog",
        "warning",
        f"max by (fleet, subscriber) (stepfleet_outbox_lag) > {limit('outboxLag')}",
        wait="10m",
        summary="Subscriber {{ $labels.subscriber }} is behind",
        description="{{ $value }} entries of the outbox wait for it for ten minutes.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetOutboxDeliveriesFail",
        "warning",
        """
        sum by (fleet, subscriber) (rate(stepfleet_outbox_delivery_failures_total[10m])) > 0
        unless on (fleet, subscriber) sum by (fleet, subscriber) (rate(stepfleet_outbox_deliveries_total[10m])) > 0
        """,
        wait="5m",
        summary="Nothing reaches subscriber {{ $labels.subscriber }}",
        description="Every delivery of the last ten minutes failed.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetOutboxEntriesDropped",
        "warning",
        grew("stepfleet_outbox_undelivered_total", "fleet, subscriber", "15m")
        + "\nor\n"
        + grew("stepfleet_outbox_missed_total", "fleet, subscriber", "15m"),
        wait="0m",
        summary="Subscriber {{ $labels.subscriber }} was not told of something",
        description="Entries were set aside after five tries, or trimmed before it had seen them.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetResultsIgnored",
        "warning",
        f"""
        sum by (fleet) (rate(stepfleet_results_ignored_total[10m]))
        / on (fleet) sum by (fleet) (rate(stepfleet_jobs_finished_total[10m])) > {limit("resultsIgnoredRatio")}
        """,
        wait="15m",
        summary="Work is done twice",
        description="{{ $value | humanizePercentage }} of the results are of attempts that do not count any more.",
        dashboard=BOARD,
    ),
]
