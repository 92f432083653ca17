"""What holds for every pod: the restricted level of Pod Security, probes, draining, images, and where pods may run."""

import pytest

from chart import CASES, NAMESPACE, Refused, case, containers, env, kinds, of, pod, render, text, CHART

# Volumes that the restricted level allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(spec, name, openshift=False):
    """What of a pod the restricted level of the Pod Security Standards refuses, and where a program could write."""
    problems = []

    def expect(holds, what):
        if not holds:
            problems.append(f"{name}: {what}")

    security = spec.get("securityContext", {})
    expect(security.get("runAsNonRoot") is True, "may run as root")
    expect(openshift or security.get("runAsUser", 0) >= 10000, "the user is not a number of ours")
    expect(security.get("seccompProfile") == {"type": "RuntimeDefault"}, "no seccomp profile")
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        expect(not spec.get(field), field)
    watches = any("STEPFLEET_WATCH_PODS" in [given["name"] for given in c.get("env", [])] for c in spec["containers"])
    expect(spec.get("automountServiceAccountToken") is watches, "whether a token of Kubernetes is mounted")
    for volume in spec.get("volumes", []):
        expect(set(volume) - {"name"} <= VOLUMES, f"the volume {volume['name']}")
    for container in spec["containers"] + spec.get("initContainers", []):
        own = container.get("securityContext", {})
        expect(own.get("allowPrivilegeEscalation") is False, "privilege escalation")
        expect(own.get("capabilities") == {"drop": ["ALL"]}, "capabilities are kept")
        expect(own.get("readOnlyRootFilesystem") is True, "the root file system can be written")
        expect(not own.get("privileged"), "privileged")
        expect(all("hostPort" not in port for port in container.get("ports", [])), "a port of the host")
        expect("memory" in container["resources"]["limits"], "no memory limit")
        names = [given["name"] for given in container.get("env", [])]
        expect(len(names) == len(set(names)), "a variable twice")
        mounted, there = (
            {m["name"] for m in container.get("volumeMounts", [])},
            {v["name"] for v in spec.get("volumes", [])},
        )
        there |= {"data"}  # Of a StatefulSet's own claim.
        expect(mounted <= there, f"mounts without a volume: {mounted - there}")
    return problems


@pytest.mark.parametrize("name", CASES)
def test_every_pod_passes_the_restricted_level(name):
    pods = [thing for thing in case(name) if pod(thing)]
    assert pods
    for thing in pods:
        assert violations(pod(thing), thing["metadata"]["name"], openshift=name == "openshift") == []


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"podSecurityContext": {"runAsNonRoot": False}}, "may run as root"),
        ({"podSecurityContext": {"seccompProfile": None}}, "no seccomp profile"),
        ({"containerSecurityContext": {"capabilities": {"drop": [], "add": ["NET_ADMIN"]}}}, "capabilities are kept"),
        ({"coordinator": {"extraVolumes": [{"name": "host", "hostPath": {"path": "/"}}]}}, "the volume host"),
    ],
)
def test_the_check_of_the_restricted_level_finds_what_is_not_allowed(values, problem):
    thing = of(render(values), "Deployment", "coordinator")
    assert f"fleet-stepfleet-coordinator: {problem}" in violations(pod(thing), thing["metadata"]["name"])


@pytest.mark.parametrize("name", CASES)
def test_objects_have_one_name_each_the_namespace_and_the_labels(name):
    things = case(name)
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in things]
    assert len(names) == len(set(names))
    for thing in things:
        assert len(thing["metadata"]["name"]) <= 63
        assert thing["metadata"]["namespace"] in (NAMESPACE, "monitoring")
        if thing["metadata"]["name"] != "more":
            labels = thing["metadata"]["labels"]
            assert labels["app.kubernetes.io/name"] == "stepfleet"
            assert labels["app.kubernetes.io/instance"] == "fleet"
            assert labels["helm.sh/chart"].startswith("stepfleet-")


