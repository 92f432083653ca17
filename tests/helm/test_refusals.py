"""Values that mean nothing, or something that nobody wants, are refused, and the message says why."""

import json

import pytest

from chart import CHART, HELMS, Refused, render

KEDA = {"enabled": True, "prometheus": {"serverAddress": "http://p:9090"}}


def pool(**own):
    return {"workers": {"default": own}}


def refusal(values, helm="4"):
    with pytest.raises(Refused) as refused:
        render(values, helm=helm)
    return str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"redis": {"existingSecret": ""}}, "exactly one of redis.existingSecret, redis.hosts and valkey.enabled"),
        ({"redis": {"hosts": ["a:1"]}}, "must say where Redis is: 2 do"),
        ({"valkey": {"enabled": True}}, "must say where Redis is: 2 do"),
        ({"redis": {"existingSecret": "", "hosts": ["a:1", "b:1"]}}, "set redis.topology to sentinel or cluster"),
        (
            {"redis": {"existingSecret": "", "hosts": ["a:1"], "topology": "sentinel"}},
            "redis.sentinelService must name",
        ),
        (
            {"redis": {"existingSecret": "", "hosts": ["a:1"], "topology": "cluster", "database": 1}},
            "for a single server only",
        ),
        (
            {"redis": {"existingSecret": "", "hosts": ["a:1"], "tls": {"caSecret": {"name": "x"}}}},
            "redis.tls.enabled is false",
        ),
        ({"redis": {"existingSecret": "", "hosts": ["a:1"], "caKey": "ca"}}, "use redis.tls.caSecret"),
        (
            {"redis": {"existingSecret": "", "hosts": ["a:1"], "user": "b"}},
            "coordinator.redis: the user b has no password",
        ),
        (
            {"redis": {"existingSecret": "", "hosts": ["a:1"]}, **pool(redis={"user": "c"})},
            "workers.default.redis: the user c has no password",
        ),
        ({"redis": {"existingSecret": "", "tls": {"enabled": True}}, "valkey": {"enabled": True}}, "speaks no TLS"),
        ({"api": {"enabled": True}}, "api.enabled needs api.tokensSecret"),
        ({"api": {"enabled": True, "tokensSecret": "t", "port": 9090}}, "must not be the same"),
        ({"api": {"ingress": {"enabled": True, "hosts": [{"host": "a"}]}}}, "need api.enabled"),
        ({"api": {"httpRoute": {"enabled": True}}}, "need api.enabled"),
        ({"api": {"enabled": True, "tokensSecret": "t", "ingress": {"enabled": True}}}, "api.ingress.hosts is empty"),
        ({"api": {"enabled": True, "tokensSecret": "t", "httpRoute": {"enabled": True}}}, "must name a gateway"),
        (pool(autoscaling={"hpa": {"enabled": True}, "keda": KEDA}), "hpa and keda are both enabled"),
        (pool(autoscaling={"minReplicas": 5, "maxReplicas": 2, "keda": KEDA}), "minReplicas is above maxReplicas"),
        (pool(autoscaling={"minReplicas": 0, "hpa": {"enabled": True}}), "minReplicas 0 is for keda only"),
        (
            pool(autoscaling={"keda": {"enabled": True}}),
            "workers.default.autoscaling.keda.prometheus.serverAddress is missing",
        ),
        (pool(autoscaling={"keda": {"enabled": True, "mode": "redis-streams"}}), "KEDA cannot read a URL"),
        (pool(autoscaling={"keda": {"enabled": True, "mode": "metrics-api"}}), "metrics-api needs api.enabled"),
        (
            {
                "api": {"enabled": True, "tokensSecret": "t"},
                **pool(autoscaling={"keda": {"enabled": True, "mode": "metrics-api"}}),
            },
            "default.autoscaling.keda.metricsApi.tokenSecret must name a Secret with a token of role viewer",
        ),
        (
            {
                "redis": {"existingSecret": "", "hosts": ["a:1"]},
                "coordinator": {"partitions": 65},
                **pool(autoscaling={"keda": {"enabled": True, "mode": "redis-streams"}}),
            },
            "asks each of 65 partitions",
        ),
        ({"serviceAccount": {"create": False}}, "`serviceAccount` is gone since 0.2.0"),
        (
            {"coordinator": {"env": [{"name": "STEPFLEET_LISTEN", "value": "x"}]}},
            "coordinator.env has STEPFLEET_LISTEN",
        ),
        (pool(env=[{"name": "STEPFLEET_QUEUE", "value": "x"}]), "workers.default.env has STEPFLEET_QUEUE"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_what_to_do(values, message):
    assert message in refusal(values)


def test_both_helms_refuse_by_schema_and_by_template():
    for helm in HELMS:
        assert "api.enabled needs api.tokensSecret" in refusal({"api": {"enabled": True}}, helm), helm
        assert "nonsense" in refusal({"nonsense": 1}, helm), helm


# Of every kind of value one that is not allowed: where it is, and what is there.
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("nonsense", 1),
        ("image.digest", "sha256:abc"),
        ("image.pullPolicy", "Sometimes"),
        ("imagePullSecrets", [{"nam": "x"}]),
        ("commonLabels.a", 1),
        ("redis.hosts", ["redis"]),
        ("redis.topology", "replica"),
        ("redis.prefix", "a b"),
        ("redis.user", "a:b"),
        ("redis.tls.caSecret.nam", "x"),
        ("logFormat", "pretty"),
        ("api.port", 80),
        ("api.service.type", "ExternalName"),
        ("api.ingress.hosts", [{"path": "/"}]),
        ("coordinator.replicas", 0),
        ("coordinator.partitions", 4097),
        ("coordinator.insecureListen", True),
        ("coordinator.retention.completed", "90 days"),
        ("coordinator.queueAgeTarget", "soon"),
        ("coordinator.outbox.batch", 0),
        ("coordinator.outbox.escalationCommand", "page"),
        ("coordinator.podDisruptionBudget.maxUnavailable", "some"),
        ("coordinator.env", [{"value": "x"}]),
        ("coordinator.tolerations", [{"operator": "Maybe"}]),
        ("workerDefaults.threads", 0),
        ("workers.Default", {}),
        ("workers.a-name-that-is-too-long", {}),
        ("workers.default.queues", []),
        ("workers.default.queues", ["a b"]),
        ("workers.default.concurrency", "16"),
        ("workers.default.drainTimeoutSeconds", -1),
        ("workers.default.replica", 2),
        ("workers.default.autoscaling.hpa.targetCPU", 0),
        ("workers.default.autoscaling.keda.mode", "guess"),
        ("serviceAccounts.gpu", {}),
        ("valkey.maxmemory", "half"),
        ("valkey.persistence.enabled", False),
        ("monitoring.interval", "often"),
        ("prometheusRule.disabled", "A"),
        ("networkPolicy.redisPorts", []),
        ("extraObjects", ["text"]),
    ],
)
def test_a_value_that_the_schema_does_not_know_is_refused_by_its_name(path, value):
    values = value
    for part in reversed(path.split(".")):
        values = {part: values}
    message = refusal(values)
    assert "don't meet the specifications of the schema" in message
    # The place, or the name that is not known.
    assert path.split(".")[-1] in message


def test_every_level_of_the_schema_is_closed():
    def levels(schema, at):
        if isinstance(schema, dict):
            if schema.get("properties"):
                yield at, schema
            for key, part in schema.items():
                yield from levels(part, f"{at}/{key}")
        elif isinstance(schema, list):
            for number, part in enumerate(schema):
                yield from levels(part, f"{at}/{number}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    found = list(levels(schema, ""))
    assert len(found) > 30
    assert [at for at, level in found if level.get("additionalProperties") is not False] == []
