"""Scaling, monitoring, ways to the API, network policies, and the pod of `helm test`."""

import binascii
import json
import re
import shutil

import pytest
import yaml

from chart import CHART, REDIS, case, env, kinds, objects, of, pod, render, text

RULES = {
    "groups": [
        {
            "name": "a",
            "interval": "30s",
            "rules": [
                {"record": "x:y", "expr": "vector(1)"},
                {
                    "alert": "First",
                    "expr": "up == 0",
                    "annotations": {
                        "runbook_url": "https://example.org/docs/runbooks/First.md",
                        "dashboard_url": "http://localhost:3000/d/stepfleet-overview?x=1",
                        "summary": "{{ $labels.queue }} is at {{ $value }}",
                    },
                },
                {"alert": "Second", "expr": "up == 1"},
            ],
        },
        {"name": "b", "rules": [{"alert": "Third", "expr": "up == 2"}]},
    ]
}


@pytest.fixture
def packaged(tmp_path):
    """The chart with two dashboards and some rules, whatever it has itself."""
    chart = tmp_path / "stepfleet"
    shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns("rules", "dashboards"))
    for folder, name, content in (
        ("rules", "stepfleet.yaml", yaml.safe_dump(RULES)),
        ("dashboards", "overview.json", json.dumps({"title": "{{ name }}"})),
        ("dashboards", "queues.json", "{}"),
    ):
        (chart / folder).mkdir(exist_ok=True)
        (chart / folder / name).write_text(content)
    return chart


def test_who_scales_a_pool_sets_its_number_of_pods_alone():
    things = case("hpa")
    assert of(things, "Deployment", "default")["spec"]["replicas"] == 2
    assert "replicas" not in of(things, "Deployment", "cpu")["spec"]
    hpa = of(things, "HorizontalPodAutoscaler")["spec"]
    assert hpa["scaleTargetRef"]["name"] == "fleet-stepfleet-worker-cpu"
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (2, 40)
    assert hpa["metrics"][0]["resource"]["target"]["averageUtilization"] == 80
    assert hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
    for name in ("keda-prometheus", "keda-streams"):
        assert "replicas" not in of(case(name), "Deployment", "worker-default")["spec"]


def test_keda_follows_the_wish_of_the_coordinators():
    things = case("keda-prometheus")
    spec = of(things, "ScaledObject", "default")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 40)
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]["policies"][0]["value"] == 50
    (trigger,) = spec["triggers"]
    query = 'sum(max by (queue) (stepfleet_queue_wanted_workers{namespace="prod",queue=~"default|mail\\\\.out"}))'
    assert trigger["metadata"]["query"] == query
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    # With monitors of the chart, of this fleet's series alone: another one of the namespace may have such queues.
    labelled = render({"monitoring": {"enabled": True}}, base="keda-prometheus")
    query = of(labelled, "ScaledObject", "default")["spec"]["triggers"][0]["metadata"]["query"]
    assert 'namespace="prod",fleet="fleet",queue=~' in query
    own = of(things, "ScaledObject", "own")["spec"]["triggers"][0]
    assert own["metadata"]["query"] == "max(wanted)"
    assert own["authenticationRef"] == {"name": "thanos"}
    assert "TriggerAuthentication" not in kinds(things)


def partition_tags(count):
    """The hash tags of the first partitions, as protocol/src/keys/slots.rs finds them."""
    wanted = [int(f"{partition:012b}"[::-1], 2) * 4 for partition in range(count)]
    digits, found, number = "0123456789abcdefghijklmnopqrstuvwxyz", {}, 0
    while not all(slot in found for slot in wanted):
        tag, rest = "", number
        while rest or not tag:
            tag, rest = digits[rest % 36] + tag, rest // 36
        found.setdefault(binascii.crc_hqx(tag.encode(), 0) % 16384, tag)
        number += 1
    return [found[slot] for slot in wanted]


