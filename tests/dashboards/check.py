"""Checks dashboards, rules, their tests and their runbooks. Run it with `make check-dashboards`.

The argument is a promtool; it says whether an expression is PromQL and runs the tests of the rules.
"""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True

import catalog  # noqa: E402
import deployment  # noqa: E402
import lint  # noqa: E402
import promql  # noqa: E402
import unused  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parents[1]
RULES = TOP / "deploy/prometheus/rules.yaml"
TESTS = sorted((HERE / "rules").glob("*.yaml"))
NEVER = "vector(1) > 2"
ALWAYS = 'label_replace(vector(1), "namespace", "well", "", "")'


def source():
    """The generator with everything that it made."""
    spec = importlib.util.spec_from_file_location("build", TOP / "deploy/grafana/source/build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def generated(build):
    return [f"{path} is not what its source says; hint: make dashboards" for path in build.stale()]


def linted(dashboards):
    used = set()
    found = [problem for dashboard in dashboards for problem in lint.problems(dashboard, used)]
    return found + [f"lint.EXCEPTIONS: nothing needs {key}" for key in lint.EXCEPTIONS if key not in used]


def known(where, expression, metrics, records):
    """Metrics, labels and recorded series that do not exist."""
    families = []
    for selector in promql.selectors(expression):
        if ":" in selector.name:
            if selector.name not in records:
                yield f"{where}: nothing records `{selector.name}`"
            continue
        family = catalog.family(selector.name, metrics)
        if family is None:
            yield f"{where}: there is no metric `{selector.name}`"
            continue
        families.append(family)
        labels = metrics[family]["labels"]
        for label in selector.matchers:
            if labels is not None and label not in labels | catalog.ADDED:
                yield f"{where}: `{selector.name}` has no label `{label}`"
    told = [metrics[family]["labels"] for family in families]
    if families and None not in told:
        everything = set().union(*told) | catalog.ADDED
        for label in promql.grouping_labels(expression):
            if label not in everything:
                yield f"{where}: nothing in `{expression}` has the label `{label}`"


def names(dashboards, rules, metrics, where_from):
    """That every metric exists, and that every metric is on a dashboard or in an alert, or `unused` says why not."""
    records = {rule["record"] for rule in rules if "record" in rule}
    expressions = [(f"{d['uid']}: {p['title']}", t["expr"]) for d in dashboards for p, t in lint.targets(d)]
    for dashboard in dashboards:
        for variable in dashboard["templating"]["list"][1:]:
            metric = re.match(r"label_values\(([^,{]+)", variable["query"]["query"]).group(1)
            expressions.append((f"{dashboard['uid']}: variable {variable['name']}", metric))
    expressions += [(rule.get("alert", rule.get("record")), rule["expr"]) for rule in rules]
    found = [problem for where, expression in expressions for problem in known(where, expression, metrics, records)]
    used = {catalog.family(s.name, metrics) for _, expression in expressions for s in promql.selectors(expression)}
    for name in sorted(set(metrics) - used - set(unused.REASONS)):
        found.append(f"{where_from}: `{name}` is on no dashboard and in no alert; hint: use it or add it to unused.py")
    for name in sorted(set(unused.REASONS) & used):
        found.append(f"unused.py: `{name}` is used")
    return found


def parses(promtool, dashboards):
    """Every panel's expression as a recording rule: promtool then says which ones are no PromQL."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for dashboard in dashboards:
            path = pathlib.Path(folder) / f"{dashboard['uid']}.yaml"
            entries = [
                {"record": f"panel:{panel['id']}:{target['refId']}", "expr": promql.substituted(target["expr"])}
                for panel, target in lint.targets(dashboard)
            ]
            path.write_text(json.dumps({"groups": [{"name": "panels", "rules": entries}]}))
            code, said = run(promtool, "check", "rules", str(path))
            if code != 0:
                found.append(f"{dashboard['uid']}: {said}")
    return found


def alerts(rules, dashboards):
    """Texts, runbooks and links of every alert; and runbooks of alerts that do not exist."""
    entries = [rule for rule in rules if "alert" in rule]
    listed = (TOP / "docs/runbooks/README.md").read_text()
    uids = {dashboard["uid"] for dashboard in dashboards}
    found = []
    for rule in entries:
        name, texts = rule["alert"], rule["annotations"]
        runbook = TOP / f"docs/runbooks/{name}.md"
        if not texts["runbook_url"].endswith(f"/docs/runbooks/{name}.md") or not runbook.is_file():
            found.append(f"{name}: there is no docs/runbooks/{name}.md")
        elif missing := [part for part in PARTS if f"\n## {part}\n" not in runbook.read_text()]:
            found.append(f"{name}: its runbook does not say: {', '.join(missing)}")
        if f"({name}.md)" not in listed:
            found.append(f"{name}: docs/runbooks/README.md does not list it")
        if re.search(r"/d/([a-z-]+)\?", texts["dashboard_url"]).group(1) not in uids:
            found.append(f"{name}: it links to a dashboard that does not exist")
        if not texts["description"].endswith(".") or texts["summary"].endswith("."):
            found.append(f"{name}: the summary is a line without a full stop, the description is sentences")
        kept = set(promql.grouping_labels(rule["expr"])) | {"namespace", "fleet"}
        kept |= {"queue"} if "queue:" in rule["expr"] else set()
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(texts)):
            if label not in kept:
                found.append(f"{name}: its texts name the label `{label}`, which it does not have")
    names_of_alerts = {rule["alert"] for rule in entries}
    for path in sorted((TOP / "docs/runbooks").glob("Stepfleet*.md")):
        if path.stem not in names_of_alerts:
            found.append(f"docs/runbooks/{path.name}: there is no such alert")
    return found


PARTS = ("What it means", "How to see", "Stop the bleeding", "Fix it")
EXPECTED = re.compile(r"expr: (.*alertname=\"(\w+)\".*)\n\s+eval_time: \S+\n\s+exp_samples:( \[\])?")


def covered(rules):
    """That every alert has a test in which it fires, and one in which it does not."""
    text = "\n".join(path.read_text() for path in TESTS)
    fires, silent = set(), set()
    for _, name, empty in EXPECTED.findall(text):
        (silent if empty else fires).add(name)
    found = []
    for name in sorted({rule["alert"] for rule in rules if "alert" in rule}):
        if name not in fires:
            found.append(f"{name}: no test lets it fire")
        if name not in silent:
            found.append(f"{name}: no test keeps it from firing")
    return found


def mutated(entries, expression):
    """The alerts of a group with another expression, so that each fires for the well fleet at once, or never."""
    changed = [{**entry, "expr": expression, "for": "0m"} for entry in entries if "alert" in entry]
    return json.dumps({"groups": [{"name": "mutated", "interval": "30s", "rules": changed}]})


def tests(promtool, groups):
    """The tests of the rules; then that each fails when its alert never or always fires."""
    found = []
    for path in TESTS:
        code, said = run(promtool, "test", "rules", str(path))
        if code != 0:
            found.append(f"{path.name}: {said}")
    if found:
        return found
    for path in TESTS:
        entries = groups[f"stepfleet.{path.stem}"]
        for expression, text, what in ((NEVER, "", "never fires"), (ALWAYS, r', namespace=\\"well\\"', "always fires")):
            with tempfile.TemporaryDirectory() as folder:
                (pathlib.Path(folder) / "rules.yaml").write_text(mutated(entries, expression))
                copy = pathlib.Path(folder) / path.name
                copy.write_text(re.sub(r"rule_files: .*", "rule_files: [rules.yaml]", path.read_text()))
                said = run(promtool, "test", "rules", str(copy))[1]
            noticed = set(re.findall(rf'alertname=\\"(\w+)\\"{text}[^\n]*time: ', said))
            for name in sorted({entry["alert"] for entry in entries} - noticed):
                found.append(f"{name}: its tests pass although it {what}")
    return found


def main():
    promtool = sys.argv[1]
    build = source()
    dashboards = list(build.DASHBOARDS.values())
    rules = [rule for group in build.rules.GROUPS.values() for rule in group]
    metrics, where_from = catalog.read()
    code, said = run(promtool, "check", "rules", str(RULES))
    settings_code, settings = run(promtool, "check", "config", str(TOP / "deploy/prometheus/prometheus.yaml"))
    steps = {
        "generated files are up to date": generated(build),
        "dashboard-linter": linted(dashboards),
        f"metrics exist in {where_from}": names(dashboards, rules, metrics, where_from),
        "panels parse": parses(promtool, dashboards),
        "promtool check rules": [said] if code != 0 else [],
        "promtool check config": [settings] if settings_code != 0 else [],
        "compose, Prometheus and Grafana fit each other": deployment.check(),
        "alerts have texts and runbooks": alerts(rules, dashboards),
        "every alert is tested": covered(rules),
        "promtool test rules, and the tests can fail": tests(promtool, build.rules.GROUPS),
    }
    for step, found in steps.items():
        print(f"{'ok    ' if not found else 'failed'}  {step}")
        for problem in found:
            print(f"        {problem}", file=sys.stderr)
    panels = sum(len(lint.panels(dashboard)) for dashboard in dashboards)
    count = len({rule["alert"] for rule in rules if "alert" in rule})
    print(f"{len(dashboards)} dashboards, {panels} panels, {count} alerts, {len(TESTS)} files of tests")
    sys.exit(1 if any(steps.values()) else 0)


if __name__ == "__main__":
    main()
