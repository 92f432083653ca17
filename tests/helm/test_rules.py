"""The alerts that the chart brings: the same as for any Prometheus, unless values say otherwise."""

import json
import os
import re
import subprocess

import pytest
import yaml

from chart import CHART, TOP, Refused, of, render

PROMTOOL = os.environ["PROMTOOL"]
PLAIN = TOP / "deploy/prometheus/rules.yaml"
ON = {"enabled": True}


def groups(**rules):
    return of(render({"prometheusRule": {**ON, **rules}}), "PrometheusRule")["spec"]["groups"]


def alerts(**rules):
    return [rule for group in groups(**rules) for rule in group["rules"] if "alert" in rule]


def thresholds():
    return yaml.safe_load((CHART / "values.yaml").read_text())["prometheusRule"]["thresholds"]


def promtool(folder, command, *files):
    done = subprocess.run([PROMTOOL, command, "rules", *files], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_without_more_the_rules_are_those_for_any_prometheus():
    assert groups() == yaml.safe_load(PLAIN.read_text())["groups"]


def test_every_threshold_reaches_an_alert(tmp_path):
    # Numbers that nothing else has: odd, so that none loses a 0 at its end; below 1 for the ratios.
    given, odd = {}, iter(range(71001, 72000, 2))
    for name, default in thresholds().items():
        def number(is_ratio=name.endswith("Ratio")):
            return next(odd) / (100000 if is_ratio else 1)

        given[name] = {severity: number() for severity in default} if isinstance(default, dict) else number()
    numbers = [one for limit in given.values() for one in (limit.values() if isinstance(limit, dict) else [limit])]
    changed = groups(thresholds=given)
    expressions = " ".join(rule["expr"] for group in changed for rule in group["rules"])
    assert {float(found) for found in re.findall(r"(?:0\.7|\b7)\d{4}", expressions)} == set(numbers)
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": changed}))
    code, said = promtool(tmp_path, "check", "rules.yaml")
    assert code == 0, said


@pytest.mark.parametrize(("seconds", "fires"), [(60, True), (1000000, False)])
def test_a_changed_threshold_decides_when_an_alert_fires(seconds, fires, tmp_path):
    limits = {"queueOldestSeconds": {"warning": seconds, "critical": 1000000}}
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": groups(thresholds=limits)}))
    labels = 'alertname="StepfleetQueueOldestTooOld",alertstate="firing",namespace="prod",queue="mail"'
    firing = {"labels": f'ALERTS{{{labels},severity="warning"}}', "value": 1}
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "30s",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": 'stepfleet_queue_oldest_seconds{namespace="prod",queue="mail"}', "values": "100x20"}
                ],
                "promql_expr_test": [
                    {
                        "expr": 'ALERTS{alertname="StepfleetQueueOldestTooOld"}',
                        "eval_time": "10m",
                        "exp_samples": [firing] if fires else [],
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(json.dumps(test))
    code, said = promtool(tmp_path, "test", "test.yaml")
    assert code == 0, said


def test_alerts_get_labels_and_times_of_their_own():
    own = {"StepfleetQueueOldestTooOld": {"for": "30m", "labels": {"severity": "info"}}}
    changed = alerts(alertLabels={"team": "data", "severity": "page"}, overrides=own)
    for rule in changed:
        is_own = rule["alert"] == "StepfleetQueueOldestTooOld"
        assert rule["labels"] == {"team": "data", "severity": "info" if is_own else "page"}
        assert not is_own or rule["for"] == "30m"
    untouched = alerts(alertLabels={"team": "data"})
    assert {rule["labels"]["severity"] for rule in untouched} == {"critical", "warning", "info"}
    recorded = [rule for group in groups(alertLabels={"team": "data"}) for rule in group["rules"] if "record" in rule]
    assert recorded and not any("labels" in rule for rule in recorded)


def test_a_disabled_alert_is_left_out_with_both_its_severities():
    left = alerts(disabled=["StepfleetQueueOldestTooOld"])
    assert len(left) == len(alerts()) - 2
    assert "StepfleetQueueOldestTooOld" not in {rule["alert"] for rule in left}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"disabled": ["QueueTooOld"]}, "prometheusRule.disabled has QueueTooOld, which is no alert"),
        ({"overrides": {"QueueTooOld": {}}}, "prometheusRule.overrides has QueueTooOld, which is no alert"),
        ({"thresholds": {"commitSeconds": None}}, "prometheusRule.thresholds.commitSeconds is missing"),
        ({"thresholds": {"redisMemoryRatio": {"critical": None}}}, "thresholds.redisMemoryRatio.critical is missing"),
        ({"thresholds": {"commitSecond": 1}}, "commitSecond"),
        ({"thresholds": {"runFailureRatio": 5}}, "runFailureRatio"),
        ({"thresholds": {"runsStuckSeconds": 90.5}}, "runsStuckSeconds"),
        ({"overrides": {"StepfleetRunsStuck": {"expr": "up"}}}, "expr"),
    ],
)
def test_what_would_do_nothing_is_refused(rules, message):
    with pytest.raises(Refused, match=re.escape(message)):
        groups(**rules)
