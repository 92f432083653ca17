{{- define "stepfleet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "stepfleet.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "stepfleet.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "stepfleet.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects pods; never changes. Takes {root, component}. */}}
{{- define "stepfleet.selector" -}}
app.kubernetes.io/name: {{ include "stepfleet.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
stepfleet/pool: {{ . }}
{{- end }}
{{- end -}}

{{- define "stepfleet.labels" -}}
{{ include "stepfleet.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Takes {root, image}: an image that says only what differs from the chart's own. */}}
{{- define "stepfleet.image" -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) (.image | default dict) -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Takes {root, component}. */}}
{{- define "stepfleet.serviceAccount" -}}
{{- if .root.Values.serviceAccount.create -}}
{{ include "stepfleet.fullname" .root }}-{{ .component }}
{{- else -}}
{{ .root.Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* The variables that tell a program where Redis is. */}}
{{- define "stepfleet.redisEnv" -}}
- name: STEPFLEET_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ required "redis.existingSecret must name a Secret with the URL of Redis" .Values.redis.existingSecret }}
      key: {{ .Values.redis.urlKey }}
- name: STEPFLEET_REDIS_PREFIX
  value: {{ .Values.redis.prefix | quote }}
{{- if .Values.redis.caKey }}
- name: STEPFLEET_REDIS_CA_FILE
  value: /etc/stepfleet/redis/ca.pem
{{- end }}
- name: STEPFLEET_LOG_FORMAT
  value: {{ .Values.logFormat }}
- name: STEPFLEET_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end -}}

{{- define "stepfleet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "stepfleet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "stepfleet.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .Values.redis.caKey }}
- name: redis-ca
  mountPath: /etc/stepfleet/redis
  readOnly: true
{{- end }}
{{- end -}}

{{- define "stepfleet.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.redis.caKey }}
- name: redis-ca
  secret:
    secretName: {{ .Values.redis.existingSecret }}
    items:
      - key: {{ .Values.redis.caKey }}
        path: ca.pem
{{- end }}
{{- end -}}

{{/* Where a pod may run. Takes the coordinator or a pool. */}}
{{- define "stepfleet.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}
