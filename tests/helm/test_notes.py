"""What Helm says after an installation is true of what was installed."""

import json
import os
import re
import subprocess

import pytest

from chart import CHART, HELMS, REDIS, case, kinds, of


def notes(*names, values=None, folder=None):
    """The notes of a release with these files of ci/ and values over them. Helm 3 asks a cluster for them."""
    command = [HELMS["4"], "install", "fleet", str(CHART), "--namespace", "prod", "--dry-run=client"]
    for name in names:
        command += ["--values", str(CHART / f"ci/{name}-values.yaml")]
    if values:
        path = folder / "values.json"
        path.write_text(json.dumps(values))
        command += ["--values", str(path)]
    nowhere = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=nowhere)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\nNOTES:\n")[1]


@pytest.mark.parametrize("name", ["defaults", "api", "full", "valkey", "no-workers"])
def test_the_objects_that_notes_name_are_there(name):
    said, things = notes(name), case(name)
    named = re.findall(r"\b(deploy|svc)/([a-z-]+)", said)
    assert named
    for short, object_name in named:
        of(things, {"deploy": "Deployment", "svc": "Service"}[short], object_name)
    # With a token of its own `helm test` is there; else nobody is told to run it.
    is_tested = "test fleet" in said
    assert is_tested == ("Pod" in kinds(things))


def test_who_has_no_tokens_is_told_who_may_do_everything():
    assert "Whoever may port-forward or exec there may do everything." in notes("defaults")
    assert "without tokens" not in notes("api")


def test_an_ingress_without_tls_is_called_what_it_is(tmp_path):
    assert "WITHOUT TLS" not in notes("api")
    assert "WITHOUT TLS" in notes("api", values={"api": {"ingress": {"tls": []}}}, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "warning"),
    [
        ("valkey", {}, "the chart's own Valkey is one pod"),
        ("defaults", {"coordinator": {"replicas": 1}}, "with one coordinator nothing is scheduled while"),
        ("keda-prometheus", {}, "KEDA was not seen in this cluster; without it nobody starts workers of default, own"),
        ("monitoring", {}, "the prometheus-operator was not seen in this cluster"),
    ],
)
def test_what_is_risky_or_missing_is_said(name, values, warning, tmp_path):
    assert warning in notes(name, values=values, folder=tmp_path)
    assert warning not in notes("defaults", values={**REDIS, "coordinator": {"replicas": 2}}, folder=tmp_path)
