"""The peers: how each is installed, started and called, how one sees what is done, and what it promises."""
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from server import Redis

HERE = Path(__file__).resolve().parent
CHAIN = 10
# The first, those in the middle, the last.
FANOUT = 52
STEPS = {"jobs": 1, "chains": CHAIN, "fanouts": FANOUT}


@dataclass(frozen=True)
class Peer:
    """One peer in its documented best configuration."""

    name: str
    # What has to be installed: `node`, `python` or `rust`.
    needs: str
    # The driver's command, called as `submit KIND N` and `idle KIND N`.
    driver: list[str]
    # The workers' commands.
    workers: list[list[str]]
    # Jobs or runs that are finished of `submitted`, from what is in Redis; all of them were accepted already.
    finished: Callable[[Redis, str, int], int]
    # How many of each kind, and how many one at a time. A kind that is missing cannot be done.
    sizes: dict[str, int]
    idle: dict[str, int]
    durability: str
    features: str
    # Whether `idle` brings its own worker.
    idle_alone: bool = False
    packages: list[str] = field(default_factory=list)
    # What its version is told by: packages of npm, of pip, or crates.
    parts: list[str] = field(default_factory=list)


def all_peers(folder: Path) -> list[Peer]:
    """Every peer, as installed in the folder."""
    node, python, rust = folder / "node", folder / "python", folder / "rust" / "release"
    celery = [str(python / "bin" / "python"), "-m", "celery", "-A", "celery_app", "worker", "-l", "ERROR"]
    celery += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    celery += ["--prefetch-multiplier", "32", "-P", "threads", "-c", "4"]
    dramatiq = [str(python / "bin" / "python"), "-m", "dramatiq", "-p", "2", "-t", "8", "dramatiq_app"]

    def python_driver(name: str) -> list[str]:
        return [str(python / "bin" / "python"), str(HERE / "python" / f"{name}_driver.py")]

    bullmq = ["node", str(node / "driver.js")]
    few = {"jobs": 1_500, "chains": 100, "fanouts": 25}
    return [
        Peer(
            name="bullmq",
            parts=["bullmq", "ioredis"],
            needs="node",
            driver=bullmq,
            workers=[[*bullmq, "worker"]],
            finished=_bullmq,
            sizes={"jobs": 20_000, "chains": 1_000, "fanouts": 150},
            idle={"jobs": 500, "chains": 100},
            durability="at least once; result kept",
            features="retries, delays, priorities, rate limit; flows are trees that end in one job",
        ),
        Peer(
            name="bullmq-official",
            parts=["bullmq-official"],
            needs="rust",
            driver=[str(rust / "bullmq")],
            workers=[[str(rust / "bullmq"), "worker"]],
            finished=_bullmq,
            sizes={"jobs": 20_000, "chains": 1_000, "fanouts": 150},
            idle={"jobs": 500, "chains": 100},
            durability="at least once; result kept",
            features="as bullmq, in Rust",
        ),
        Peer(
            name="apalis",
            parts=["apalis-redis", "apalis-workflow"],
            needs="rust",
            driver=[str(rust / "apalis")],
            workers=[[str(rust / "apalis"), "worker"]],
            finished=lambda redis, kind, _: redis.number("SCARD", "jobs:done") if kind == "jobs" else _counted(redis),
            # 8,000 jobs due at once are more than its scripts can unpack.
            sizes={"jobs": 7_000, "chains": 2_000, "fanouts": 50},
            idle={"jobs": 500, "chains": 100},
            durability="at least once; result kept",
            features="retries, delays; steps of a workflow are jobs, graphs with joins",
        ),
        Peer(
            name="rusty-sidekiq",
            parts=["rusty-sidekiq"],
            needs="rust",
            driver=[str(rust / "sidekiq")],
            workers=[[str(rust / "sidekiq"), "worker"]],
            finished=lambda redis, _kind, _count: _counted(redis),
            sizes={"jobs": 30_000},
            idle={"jobs": 500},
            durability="at most once; no result",
            features="retries, delays; no workflows",
            idle_alone=True,
        ),
        Peer(
            name="celery",
            parts=["celery", "redis"],
            needs="python",
            driver=python_driver("celery"),
            workers=[[*celery, "-n", f"w{number}@h"] for number in "12"],
            finished=_celery,
            sizes=few,
            idle={"jobs": 150, "chains": 30},
            durability="acked before it runs: at most once; result kept 1 day",
            features="retries, delays; chains, groups, chords",
            packages=["celery[redis]", "hiredis"],
        ),
        Peer(
            name="dramatiq",
            parts=["dramatiq", "redis"],
            needs="python",
            driver=python_driver("dramatiq"),
            workers=[dramatiq],
            finished=_dramatiq,
            sizes={"jobs": 4_000, "chains": 200, "fanouts": 40},
            idle={"jobs": 150, "chains": 30},
            durability="at least once; result kept 10 min",
            features="retries, delays; pipelines, groups; no step before a group",
            packages=["dramatiq[redis]", "hiredis"],
        ),
    ]


def _counted(redis: Redis) -> int:
    """What the handlers counted."""
    return redis.number("GET", "bench:done")


def _bullmq(redis: Redis, kind: str, _submitted: int) -> int:
    return redis.number("ZCARD", "bull:q:completed") // STEPS[kind]


def _celery(redis: Redis, kind: str, submitted: int) -> int:
    if kind != "jobs":
        return _counted(redis)
    return submitted - redis.number("LLEN", "celery") - redis.number("HLEN", "unacked")


def _dramatiq(redis: Redis, kind: str, submitted: int) -> int:
    return submitted - redis.number("HLEN", "dramatiq:default.msgs") if kind == "jobs" else _counted(redis)
