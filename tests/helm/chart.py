"""Renders the chart with a real Helm, for the tests beside this file."""

import functools
import json
import os
import pathlib
import subprocess
import tempfile

import yaml

TOP = pathlib.Path(__file__).resolve().parents[2]
CHART = TOP / "helm/stepfleet"
# A file of values for each feature. Where there is one, every rule is tried with all of them.
CASES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
# The two that are alive; check.sh finds or fetches them.
HELMS = {"3": os.environ["HELM3"], "4": os.environ["HELM4"]}
NAMESPACE = "prod"
REDIS = {"redis": {"existingSecret": "redis"}}


class Refused(Exception):
    """Helm did not render; the text is its message."""


def text(*paths, helm="4", kube="1.31.0", chart=CHART, release="fleet", namespace=NAMESPACE):
    """What `helm template` writes for these files of values."""
    command = [HELMS[helm], "template", release, str(chart), "--namespace", namespace, "--kube-version", kube]
    for path in paths:
        command += ["--values", str(path)]
    return run(*command)


@functools.cache
def run(*command):
    """Files of values and charts are named by their paths, which no test uses twice."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


def objects(rendered):
    return [thing for thing in yaml.load_all(rendered, yaml.CSafeLoader) if thing]


def case(name, **options):
    """The objects of a file in ci/."""
    return objects(text(CHART / f"ci/{name}-values.yaml", **options))


def render(values, base=None, **options):
    """The objects of some values over REDIS, or over a file in ci/."""
    with tempfile.TemporaryDirectory() as folder:
        given, under = pathlib.Path(folder, "given.yaml"), pathlib.Path(folder, "base.yaml")
        given.write_text(json.dumps(values))
        under.write_text(json.dumps(REDIS))
        return objects(text(CHART / f"ci/{base}-values.yaml" if base else under, given, **options))


def of(things, kind, name=None):
    """The only object of a kind, or the one whose name ends so."""
    found = [
        thing for thing in things if thing["kind"] == kind and (not name or thing["metadata"]["name"].endswith(name))
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}: {[thing['metadata']['name'] for thing in found]}"
    return found[0]


def kinds(things):
    return {thing["kind"] for thing in things}


def pod(thing):
    """The pod that an object makes or is; None for others."""
    if thing["kind"] == "Pod":
        return thing["spec"]
    return thing["spec"]["template"]["spec"] if thing["kind"] in ("Deployment", "StatefulSet") else None


def containers(thing):
    return pod(thing)["containers"] + pod(thing).get("initContainers", [])


def env(thing):
    """The variables of the first container: name to value, or to what it is taken from."""
    return {given["name"]: given.get("value", given.get("valueFrom")) for given in pod(thing)["containers"][0]["env"]}


def immutable(things):
    """What Kubernetes refuses to change of an object that is there, by kind and name."""
    kept = {}
    for thing in things:
        spec = thing.get("spec") or {}
        if thing["kind"] == "Deployment":
            fields = {"selector": spec["selector"]}
        elif thing["kind"] == "StatefulSet":
            fields = {key: spec[key] for key in ("selector", "serviceName", "volumeClaimTemplates")}
        elif thing["kind"] == "Service":
            fields = {"clusterIP": spec.get("clusterIP")}
        else:
            fields = {}
        kept[f"{thing['kind']}/{thing['metadata']['name']}"] = fields
    return kept
