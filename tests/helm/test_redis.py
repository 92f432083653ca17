"""How the programs reach Redis, and the chart's own Valkey."""

import pytest

from chart import CHART, TOP, case, env, of, pod, render


def of_both(things):
    return env(of(things, "Deployment", "coordinator")), env(of(things, "Deployment", "worker-default"))


def test_a_secret_has_the_whole_url():
    for variables in of_both(render({"redis": {"existingSecret": "a", "urlKey": "uri"}})):
        assert variables["STEPFLEET_REDIS_URL"] == {"secretKeyRef": {"name": "a", "key": "uri"}}
        assert variables["STEPFLEET_REDIS_PREFIX"] == "sf:"
        assert "REDIS_PASSWORD" not in variables
    coordinator, worker = of_both(case("full"))
    assert coordinator["STEPFLEET_REDIS_URL"]["secretKeyRef"] == {"name": "redis-coordinator", "key": "uri"}
    assert worker["STEPFLEET_REDIS_URL"]["secretKeyRef"] == {"name": "redis", "key": "uri"}


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("redis-single", "rediss://coordinator:$(REDIS_PASSWORD)@redis.data:6380/3"),
        (
            "redis-sentinel",
            "redis-sentinel://:$(REDIS_PASSWORD)@"
            "sentinel-0.redis:26379,sentinel-1.redis:26379,sentinel-2.redis:26379/mymaster",
        ),
        ("redis-cluster", "rediss-cluster://10.0.0.1:6379,10.0.0.2:6379,[fd00::3]:6379"),
        ("valkey", "redis://coordinator:$(REDIS_PASSWORD)@fleet-stepfleet-valkey:6379"),
    ],
)
def test_hosts_become_the_url(name, url):
    assert of_both(case(name))[0]["STEPFLEET_REDIS_URL"] == url


def test_the_password_is_known_before_the_url_that_names_it():
    names = list(of_both(case("redis-single"))[0])
    assert names.index("REDIS_PASSWORD") < names.index("STEPFLEET_REDIS_URL")


def test_workers_may_have_a_user_of_their_own():
    coordinator, worker = of_both(case("redis-single"))
    assert coordinator["REDIS_PASSWORD"]["secretKeyRef"] == {"name": "redis-users", "key": "coordinator"}
    assert worker["REDIS_PASSWORD"]["secretKeyRef"] == {"name": "redis-users", "key": "worker"}
    assert worker["STEPFLEET_REDIS_URL"].startswith("rediss://worker:$(")


def test_sentinels_have_a_password_of_their_own():
    secret = {"secretKeyRef": {"name": "redis", "key": "sentinel"}}
    assert of_both(case("redis-sentinel"))[1]["STEPFLEET_SENTINEL_PASSWORD"] == secret


@pytest.mark.parametrize("name", ["redis-cluster", "redis-single", "full"])
def test_files_of_tls_are_where_the_variables_say(name):
    for thing in (of(case(name), "Deployment", "coordinator"), of(case(name), "Deployment", "worker-default")):
        volume = next(volume for volume in pod(thing)["volumes"] if volume["name"] == "redis-tls")
        folder = next(mount for mount in pod(thing)["containers"][0]["volumeMounts"] if mount["name"] == "redis-tls")
        paths = {
            f"{folder['mountPath']}/{item['path']}"
            for source in volume["projected"]["sources"]
            for item in source["secret"]["items"]
        }
        named = {
            value
            for name, value in env(thing).items()
            if name.startswith("STEPFLEET_REDIS_") and name.endswith("_FILE")
        }
        assert paths == named and named


def test_the_own_valkey_keeps_what_it_is_told_and_evicts_nothing():
    things = case("valkey-own-secret")
    config = of(things, "ConfigMap", "valkey")["data"]["valkey.conf"].splitlines()
    for line in ("appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction", "maxmemory 4gb"):
        assert line in config
    claim = of(things, "StatefulSet")["spec"]["volumeClaimTemplates"][0]["spec"]
    assert claim["storageClassName"] == "fast" and claim["resources"]["requests"]["storage"] == "50Gi"
    assert of(things, "StatefulSet")["spec"]["replicas"] == 1


def test_the_own_valkey_has_a_user_for_each_program_and_none_for_strangers():
    things = case("valkey-own-secret")
    users = of(things, "ConfigMap", "valkey")["data"]["users.acl"]
    assert users.startswith("user default off")
    assert "sf:" not in users and "~trial:" in users
    for name in ("coordinator", "worker", "keda", "viewer"):
        assert f"\nuser {name} on " in users
    assert ">" not in users and "nopass" not in users
    coordinator, worker = of_both(things)
    assert coordinator["REDIS_PASSWORD"]["secretKeyRef"] == {"name": "valkey-users", "key": "coordinator"}
    assert worker["REDIS_PASSWORD"]["secretKeyRef"] == {"name": "valkey-users", "key": "worker"}
    assert not [thing for thing in things if thing["kind"] == "Secret"]


def test_made_passwords_are_long_and_all_different():
    made = of(case("valkey"), "Secret")["data"]
    assert set(made) == {"coordinator", "worker", "keda", "viewer"}
    assert len(set(made.values())) == 4 and all(len(one) >= 50 for one in made.values())


def test_another_configuration_starts_the_own_valkey_anew():
    def checksum(size):
        things = render({"valkey": {"maxmemory": size}}, base="valkey")
        return of(things, "StatefulSet")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum("1gb") == checksum("1gb") != checksum("2gb")


def test_the_users_are_those_of_the_deployment():
    assert (CHART / "files/users.acl").read_text() == (TOP / "deploy/redis/users.acl").read_text()


def test_keda_finds_the_charts_own_valkey_from_another_namespace():
    triggers = of(case("keda-valkey"), "ScaledObject", "worker-default")["spec"]["triggers"]
    assert triggers
    for trigger in triggers:
        assert trigger["metadata"]["address"].startswith("fleet-stepfleet-valkey.")
        assert trigger["metadata"]["address"].endswith(".svc:6379")
        assert ("lagCount" in trigger["metadata"]) == ("activationLagCount" in trigger["metadata"])
