{{/* Alerts and recording rules, as deploy/prometheus/source writes them with open places. */}}

{{/* A file of rules with its thresholds, of this fleet alone where its series can be told. Takes {root, text}. */}}
{{- define "stepfleet.filledRules" -}}
{{- $text := .text -}}
{{- if and .root.Values.monitoring.enabled (not .root.Values.prometheusRule.allFleets) -}}
{{- $text = replace "<<own>>" (include "stepfleet.series" .root) $text -}}
{{- else -}}
{{- $text = $text | replace "{<<own>>}" "" | replace "<<own>>," "" -}}
{{- end -}}
{{- range $name, $limit := .root.Values.prometheusRule.thresholds -}}
{{- /* As JSON: other ways to write a number make 1e+06 of a million, which is no time. */ -}}
{{- if kindIs "map" $limit -}}
{{- range $severity, $number := $limit -}}
{{- $text = replace (printf "<<%s.%s>>" $name $severity) (toJson $number) $text -}}
{{- end -}}
{{- else -}}
{{- $text = replace (printf "<<%s>>" $name) (toJson $limit) $text -}}
{{- end -}}
{{- end -}}
{{- with regexFind "<<[A-Za-z.]+>>" $text -}}
{{- fail (printf "prometheusRule.thresholds.%s is missing; it must be a number" (trimAll "<>" .)) -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{/* An alert with the labels and the time of the values. Takes {root, rule}. */}}
{{- define "stepfleet.alert" -}}
{{- $rules := .root.Values.prometheusRule -}}
{{- $own := index $rules.overrides .rule.alert | default dict -}}
{{- with mergeOverwrite (dict) (.rule.labels | default dict) $rules.alertLabels ($own.labels | default dict) -}}
{{- $_ := set $.rule "labels" . -}}
{{- end -}}
{{- with $own.for -}}{{- $_ := set $.rule "for" . -}}{{- end -}}
{{- $links := .rule.annotations | default dict -}}
{{- if and $rules.runbookUrl $links.runbook_url -}}
{{- $_ := set $links "runbook_url" (printf "%s/%s" (trimSuffix "/" $rules.runbookUrl) (base $links.runbook_url)) -}}
{{- end -}}
{{- if and $rules.grafanaUrl $links.dashboard_url -}}
{{- $path := regexReplaceAll "^https?://[^/]+" $links.dashboard_url "" -}}
{{- $_ := set $links "dashboard_url" (printf "%s%s" (trimSuffix "/" $rules.grafanaUrl) $path) -}}
{{- end -}}
{{- $dashboards := .root.Values.dashboards -}}
{{- if and $dashboards.enabled $dashboards.name $links.dashboard_url -}}
{{- $own := printf "/d/stepfleet-%s-" $dashboards.name -}}
{{- $_ := set $links "dashboard_url" (replace "/d/stepfleet-" $own $links.dashboard_url) -}}
{{- end -}}
{{- toYaml .rule -}}
{{- end -}}

{{/* A name that is no alert would do nothing, unnoticed. Takes {root, alerts}: the names that there are. */}}
{{- define "stepfleet.validateRules" -}}
{{- $rules := .root.Values.prometheusRule -}}
{{- $alerts := .alerts -}}
{{- range $where, $names := dict "disabled" $rules.disabled "overrides" (keys $rules.overrides) -}}
{{- range $names -}}
{{- if not (has . $alerts) -}}
{{- fail (printf "prometheusRule.%s has %s, which is no alert; docs/runbooks lists them" $where .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