@pytest.mark.parametrize("name", CASES)
def test_selectors_find_their_pods_and_no_others(name):
    things = case(name)
    pods = {
        thing["metadata"]["name"]: thing["spec"]["template"]["metadata"]["labels"]
        for thing in things
        if thing["kind"] in ("Deployment", "StatefulSet")
    }
    for thing in things:
        if thing["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            wanted = thing["spec"]["selector"]["matchLabels"]
            assert set(wanted) <= {f"app.kubernetes.io/{end}" for end in ("name", "instance", "component")} | {
                "stepfleet/pool"
            }
            found = [pod for pod, labels in pods.items() if wanted.items() <= labels.items()]
            assert found == [thing["metadata"]["name"]]
        if thing["kind"] == "Service":
            assert any(thing["spec"]["selector"].items() <= labels.items() for labels in pods.values())


@pytest.mark.parametrize("name", CASES)
def test_nothing_opens_the_api_without_tokens(name):
    rendered = text(CHART / f"ci/{name}-values.yaml")
    assert "insecure" not in rendered.lower()
    variables = env(of(case(name), "Deployment", "coordinator"))
    assert ("STEPFLEET_LISTEN" in variables) == ("STEPFLEET_TOKENS_FILE" in variables)


def test_probes_of_life_ask_the_program_and_never_redis():
    things = case("defaults")
    for thing in things:
        if thing["kind"] == "Deployment":
            own = pod(thing)["containers"][0]
            for probe in ("startupProbe", "livenessProbe"):
                assert own[probe]["httpGet"]["path"] == "/livez"
            ports = {port["name"] for port in own["ports"]}
            assert all(
                own[probe]["httpGet"]["port"] in ports for probe in ("startupProbe", "livenessProbe", "readinessProbe")
            )
    worker = pod(of(things, "Deployment", "worker-default"))["containers"][0]
    assert worker["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_probe_that_is_given_replaces_the_chart_s_as_a_whole():
    given = {"exec": {"command": ["true"]}}
    worker = of(render({"workerDefaults": {"livenessProbe": given}}), "Deployment", "worker-default")
    assert pod(worker)["containers"][0]["livenessProbe"] == given


@pytest.mark.parametrize("seconds", [0, 25, 600])
def test_one_value_makes_the_drain_and_the_grace_period(seconds):
    worker = of(render({"workers": {"default": {"drainTimeoutSeconds": seconds}}}), "Deployment", "worker-default")
    assert env(worker)["STEPFLEET_DRAIN_TIMEOUT"] == f"{seconds}s"
    assert pod(worker)["terminationGracePeriodSeconds"] == seconds + 15


def image(values, component="worker-default"):
    return pod(of(render(values), "Deployment", component))["containers"][0]["image"]


def test_images_come_from_registry_repository_and_digest_or_tag():
    digest = "sha256:" + "a" * 64
    assert image({}) == "stepfleet:0.1.0"
    assert image({"image": {"registry": "r.example.org", "tag": "2"}}) == "r.example.org/stepfleet:2"
    assert image({"image": {"digest": digest, "tag": "2"}}) == f"stepfleet@{digest}"
    assert image({"global": {"imageRegistry": "m.example.org"}}) == "m.example.org/stepfleet:0.1.0"
    pool = {"image": {"digest": digest}, "workers": {"default": {"image": {"repository": "mine", "tag": "7"}}}}
    assert image(pool) == "mine:7"
    assert image(pool, "coordinator") == f"stepfleet@{digest}"


def test_pools_are_merged_over_the_defaults_and_null_takes_one_away():
    things = render(
        {
            "workerDefaults": {"concurrency": 3, "resources": {"limits": {"memory": "1Gi"}}},
            "workers": {
                "default": None,
                "gpu": {"queues": ["urgent", "gpu"], "resources": {"limits": {"nvidia.com/gpu": "1"}}},
            },
        }
    )
    assert {thing["metadata"]["name"] for thing in things if thing["kind"] == "Deployment"} == {
        "fleet-stepfleet-coordinator",
        "fleet-stepfleet-worker-gpu",
    }
    gpu = of(things, "Deployment", "gpu")
    assert env(gpu)["STEPFLEET_CONCURRENCY"] == "3"
    assert env(gpu)["STEPFLEET_QUEUE"] == "urgent,gpu"
    assert pod(gpu)["containers"][0]["resources"]["limits"] == {"memory": "1Gi", "nvidia.com/gpu": "1"}


def test_pods_spread_over_zones_and_nodes_unless_told_otherwise():
    spread = pod(of(case("defaults"), "Deployment", "worker-default"))["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert all(one["whenUnsatisfiable"] == "ScheduleAnyway" for one in spread)
    assert all(one["labelSelector"]["matchLabels"]["stepfleet/pool"] == "default" for one in spread)
    full = case("full")
    assert "topologySpreadConstraints" not in pod(of(full, "Deployment", "worker-default"))
    given = pod(of(full, "Deployment", "coordinator"))["topologySpreadConstraints"]
    assert given[0]["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "coordinator"
    assert given[1]["labelSelector"] == {"matchLabels": {"a": "b"}}


def test_a_disruption_budget_lets_a_pod_go_that_is_not_healthy():
    budgets = [thing for thing in case("full") if thing["kind"] == "PodDisruptionBudget"]
    assert {thing["metadata"]["name"] for thing in budgets} == {"fleet-coordinator", "fleet-worker-default"}
    assert {thing["spec"]["unhealthyPodEvictionPolicy"] for thing in budgets} == {"AlwaysAllow"}
    assert of(budgets, "PodDisruptionBudget", "coordinator")["spec"]["maxUnavailable"] == "50%"


def test_what_the_chart_has_no_value_for_can_be_added():
    things = case("extras")
    for thing in [thing for thing in things if thing["kind"] == "Deployment"]:
        assert [container["name"] for container in containers(thing)][1:] == ["proxy", "before"]
        assert pod(thing)["containers"][0]["envFrom"] == [{"configMapRef": {"name": "more"}}]
        assert "more" in {volume["name"] for volume in pod(thing)["volumes"]}
        assert thing["metadata"]["labels"]["team"] == thing["spec"]["template"]["metadata"]["labels"]["team"] == "data"
        assert thing["metadata"]["annotations"]["example.org/owner"] == "data"
        assert "team" not in thing["spec"]["selector"]["matchLabels"]
    assert of(things, "ConfigMap", "more")["data"] == {"name": "fleet-stepfleet"}
    assert pod(of(things, "Deployment", "coordinator"))["containers"][0]["image"].startswith("mirror.example.org/")


def test_each_component_has_an_account_of_its_own_or_the_one_that_is_named():
    things = case("valkey")
    accounts = {thing["metadata"]["name"] for thing in things if thing["kind"] == "ServiceAccount"}
    assert accounts == {f"fleet-stepfleet-{end}" for end in ("coordinator", "worker", "valkey")}
    used = {pod(thing)["serviceAccountName"] for thing in things if thing["kind"] in ("Deployment", "StatefulSet")}
    assert used == accounts
    full = case("full")
    assert pod(of(full, "Deployment", "worker-gpu"))["serviceAccountName"] == "gpu"
    assert pod(of(full, "Deployment", "worker-default"))["serviceAccountName"] == "workers"
    assert "Role" not in kinds(full) and "ClusterRole" not in kinds(full)


def test_coordinators_that_watch_pods_may_see_pods_and_nothing_else():
    things = case("watch-pods")
    coordinator, slow = of(things, "Deployment", "coordinator"), of(things, "Deployment", "slow")
    role, binding = of(things, "Role", "coordinator-pods"), of(things, "RoleBinding", "coordinator-pods")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = {"kind": "ServiceAccount", "name": pod(coordinator)["serviceAccountName"], "namespace": NAMESPACE}
    assert binding["subjects"] == [account]
    found = env(coordinator)
    assert (found["STEPFLEET_WATCH_PODS"], found["STEPFLEET_WATCH_PODS_NAMESPACE"]) == ("true", NAMESPACE)
    assert found["STEPFLEET_WATCH_PODS_CONTAINER"] == pod(slow)["containers"][0]["name"]
    # All pods of workers of this release, and of no other.
    labels = slow["spec"]["template"]["metadata"]["labels"]
    wanted = dict(pair.split("=") for pair in found["STEPFLEET_WATCH_PODS_SELECTOR"].split(","))
    assert wanted.items() <= labels.items() and "app.kubernetes.io/instance" in wanted
    assert not wanted.items() <= coordinator["spec"]["template"]["metadata"]["labels"].items()
    assert env(slow)["STEPFLEET_POD_UID"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    egress = of(things, "NetworkPolicy", "coordinator")["spec"]["egress"]
    assert egress[-1] == {"ports": [{"port": 6443, "protocol": "TCP"}]}
    assert not {"Role", "RoleBinding"} & kinds(case("defaults"))


def test_without_its_ports_a_watch_of_pods_still_opens_no_more_than_the_api_server():
    # As `--reuse-values` leaves them, of a release of an older chart.
    values = {"coordinator": {"watchPods": True}, "networkPolicy": {"enabled": True, "kubernetesPorts": None}}
    egress = of(render(values), "NetworkPolicy", "coordinator")["spec"]["egress"]
    assert [port["port"] for port in egress[-1]["ports"]] == [443, 6443]


def test_a_watch_of_pods_is_not_for_every_pod_of_the_namespace():
    accounts = {"coordinator": {"create": False}}
    with pytest.raises(Refused, match="coordinator.watchPods needs serviceAccounts.coordinator"):
        render({"coordinator": {"watchPods": True}, "serviceAccounts": accounts})


def test_scheduler_and_deadline_of_rollouts_are_values():
    full = of(case("full"), "Deployment", "coordinator")
    assert (pod(full)["schedulerName"], full["spec"]["progressDeadlineSeconds"]) == ("volcano", 300)
    plain = of(case("defaults"), "Deployment", "coordinator")
    assert "schedulerName" not in pod(plain) and plain["spec"]["progressDeadlineSeconds"] == 600
