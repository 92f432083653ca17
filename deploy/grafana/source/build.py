"""Writes what Grafana and Prometheus read from the readable source beside it. Run it with `make dashboards`.

`build.py` writes the files; `build.py --check` changes nothing and fails when one of them is not what it would write.
"""

import json
import pathlib
import sys

SOURCE = pathlib.Path(__file__).resolve().parent
TOP = SOURCE.parents[2]
sys.dont_write_bytecode = True
sys.path[:0] = [str(SOURCE), str(TOP / "deploy/prometheus/source")]

import coordinator_and_redis  # noqa: E402
import overview  # noqa: E402
import queues_and_workers  # noqa: E402
import rules  # noqa: E402
import workflows_and_failures  # noqa: E402

DASHBOARDS = {
    "overview": overview.DASHBOARD,
    "queues-and-workers": queues_and_workers.DASHBOARD,
    "workflows-and-failures": workflows_and_failures.DASHBOARD,
    "coordinator-and-redis": coordinator_and_redis.DASHBOARD,
}


def generated():
    """Every generated file, by its path below the top folder."""
    files = {}
    for name, dashboard in DASHBOARDS.items():
        text = json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"
        files[f"deploy/grafana/{name}.json"] = text
        files[f"helm/stepfleet/dashboards/{name}.json"] = text
    files["deploy/prometheus/rules.yaml"] = rules.text(rules.GROUPS)
    files["helm/stepfleet/rules/stepfleet.yaml"] = rules.text(rules.of_one_fleet(rules.OPEN))
    return files


def stale():
    """The generated files on disk that are not what the source says, and those that no source makes any more."""
    files = generated()
    wrong = [path for path, text in files.items() if not (TOP / path).is_file() or (TOP / path).read_text() != text]
    for folder in ("deploy/grafana", "helm/stepfleet/dashboards", "helm/stepfleet/rules"):
        found = (TOP / folder).glob("*.*") if (TOP / folder).is_dir() else []
        there = {str(path.relative_to(TOP)) for path in found}
        wrong += sorted(path for path in there - set(files) if path.endswith((".json", ".yaml")))
    return wrong


def main():
    if sys.argv[1:] == ["--check"]:
        wrong = stale()
        for path in wrong:
            print(f"{path} is not what its source says", file=sys.stderr)
        if wrong:
            sys.exit("hint: run `make dashboards` and commit what it writes")
        return
    if sys.argv[1:]:
        sys.exit(f"build: there is only `--check`, found `{' '.join(sys.argv[1:])}`")
    for path, text in generated().items():
        (TOP / path).parent.mkdir(parents=True, exist_ok=True)
        (TOP / path).write_text(text)
        print(path)


if __name__ == "__main__":
    main()
