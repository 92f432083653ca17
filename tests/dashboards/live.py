"""Runs every panel's and alert's expression in a real Prometheus that scrapes a real fleet.

    live.py --fleet                              start a fleet (STEPFLEET_PROGRAM, STEPFLEET_TEST_SERVER) and a load
    live.py JOB=HOST:PORT [JOB=HOST:PORT ...]    scrape what runs already

It says which expressions are no PromQL, which return data and which are empty, and fails unless every empty one is
allowed by empty.py. Rules must evaluate without an error; what the programs export must be documented, and pass
`promtool check metrics`.
"""

import argparse
import contextlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse

sys.dont_write_bytecode = True

import catalog  # noqa: E402
import check  # noqa: E402
import empty  # noqa: E402
import fleet  # noqa: E402
import lint  # noqa: E402
import promql  # noqa: E402

# As Prometheus would be set up, so that whatever groups by these labels has something to group.
LABELS = {"cluster": "here", "namespace": "live", "fleet": "one"}
# What the load of --fleet must bring about, pending or firing, and what it must not.
EXPECTED = {
    "StepfleetNoWorkersForQueue", "StepfleetQueuePausedLong", "StepfleetRunFailureRatioHigh",
    "StepfleetDeadLettersGrowing", "StepfleetOutboxEntriesDropped",
}
FORBIDDEN = {
    "StepfleetNoCoordinator", "StepfleetPartitionUnowned", "StepfleetPartitionsOwnedTwice", "StepfleetCoordinatorAlone",
    "StepfleetTornCommits", "StepfleetAuditRepairs", "StepfleetLimitLeaks", "StepfleetScrapeMissing",
    "StepfleetRedisEvictionPolicyWrong", "StepfleetRedisEvictedKeys", "StepfleetRedisPersistenceBroken",
    "StepfleetRedisUnreachable", "StepfleetPoisonJobs", "StepfleetWorkerUnreadableJobs",
}


