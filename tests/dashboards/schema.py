"""Reads the generated dashboards into Grafana's own types and writes them back.

Whatever Grafana does not know is lost then. It needs the package grafana-foundation-sdk, which `check.sh` installs into
.tools/.
"""

import copy
import json
import pathlib
import sys

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

TOP = pathlib.Path(__file__).resolve().parents[2]
NOTHING = (None, [], {}, False, "")
# One place of each kind of type, and how a stranger gets there.
PLACES = {
    "dashboard": lambda d: d,
    "panel": lambda d: d["panels"][1],
    "options": lambda d: d["panels"][1]["options"],
    "defaults": lambda d: d["panels"][1]["fieldConfig"]["defaults"],
    "target": lambda d: d["panels"][1]["targets"][0],
    "variable": lambda d: d["templating"]["list"][1],
}


def differences(ours, theirs, path=""):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from differences(value, theirs[key], f"{path}/{key}")
            elif value not in NOTHING:
                yield f"{path}/{key}: Grafana does not know it"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs)):
            yield from differences(one, other, f"{path}/{number}")
    elif ours != theirs:
        yield f"{path}: it is {ours!r}, and Grafana reads {theirs!r}"


def problems(dashboard):
    known = Dashboard.from_json(copy.deepcopy(dashboard))
    return list(differences(dashboard, json.loads(JSONEncoder().encode(known))))


def main():
    plugins.register_default_plugins()
    paths = sorted((TOP / "deploy/grafana").glob("*.json"))
    found = [f"{path.name}: {problem}" for path in paths for problem in problems(json.loads(path.read_text()))]
    for place, reach in PLACES.items():
        bad = json.loads(paths[0].read_text())
        reach(bad)["unheardOf"] = "x"
        if not problems(bad):
            found.append(f"a key that Grafana does not know is not noticed in a {place}")
    print(f"{'ok    ' if not found else 'failed'}  Grafana's own types know everything in {len(paths)} dashboards")
    for problem in found:
        print(f"        {problem}", file=sys.stderr)
    sys.exit(1 if found or not paths else 0)


if __name__ == "__main__":
    main()
