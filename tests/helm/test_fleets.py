"""Two fleets in one namespace share no object, select none of the other's pods, and have alerts of their own."""

import functools
import json
import os
import re
import subprocess

import pytest
import yaml

from chart import CHART, env, of, render

PROMTOOL = os.environ["PROMTOOL"]
FLEETS = ("blue", "green")


@functools.cache
def fleet(name):
    """A release with everything on, and with a name of its own for its dashboards."""
    return render({"dashboards": {"name": name}}, base="two-fleets", release=name)


def named(things):
    return {(thing["kind"], thing["metadata"]["namespace"], thing["metadata"]["name"]) for thing in things}


def pods(things):
    """The labels of all pods that the objects make or are, by what makes them."""
    found = {}
    for thing in things:
        if thing["kind"] in ("Deployment", "StatefulSet"):
            found[thing["metadata"]["name"]] = thing["spec"]["template"]["metadata"]["labels"]
        elif thing["kind"] == "Pod":
            found[thing["metadata"]["name"]] = thing["metadata"]["labels"]
    return found




def selectors(thing, part=None, at="spec"):
    """Every selector of an object, with its place."""
    part = thing.get("spec") or {} if part is None else part
    if isinstance(part, list):
        for one in part:
            yield from selectors(thing, one, at)
    elif isinstance(part, dict):
        if "matchLabels" in part:
            yield at, part["matchLabels"]
        elif thing["kind"] == "Service" and at == "spec.selector":
            yield at, part
        else:
            for key, one in part.items():
                yield from selectors(thing, one, f"{at}.{key}")


def panels(dashboard):
    return json.dumps(dashboard["panels"], sort_keys=True)


def matches(labels, selector):
    return selector.items() <= labels.items()


def test_the_two_releases_have_everything_that_the_chart_has():
    assert {thing["kind"] for thing in fleet("blue")} == {
        "ConfigMap", "Deployment", "HTTPRoute", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "Pod",
        "PodDisruptionBudget", "PodMonitor", "PrometheusRule", "Role", "RoleBinding", "ScaledObject", "Secret",
        "Service", "ServiceAccount", "ServiceMonitor", "StatefulSet", "TriggerAuthentication",
    }  # fmt: skip


def test_no_object_is_of_both():
    blue, green = (named(fleet(name)) for name in FLEETS)
    assert len(blue) == len(green) == len(fleet("blue"))
    assert blue & green == set()


