"""One round of one peer: figures by their dotted names."""
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from peers import HERE, STEPS, Peer
from server import Server, cpu_s, end, family

# No figure may take longer; a peer that hangs costs this and no more.
DEADLINE_S = 90.0
WARM_UP = {"jobs": 100, "chains": 5, "fanouts": 2}

Figures = dict[str, float]


class Failed(Exception):
    """A peer did not do what was asked; the text says what."""


class Round:
    """A peer at work on a server of its own."""

    def __init__(self, peer: Peer, server: Server, logs: Path) -> None:
        self.peer, self.server = peer, server
        self.environment = os.environ | {"PEER_REDIS": server.url, "PYTHONPATH": str(HERE / "python")}
        self.log = (logs / f"{peer.name}.log").open("w")
        self.workers = [self.start(words, subprocess.DEVNULL) for words in peer.workers]
        self.figures: Figures = {}
        # What did not come through; the other figures stand.
        self.problems: list[str] = []

    def start(self, words: list[str], out: int) -> subprocess.Popen:
        return subprocess.Popen(
            words,
            env=self.environment,
            cwd=HERE / "python",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=self.log,
            text=True,
        )

    def ask(self, *words: object) -> dict:
        """Calls the driver, and gives its answer the moment it is there."""
        child = self.start([*self.peer.driver, *map(str, words)], subprocess.PIPE)
        try:
            out, _ = child.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"`{' '.join(map(str, words))}` took more than {DEADLINE_S:.0f} s") from error
        finally:
            end([child])
        lines = [line for line in out.splitlines() if line.startswith("{")]
        if not lines:
            raise Failed(f"`{' '.join(map(str, words))}` failed, see {self.log.name}")
        return json.loads(lines[-1])

    def done(self, kind: str, before: int, count: int) -> int:
        """Waits until so many more than before are finished; the moment, in nanoseconds."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            finished = self.peer.finished(self.server.redis, kind, before + count) - before
            now = time.monotonic_ns()
            if finished >= count:
                return now
            if time.monotonic() > deadline:
                raise Failed(f"only {finished} of {count} {kind} were done within {DEADLINE_S:.0f} s")
            time.sleep(0.005)

    def throughput(self, kind: str, count: int) -> None:
        """Enqueued and done at once, from the first enqueue to the last that is done."""
        for part, counts in [(WARM_UP[kind], False), (count, True)]:
            before = self.peer.finished(self.server.redis, kind, 0)
            workers = family([worker.pid for worker in self.workers])
            used = cpu_s([self.server.child.pid]), cpu_s(workers)
            asked = self.ask("submit", kind, part)
            ended = self.done(kind, before, part)
            if counts:
                steps = part * STEPS[kind]
                self.figures[f"{kind}.steps_per_s"] = steps / max((ended - asked["began_ns"]) / 1e9, asked["seconds"])
                self.figures[f"{kind}.redis_us"] = (cpu_s([self.server.child.pid]) - used[0]) * 1e6 / steps
                self.figures[f"{kind}.worker_us"] = (cpu_s(workers) - used[1]) * 1e6 / steps

    def idle(self, kind: str, count: int) -> None:
        answer = self.ask("idle", kind, count)
        for what, values in answer.items():
            for share, value in values.items():
                if value is not None:
                    self.figures[f"idle.{kind}.{what}.{share}"] = value

    def tried(self, what: Callable[[str, int], None], kind: str, count: int) -> None:
        try:
            what(kind, count)
        except Failed as error:
            self.problems.append(str(error))

    def run(self) -> tuple[Figures, list[str]]:
        try:
            for kind, count in self.peer.sizes.items():
                self.tried(self.throughput, kind, count)
                # The next kind counts from nothing, and its workers connect again.
                end(self.workers)
                self.server.redis("FLUSHALL")
                self.workers = [self.start(words, subprocess.DEVNULL) for words in self.peer.workers]
            if self.peer.idle_alone:
                end(self.workers)
            else:
                warm = next(iter(self.peer.sizes))
                self.ask("submit", warm, WARM_UP[warm])
                self.done(warm, 0, WARM_UP[warm])
            for kind, count in self.peer.idle.items():
                self.tried(self.idle, kind, count)
            return self.figures, self.problems
        finally:
            end(self.workers)
            self.log.close()


def one_round(peer: Peer, program: str, append_only: str, logs: Path) -> tuple[Figures, list[str]]:
    """All figures of a peer, once, and what did not come through.

    Raises `Failed` when it does not even begin."""
    with Server(program, append_only) as server:
        return Round(peer, server, logs).run()
