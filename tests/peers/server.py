"""A Redis server of its own for each peer, what it has used, and processes that end with the benchmark."""
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
START_S = 10.0


class Redis:
    """A connection: enough of the protocol for what is asked here."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.replies = self.socket.makefile("rb")

    def __call__(self, *words: object) -> object:
        parts = [str(word).encode() for word in words]
        wire = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self.socket.sendall(b"*%d\r\n%s" % (len(parts), wire))
        return self.reply()

    def reply(self) -> object:
        line = self.replies.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.replies.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return None if rest == b"-1" else [self.reply() for _ in range(int(rest))]
        raise RuntimeError(rest.decode() or "the server is gone")

    def number(self, *words: object) -> int:
        """A reply that is a number; 0 for a key that is not there."""
        return int(self(*words) or 0)

    def info(self, name: str) -> str:
        text = str(self("INFO", "everything"))
        return next((line.split(":", 1)[1] for line in text.splitlines() if line.startswith(f"{name}:")), "?")


class Server:
    """A server on a free loopback port with a folder of its own. `with` ends it."""

    def __init__(self, program: str, append_only: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stepfleet-peers-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        has_file = "no" if append_only == "no" else "yes"
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "", "appendonly": has_file}
        options |= {"appendfsync": "everysec", "maxmemory-policy": "noeviction", "daemonize": "no"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.child = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, start_new_session=True)
        self.url = f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.redis = Redis(self.port)
                self.redis("PING")
                return self
            except (OSError, RuntimeError) as error:
                if time.monotonic() > deadline:
                    self.__exit__()
                    raise RuntimeError(f"the server did not start: {error}") from error
                time.sleep(0.02)

    def __exit__(self, *_error: object) -> None:
        end([self.child])
        shutil.rmtree(self.folder, ignore_errors=True)

    def description(self) -> str:
        return f"redis {self.redis.info('redis_version')} ({self.redis.info('mem_allocator')})"


def _stat(pid: int) -> list[str]:
    """The fields of a process behind its name."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def family(roots: list[int]) -> list[int]:
    """The processes and all that they have started."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                children.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
            except OSError:
                continue
    found, waiting = [], list(roots)
    while waiting:
        found.append(pid := waiting.pop())
        waiting += children.get(pid, [])
    return found


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of living processes."""
    ticks = 0
    for pid in pids:
        try:
            fields = _stat(pid)
            ticks += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return ticks / TICKS


def end(children: list[subprocess.Popen]) -> None:
    """Ends processes that were started here, with all that they have started, by their ids."""
    for child in children:
        if child.poll() is None:
            for pid in reversed(family([child.pid])):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue
        child.wait()