def test_releases_of_one_name_share_no_object_in_the_namespace_of_prometheus_and_grafana():
    prod, staging = (
        render({"dashboards": {"name": where}}, base="two-fleets", namespace=where) for where in ("prod", "staging")
    )
    assert {name for _, name, _ in named(prod) & named(staging)} == set()
    put = {kind for kind, namespace, _ in named(prod) if namespace == "monitoring"}
    assert put == {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"}


def test_no_selector_reaches_a_pod_of_the_other():
    places = set()
    for own, other in (FLEETS, FLEETS[::-1]):
        for thing in fleet(own):
            for at, selector in selectors(thing):
                places.add((thing["kind"], at))
                of_services = thing["kind"] == "ServiceMonitor"
                if of_services:
                    labels = [one["metadata"]["labels"] for one in fleet(own) if one["kind"] == "Service"]
                    strange = [one["metadata"]["labels"] for one in fleet(other) if one["kind"] == "Service"]
                else:
                    labels, strange = pods(fleet(own)).values(), pods(fleet(other)).values()
                where = f"{thing['kind']} {thing['metadata']['name']}: {at}"
                assert any(matches(one, selector) for one in labels), f"{where} selects nothing"
                assert not any(matches(one, selector) for one in strange), f"{where} selects the other fleet's"
    # The walk found them all: of workloads, services, budgets, monitors, policies and the spread of pods.
    assert {kind for kind, _ in places} == {
        "Deployment", "StatefulSet", "Service", "PodDisruptionBudget", "ServiceMonitor", "PodMonitor", "NetworkPolicy",
    }  # fmt: skip
    assert ("NetworkPolicy", "spec.ingress.from.podSelector") in places
    assert ("Deployment", "spec.template.spec.topologySpreadConstraints.labelSelector") in places


def test_coordinators_watch_the_workers_of_their_own_release():
    for own, other in (FLEETS, FLEETS[::-1]):
        asked = env(of(fleet(own), "Deployment", "coordinator"))["STEPFLEET_WATCH_PODS_SELECTOR"]
        selector = dict(label.split("=", 1) for label in asked.split(","))
        found = {name for name, labels in pods(fleet(own)).items() if matches(labels, selector)}
        assert found == {f"{own}-stepfleet-worker-{pool}" for pool in ("default", "streams", "api", "cpu")}
        assert not any(matches(labels, selector) for labels in pods(fleet(other)).values())


def test_what_an_object_names_is_of_its_own_release():
    """Secrets, accounts, services and workloads that are not the user's."""
    for own, other in (FLEETS, FLEETS[::-1]):
        foreign = {name for _, _, name in named(fleet(other))}
        for thing in fleet(own):
            words = set(re.findall(r"[a-z0-9-]+", json.dumps(thing)))
            assert not words & foreign, f"{thing['kind']} {thing['metadata']['name']} names {words & foreign}"


def test_dashboards_have_uids_titles_files_and_links_of_their_own():
    seen = []
    for name in FLEETS:
        files = {
            path: text
            for thing in fleet(name)
            if thing["kind"] == "ConfigMap"
            for path, text in thing["data"].items()
            if path.endswith(".json")
        }
        boards = [json.loads(text) for text in files.values()]
        plain = [json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")]
        assert len(boards) == len(plain) == 4
        uids = {board["uid"] for board in boards}
        assert max(map(len, uids)) <= 40
        for board in boards:
            assert board["tags"] == board["links"][0]["tags"] == [f"stepfleet-{name}"]
        assert sorted(map(panels, boards)) == sorted(map(panels, plain))
        linked = set()
        for group in of(fleet(name), "PrometheusRule")["spec"]["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    linked.add(re.search(r"/d/([a-z-]+)\?", rule["annotations"]["dashboard_url"]).group(1))
        assert linked == uids
        # Grafana's sidecar writes the files of all into one folder.
        seen.append(uids | {board["title"] for board in boards} | set(files))
    assert seen[0] & seen[1] == set()


def test_monitors_say_whose_series_they_are():
    for name in FLEETS:
        for kind, field in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")):
            (endpoint,) = of(fleet(name), kind)["spec"][field]
            assert endpoint["relabelings"][-1] == {"targetLabel": "fleet", "replacement": name}


def rules_of(name):
    return of(fleet(name), "PrometheusRule")["spec"]["groups"]


def test_every_series_of_a_rule_is_of_the_rules_fleet():
    names = r"\b(?:stepfleet_\w+|process_start_time_seconds|up|\w+:stepfleet_\w+:\w+)\b"
    for name in FLEETS:
        for group in rules_of(name):
            for rule in group["rules"]:
                read = re.findall(names + r"(.{0,40})", rule["expr"])
                assert read, rule
                for rest in read:
                    assert rest.startswith(f'{{namespace="prod",fleet="{name}"'), rule["expr"]


def test_all_fleets_are_watched_by_one_release_if_it_is_told_to():
    everywhere = render({"monitoring": {"enabled": True}, "prometheusRule": {"enabled": True, "allFleets": True}})
    plain = render({"prometheusRule": {"enabled": True}})
    assert of(everywhere, "PrometheusRule")["spec"] == of(plain, "PrometheusRule")["spec"]


@pytest.mark.parametrize("name", FLEETS)
def test_an_alert_of_one_fleet_does_not_fire_for_the_queue_of_the_other(name, tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": rules_of(name)}))
    labels = 'alertname="StepfleetNoWorkersForQueue",alertstate="firing",namespace="prod",fleet="blue",queue="mail"'
    fires = [{"labels": f'ALERTS{{{labels},severity="critical"}}', "value": 1}] if name == "blue" else []
    # Both have a queue of that name; only the green one has workers, and only the blue one's jobs have nobody.
    series = [
        'stepfleet_queue_depth{namespace="prod",fleet="blue",queue="mail"}',
        'stepfleet_queue_depth{namespace="prod",fleet="green",queue="mail"}',
        'stepfleet_queue_workers{namespace="prod",fleet="green",queue="mail"}',
    ]
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "30s",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": one, "values": "5x20"} for one in series],
                "promql_expr_test": [
                    {
                        "expr": 'ALERTS{alertname="StepfleetNoWorkersForQueue"}',
                        "eval_time": "10m",
                        "exp_samples": fires,
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(json.dumps(test))
    command = [PROMTOOL, "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
