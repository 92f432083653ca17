"""Installs the peers into a throw-away folder, by the package managers' defaults. What cannot be installed is told."""
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from peers import HERE, Peer

# A build of the Rust drivers takes minutes on a small machine.
TIMEOUT_S = 1_200
# A distribution's Python is built with its profile, which makes it up to twice as fast as one built by hand.
PYTHONS = ["/usr/bin/python3", "python3"]


class NotInstalled(Exception):
    """A peer cannot be installed here; the text says why."""


def _call(words: list[str], folder: Path) -> None:
    if not shutil.which(words[0]):
        raise NotInstalled(f"there is no `{words[0]}`")
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"`{words[0]}` took more than {TIMEOUT_S} s") from error
    if done.returncode:
        last = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise NotInstalled(f"`{' '.join(words[:3])}` failed: {last[-1] if last else done.returncode}")


def _node(folder: Path, _peers: list[Peer]) -> None:
    if not shutil.which("node"):
        raise NotInstalled("there is no `node`")
    own = folder / "node"
    own.mkdir(exist_ok=True)
    for name in ["package.json", "driver.js"]:
        shutil.copy(HERE / "node" / name, own / name)
    _call(["npm", "install", "--no-audit", "--no-fund"], own)


def _python(folder: Path, peers: list[Peer]) -> None:
    own = folder / "python"
    if not (own / "bin" / "python").exists():
        python = next((path for path in PYTHONS if shutil.which(path)), "python3")
        _call([python, "-m", "venv", str(own)], folder)
    packages = sorted({package for peer in peers for package in peer.packages})
    _call([str(own / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages], folder)


def _rust(folder: Path, _peers: list[Peer]) -> None:
    # The lock file is made in the folder too: these crates are no part of the project.
    source = folder / "rust-drivers"
    shutil.copytree(HERE / "rust", source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("target", "Cargo.lock"))
    _call(["cargo", "build", "--release", "--target-dir", str(folder / "rust")], source)


WAYS: dict[str, Callable[[Path, list[Peer]], None]] = {"node": _node, "python": _python, "rust": _rust}


def install(folder: Path, peers: Iterable[Peer]) -> dict[str, str]:
    """Installs what the peers need; the reasons of those that cannot be, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    peers, reasons = list(peers), {}
    for need, way in WAYS.items():
        concerned = [peer for peer in peers if peer.needs == need]
        if not concerned:
            continue
        print(f"installing {', '.join(peer.name for peer in concerned)}", flush=True)
        try:
            way(folder, concerned)
        except NotInstalled as error:
            reasons |= {peer.name: str(error) for peer in concerned}
    return reasons
