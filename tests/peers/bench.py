"""Peers side by side: the same work, on the same machine, in turn, medians of some rounds, with ratios.

Settings in the environment: PEERS (names with commas; all if not given), ROUNDS (3), MODES (`no,everysec`), DOCS=1
writes the table into docs/performance.md. The table goes to stdout, everything as JSON to target/bench-peers.json."""
import datetime
import json
import os
import sys
from pathlib import Path

import ours
from install import install, version
from measure import Failed, one_round
from peers import HERE, Peer, all_peers
from server import Server
from table import System, as_json, markdown, put_between_markers

TOP = HERE.parent.parent
FOLDER = TOP / "target" / "peers"
# A mean load above this, at the start, makes every figure doubtful.
QUIET_LOAD = 0.7
BUSY = "**the machine was busy** (load {:.1f} at the start): read the ratios, and those with care"


def chosen(peers: list[Peer], names: str) -> list[Peer]:
    """The peers with these names.

    Raises `SystemExit` for a name that is none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [peer.name for peer in peers]
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"PEERS: no peer `{unknown[0]}`: allowed are {', '.join(known)}")
    return [peer for peer in peers if not wanted or peer.name in wanted]


def measure(systems: list[System], peers: list[Peer], mode: str, program: str, server: str) -> None:
    """One round of each that can be run, ours first. Who does not even begin is not tried again."""
    for system, peer in zip(systems, [None, *peers], strict=True):
        if system.reason:
            continue
        print(f"  {system.name}", end=" ", flush=True, file=sys.stderr)
        try:
            asked = one_round(peer, server, mode, FOLDER) if peer else ours.one_round(program, server, mode, FOLDER)
            figures, problems = asked
            system.rounds.setdefault(mode, []).append(figures)
            system.problems += [f"append-only file {mode}: {problem}" for problem in problems]
            rates = {name: round(value, 2) for name, value in figures.items() if "steps_per_s" in name}
            print(rates, *problems, file=sys.stderr)
        except (Failed, OSError, RuntimeError) as error:
            system.reason = f"append-only file {mode}: {error}"
            print(system.reason, file=sys.stderr)


def main() -> int:
    program, server = os.environ["STEPFLEET_PROGRAM"], os.environ["STEPFLEET_TEST_SERVER"]
    rounds, modes = int(os.environ.get("ROUNDS", "3")), os.environ.get("MODES", "no,everysec").split(",")
    peers = chosen(all_peers(FOLDER), os.environ.get("PEERS", ""))
    if (load := os.getloadavg()[0]) > QUIET_LOAD:
        print(f"WARNING: {BUSY.format(load)}", file=sys.stderr)
    reasons = install(FOLDER, peers)
    systems = [System(ours.NAME, ours.DURABILITY, ours.FEATURES, ours.version(program))]
    for peer in peers:
        reason = reasons.get(peer.name)
        has = "" if reason else version(FOLDER, peer)
        systems.append(System(peer.name, peer.durability, peer.features, has, reason))
    with Server(server, "no") as asked:
        description = f"{os.cpu_count()} cores, {asked.description()}"
    if load > QUIET_LOAD:
        description += f"; {BUSY.format(load)}"
    for number in range(rounds):
        for mode in modes:
            print(f"round {number + 1} of {rounds}, append-only file {mode}", file=sys.stderr)
            measure(systems, peers, mode, program, server)
    when = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = markdown(systems, modes, description, when)
    print(text)
    (TOP / "target" / "bench-peers.json").write_text(json.dumps(as_json(systems, modes, description, when), indent=2))
    if os.environ.get("DOCS"):
        put_between_markers(TOP / "docs" / "performance.md", text)
    return 0 if systems[0].rounds else 1


if __name__ == "__main__":
    sys.exit(main())
