{{/*
files/rules.yaml for this release. Two releases do not alert for each other: gateways are selected by their Service,
directories and engines by the job name that the Prometheus operator derives from a PodMonitor. A cell is identified by its name,
and by its position among the cells until a gateway has reached it.
*/}}
{{- define "gpt-oss-serving.rules" -}}
{{- $full := include "gpt-oss-serving.fullname" . -}}
{{- $here := printf "namespace=%q" .Release.Namespace -}}
{{- $paused := list -}}
{{- range $place, $cell := keys .Values.cells | sortAlpha -}}
{{- if (include "gpt-oss-serving.cellValues" (dict "root" $ "cell" $cell) | fromJson).paused -}}{{- $paused = append (append $paused $cell) (printf "directory-%d" $place) -}}{{- end -}}
{{- end -}}
{{- $words := dict
  "fullname" $full
  "namespace" .Release.Namespace
  "release" .Release.Name
  "gateway" (printf "%s,service=\"%s-metrics\"" $here $full)
  "directory" (printf "%s,job=\"%s/%s-directory\"" $here .Release.Namespace $full)
  "engine" (printf "%s,job=\"%s/%s-engine\"" $here .Release.Namespace $full)
  "own" (printf "%s,release=%q" $here .Release.Name)
  "paused_cells" (ternary (join "|" $paused) "" (not (empty $paused)))
  "slo_objective" .Values.monitoring.prometheusRule.sloObjective
  "runbook" .Values.monitoring.prometheusRule.runbookUrl
  "max_open_requests" (.Values.gateway.settings.max_open_requests | default 1024 | int64)
  "replica_wait_s" (.Values.gateway.timeouts.replica_wait_s | default 30)
-}}
{{- $rules := .Files.Get "files/rules.yaml" -}}
{{- range $word, $text := $words -}}
{{- $rules = $rules | replace (printf "<%s>" $word) (toString $text) -}}
{{- end -}}
{{- $rules -}}
{{- end -}}
