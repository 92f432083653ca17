{{/* What the pods of coordinators and workers have in common. `own` is the coordinator or a merged pool. */}}

{{/* Takes {root, own, component, pool}. */}}
{{- define "stepfleet.podMetadata" -}}
labels:
  {{- $labels := dict "root" .root "component" .component "pool" .pool "more" .own.podLabels }}
  {{- include "stepfleet.labels" $labels | nindent 2 }}
{{- with mergeOverwrite (dict) .root.Values.commonAnnotations (.own.podAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The beginning of a pod, up to its containers. Takes {root, own, account, grace, token}. */}}
{{- define "stepfleet.podSpec" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .grace }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .own.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Variables of every program. */}}
{{- define "stepfleet.commonEnv" -}}
{{- include "stepfleet.redisEnv" . }}
- name: STEPFLEET_LOG_FORMAT
  value: {{ .root.Values.logFormat }}
{{- with .root.Values.logFilter }}
- name: STEPFLEET_LOG
  value: {{ . | quote }}
{{- end }}
{{- if .root.Values.logConfigMap.enabled }}
- name: STEPFLEET_LOG_FILE
  value: /etc/stepfleet/log/filter
{{- end }}
- name: STEPFLEET_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- include "stepfleet.tracingEnv" .root }}
{{- end -}}

{{/* Of OpenTelemetry, for every program. */}}
{{- define "stepfleet.tracingEnv" -}}
{{- $tracing := .Values.tracing }}
{{- if $tracing.enabled }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ $tracing.endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ $tracing.protocol }}
{{- with $tracing.headersSecret }}
{{- if .name }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end }}
- name: OTEL_TRACES_SAMPLER
  value: {{ $tracing.sampler }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $tracing.samplerRatio | quote }}
- name: OTEL_K8S_NODE
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ include "stepfleet.resourceAttributes" . | quote }}
{{- end }}
{{- end -}}

{{- define "stepfleet.resourceAttributes" -}}
{{- $all := list "k8s.pod.name=$(STEPFLEET_NAME)" "k8s.node.name=$(OTEL_K8S_NODE)" -}}
{{- $all = append $all (printf "k8s.namespace.name=%s" .Release.Namespace) -}}
{{- range $name, $value := .Values.tracing.resourceAttributes -}}
{{- $all = append $all (printf "%s=%s" $name $value) -}}
{{- end -}}
{{- join "," $all -}}
{{- end -}}

{{/* What spans of attempts say. */}}
{{- define "stepfleet.attemptTracingEnv" -}}
{{- with .Values.tracing }}
{{- if .enabled }}
- name: STEPFLEET_TRACE_PARENTAGE
  value: {{ .parentage }}
- name: STEPFLEET_TRACE_VALUES
  value: {{ .values | quote }}
{{- with .redact }}
- name: STEPFLEET_TRACE_REDACT
  value: {{ join "," . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* /livez is about the process and never about Redis: a restart repairs no Redis. Takes {own, port, ready}. */}}
{{- define "stepfleet.probes" -}}
startupProbe:
  {{- with .own.startupProbe }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  httpGet: {path: /livez, port: {{ .port }}}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 30
  {{- end }}
livenessProbe:
  {{- with .own.livenessProbe }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  httpGet: {path: /livez, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
  {{- end }}
readinessProbe:
  {{- with .own.readinessProbe }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  httpGet: {path: {{ .ready }}, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 5
  {{- end }}
{{- end -}}

{{/* Takes {root, own}. */}}
{{- define "stepfleet.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if include "stepfleet.redisFiles" .root }}
- name: redis-tls
  mountPath: /etc/stepfleet/redis
  readOnly: true
{{- end }}
{{- if .root.Values.logConfigMap.enabled }}
- name: log
  mountPath: /etc/stepfleet/log
  readOnly: true
{{- end }}
{{- with .own.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes {root, own}. */}}
{{- define "stepfleet.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if include "stepfleet.redisFiles" .root }}
{{ include "stepfleet.redisVolume" .root }}
{{- end }}
{{- if .root.Values.logConfigMap.enabled }}
- name: log
  configMap: {name: {{ include "stepfleet.fullname" .root }}-log}
{{- end }}
{{- with .own.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where a pod may run. Takes {root, own, component, pool}. */}}
{{- define "stepfleet.placement" -}}
{{- with .own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "stepfleet.spread" . | fromYamlArray }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .own.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .own.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- end -}}

{{/* The constraints that are given, or the chart's own; each with a selector. */}}
{{- define "stepfleet.spread" -}}
{{- $constraints := list -}}
{{- $selector := dict "matchLabels" (include "stepfleet.selector" . | fromYaml) -}}
{{- if .own.topologySpreadConstraints -}}
{{- range .own.topologySpreadConstraints -}}
{{- $filled := hasKey . "labelSelector" | ternary (dict) (dict "labelSelector" $selector) -}}
{{- $constraints = append $constraints (merge (deepCopy .) $filled) -}}
{{- end -}}
{{- else if .own.defaultSpread -}}
{{- $soft := dict "maxSkew" 1 "whenUnsatisfiable" "ScheduleAnyway" "labelSelector" $selector -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" -}}
{{- $constraints = append $constraints (merge (dict "topologyKey" .) $soft) -}}
{{- end -}}
{{- end -}}
{{- toYaml $constraints -}}
{{- end -}}

{{/* Takes {root, own, component, pool, name}. */}}
{{- define "stepfleet.disruption" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "stepfleet.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ .own.podDisruptionBudget.maxUnavailable }}
  # A pod that does not get ready must not keep a node from being drained.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "stepfleet.selector" . | nindent 6 }}
{{- end -}}
