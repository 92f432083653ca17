"""Alerts about the engine: coordinators, partitions, commits, timers, the auditor, and the programs as such."""

from entry import alert, grew
from thresholds import limit

BOARD = "coordinator-redis"

RULES = [
    alert(
        "StepfleetNoCoordinator",
        "critical",
        """
        count by (fleet) (stepfleet_worker_slots) unless on (fleet) sum by (fleet) (stepfleet_partitions_owned)
        or
        absent(stepfleet_partitions_owned)
        """,
        wait="2m",
        summary="No coordinator answers",
        description="Workers finish what they have; nothing new is scheduled, and the API is not there.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetPartitionUnowned",
        "critical",
        """
        max by (fleet) (stepfleet_partitions_unowned) > 0
        or
        sum by (fleet) (stepfleet_partitions_owned) >= 0 unless on (fleet) max by (fleet) (stepfleet_partitions)
        """,
        wait="2m",
        summary="Partitions have no owner",
        description="Runs in them stand still. If no coordinator tells the fleet's gauges, partition 0 is among them.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetPartitionsOwnedTwice",
        "warning",
        "sum by (fleet) (stepfleet_partitions_owned) > on (fleet) max by (fleet) (stepfleet_partitions)",
        wait="5m",
        summary="More partitions are owned than there are",
        description=(
            "{{ $value }} ownerships are claimed. Commits are fenced, so nothing is decided twice; but "
            "somebody is cut off."
        ),
        dashboard=BOARD,
    ),
    alert(
        "StepfleetCoordinatorAlone",
        "warning",
        "max by (fleet) (stepfleet_coordinators) < 2",
        wait="15m",
        summary="There is only one coordinator",
        description="Nobody takes over when it dies.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetPartitionsPaused",
        "warning",
        "sum by (fleet) (stepfleet_partitions_paused) > 0",
        wait="10m",
        summary="Partitions pause for a move of slots",
        description=(
            "{{ $value }} partitions wait for ten minutes until all of their slot is on one node of the "
            "Cluster."
        ),
        dashboard=BOARD,
    ),
    alert(
        "StepfleetTornCommits",
        "critical",
        "sum by (fleet) (stepfleet_owner_torn_commits_total) > 0",
        wait="0m",
        summary="A commit was done in part",
        description="{{ $value }} commits of which Redis did a part only. Their partitions are stopped.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetFencedCommits",
        "warning",
        "sum by (fleet) (increase(stepfleet_owner_fenced_total[15m])) > 3",
        wait="0m",
        summary="Partitions change hands all the time",
        description=(
            "{{ $value | humanize }} commits came too late in a quarter of an hour: another coordinator "
            "had taken over."
        ),
        dashboard=BOARD,
    ),
    alert(
        "StepfleetOwnerDoubts",
        "warning",
        "sum by (fleet) (increase(stepfleet_owner_doubts_total[15m])) > 10",
        wait="0m",
        summary="Commits are answered by nothing",
        description=(
            "{{ $value | humanize }} times in a quarter of an hour it was unknown whether Redis had done "
            "a commit."
        ),
        dashboard=BOARD,
    ),
    alert(
        "StepfleetCommitSlow",
        "warning",
        f"fleet:stepfleet_owner_commit_seconds:p99_5m > {limit('commitSeconds')}",
        wait="10m",
        summary="Commits are slow",
        description="One commit of a hundred takes longer than {{ $value | humanizeDuration }}.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetSchedulingSlow",
        "warning",
        f"fleet:stepfleet_scheduling_delay_seconds:p99_5m > {limit('schedulingDelaySeconds')}",
        wait="10m",
        summary="Steps are scheduled late",
        description=(
            "One step of a hundred waits longer than {{ $value | humanizeDuration }} from its needs to "
            "its stream."
        ),
        dashboard=BOARD,
    ),
    alert(
        "StepfleetLogLag",
        "warning",
        f"max by (fleet) (stepfleet_log_lag) > {limit('logLag')}",
        wait="5m",
        summary="Owners do not follow their logs",
        description="{{ $value }} entries are not decided yet.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetTimersLate",
        "warning",
        f"""
        max by (fleet) (stepfleet_timers_overdue) > 0
        or
        fleet:stepfleet_timer_late_seconds:p99_5m > {limit("timerLateSeconds")}
        """,
        wait="5m",
        summary="Timers come late",
        description="Retries and time limits are overdue for five minutes.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetQuarantine",
        "warning",
        "sum by (fleet) (increase(stepfleet_quarantined_total[15m])) > 0",
        wait="0m",
        summary="Log entries could not be decided",
        description="They are set aside with their reason. Nothing else waits for them.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetAuditRepairs",
        "critical",
        grew("stepfleet_audit_repairs_total", "fleet, what", "1h"),
        wait="0m",
        summary="The auditor had to put back what was lost",
        description=(
            "A {{ $labels.what }} was in no place where it should be. Keys were lost or changed by "
            "somebody else."
        ),
        dashboard=BOARD,
    ),
    alert(
        "StepfleetAuditorSilent",
        "warning",
        """
        sum by (fleet) (increase(stepfleet_audit_runs_total[30m])) == 0
        and on (fleet) max by (fleet) (min_over_time(stepfleet_runs{state="active"}[30m])) > 0
        """,
        wait="10m",
        summary="The auditor looks at no run",
        description="Runs are open, and for half an hour nobody has looked for steps that are lost.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetLimitLeaks",
        "warning",
        "sum by (fleet) (increase(stepfleet_limit_leaks_total[1h])) > 0",
        wait="0m",
        summary="Places under limits had no job",
        description="{{ $value | humanize }} places were found and given back in an hour.",
        dashboard="workflows-failures",
    ),
    alert(
        "StepfleetPoliciesDiffer",
        "warning",
        """
        max by (fleet) (stepfleet_policies_version) > min by (fleet) (stepfleet_policies_version)
        or
        sum by (fleet) (increase(stepfleet_policies_unread_total[10m])) > 0
        """,
        wait="10m",
        summary="Coordinators do not decide by the same policies",
        description="One of them could not read the newest version and goes on by an older one.",
        dashboard="workflows-failures",
    ),
    alert(
        "StepfleetVersionsDiffer",
        "info",
        "count by (fleet) (count by (fleet, version) (stepfleet_build_info)) > 1",
        wait="2h",
        summary="Programs of several versions run side by side",
        description="{{ $value }} versions for two hours. That is made for upgrades, not for days.",
        dashboard="overview",
    ),
    alert(
        "StepfleetApiErrors",
        "warning",
        f"""
        sum by (fleet) (rate(stepfleet_http_requests_total{{status=~"5.."}}[5m]))
        / on (fleet) sum by (fleet) (rate(stepfleet_http_requests_total[5m])) > {limit("apiErrorRatio")}
        """,
        wait="10m",
        summary="The API answers with errors",
        description="{{ $value | humanizePercentage }} of the requests got a 5xx.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetScrapeMissing",
        "warning",
        """
        up == 0
        and on (fleet, job, instance) last_over_time(stepfleet_build_info[1h])
        """,
        wait="5m",
        summary="A program of the fleet is not scraped any more",
        description="{{ $labels.job }} at {{ $labels.instance }} has answered in the last hour, and does not now.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetRestartsOften",
        "warning",
        """
        max by (fleet, job, instance) (changes(process_start_time_seconds[30m])) > 2
        and on (fleet, job, instance) last_over_time(stepfleet_build_info[30m])
        """,
        wait="0m",
        summary="A program starts again and again",
        description="{{ $labels.instance }} began {{ $value }} times in half an hour.",
        dashboard=BOARD,
    ),
]
