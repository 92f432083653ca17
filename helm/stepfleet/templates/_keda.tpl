{{/* What KEDA is asked to look at. */}}

{{/* Takes the autoscaling of a pool. */}}
{{- define "stepfleet.scaleDown" -}}
scaleDown:
  stabilizationWindowSeconds: {{ .scaleDown.stabilizationWindowSeconds }}
  policies:
    - type: Percent
      value: {{ .scaleDown.percent }}
      periodSeconds: {{ .scaleDown.periodSeconds }}
{{- end -}}

{{/* Hash tags of the first partitions, as protocol/src/keys/slots.rs has them; a test compares. */}}
{{- define "stepfleet.partitionTags" -}}
1bz fjl 17p 356 5nw 7l1 h85 b3k dlj ng4 130 31v 5j7 7hq qsu 7ys 8yc 265 8ha gio pt6 c0h 4mt 6o2 {{ "" -}}
mws 22u eoi 5f 4x6 6zp 4i4 6kr nbd 1cj n7n 1rh bgq 5og bvs 1g2v 3el 9n2 30f d8p {{ "" -}}
7ia hho 7xc hym o4m 8xs oag 8iq c1x 49n cdr 4ld 23e m2k 4v 8m1 c58 asv 6jb abt
{{- end -}}

{{/* The sum over the pool's queues; each is told by one coordinator, and by two for a moment when that changes. */}}
{{- define "stepfleet.kedaQuery" -}}
{{- $queues := list -}}
{{- range .own.queues -}}{{- $queues = append $queues (regexQuoteMeta . | replace "\\" "\\\\") -}}{{- end -}}
{{- $of := printf "%s,queue=~\"%s\"" (include "stepfleet.series" .root) (join "|" $queues) -}}
{{- printf "sum(max by (queue) (stepfleet_queue_wanted_workers{%s}))" $of -}}
{{- end -}}

{{/* A pair of triggers for every stream. Takes {root, own, name}. */}}
{{- define "stepfleet.kedaStreams" -}}
{{- $redis := .root.Values.redis -}}
{{- $streams := .own.autoscaling.keda.redisStreams -}}
{{- $topology := .root.Values.valkey.enabled | ternary "single" $redis.topology -}}
{{- $metadata := dict "consumerGroup" "workers" -}}
{{- if eq $topology "single" -}}
{{- $hosts := include "stepfleet.redisHosts" .root -}}
{{- if .root.Values.valkey.enabled -}}
{{- /* KEDA resolves it in a namespace of its own. */ -}}
{{- $hosts = printf "%s-valkey.%s.svc:6379" (include "stepfleet.fullname" .root) .root.Release.Namespace -}}
{{- end -}}
{{- $_ := set $metadata "address" $hosts -}}
{{- $_ := set $metadata "databaseIndex" (toString $redis.database) -}}
{{- else -}}
{{- $_ := set $metadata "addresses" (include "stepfleet.redisHosts" .root) -}}
{{- end -}}
{{- if eq $topology "sentinel" -}}{{- $_ := set $metadata "sentinelMaster" $redis.sentinelService -}}{{- end -}}
{{- if $redis.tls.enabled -}}{{- $_ := set $metadata "enableTLS" "true" -}}{{- end -}}
{{- with (include "stepfleet.kedaLogin" . | fromYaml).user -}}{{- $_ := set $metadata "username" . -}}{{- end -}}
{{- $type := eq $topology "single" | ternary "redis-streams" (printf "redis-%s-streams" $topology) -}}
{{- $per := include "stepfleet.kedaJobs" .own -}}
{{- $tags := include "stepfleet.partitionTags" .root | splitList " " -}}
{{- $triggers := list -}}
{{- $auth := include "stepfleet.kedaAuth" . -}}
{{- range $q, $queue := .own.queues -}}
{{- range $p := until ($streams.partitions | default $.root.Values.coordinator.partitions | int) -}}
{{- $stream := printf "%s{%s}:jobs:%s" $redis.prefix (index $tags $p) $queue -}}
{{- range $what, $field := dict "lag" "lagCount" "pending" "pendingEntriesCount" -}}
{{- $of := merge (dict "stream" $stream $field $per) $metadata -}}
{{- /* Some versions of KEDA refuse a lag without it; the formula says when the pool is active. */ -}}
{{- if eq $what "lag" -}}{{- $_ := set $of "activationLagCount" "0" -}}{{- end -}}
{{- $trigger := dict "type" $type "name" (printf "%s_%d_%d" $what $q $p) "metadata" $of -}}
{{- if $auth -}}{{- $_ := set $trigger "authenticationRef" (dict "name" $auth) -}}{{- end -}}
{{- $triggers = append $triggers $trigger -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $triggers -}}
{{- end -}}

