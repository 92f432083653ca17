"""Every file of ci/ renders with both Helms, and what it renders is what Kubernetes and its extensions take."""

import functools
import json
import os
import re
import subprocess

import kubernetes_validate
import kubernetes_validate.utils
import pytest

from chart import CASES, CHART, HELMS, case, objects, text

# The package reads 10 MB for each object.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)

# The oldest and a middle version that the chart supports, and the newest that is known.
VERSIONS = ["1.28", "1.31", ".".join(kubernetes_validate.latest_version().split(".")[:2])]
# Kinds of others: the schemas of their npm packages check them in crds.mjs.
EXTENSIONS = ("keda.sh/", "monitoring.coreos.com/", "gateway.networking.k8s.io/")


def is_extension(thing):
    return thing["apiVersion"].startswith(EXTENSIONS)


@pytest.mark.parametrize("helm", HELMS)
def test_every_file_of_values_passes_lint(helm):
    for name in CASES:
        values = str(CHART / f"ci/{name}-values.yaml")
        command = [HELMS[helm], "lint", "--strict", "--quiet", str(CHART), "--values", values]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", CASES)
def test_both_helms_render_the_same(name):
    def without_passwords(rendered):
        return re.sub(r"(?m)^  (coordinator|worker|keda|viewer): \S+=*$", r"  \1: made", rendered)

    path = CHART / f"ci/{name}-values.yaml"
    assert without_passwords(text(path, helm="3")) == without_passwords(text(path, helm="4"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_kubernetes_takes_every_object(name, version):
    for thing in case(name, kube=".".join(version.split(".")[:2]) + ".0"):
        if not is_extension(thing):
            kubernetes_validate.validate(thing, version, strict=True)


def test_the_schemas_of_kubernetes_refuse_a_field_that_they_do_not_know():
    thing = next(thing for thing in case("defaults") if thing["kind"] == "Deployment")
    wrong = {**thing, "spec": {**thing["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[1], strict=True)


def crds(things):
    """Asks the schemas of the packages; gives the problems."""
    command = ["node", "crds.mjs"]
    done = subprocess.run(
        command, input=json.dumps(things), cwd=os.environ["CRD_FOLDER"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_schemas_of_the_extensions_take_their_objects():
    extensions = [
        thing for name in CASES for thing in objects(text(CHART / f"ci/{name}-values.yaml")) if is_extension(thing)
    ]
    found = {thing["kind"] for thing in extensions}
    assert found == {
        "ScaledObject",
        "TriggerAuthentication",
        "ServiceMonitor",
        "PodMonitor",
        "PrometheusRule",
        "HTTPRoute",
    }
    assert crds(extensions) == []


WRONG = [
    ("keda-streams", "ScaledObject", lambda spec: spec["triggers"][0]["metadata"].update(lagCount=5)),
    ("keda-streams", "ScaledObject", lambda spec: spec["advanced"]["scalingModifiers"].update(formula=3)),
    ("keda-streams", "ScaledObject", lambda spec: spec["fallback"].update(behavior="guess")),
    ("keda-streams", "TriggerAuthentication", lambda spec: spec["secretTargetRef"][0].pop("parameter")),
    ("monitoring", "ServiceMonitor", lambda spec: spec["endpoints"][0].update(interval="often")),
    ("monitoring", "PodMonitor", lambda spec: spec.update(podTargetLabels="pool")),
    ("monitoring", "PrometheusRule", lambda spec: spec["groups"][0].pop("name")),
    ("api", "HTTPRoute", lambda spec: spec["rules"][0]["backendRefs"][0].update(port="http")),
]


def test_the_schemas_of_the_extensions_refuse_what_is_wrong():
    things = []
    for number, (name, kind, spoil) in enumerate(WRONG):
        thing = next(thing for thing in case(name) if thing["kind"] == kind)
        spoil(thing["spec"])
        thing["metadata"]["name"] = f"number-{number}"
        things.append(thing)
    found = [problem.split(":")[0] for problem in crds(things)]
    assert found == [f"{kind} number-{number}" for number, (_, kind, _) in enumerate(WRONG)]


# The packages' schemas let unknown fields pass, so the names are held here: those of KEDA 2.17 and later,
# prometheus-operator 0.60 and later, Gateway API v1.
FIELDS = {
    "ScaledObject": {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "cooldownPeriod",
        "fallback",
        "advanced",
        "triggers",
    },
    "TriggerAuthentication": {"secretTargetRef"},
    "ServiceMonitor": {"namespaceSelector", "selector", "endpoints"},
    "PodMonitor": {"namespaceSelector", "selector", "podTargetLabels", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
    "HTTPRoute": {"parentRefs", "hostnames", "rules"},
}


@pytest.mark.parametrize("name", CASES)
def test_extensions_get_no_field_that_they_would_ignore(name):
    for thing in case(name):
        if is_extension(thing):
            assert set(thing["spec"]) <= FIELDS[thing["kind"]], thing["metadata"]["name"]
