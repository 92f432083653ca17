"""Metrics that are on no dashboard and in no alert, each with the reason."""

REASONS = {
    "process_threads": "the threads of the runtime and how busy they are say more",
    "process_virtual_memory_bytes": "resident memory is what counts against a limit",
}