def test_keda_asks_every_stream_of_a_pool_for_what_waits_and_what_runs():
    things = render({"coordinator": {"partitions": 64}}, base="keda-streams")
    triggers = of(things, "ScaledObject", "worker-default")["spec"]["triggers"]
    # In the order of the partitions: an installation with fewer has the first ones.
    streams = [f"sf:{{{tag}}}:jobs:{queue}" for queue in ("urgent", "default") for tag in partition_tags(64)]
    for field in ("lagCount", "pendingEntriesCount"):
        asked = [trigger["metadata"]["stream"] for trigger in triggers if field in trigger["metadata"]]
        assert asked == streams
    for trigger in triggers:
        assert trigger["type"] == "redis-cluster-streams"
        assert trigger["metadata"]["consumerGroup"] == "workers"
        assert trigger["metadata"]["enableTLS"] == "true"
        assert not {"lagCount", "pendingEntriesCount"} <= set(trigger["metadata"])


def test_the_names_in_the_streams_are_those_of_the_programs():
    source = (CHART.parents[1] / "protocol/src/keys.rs").read_text()
    assert 'pub const GROUP: &str = "workers";' in source
    assert 'pub const PREFIX_DEFAULT: &str = "sf:";' in source
    assert 'format!("{}jobs:{queue}", self.stem)' in source


def test_keda_adds_the_streams_up_and_counts_a_lag_that_is_not_known_as_none():
    spec = of(case("keda-streams"), "ScaledObject", "worker-default")["spec"]
    added = spec["advanced"]["scalingModifiers"]
    assert added["formula"].split(" + ") == [f"max({trigger['name']}, 0)" for trigger in spec["triggers"]]
    assert (added["target"], added["activationTarget"], added["metricType"]) == ("8", "0", "AverageValue")
    other = of(case("keda-streams"), "ScaledObject", "keda-user")["spec"]
    assert other["advanced"]["scalingModifiers"]["target"] == "100"
    assert {trigger["metadata"]["username"] for trigger in other["triggers"]} == {"keda"}


@pytest.mark.parametrize(
    ("name", "base", "secret"),
    [
        ("worker-default-redis", "keda-streams", ("redis", "password")),
        ("worker-keda-user-redis", "keda-streams", ("redis-keda", "password")),
        ("worker-default-redis", "keda-valkey", ("fleet-stepfleet-valkey", "keda")),
    ],
)
def test_keda_gets_the_password_and_the_files_of_tls_from_their_secrets(name, base, secret):
    things = case(base)
    auth = of(things, "TriggerAuthentication", name)
    given = {one["parameter"]: (one["name"], one["key"]) for one in auth["spec"]["secretTargetRef"]}
    assert given["password"] == secret
    assert ("ca" in given) == ("cert" in given) == ("key" in given) == (base == "keda-streams")
    scaled = of(things, "ScaledObject", name.removesuffix("-redis"))
    assert {trigger["authenticationRef"]["name"] for trigger in scaled["spec"]["triggers"]} == {
        auth["metadata"]["name"]
    }


def test_keda_gets_the_password_of_the_sentinels_as_well():
    auth = of(case("keda-sentinel"), "TriggerAuthentication")
    given = {one["parameter"]: (one["name"], one["key"]) for one in auth["spec"]["secretTargetRef"]}
    assert given == {"password": ("redis", "password"), "sentinelPassword": ("redis-sentinel", "own")}
    alone = render({"redis": {"passwordSecret": {"name": ""}}}, base="keda-sentinel")
    (one,) = of(alone, "TriggerAuthentication")["spec"]["secretTargetRef"]
    assert one == {"parameter": "sentinelPassword", "name": "redis-sentinel", "key": "own"}
    for trigger in of(alone, "ScaledObject")["spec"]["triggers"]:
        assert trigger["type"] == "redis-sentinel-streams"
        assert trigger["authenticationRef"] == {"name": "fleet-stepfleet-worker-default-redis"}
    # A single server has no Sentinels.
    single = {"redis": {"topology": "single", "hosts": ["a:6379"], "sentinelService": ""}}
    (one,) = of(render(single, base="keda-sentinel"), "TriggerAuthentication")["spec"]["secretTargetRef"]
    assert one["parameter"] == "password"


