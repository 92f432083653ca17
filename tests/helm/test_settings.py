"""Every setting of the programs can be reached by a value, and the chart sets none that they do not have."""

import json
import re

import pytest
import yaml

from chart import CASES, CHART, TOP, Refused, case, env, of, pod, render

SOURCE = TOP / "cli/src"
OF_REDIS = ["process/redis.rs"]
OF = {
    "coordinator": [*OF_REDIS, "process/telemetry.rs", "process/coordinator.rs", "process/retention.rs", "process/outbox.rs",
                    "process/pods.rs"],
    "worker": [*OF_REDIS, "process/telemetry.rs", "process/trace.rs", "process/worker.rs"],
}
# Read without clap, by both.
LOG = {"STEPFLEET_LOG"}
# The chart gives tokens instead.
NEVER = {"STEPFLEET_INSECURE_LISTEN"}
# Of the verbs, in the pods of coordinators and of `helm test`.
OF_VERBS = {"STEPFLEET_API", "STEPFLEET_TOKEN_FILE"}


def settings(program):
    """The variables that a program reads, as its source says."""
    found = set(LOG)
    for path in OF[program]:
        found |= set(re.findall(r'\benv = "(STEPFLEET_\w+)"', (SOURCE / path).read_text()))
    return found


def rendered(program):
    """The variables that the chart sets for a program in any of the files of values."""
    found = set()
    for name in CASES:
        for thing in case(name):
            labels = thing["metadata"].get("labels", {})
            if thing["kind"] == "Deployment" and labels["app.kubernetes.io/component"] == program:
                found |= {name for name in env(thing) if name != "STEPFLEET_EXAMPLE" and not name.startswith("OTEL_")}
    return found


@pytest.mark.parametrize("program", OF)
def test_every_setting_of_a_program_has_a_value(program):
    assert len(settings(program)) > 10
    assert settings(program) - rendered(program) - NEVER == set()


@pytest.mark.parametrize("program", OF)
def test_the_chart_sets_nothing_that_a_program_does_not_read(program):
    assert rendered(program) - settings(program) - OF_VERBS == {"REDIS_PASSWORD"}


@pytest.mark.parametrize(("program", "values"), [("coordinator", "coordinator"), ("worker", "workerDefaults")])
def test_what_the_chart_sets_itself_cannot_be_given_twice(program, values):
    template = (CHART / "templates/_env.tpl").read_text()
    lists = dict(re.findall(r'define "stepfleet.envOf(\w+)" -}}(.*?){{- end -}}', template, re.DOTALL))
    kept = set(re.findall(r"\b[A-Z_]{2,}\b", lists["All"] + lists[program.capitalize()]))
    assert kept == rendered(program) | (NEVER if program == "coordinator" else set())
    for name in ("STEPFLEET_REDIS_URL", "STEPFLEET_LISTEN" if program == "coordinator" else "STEPFLEET_THREADS"):
        with pytest.raises(Refused, match=f"env has {name}, which has a value of its own"):
            render({values: {"env": [{"name": name, "value": "x"}]}})


def test_other_variables_reach_the_programs_as_they_are():
    given = [
        {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://otel:4317"},
        {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ]
    for thing in render({"coordinator": {"env": given}, "workerDefaults": {"env": given}}):
        if thing["kind"] == "Deployment":
            assert pod(thing)["containers"][0]["env"][-2:] == given


def test_traces_are_set_by_the_variables_of_opentelemetry():
    things = case("tracing")
    for name in ("coordinator", "default"):
        found = env(of(things, "Deployment", name))
        assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel-collector.observability:4318"
        assert found["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
        assert found["OTEL_EXPORTER_OTLP_HEADERS"] == {"secretKeyRef": {"name": "otel", "key": "headers"}}
        assert (found["OTEL_TRACES_SAMPLER"], found["OTEL_TRACES_SAMPLER_ARG"]) == (
            "parentbased_traceidratio",
            "0.25",
        )
        # Kubernetes fills in only what is defined before.
        order = list(found)
        assert max(order.index("STEPFLEET_NAME"), order.index("OTEL_K8S_NODE")) < order.index("OTEL_RESOURCE_ATTRIBUTES")
        assert found["OTEL_RESOURCE_ATTRIBUTES"] == (
            "k8s.pod.name=$(STEPFLEET_NAME),k8s.node.name=$(OTEL_K8S_NODE),k8s.namespace.name=prod,"
            "deployment.environment.name=prod"
        )
    assert found["STEPFLEET_TRACE_REDACT"] == "iban,password"
    for component in ("coordinator", "worker"):
        egress = of(things, "NetworkPolicy", component)["spec"]["egress"]
        assert egress[-1] == {"ports": [{"port": 4318, "protocol": "TCP"}]}
    assert not any(name.startswith("OTEL_") for thing in render({}) if pod(thing) for name in env(thing))
    with pytest.raises(Refused, match="tracing.endpoint must say where the collector is"):
        render({"tracing": {"enabled": True}})


def test_the_log_filter_is_a_folder_that_kubernetes_keeps_up_to_date():
    things = case("tracing")
    assert of(things, "ConfigMap", "-log")["data"] == {"filter": "info,stepfleet_worker=debug"}
    for thing in things:
        if thing["kind"] == "Deployment":
            container = pod(thing)["containers"][0]
            mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "log")
            # With subPath the file would stay as it was when the pod began.
            assert mount == {"name": "log", "mountPath": "/etc/stepfleet/log", "readOnly": True}
            assert env(thing)["STEPFLEET_LOG_FILE"] == "/etc/stepfleet/log/filter"


def test_every_value_of_the_schema_has_its_line_in_the_values_and_the_other_way_round():
    schema = json.loads((CHART / "values.schema.json").read_text())
    # Those that are free, given as a whole, or gone.
    free = {"global", "workers", "serviceAccount", "extraObjects"}

    def known(part):
        while "$ref" in part:
            part = schema["definitions"][part["$ref"].rsplit("/", 1)[1]]
        return part

    def compare(part, values, at):
        part = known(part)
        if "properties" not in part or not isinstance(values, dict) or not values:
            return
        names = set(part["properties"]) - (free if not at else set())
        assert names - set(values) - {"claims"} == set(), f"not in values.yaml, below `{at}`"
        for name in names & set(values):
            compare(part["properties"][name], values[name], f"{at}.{name}" if at else name)

    compare(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "")
