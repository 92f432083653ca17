"""What may be empty in a fleet that runs for a minute, each with the reason.

A panel or alert is allowed to be empty if it reads one of these metrics. Everything else must have data.
"""

REASONS = {
    "ALERTS": "most alerts wait for minutes before they fire",
    "stepfleet_audit_repairs_total": "it has a series only after a repair, and there must be none",
    "stepfleet_outbox_missed_total": "nothing is missed until the outbox is trimmed",
    "stepfleet_redis_memory_full_in_seconds": "there is none while memory does not grow",
}
