{{/* How the programs reach Redis. Where a define takes {root, own}, `own` is the coordinator or a merged pool. */}}

{{/* The password of a component. Takes {root, own, component}; gives {name, key}, or nothing. */}}
{{- define "stepfleet.redisPassword" -}}
{{- $redis := .root.Values.redis -}}
{{- $given := .own.redis | default dict -}}
{{- if .root.Values.valkey.enabled -}}
name: {{ include "stepfleet.valkeySecret" .root }}
key: {{ .component }}
{{- else if ($given.passwordSecret | default dict).name -}}
name: {{ $given.passwordSecret.name }}
key: {{ $given.passwordSecret.key | default "password" }}
{{- else if $redis.passwordSecret.name -}}
name: {{ $redis.passwordSecret.name }}
key: {{ $redis.passwordSecret.key }}
{{- end -}}
{{- end -}}

{{- define "stepfleet.valkeySecret" -}}
{{- .Values.valkey.existingSecret | default (printf "%s-valkey" (include "stepfleet.fullname" .)) -}}
{{- end -}}

{{/* host:port, one or several with commas. */}}
{{- define "stepfleet.redisHosts" -}}
{{- if .Values.valkey.enabled -}}
{{ include "stepfleet.fullname" . }}-valkey:6379
{{- else -}}
{{ join "," .Values.redis.hosts }}
{{- end -}}
{{- end -}}

{{/* The URL, with the password as an expansion. Takes {root, own, component}. */}}
{{- define "stepfleet.redisUrl" -}}
{{- $redis := .root.Values.redis -}}
{{- $topology := ternary "single" $redis.topology .root.Values.valkey.enabled -}}
{{- $given := (.own.redis | default dict).user | default $redis.user -}}
{{- $user := .root.Values.valkey.enabled | ternary .component $given -}}
{{- $tls := and $redis.tls.enabled (not .root.Values.valkey.enabled) -}}
{{- ternary "rediss" "redis" $tls -}}
{{- if ne $topology "single" -}}-{{ $topology }}{{- end -}}
://
{{- if include "stepfleet.redisPassword" . -}}{{ $user }}:$(REDIS_PASSWORD)@{{- end -}}
{{- include "stepfleet.redisHosts" .root -}}
{{- if eq $topology "sentinel" -}}/{{ $redis.sentinelService }}{{- end -}}
{{- if and (eq $topology "single") $redis.database -}}/{{ $redis.database }}{{- end -}}
{{- end -}}

{{/* The Secret with a whole URL that a component reads; nothing if hosts are given. Takes {root, own}. */}}
{{- define "stepfleet.redisUrlSecret" -}}
{{- $given := .own.redis | default dict -}}
{{- $given.existingSecret | default .root.Values.redis.existingSecret -}}
{{- end -}}

{{- define "stepfleet.redisCaSecret" -}}
{{- if .Values.redis.tls.caSecret.name -}}
name: {{ .Values.redis.tls.caSecret.name }}
key: {{ .Values.redis.tls.caSecret.key }}
{{- else if .Values.redis.caKey -}}
name: {{ .Values.redis.existingSecret }}
key: {{ .Values.redis.caKey }}
{{- end -}}
{{- end -}}

{{/* The variables that tell a program where Redis is. Takes {root, own, component}. */}}
{{- define "stepfleet.redisEnv" -}}
{{- $redis := .root.Values.redis -}}
{{- $given := .own.redis | default dict -}}
{{- if include "stepfleet.redisUrlSecret" . -}}
- name: STEPFLEET_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "stepfleet.redisUrlSecret" . }}
      key: {{ $given.urlKey | default $redis.urlKey }}
{{- else -}}
{{- with include "stepfleet.redisPassword" . | fromYaml }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      {{- toYaml . | nindent 6 }}
{{- end }}
- name: STEPFLEET_REDIS_URL
  value: {{ include "stepfleet.redisUrl" . | quote }}
{{- end }}
- name: STEPFLEET_REDIS_PREFIX
  value: {{ $redis.prefix | quote }}
{{- if $redis.sentinelPasswordSecret.name }}
- name: STEPFLEET_SENTINEL_PASSWORD
  valueFrom:
    secretKeyRef:
      {{- toYaml $redis.sentinelPasswordSecret | nindent 6 }}
{{- end }}
{{- if include "stepfleet.redisCaSecret" .root }}
- name: STEPFLEET_REDIS_CA_FILE
  value: /etc/stepfleet/redis/ca.pem
{{- end }}
{{- if $redis.tls.clientSecret.name }}
- name: STEPFLEET_REDIS_CERT_FILE
  value: /etc/stepfleet/redis/tls.crt
- name: STEPFLEET_REDIS_KEY_FILE
  value: /etc/stepfleet/redis/tls.key
{{- end }}
{{- end -}}

{{/* Whether files of TLS are mounted. */}}
{{- define "stepfleet.redisFiles" -}}
{{- if or (include "stepfleet.redisCaSecret" .) .Values.redis.tls.clientSecret.name -}}true{{- end -}}
{{- end -}}

{{- define "stepfleet.redisVolume" -}}
- name: redis-tls
  projected:
    # 0440, and the group is the pod's.
    defaultMode: 288
    sources:
      {{- with include "stepfleet.redisCaSecret" . | fromYaml }}
      - secret:
          name: {{ .name }}
          items: [{key: {{ .key }}, path: ca.pem}]
      {{- end }}
      {{- with .Values.redis.tls.clientSecret }}
      {{- if .name }}
      - secret:
          name: {{ .name }}
          items:
            - {key: {{ .certKey }}, path: tls.crt}
            - {key: {{ .keyKey }}, path: tls.key}
      {{- end }}
      {{- end }}
{{- end -}}