def test_keda_asks_the_api_for_the_jobs_of_each_queue():
    things = case("keda-api")
    spec, auth = of(things, "ScaledObject", "default")["spec"], of(things, "TriggerAuthentication", "default-api")
    service = of(things, "Service", "api")
    asked = {}
    for trigger in spec["triggers"]:
        assert trigger["type"] == "metrics-api"
        assert trigger["authenticationRef"] == {"name": auth["metadata"]["name"]}
        metadata = trigger["metadata"]
        # KEDA resolves the name in a namespace of its own.
        host = f"{service['metadata']['name']}.prod.svc:{service['spec']['ports'][0]['port']}"
        assert metadata["url"] == f"http://{host}/api/v1/queues"
        assert (metadata["authMode"], metadata["targetValue"]) == ("bearer", "16")
        asked[trigger["name"]] = metadata["valueLocation"]
    assert asked == {
        f"{what}_{number}": f'[!0,items.#(name=="{queue}").{field}].@reverse.0'
        for number, queue in enumerate(("default", "mail.out"))
        for what, field in (("waiting", "depth"), ("running", "pending"))
    }
    added = spec["advanced"]["scalingModifiers"]
    assert set(added["formula"].split(" + ")) == {f"max({name}, 0)" for name in asked}
    assert added["target"] == "16"
    assert auth["spec"]["secretTargetRef"] == [{"parameter": "token", "name": "fleet-viewer", "key": "token"}]
    bulk = of(things, "ScaledObject", "bulk")["spec"]
    assert bulk["advanced"]["scalingModifiers"]["target"] == "1000000"


def test_the_names_in_the_answer_of_the_api_are_those_of_the_programs():
    views = CHART.parents[1] / "coordinator/src/http"
    queue = (views / "view/fleet.rs").read_text().split("pub struct QueueView")[1].split("\n}")[0]
    assert {"name", "depth", "pending"} <= set(re.findall(r"pub (\w+):", queue))
    assert "pub items: Vec<T>" in (views / "view.rs").read_text()
    assert '("GET", "/api/v1/queues", VIEW)' in (views / "roles.rs").read_text()


def test_prometheus_finds_coordinators_and_workers():
    things = case("monitoring")
    service, pods = of(things, "ServiceMonitor"), of(things, "PodMonitor")
    found = of(things, "Service", "coordinator-metrics")
    assert service["spec"]["selector"]["matchLabels"].items() <= found["metadata"]["labels"].items()
    assert service["spec"]["endpoints"][0]["port"] in {port["name"] for port in found["spec"]["ports"]}
    worker = of(things, "Deployment", "worker-default")["spec"]["template"]
    assert pods["spec"]["selector"]["matchLabels"].items() <= worker["metadata"]["labels"].items()
    ports = {port["name"] for port in worker["spec"]["containers"][0]["ports"]}
    assert pods["spec"]["podMetricsEndpoints"][0]["port"] in ports
    for monitor, field in ((service, "endpoints"), (pods, "podMetricsEndpoints")):
        assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["prod"]}
        assert monitor["spec"][field][0]["relabelings"][0]["targetLabel"] == "cluster"


def test_rules_are_those_of_the_package_without_the_disabled_ones(packaged):
    rules = {
        "enabled": True,
        "disabled": ["Second", "Third"],
        "runbookUrl": "https://wiki.example.org/r/",
        "grafanaUrl": "https://grafana.example.org",
        "extraGroups": [{"name": "c", "rules": []}],
    }
    groups = of(render({"prometheusRule": rules}, chart=packaged), "PrometheusRule")["spec"]["groups"]
    assert [group["name"] for group in groups] == ["a", "c"]
    assert groups[0]["interval"] == "30s"
    assert [rule.get("alert") for rule in groups[0]["rules"]] == [None, "First"]
    assert groups[0]["rules"][1]["annotations"] == {
        "runbook_url": "https://wiki.example.org/r/First.md",
        "dashboard_url": "https://grafana.example.org/d/stepfleet-overview?x=1",
        "summary": "{{ $labels.queue }} is at {{ $value }}",
    }