class Prometheus:
    """A Prometheus on loopback that scrapes every second and evaluates the rules every two."""

    def __init__(self, folder, tools, targets):
        self.folder = pathlib.Path(folder)
        self.tools = pathlib.Path(tools)
        self.address = f"127.0.0.1:{fleet.free_port()}"
        rules = check.RULES.read_text().replace("interval: 30s", "interval: 2s")
        (self.folder / "rules.yaml").write_text(rules)
        jobs = {}
        for job, address in targets:
            jobs.setdefault(job, []).append(address)
        (self.folder / "prometheus.json").write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "2s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": addresses, "labels": LABELS}]}
                for job, addresses in jobs.items()
            ],
        }))

    def __enter__(self):
        with (self.folder / "prometheus.log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    str(self.tools / "prometheus"), f"--config.file={self.folder / 'prometheus.json'}",
                    f"--storage.tsdb.path={self.folder / 'tsdb'}", f"--web.listen-address={self.address}",
                ],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )
        try:
            fleet.wait_for(lambda: fleet.ask(f"http://{self.address}/-/ready"), "Prometheus")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def get(self, path, **parameters):
        """The data of an answer, or the text of the error."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            return json.loads(fleet.ask(url))["data"]
        except urllib.error.HTTPError as error:
            return json.loads(error.read())["error"]

    def rules(self):
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def has_data(self, expression, begin):
        """Whether there is a number at any moment since `begin`; a text is an error."""
        answer = self.get("query_range", query=expression, start=begin, end=time.time(), step="5s")
        if isinstance(answer, str):
            return answer
        return any(value != "NaN" for series in answer["result"] for _, value in series["values"])


def panels(prometheus, begin):
    """Triples of where, expression, and what Prometheus said."""
    for name, dashboard in check.source().DASHBOARDS.items():
        for panel, target in lint.targets(dashboard):
            expression = promql.substituted(target["expr"])
            where = f"{name}: {panel['title']} {target['refId']}"
            yield where, expression, prometheus.has_data(expression, begin)


def alerts(prometheus, begin):
    """An alert is well if it is parsed and every metric that it reads has data: its own answer should be empty."""
    groups = check.source().rules.GROUPS
    for entry in [entry for group in groups.values() for entry in group]:
        where, expression = entry.get("alert") or entry["record"], entry["expr"]
        answer = prometheus.get("query", query=expression)
        if isinstance(answer, str):
            yield where, expression, answer
            continue
        for name in sorted({selector.name for selector in promql.selectors(expression)}):
            yield f"{where}: {name}", name, prometheus.has_data(name, begin)


def rule_errors(prometheus):
    for rule in prometheus.rules():
        if rule["health"] != "ok":
            yield f"rule {rule['name']} is {rule['health']}: {rule.get('lastError', '')}"


def exported(tools, targets, metrics):
    """What is exported and not documented or named against the rules, and what is documented and exported by nobody."""
    seen = set()
    for job, address in targets:
        text = fleet.ask(f"http://{address}/metrics")
        families = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
        seen |= families
        for name in sorted(name for name in families if name not in metrics and not name.startswith("process_")):
            yield f"{job} exports `{name}`, which is not documented"
        linted = subprocess.run(
            [f"{tools}/promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        for line in (linted.stdout + linted.stderr).splitlines():
            yield f"{job}: promtool check metrics: {line}"
    for name in sorted(set(metrics) - seen - set(catalog.OTHERS) - set(empty.REASONS)):
        yield f"`{name}` is documented, and nobody exports it"


def active_alerts(prometheus):
    active = {alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]}
    for name in sorted((EXPECTED | FORBIDDEN) - {rule["name"] for rule in prometheus.rules()}):
        yield f"{name} is no alert"
    for name in sorted(EXPECTED - active):
        yield f"{name} is not active, though the load brings it about"
    for name in sorted(FORBIDDEN & active):
        yield f"{name} is active"


def variables(prometheus):
    for label in ("cluster", "namespace", "fleet", "job", "queue"):
        if not prometheus.get(f"label/{label}/values", **{"match[]": f'{{{label}!="",__name__=~"stepfleet_.+"}}'}):
            yield f"the variable `{label}` has no values"


def report(answers):
    """Prints one line for each kind and each problem; gives the problems."""
    problems, data, allowed = [], 0, []
    for where, expression, answer in answers:
        names = [selector.name for selector in promql.selectors(expression)]
        if isinstance(answer, str):
            problems.append(f"no PromQL  {where}: {answer}")
        elif answer:
            data += 1
        elif reasons := [name for name in names if re.sub(r"_(bucket|sum|count)$", "", name) in empty.REASONS]:
            allowed.append(f"empty, as {empty.REASONS[reasons[0]]}: {where}")
        else:
            problems.append(f"empty      {where}: {expression}")
    print(f"{data} have data, {len(allowed)} are empty and may be, {len(problems)} are not as they should be")
    for line in allowed:
        print(f"  {line}")
    return problems


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fleet", action="store_true", help="start a fleet and a load instead of scraping what runs")
    parser.add_argument("--seconds", type=int, default=60, help="how long to load and scrape")
    parser.add_argument("--tools", help="the folder of prometheus and promtool; found or fetched if not given")
    parser.add_argument("targets", nargs="*", metavar="JOB=HOST:PORT")
    given = parser.parse_args()
    if given.fleet == bool(given.targets):
        parser.error("give either --fleet or at least one JOB=HOST:PORT")
    if not given.tools:
        script = check.HERE / "check.sh"
        given.tools = subprocess.run([script, "--get"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    return given


def main():
    given = arguments()
    metrics, where_from = catalog.read()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stepfleet-live-"))
        if given.fleet:
            own = stack.enter_context(fleet.running(folder))
            targets = own.targets
        else:
            targets = [tuple(target.split("=", 1)) for target in given.targets]
        prometheus = stack.enter_context(Prometheus(folder, given.tools, targets))
        begin = time.time()
        if given.fleet:
            own.load(given.seconds)
            time.sleep(3)
        else:
            time.sleep(given.seconds)
        print("panels: ", end="")
        problems = report(panels(prometheus, begin))
        print("metrics of alerts and recording rules: ", end="")
        problems += report(alerts(prometheus, begin))
        problems += list(rule_errors(prometheus)) + list(variables(prometheus))
        problems += list(active_alerts(prometheus)) if given.fleet else []
        problems += list(exported(given.tools, targets, metrics))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(problems)} problems, measured against {where_from}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
