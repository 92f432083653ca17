"""Installs the peers into a throw-away folder, by the package managers' defaults. What cannot be installed is told."""
import json
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from peers import HERE, Peer

# A build of the Rust drivers takes minutes on a small machine.
TIMEOUT_S = 1_200
# A distribution's Python is built with its profile, which makes it up to twice as fast as one built by hand.
PYTHONS = ["/usr/bin/python3", "python3"]

ASK_PYTHON = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"


class NotInstalled(Exception):
    """A peer cannot be installed here; the text says why."""


def _call(words: list[str], folder: Path) -> None:
    if not shutil.which(words[0]):
        raise NotInstalled(f"there is no `{words[0]}`")
    try:
        nothing = subprocess.DEVNULL
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=nothing)
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


def version(folder: Path, peer: Peer) -> str:
    """What was installed, as `bullmq 6.7.0, ioredis 6.0.0`; `?` for what tells no version."""
    if peer.needs == "node":
        packages = [folder / "node" / "node_modules" / part / "package.json" for part in peer.parts]
        versions = [json.loads(path.read_text())["version"] if path.exists() else "?" for path in packages]
    elif peer.needs == "python":
        words = [str(folder / "python" / "bin" / "python"), "-c", ASK_PYTHON, *peer.parts]
        versions = subprocess.run(words, capture_output=True, text=True, timeout=60).stdout.split()
    else:
        lock = tomllib.loads((folder / "rust-drivers" / "Cargo.lock").read_text())
        found = {package["name"]: package["version"] for package in lock["package"]}
        versions = [found.get(part, "?") for part in peer.parts]
    return ", ".join(f"{part} {version}" for part, version in zip(peer.parts, versions, strict=False))


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