def test_rules_are_as_they_are_unless_told_otherwise(packaged):
    things = render({"prometheusRule": {"enabled": True}}, chart=packaged)
    assert of(things, "PrometheusRule")["spec"] == RULES


def test_each_dashboard_is_a_config_map_that_grafana_s_sidecar_finds(packaged):
    values = {
        "dashboards": {"enabled": True, "namespace": "monitoring", "annotations": {"grafana_folder": "Stepfleet"}}
    }
    found = [thing for thing in render(values, chart=packaged) if thing["kind"] == "ConfigMap"]
    assert {tuple(thing["data"]) for thing in found} == {("overview.json",), ("queues.json",)}
    assert of(found, "ConfigMap", "overview-prod")["data"]["overview.json"] == '{"title": "{{ name }}"}'
    for thing in found:
        assert thing["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert thing["metadata"]["annotations"] == {"grafana_folder": "Stepfleet"}
        assert thing["metadata"]["namespace"] == "monitoring"


def test_without_files_there_are_no_rules_and_no_dashboards(packaged):
    shutil.rmtree(packaged / "rules")
    shutil.rmtree(packaged / "dashboards")
    things = render({"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}, chart=packaged)
    assert not {"PrometheusRule", "ConfigMap"} & kinds(things)


def test_what_is_not_asked_for_is_not_there():
    assert kinds(case("defaults")) == {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"}


def test_the_api_is_served_to_those_who_have_a_token():
    things = case("api")
    coordinator = of(things, "Deployment", "coordinator")
    own = pod(coordinator)["containers"][0]
    assert env(coordinator)["STEPFLEET_LISTEN"] == "0.0.0.0:7070"
    mount = next(mount for mount in own["volumeMounts"] if mount["name"] == "tokens")
    volume = next(volume for volume in pod(coordinator)["volumes"] if volume["name"] == "tokens")
    path = f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"
    assert env(coordinator)["STEPFLEET_TOKENS_FILE"] == path and "subPath" not in mount
    assert volume["secret"]["secretName"] == "fleet-tokens"
    (port,) = of(things, "Service", "api")["spec"]["ports"]
    assert (port["name"], port["port"]) == ("http", 7070)
    assert port["targetPort"] in {port["name"] for port in own["ports"]}
    assert not [thing for thing in case("defaults") if thing["metadata"]["name"].endswith("-api")]


def test_both_ways_in_lead_to_the_service_of_the_api():
    things = case("api")
    service = of(things, "Service", "api")
    ingress, route = of(things, "Ingress")["spec"], of(things, "HTTPRoute")["spec"]
    paths = [
        (rule["host"], *[(path["path"], path["pathType"]) for path in rule["http"]["paths"]])
        for rule in ingress["rules"]
    ]
    assert paths == [("fleet.example.org", ("/", "Prefix")), ("example.org", ("/fleet", "Exact"))]
    for rule in ingress["rules"]:
        backend = rule["http"]["paths"][0]["backend"]["service"]
        assert backend == {"name": service["metadata"]["name"], "port": {"name": service["spec"]["ports"][0]["name"]}}
    assert ingress["tls"] and route["parentRefs"][0]["name"] == "public"
    assert route["rules"][0]["backendRefs"] == [{"name": service["metadata"]["name"], "port": 7070}]


@pytest.mark.parametrize(("kube", "sleeps"), [("1.29.0", False), ("1.30.0", True)])
def test_a_coordinator_serves_on_until_the_service_has_forgotten_it_where_kubernetes_can(kube, sleeps):
    own = pod(of(case("api", kube=kube), "Deployment", "coordinator"))["containers"][0]
    assert own.get("lifecycle") == ({"preStop": {"sleep": {"seconds": 3}}} if sleeps else None)
    assert "lifecycle" not in pod(of(case("api"), "Deployment", "worker-default"))["containers"][0]


def test_helm_test_runs_two_steps_on_a_queue_that_somebody_works_on():
    things = render({"workers": {"default": None, "b": {"queues": ["bulk", "x"]}}}, base="api")
    hook, given = of(things, "Pod"), of(things, "ConfigMap", "test")
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "test"
    workflow = yaml.safe_load(given["data"]["workflow.yaml"])
    assert workflow["defaults"] == {"queue": "bulk"}
    assert workflow["steps"]["second"]["needs"] == ["first"] and len(workflow["steps"]) == 2
    assert int(given["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
    assert env(hook)["STEPFLEET_API"] == f"http://{of(things, 'Service', 'api')['metadata']['name']}:7070"
    own = pod(hook)["containers"][0]
    assert own["args"][:2] == ["runs", "start"] and "--wait" in own["args"]
    assert own["args"][3] == f"{own['volumeMounts'][0]['mountPath']}/workflow.yaml"
    assert "Pod" not in kinds(case("defaults")) and "Pod" not in kinds(case("no-workers"))


def test_network_policies_let_in_what_is_served_and_out_what_is_needed():
    things = case("networkpolicy")
    coordinator = of(things, "NetworkPolicy", "coordinator")["spec"]
    assert coordinator["policyTypes"] == ["Ingress", "Egress"]
    rules = {rule["ports"][0]["port"]: rule.get("from") for rule in coordinator["ingress"]}
    assert set(rules) == {"metrics", "http"}
    assert rules["metrics"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert rules["http"][0]["podSelector"]["matchLabels"].items() <= of(things, "Pod")["metadata"]["labels"].items()
    ports = [port["port"] for rule in coordinator["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 6379, 26379, 4317]
    worker = of(things, "NetworkPolicy", "worker")["spec"]
    assert worker["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in worker["egress"] for port in rule["ports"]] == [53, 53, 6379, 26379, 443]
    free = of(render({"networkPolicy": {"enabled": True}}), "NetworkPolicy", "worker")["spec"]
    assert free["policyTypes"] == ["Ingress"] and "egress" not in free


def test_only_the_fleet_and_those_who_are_named_reach_the_own_valkey():
    things = case("keda-valkey")
    policy = of(things, "NetworkPolicy", "valkey")["spec"]
    (rule,) = policy["ingress"]
    fleet = [peer["podSelector"]["matchLabels"] for peer in rule["from"] if "podSelector" in peer]
    for peer, name in zip(fleet, ("coordinator", "worker-default"), strict=True):
        assert peer.items() <= of(things, "Deployment", name)["spec"]["template"]["metadata"]["labels"].items()
    assert rule["from"][2:] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}]
    assert policy["egress"] == []


def test_no_value_reaches_an_object_as_a_float():
    values = {
        **REDIS,
        "coordinator": {"retention": {"runs": 1000000000, "events": 999999999, "deadLettersMax": 123456789}},
    }
    variables = env(of(render(values), "Deployment", "coordinator"))
    assert variables["STEPFLEET_RETAIN_RUNS"] == "1000000000"
    assert variables["STEPFLEET_RETAIN_EVENTS"] == "999999999"
    assert variables["STEPFLEET_RETAIN_DEAD_LETTERS_MAX"] == "123456789"
    assert "e+" not in text(CHART / "ci/full-values.yaml") and objects(text(CHART / "ci/full-values.yaml"))


def test_a_million_jobs_reach_keda_as_digits():
    streams = {"autoscaling": {"keda": {"redisStreams": {"jobsPerWorker": 1000000}}}}
    spec = of(render({"workers": {"default": streams}}, base="keda-streams"), "ScaledObject", "worker-default")["spec"]
    assert spec["advanced"]["scalingModifiers"]["target"] == "1000000"
    assert spec["triggers"][0]["metadata"]["lagCount"] == "1000000"
