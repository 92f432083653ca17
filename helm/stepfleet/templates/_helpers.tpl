{{/* Names, labels, images. */}}
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

{{/* Matchers of this fleet's series, if its monitors label them; nothing else tells fleets of a namespace apart. */}}
{{- define "stepfleet.series" -}}
namespace={{ .Release.Namespace | quote }}
{{- if .Values.monitoring.enabled -}},fleet={{ .Release.Name | quote }}{{- end -}}
{{- end -}}

{{/* What selects pods; never changes. Takes {root, component, pool}. */}}
{{- define "stepfleet.selector" -}}
app.kubernetes.io/name: {{ include "stepfleet.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
stepfleet/pool: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Takes {root, component, pool, more}: `more` are labels of one kind of object, and win. */}}
{{- define "stepfleet.labels" -}}
{{- $own := include "stepfleet.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "stepfleet" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version) -}}
{{- toYaml (mergeOverwrite (dict) .root.Values.commonLabels (.more | default dict) $own) -}}
{{- end -}}

{{/* The metadata of an object. Takes {root, component, pool, name, namespace, more, annotations}. */}}
{{- define "stepfleet.metadata" -}}
{{- $home := .root.Release.Namespace -}}
{{- $namespace := .namespace | default $home -}}
{{- /* In another namespace it may meet that of a release which has the same name in a third one. */ -}}
name: {{ .name }}{{ if ne $namespace $home }}-{{ $home }}{{ end }}
namespace: {{ $namespace }}
labels:
  {{- include "stepfleet.labels" . | nindent 2 }}
{{- with mergeOverwrite (dict) .root.Values.commonAnnotations (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Takes {root, image}: an image that says only what differs from the chart's own. */}}
{{- define "stepfleet.image" -}}
{{- $own := .image | default dict -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) $own -}}
{{- if and (or $own.repository $own.tag) (not $own.digest) -}}
{{- $_ := set $image "digest" "" -}}
{{- end -}}
{{- include "stepfleet.reference" (dict "root" .root "image" $image) -}}
{{- end -}}

{{/* What a container names. Takes {root, image}. */}}
{{- define "stepfleet.reference" -}}
{{- with .image.registry | default .root.Values.global.imageRegistry -}}{{ . }}/{{- end -}}
{{- .image.repository -}}
{{- if .image.digest -}}@{{ .image.digest }}{{- else -}}:{{ .image.tag | default .root.Chart.AppVersion }}{{- end -}}
{{- end -}}

{{/* Takes {root, component}. */}}
{{- define "stepfleet.serviceAccount" -}}
{{- $account := index .root.Values.serviceAccounts .component -}}
{{- if $account.create -}}
{{ include "stepfleet.fullname" .root }}-{{ .component }}
{{- else -}}
{{ $account.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* A pool merged over the defaults. Takes {root, pool}. */}}
{{- define "stepfleet.pool" -}}
{{- toYaml (mergeOverwrite (deepCopy .root.Values.workerDefaults) (index .root.Values.workers .pool | default dict)) -}}
{{- end -}}

{{/* Whether something else sets the number of a pool's pods. Takes a merged pool. */}}
{{- define "stepfleet.isScaled" -}}
{{- if or .autoscaling.hpa.enabled .autoscaling.keda.enabled -}}true{{- end -}}
{{- end -}}
