"""Alerts about Redis, where everything is: room, eviction, persistence, speed."""

from entry import alert
from thresholds import limit

BOARD = "coordinator-redis"


def _memory(severity, means):
    return alert(
        "StepfleetRedisMemoryHigh",
        severity,
        f"max by (fleet, node) (stepfleet_redis_memory_ratio) > {limit('redisMemoryRatio', severity)}",
        wait="2m",
        summary="Redis node {{ $labels.node }} fills up",
        description=f"{{{{ $value | humanizePercentage }}}} of `maxmemory` is used. {means}",
        dashboard=BOARD,
    )


RULES = [
    _memory("warning", "From 80 % on new runs are refused."),
    _memory("critical", "From 80 % on new runs are refused, from 90 % on commands too."),
    alert(
        "StepfleetRedisFullSoon",
        "warning",
        f"min by (fleet, node) (stepfleet_redis_memory_full_in_seconds) < {limit('redisFullInSeconds')}",
        wait="15m",
        summary="Redis node {{ $labels.node }} is full soon",
        description="At the rate of the last ten minutes there is room for {{ $value | humanizeDuration }}.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetRedisEvictionPolicyWrong",
        "critical",
        "max by (fleet, node) (stepfleet_redis_eviction_policy_wrong) == 1",
        wait="0m",
        summary="Redis node {{ $labels.node }} may throw data away",
        description="Its `maxmemory-policy` is not `noeviction`. When it is full it deletes runs and jobs.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetRedisEvictedKeys",
        "critical",
        "max by (fleet, node) (delta(stepfleet_redis_evicted_keys[1h])) > 0",
        wait="0m",
        summary="Redis node {{ $labels.node }} has thrown data away",
        description="{{ $value | humanize }} keys were evicted in the last hour.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetRedisPersistenceBroken",
        "critical",
        "max by (fleet, node) (stepfleet_redis_persistence_broken) == 1",
        wait="1m",
        summary="Redis node {{ $labels.node }} does not keep what it acknowledges",
        description="The append-only file is off, or the last write to it failed. A restart loses data.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetRedisSlow",
        "warning",
        f"fleet:stepfleet_redis_trip_seconds:p99_5m > {limit('redisTripSeconds')}",
        wait="10m",
        summary="Redis answers slowly",
        description="One trip of a hundred takes longer than {{ $value | humanizeDuration }}.",
        dashboard=BOARD,
    ),
    alert(
        "StepfleetRedisUnreachable",
        "critical",
        """
        sum by (fleet) (rate(stepfleet_redis_trip_seconds_count[2m])) == 0
        and on (fleet) count by (fleet) (stepfleet_partitions_owned)
        """,
        wait="2m",
        summary="No coordinator reaches Redis",
        description="Coordinators are up, and none of them has had an answer of Redis for two minutes.",
        dashboard=BOARD,
    ),
]
