"""Alerts about queues and workers: is what waits being served?"""

from entry import alert
from thresholds import limit

BOARD = "queues-workers"

# What makes a paused queue no alert: somebody decided that it waits.
NOT_PAUSED = "unless on (fleet, queue) max by (fleet, queue) (stepfleet_queue_paused) == 1"


def _too_old(severity):
    return alert(
        "StepfleetQueueOldestTooOld",
        severity,
        f"""
        max by (fleet, queue) (stepfleet_queue_oldest_seconds) > {limit("queueOldestSeconds", severity)}
        {NOT_PAUSED}
        """,
        wait="5m",
        summary="A job of queue {{ $labels.queue }} waits too long",
        description="The oldest job that no worker has taken waits for {{ $value | humanizeDuration }}.",
        dashboard=BOARD,
        about=["queue"],
    )


RULES = [
    _too_old("warning"),
    _too_old("critical"),
    alert(
        "StepfleetNoWorkersForQueue",
        "critical",
        f"""
        max by (fleet, queue) (stepfleet_queue_depth) > 0
        unless on (fleet, queue) max by (fleet, queue) (stepfleet_queue_workers) > 0
        {NOT_PAUSED}
        """,
        wait="2m",
        summary="Queue {{ $labels.queue }} has jobs and no worker",
        description="{{ $value }} jobs wait, and no live worker subscribes to the queue.",
        dashboard=BOARD,
        about=["queue"],
    ),
    alert(
        "StepfleetQueueNotDraining",
        "critical",
        # With room, the oldest job is taken at once; while nobody takes it, its age grows by a second each second. Jobs
        # that run for hours fill slots, and full slots are StepfleetWorkersSaturated. Slots of workers with several
        # queues count for each of these: the second `unless` is for those that another queue has filled.
        f"""
        max by (fleet, queue) (stepfleet_queue_depth) > 0
        and on (fleet, queue) max by (fleet, queue) (deriv(stepfleet_queue_oldest_seconds[10m])) > 0.5
        and on (fleet, queue)
        max by (fleet, queue) (stepfleet_queue_pending)
        < on (fleet, queue) max by (fleet, queue) (stepfleet_queue_slots)
        unless on (fleet) fleet:stepfleet_worker_slots:used_ratio >= 1
        {NOT_PAUSED}
        """,
        wait="10m",
        summary="Queue {{ $labels.queue }} has free slots, and its jobs are not taken",
        description="{{ $value }} jobs wait, there are free slots, and the oldest job only becomes older.",
        dashboard=BOARD,
        about=["queue"],
    ),
    alert(
        "StepfleetQueueBacklogGrowing",
        "warning",
        f"""
        max by (fleet, queue) (stepfleet_queue_drain_seconds) > {limit("queueDrainSeconds")}
        and on (fleet, queue) max by (fleet, queue) (deriv(stepfleet_queue_depth[15m])) > 0
        """,
        wait="15m",
        summary="The backlog of queue {{ $labels.queue }} grows",
        description="At the present rate what waits takes {{ $value | humanizeDuration }}, and it becomes more.",
        dashboard=BOARD,
        about=["queue"],
    ),
    alert(
        "StepfleetQueuePausedLong",
        "info",
        """
        max by (fleet, queue) (stepfleet_queue_paused) == 1
        and on (fleet, queue) max by (fleet, queue) (stepfleet_queue_depth) > 0
        """,
        wait="2h",
        summary="Queue {{ $labels.queue }} is paused for hours while jobs wait",
        description="Somebody paused it more than two hours ago; it may have been forgotten.",
        dashboard=BOARD,
        about=["queue"],
    ),
    alert(
        "StepfleetWorkersSaturated",
        "warning",
        f"""
        fleet:stepfleet_worker_slots:used_ratio > {limit("workerSlotsUsedRatio")}
        and on (fleet) sum by (fleet) (max by (fleet, queue) (stepfleet_queue_depth)) > 0
        """,
        wait="15m",
        summary="Nearly all worker slots are in use, and jobs wait",
        description="{{ $value | humanizePercentage }} of the slots are busy for a quarter of an hour.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetWorkersFewerThanWanted",
        "warning",
        f"""
        max by (fleet, queue) (stepfleet_queue_wanted_workers)
        - on (fleet, queue) max by (fleet, queue) (stepfleet_queue_workers) > 0
        {NOT_PAUSED}
        """,
        wait="20m",
        summary="Queue {{ $labels.queue }} has fewer workers than it needs",
        description="{{ $value }} workers are missing for twenty minutes: scaling does not follow, or is at its limit.",
        dashboard=BOARD,
        about=["queue"],
    ),
    alert(
        "StepfleetWorkersSilent",
        "warning",
        # A dead worker is silent for a minute and a half, then it is off the registry.
        'max by (fleet) (max_over_time(stepfleet_workers{state="silent"}[5m])) > 0',
        wait="0m",
        summary="Workers are not heard of",
        description="{{ $value }} workers send no beats. Their jobs are given to others.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetMassDeaths",
        "critical",
        "sum by (fleet) (increase(stepfleet_mass_deaths_held_total[15m])) > 0",
        wait="0m",
        summary="More than a third of the workers fell silent at once",
        description=(
            "The coordinators hold their jobs back for a while, as this is usually the network and not "
            "the workers."
        ),
        dashboard=BOARD,
    ),
    alert(
        "StepfleetJobsLostOften",
        "warning",
        f"""
        sum by (fleet) (increase(stepfleet_jobs_lost_total[15m])) > 5
        and on (fleet)
        sum by (fleet) (increase(stepfleet_jobs_lost_total[15m]))
        / on (fleet) sum by (fleet) (increase(stepfleet_jobs_dispatched_total[15m])) > {limit("jobsLostRatio")}
        """,
        wait="5m",
        summary="Workers die with jobs again and again",
        description="{{ $value | humanize }} jobs were taken back from dead workers in a quarter of an hour.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetWorkerStuckHandlers",
        "warning",
        "sum by (fleet) (stepfleet_worker_stuck_handlers) > 0",
        wait="10m",
        summary="Handlers do not stop when they are told to",
        description="{{ $value }} handlers go on after their time limit or a cancel. Each holds a slot.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetWorkerUnreadableJobs",
        "warning",
        "sum by (fleet) (increase(stepfleet_worker_unreadable_total[15m])) > 0",
        wait="0m",
        summary="Workers cannot read jobs",
        description="Jobs could not be decoded: written by a newer version, or by a stranger.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetWorkerReconnects",
        "warning",
        "sum by (fleet, job, instance) (increase(stepfleet_worker_reconnects_total[15m])) > 10",
        wait="5m",
        summary="A worker loses its connections to Redis all the time",
        description="{{ $labels.instance }} connected anew {{ $value | humanize }} times in a quarter of an hour.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetWorkerChannelsUnwatched",
        "warning",
        """
        min by (fleet) (stepfleet_worker_channels_watched)
        < on (fleet) sum by (fleet) (max by (fleet, state) (stepfleet_workers{state=~"running|draining"}))
        """,
        wait="15m",
        summary="Deaths of workers are seen late",
        description="A coordinator watches the channels of {{ $value }} workers, fewer than there are.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetPodWatchFailing",
        "warning",
        "sum by (fleet, instance) (increase(stepfleet_pod_watch_errors_total[15m])) > 3",
        wait="15m",
        summary="A coordinator cannot watch the pods of workers",
        description="The watch of {{ $labels.instance }} failed {{ $value | humanize }} times in a quarter of an hour.",
        dashboard=BOARD,
    ),
]
