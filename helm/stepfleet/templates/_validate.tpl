{{/* What the schema cannot say. Rendered before everything else; every problem has a message that says what to do. */}}
{{- define "stepfleet.validate" -}}
{{- include "stepfleet.deprecated" . -}}
{{- include "stepfleet.validateRedis" . -}}
{{- include "stepfleet.validateApi" . -}}
{{- if and .Values.tracing.enabled (not .Values.tracing.endpoint) -}}
{{- fail "tracing.endpoint must say where the collector is, such as http://otel-collector:4317, if tracing.enabled is set" -}}
{{- end -}}
{{- range $name, $value := .Values.tracing.resourceAttributes -}}
{{- if contains "," (print $name $value) -}}
{{- fail (printf "tracing.resourceAttributes has `%s`; allowed are names and values without commas" $name) -}}
{{- end -}}
{{- end -}}
{{- $account := .Values.serviceAccounts.coordinator -}}
{{- if and .Values.coordinator.watchPods (not $account.create) (not $account.name) -}}
{{- fail "coordinator.watchPods needs serviceAccounts.coordinator.create or .name: else every pod of the namespace's default account could list pods" -}}
{{- end -}}
{{- $coordinator := dict "root" . "own" .Values.coordinator "component" "coordinator" -}}
{{- include "stepfleet.validateLogin" (merge (dict "at" "coordinator.redis") $coordinator) -}}
{{- $own := include "stepfleet.envOfCoordinator" . | splitList " " -}}
{{- include "stepfleet.validateEnv" (dict "at" "coordinator" "env" .Values.coordinator.env "own" $own) -}}
{{- $own = include "stepfleet.envOfWorker" . | splitList " " -}}
{{- range $name, $_ := .Values.workers -}}
{{- $pool := include "stepfleet.pool" (dict "root" $ "pool" $name) | fromYaml -}}
{{- include "stepfleet.validatePool" (dict "root" $ "name" $name "own" $pool) -}}
{{- $login := dict "at" (printf "workers.%s.redis" $name) "root" $ "own" $pool "component" "worker" -}}
{{- include "stepfleet.validateLogin" $login -}}
{{- include "stepfleet.validateEnv" (dict "at" (printf "workers.%s" $name) "env" $pool.env "own" $own) -}}
{{- end -}}
{{- end -}}

{{/* Names of older versions. */}}
{{- define "stepfleet.deprecated" -}}
{{- if hasKey .Values "serviceAccount" -}}
{{- fail "`serviceAccount` is gone since 0.2.0: write serviceAccounts.coordinator and serviceAccounts.worker" -}}
{{- end -}}
{{- end -}}

{{- define "stepfleet.validateRedis" -}}
{{- $redis := .Values.redis -}}
{{- $own := .Values.valkey.enabled | ternary "valkey" "" -}}
{{- $ways := compact (list $redis.existingSecret (join "," $redis.hosts) $own) -}}
{{- if ne (len $ways) 1 -}}
{{- $found := not $ways | ternary "none does" (printf "%d do" (len $ways)) -}}
{{- $of := "exactly one of redis.existingSecret, redis.hosts and valkey.enabled" -}}
{{- fail (printf "%s must say where Redis is: %s" $of $found) -}}
{{- end -}}
{{- if and $redis.caKey (not $redis.existingSecret) -}}
{{- fail "redis.caKey is a key of redis.existingSecret, which is empty; use redis.tls.caSecret" -}}
{{- end -}}
{{- if and (eq $redis.topology "single") (gt (len $redis.hosts) 1) -}}
{{- fail "redis.hosts has several hosts; set redis.topology to sentinel or cluster" -}}
{{- end -}}
{{- if and $redis.hosts (eq $redis.topology "sentinel") (not $redis.sentinelService) -}}
{{- fail "redis.sentinelService must name the primary at the Sentinels" -}}
{{- end -}}
{{- if and $redis.database (ne $redis.topology "single") -}}
{{- fail "redis.database is for a single server only" -}}
{{- end -}}
{{- if and $redis.hosts (not $redis.tls.enabled) (include "stepfleet.redisFiles" .) -}}
{{- fail "redis.tls has files, but redis.tls.enabled is false" -}}
{{- end -}}
{{- if and .Values.valkey.enabled (or $redis.tls.enabled (include "stepfleet.redisFiles" .)) -}}
{{- fail "the chart's own Valkey speaks no TLS; leave redis.tls alone with valkey.enabled" -}}
{{- end -}}
{{- end -}}

