{{/* commonLabels, commonAnnotations, extraObjects and aliases of a dependency: what is rendered, and what is refused. */}}

{{/* Refusals, one sentence per line. */}}
{{- define "gpt-oss-serving.commonRefusals" -}}
{{- include "gpt-oss-serving.labelRefusals" . }}
{{- include "gpt-oss-serving.annotationRefusals" . }}
{{- include "gpt-oss-serving.extraRefusals" . }}
{{- include "gpt-oss-serving.aliasRefusals" . }}
{{- end -}}

{{/* Selectors, `helm`, `serving status` and Prometheus rely on the chart's own labels. */}}
{{- define "gpt-oss-serving.labelRefusals" }}
{{- $own := include "gpt-oss-serving.chartLabels" (dict "root" . "component" "any") | fromYaml }}
{{- $monitoring := .Values.monitoring }}
{{- range $place, $labels := dict
  "commonLabels" .Values.commonLabels
  "monitoring.serviceMonitor.labels" $monitoring.serviceMonitor.labels
  "monitoring.prometheusRule.labels" $monitoring.prometheusRule.labels
  "monitoring.dashboards.labels" $monitoring.dashboards.labels
}}
{{- range $key, $_ := $labels }}
{{- if or (hasKey $own $key) (hasPrefix "gpt-oss-serving/" $key) (hasPrefix "ray.io/" $key) }}
{{ $place }} has {{ $key }}, which the chart or KubeRay sets itself: leave it out, or use a label of your own.
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "gpt-oss-serving.annotationRefusals" }}
{{- range $key, $_ := .Values.commonAnnotations }}
{{- if regexMatch "^(meta[.])?helm[.]sh/" $key }}
commonAnnotations has {{ $key }}, which Helm interprets itself: on every object it would change installs, upgrades and uninstalls; leave it out.
{{- end }}
{{- end }}
{{- end }}

{{- define "gpt-oss-serving.extraRefusals" }}
{{- range $index, $extra := .Values.extraObjects }}
{{- if kindIs "map" $extra }}
{{- if not (and (kindIs "map" $extra.metadata) ($extra.metadata | default dict).name) }}
extraObjects[{{ $index }}] has no metadata.name: name the object.
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Only aliases, which Helm keeps unique, distinguish the names and labels of several copies in one release: no copy sees the values
of another. Past 30 characters a name keeps its first 21.
*/}}
{{- define "gpt-oss-serving.aliasRefusals" }}
{{- $alias := include "gpt-oss-serving.alias" . }}
{{- if not .Chart.IsRoot }}
{{- if .Values.nameOverride }}
nameOverride is set in a dependency{{ with $alias }} with the alias {{ . }}{{ end }}, where another copy could have the same name: leave it empty, and give the dependency an alias in the parent chart's Chart.yaml.
{{- end }}
{{- with .Values.fullnameOverride }}
{{- if $alias }}
fullnameOverride is set in a dependency with the alias {{ $alias }}, where another copy could have the same one: leave it empty, for the alias is in every name.
{{- else if hasPrefix (printf "%s-" $.Release.Name | trunc 21) . }}
fullnameOverride is {{ . }} in a dependency, and a copy with an alias could be called that: choose one that does not begin with the release's name.
{{- end }}
{{- end }}
{{- end }}
{{- if regexMatch "-(metrics|cell-[^.]+)$" $alias }}
The alias {{ $alias }} could give two Services of this release one name, because it ends like a Service of this chart: choose another alias.
{{- end }}
{{- end }}

{{/*
One of extraObjects, as YAML. A manifest gets commonLabels and commonAnnotations, under its own; a string is taken as it is.
Templates in either are rendered, with the chart's root context. Takes root, extra.
*/}}
{{- define "gpt-oss-serving.extraObject" -}}
{{- if kindIs "string" .extra -}}
{{- tpl .extra .root -}}
{{- else -}}
{{- $manifest := deepCopy .extra -}}
{{- range $key, $common := dict "labels" .root.Values.commonLabels "annotations" .root.Values.commonAnnotations -}}
{{- $own := index ($manifest.metadata | default dict) $key | default dict -}}
{{- if or $common $own -}}
{{- $_ := set $manifest.metadata $key (include "gpt-oss-serving.over" (list $common $own) | fromYaml) -}}
{{- end -}}
{{- end -}}
{{- tpl (toYaml $manifest) .root -}}
{{- end -}}
{{- end -}}