{{/* A pair of triggers for every queue. Any coordinator tells the same, from Redis. Takes {root, own, name}. */}}
{{- define "stepfleet.kedaApi" -}}
{{- $service := printf "%s-api.%s.svc" (include "stepfleet.fullname" .root) .root.Release.Namespace -}}
{{- $url := printf "http://%s:%d/api/v1/queues" $service (int .root.Values.api.port) -}}
{{- $common := dict "url" $url "targetValue" (include "stepfleet.kedaJobs" .own) "authMode" "bearer" -}}
{{- $auth := dict "name" (include "stepfleet.kedaAuth" .) -}}
{{- $triggers := list -}}
{{- range $q, $queue := .own.queues -}}
{{- range $what, $field := dict "waiting" "depth" "running" "pending" -}}
{{- /* A queue that had no job yet is not in the list: of 0 and what is found there the last one counts. */ -}}
{{- $path := printf "[!0,items.#(name==%q).%s].@reverse.0" $queue $field -}}
{{- $metadata := merge (dict "valueLocation" $path) $common -}}
{{- $trigger := dict "type" "metrics-api" "name" (printf "%s_%d" $what $q) "metadata" $metadata -}}
{{- $triggers = append $triggers (merge (dict "authenticationRef" $auth) $trigger) -}}
{{- end -}}
{{- end -}}
{{- toYaml $triggers -}}
{{- end -}}

{{/* Jobs of each pod, where jobs are counted. Takes a merged pool. */}}
{{- define "stepfleet.kedaJobs" -}}
{{- $keda := .autoscaling.keda -}}
{{- $own := ternary $keda.metricsApi $keda.redisStreams (eq $keda.mode "metrics-api") -}}
{{- $own.jobsPerWorker | default .concurrency | int64 -}}
{{- end -}}

{{/* All jobs, waiting and running. A lag that Redis cannot tell is -1. Takes a list of triggers. */}}
{{- define "stepfleet.kedaFormula" -}}
{{- $terms := list -}}
{{- range . -}}{{- $terms = append $terms (printf "max(%s, 0)" .name) -}}{{- end -}}
{{- join " + " $terms -}}
{{- end -}}

{{/* The login of KEDA at Redis. Takes {root, own}; gives {user, name, key} without what is not given. */}}
{{- define "stepfleet.kedaLogin" -}}
{{- $redis := .root.Values.redis -}}
{{- $streams := .own.autoscaling.keda.redisStreams -}}
{{- if .root.Values.valkey.enabled -}}
{{- toYaml (dict "user" "keda" "name" (include "stepfleet.valkeySecret" .root) "key" "keda") -}}
{{- else if $streams.passwordSecret.name -}}
{{- toYaml (dict "user" $streams.user "name" $streams.passwordSecret.name "key" $streams.passwordSecret.key) -}}
{{- else if $redis.passwordSecret.name -}}
{{- toYaml (dict "user" $redis.user "name" $redis.passwordSecret.name "key" $redis.passwordSecret.key) -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/* The name of the pool's TriggerAuthentication; nothing if nothing is asked for. Takes {root, own, name}. */}}
{{- define "stepfleet.kedaAuth" -}}
{{- $mode := .own.autoscaling.keda.mode -}}
{{- if eq $mode "metrics-api" -}}
{{ .name }}-api
{{- else if and (eq $mode "redis-streams") (include "stepfleet.kedaSecrets" . | fromYamlArray) -}}
{{ .name }}-redis
{{- end -}}
{{- end -}}

{{/* What KEDA reads from Secrets, by parameters of its triggers. Takes {root, own}. */}}
{{- define "stepfleet.kedaSecrets" -}}
{{- $redis := .root.Values.redis -}}
{{- $login := include "stepfleet.kedaLogin" . | fromYaml -}}
{{- $sentinel := and (eq $redis.topology "sentinel") (not .root.Values.valkey.enabled) -}}
{{- $client := $redis.tls.clientSecret -}}
{{- $found := list -}}
{{- if eq .own.autoscaling.keda.mode "metrics-api" -}}
{{- $token := .own.autoscaling.keda.metricsApi.tokenSecret -}}
{{- $found = append $found (dict "parameter" "token" "name" $token.name "key" $token.key) -}}
{{- else -}}
{{- with $login.name -}}
{{- $found = append $found (dict "parameter" "password" "name" . "key" $login.key) -}}
{{- end -}}
{{- if and $sentinel $redis.sentinelPasswordSecret.name -}}
{{- $found = append $found (merge (dict "parameter" "sentinelPassword") $redis.sentinelPasswordSecret) -}}
{{- end -}}
{{- with include "stepfleet.redisCaSecret" .root | fromYaml -}}
{{- $found = append $found (merge (dict "parameter" "ca") .) -}}
{{- end -}}
{{- if $client.name -}}
{{- $found = append $found (dict "parameter" "cert" "name" $client.name "key" $client.certKey) -}}
{{- $found = append $found (dict "parameter" "key" "name" $client.name "key" $client.keyKey) -}}
{{- end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}
