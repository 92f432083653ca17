"""The same figures of Stepfleet, by its own benchmark: one coordinator, one worker of 256 slots, one partition."""
import json
import subprocess
from pathlib import Path

from measure import Failed, Figures

NAME = "stepfleet"
DURABILITY = "at least once; result, state and history kept"
FEATURES = "retries, time-outs, cancel, priorities, dead letters, breakers, limits; any graph, history of every move"
# The benchmark's name of each figure here.
SAME = {
    "jobs.steps_per_s": ["one_step.steps_per_s"],
    "jobs.redis_us": ["one_step.redis_us_per_step"],
    "jobs.worker_us": ["one_step.worker_us_per_step", "one_step.coordinator_us_per_step"],
    "chains.steps_per_s": ["chain10.steps_per_s"],
    "chains.redis_us": ["chain10.redis_us_per_step"],
    "chains.worker_us": ["chain10.worker_us_per_step", "chain10.coordinator_us_per_step"],
    "fanouts.steps_per_s": ["fan_out.steps_per_s"],
    "fanouts.redis_us": ["fan_out.redis_us_per_step"],
    "fanouts.worker_us": ["fan_out.worker_us_per_step", "fan_out.coordinator_us_per_step"],
    "idle.jobs.start_ms.p50": ["latency.submit_to_start_ms.p50"],
    "idle.jobs.start_ms.p99": ["latency.submit_to_start_ms.p99"],
    "idle.jobs.end_ms.p50": ["latency.one_step_ms.p50"],
    "idle.jobs.end_ms.p99": ["latency.one_step_ms.p99"],
    "idle.chains.end_ms.p50": ["latency.chain10_ms.p50"],
    "idle.chains.end_ms.p99": ["latency.chain10_ms.p99"],
    "floor.jobs_per_s": ["floor.jobs_per_s"],
}
SECTIONS = ["floor", "one-step", "chains", "fan-out", "latency"]
SIZES = ["--runs", "50000", "--chains", "10000", "--fan-outs", "1500", "--idle", "500"]
TIMEOUT_S = 300


def version(program: str) -> str:
    """As the program tells it."""
    return subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout.strip()


def _at(report: dict, name: str) -> float:
    for part in name.split("."):
        report = report[part]
    return float(report)


def one_round(program: str, server: str, append_only: str, folder: Path) -> tuple[Figures, list[str]]:
    """All figures of Stepfleet, once; they come through or none does."""
    to = folder / "stepfleet.json"
    words = [program, "bench", "--server", server, "--append-only", append_only, "--to", str(to), *SIZES]
    words += ["--no-history", "--quiet"]
    words += [word for section in SECTIONS for word in ("--section", section)]
    with (folder / f"{NAME}.log").open("w") as log:
        try:
            code = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=TIMEOUT_S).returncode
        except subprocess.TimeoutExpired as error:
            raise Failed(f"the benchmark took more than {TIMEOUT_S} s") from error
    if code:
        raise Failed(f"the benchmark failed, see {log.name}")
    report = json.loads(to.read_text())
    return {name: sum(_at(report, part) for part in parts) for name, parts in SAME.items()}, []
