"""Medians, ratios and the table: pure, so that they can be tested without a peer."""
import statistics
from dataclasses import dataclass, field
from pathlib import Path

Figures = dict[str, float]

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
# What is shown, in this order: the figure's name, what it is called, whether more is better.
ROWS = [
    ("jobs.steps_per_s", "one-step runs, enqueued and drained at once, runs/s", True),
    ("chains.steps_per_s", "ten-step chains, steps/s", True),
    ("fanouts.steps_per_s", "1-50-1 fan-outs, steps/s", True),
    ("idle.jobs.start_ms.p50", "idle: submit to start, ms, p50", False),
    ("idle.jobs.start_ms.p99", "idle: submit to start, ms, p99", False),
    ("idle.jobs.end_ms.p50", "idle: submit to result seen, ms, p50", False),
    ("idle.jobs.end_ms.p99", "idle: submit to result seen, ms, p99", False),
    ("idle.chains.end_ms.p50", "idle: ten-step chain, ms, p50", False),
    ("idle.chains.end_ms.p99", "idle: ten-step chain, ms, p99", False),
    ("jobs.redis_us", "Redis CPU, us a one-step run", False),
    ("chains.redis_us", "Redis CPU, us a step of a chain", False),
    ("fanouts.redis_us", "Redis CPU, us a step of a fan-out", False),
    ("jobs.worker_us", "CPU of workers (and coordinator), us a one-step run", False),
    ("chains.worker_us", "CPU of workers (and coordinator), us a step of a chain", False),
]


@dataclass
class System:
    """What was measured of one system."""

    name: str
    durability: str
    features: str
    version: str = ""
    # Why it was not run.
    reason: str | None = None
    # What did not come through in a round.
    problems: list[str] = field(default_factory=list)
    # The rounds, by the setting of the append-only file.
    rounds: dict[str, list[Figures]] = field(default_factory=dict)

    def median(self, append_only: str, figure: str) -> float | None:
        values = [each[figure] for each in self.rounds.get(append_only, []) if figure in each]
        return statistics.median(values) if values else None


def ratio(ours: float | None, theirs: float | None, more_is_better: bool) -> float | None:
    """How many times better ours is: below 1 the peer wins."""
    if not ours or not theirs:
        return None
    return ours / theirs if more_is_better else theirs / ours


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cell(system: System, ours: System, append_only: str, row: tuple[str, str, bool]) -> str:
    figure, _, more_is_better = row
    value = system.median(append_only, figure)
    if value is None:
        return "–"
    better = None if system is ours else ratio(ours.median(append_only, figure), value, more_is_better)
    if better is None:
        return number(value)
    # Where the peer wins, it is seen at once.
    return f"{number(value)} (**{better:.2f}x**)" if better < 1 else f"{number(value)} ({better:.1f}x)"


def markdown(systems: list[System], modes: list[str], server: str, when: str) -> str:
    """The figures, then what each system promises. The first system is ours."""
    rounds = max(_counts(systems), default=0)
    lines = [f"Measured on {when}, {server}, medians of {rounds} round{'s' * (rounds != 1)}.", ""]
    ours = systems[0]
    shown = [system for system in systems if system.rounds]
    for mode in modes:
        lines += [f"Append-only file: {mode}.", "", "| figure | " + " | ".join(each.name for each in shown) + " |"]
        lines += ["|---|" + "---|" * len(shown)]
        for row in ROWS:
            lines.append(f"| {row[1]} | " + " | ".join(cell(each, ours, mode, row) for each in shown) + " |")
        lines.append("")
    lines += ["| system | version | durability | features |", "|---|---|---|---|"]
    for each in systems:
        state = f" **NOT RUN**: {each.reason}" if each.reason else ""
        state += "".join(f" **FAILED**: {problem}." for problem in each.problems)
        lines.append(f"| {each.name} | {each.version} | {each.durability} | {each.features}{state} |")
    return "\n".join(lines)


def _counts(systems: list[System]) -> list[int]:
    return [len(rounds) for system in systems for rounds in system.rounds.values()]


def as_json(systems: list[System], modes: list[str], server: str, when: str) -> dict:
    """Every round, every median and every ratio."""
    ours, result = systems[0], {"server": server, "date": when, "systems": {}}
    for each in systems:
        medians = {mode: {row[0]: each.median(mode, row[0]) for row in ROWS} for mode in modes}
        ratios = {
            mode: {name: ratio(ours.median(mode, name), each.median(mode, name), more) for name, _, more in ROWS}
            for mode in modes
        }
        result["systems"][each.name] = {
            "version": each.version,
            "durability": each.durability,
            "features": each.features,
            "not_run": each.reason,
            "problems": each.problems,
            "medians": medians,
            "ratios": ratios,
            "rounds": each.rounds,
        }
    return result


def put_between_markers(document: Path, text: str) -> None:
    """Replaces what stands between the markers of a document.

    Raises `ValueError` if they are not there."""
    old = document.read_text()
    if BEGIN not in old or END not in old:
        raise ValueError(f"`{document}` has no lines `{BEGIN}` and `{END}`")
    before, after = old.split(BEGIN, 1)[0], old.split(END, 1)[1]
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