{{/* A URL has no user without a password. Takes {at, root, own, component}. */}}
{{- define "stepfleet.validateLogin" -}}
{{- $given := .own.redis | default dict -}}
{{- $user := $given.user | default .root.Values.redis.user -}}
{{- $isOurs := or .root.Values.valkey.enabled (include "stepfleet.redisUrlSecret" .) -}}
{{- if and $user (not $isOurs) (not (include "stepfleet.redisPassword" .)) -}}
{{- fail (printf "%s: the user %s has no password; set passwordSecret there or in redis" .at $user) -}}
{{- end -}}
{{- end -}}

{{- define "stepfleet.validateApi" -}}
{{- $api := .Values.api -}}
{{- if and $api.enabled (not $api.tokensSecret) -}}
{{- fail "api.enabled needs api.tokensSecret: beyond loopback the API asks for tokens" -}}
{{- end -}}
{{- if and $api.enabled (eq (int $api.port) (int .Values.coordinator.metricsPort)) -}}
{{- fail "api.port and coordinator.metricsPort must not be the same" -}}
{{- end -}}
{{- if and (or $api.ingress.enabled $api.httpRoute.enabled) (not $api.enabled) -}}
{{- fail "api.ingress and api.httpRoute need api.enabled: without it the API is on loopback only" -}}
{{- end -}}
{{- if and $api.ingress.enabled (not $api.ingress.hosts) -}}
{{- fail "api.ingress.hosts is empty; the chart has no default host" -}}
{{- end -}}
{{- if and $api.httpRoute.enabled (not $api.httpRoute.parentRefs) -}}
{{- fail "api.httpRoute.parentRefs must name a gateway" -}}
{{- end -}}
{{- end -}}

{{- define "stepfleet.validatePool" -}}
{{- $scale := .own.autoscaling -}}
{{- $keda := $scale.keda -}}
{{- $redis := .root.Values.redis -}}
{{- $at := printf "workers.%s.autoscaling" .name -}}
{{- if and $scale.hpa.enabled $keda.enabled -}}
{{- fail (printf "%s: hpa and keda are both enabled; they would fight over the number of pods, choose one" $at) -}}
{{- end -}}
{{- if and (include "stepfleet.isScaled" .own) (gt (int $scale.minReplicas) (int $scale.maxReplicas)) -}}
{{- fail (printf "%s: minReplicas is above maxReplicas" $at) -}}
{{- end -}}
{{- if and $scale.hpa.enabled (lt (int $scale.minReplicas) 1) -}}
{{- fail (printf "%s: minReplicas 0 is for keda only" $at) -}}
{{- end -}}
{{- if and $keda.enabled (eq $keda.mode "prometheus") (not $keda.prometheus.serverAddress) -}}
{{- fail (printf "%s.keda.prometheus.serverAddress is missing, as http://prometheus.monitoring:9090" $at) -}}
{{- end -}}
{{- if and $keda.enabled (eq $keda.mode "metrics-api") -}}
{{- if not .root.Values.api.enabled -}}
{{- fail (printf "%s.keda.mode metrics-api needs api.enabled: without it the API is on loopback only" $at) -}}
{{- end -}}
{{- if not $keda.metricsApi.tokenSecret.name -}}
{{- fail (printf "%s.keda.metricsApi.tokenSecret must name a Secret with a token of role viewer" $at) -}}
{{- end -}}
{{- end -}}
{{- if and $keda.enabled (eq $keda.mode "redis-streams") -}}
{{- if not (include "stepfleet.redisHosts" .root) -}}
{{- fail (printf "%s.keda.mode redis-streams needs redis.hosts or valkey.enabled: KEDA cannot read a URL" $at) -}}
{{- end -}}
{{- $partitions := $keda.redisStreams.partitions | default .root.Values.coordinator.partitions | int -}}
{{- if gt $partitions 64 -}}
{{- $what := "redis-streams asks each of" -}}
{{- fail (printf "%s.keda.mode %s %d partitions; beyond 64 use the mode prometheus" $at $what $partitions) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A variable twice: Kubernetes takes the later one, and the chart means the other. Takes {at, env, own}. */}}
{{- define "stepfleet.validateEnv" -}}
{{- range .env -}}
{{- if has .name $.own -}}
{{- fail (printf "%s.env has %s, which has a value of its own in the chart" $.at .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
