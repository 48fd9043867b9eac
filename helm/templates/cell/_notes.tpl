{{/* What to know of the cells after an install: one item a line, for NOTES. */}}
{{- define "gpt-oss-serving.cellNotes" -}}
{{- $root := . -}}
{{- range $cell, $_ := .Values.cells }}
{{- $context := dict "root" $root "cell" $cell }}
{{- $values := include "gpt-oss-serving.cellValues" $context | fromJson }}
{{- include "gpt-oss-serving.pauseNote" (merge (dict "values" $values) $context) }}
{{- range include "gpt-oss-serving.cellGroups" $context | fromJsonArray }}
{{- include "gpt-oss-serving.groupNote" (dict "root" $root "cell" $cell "values" $values "group" .) }}
{{- end }}
{{- range include "gpt-oss-serving.cellModels" $context | fromJsonArray }}
{{- include "gpt-oss-serving.capacityNote" (dict "cell" $cell "model" .) }}
{{- end }}
{{- end }}
{{- if not .Values.ray.gcsFaultTolerance.redisAddress }}
* No Redis for Ray (`ray.gcsFaultTolerance`): a head that restarts stops every engine of its cell, and its node cannot be
  drained before the cell is paused.
{{- end }}
{{- if not .Values.cacheVolume.existingClaim }}
* No `cacheVolume.existingClaim`: every new engine pod compiles its kernels anew.
{{- end }}
{{- end -}}

{{- define "gpt-oss-serving.pauseNote" }}
{{- $name := include "gpt-oss-serving.cellName" . }}
{{- if .values.paused }}
* Cell {{ .cell }} is paused: its pods leave as their streams finish. They are gone when this returns:
    kubectl -n {{ .root.Release.Namespace }} wait --for=delete pod -l gpt-oss-serving/cell={{ .cell }},app.kubernetes.io/instance={{ .root.Release.Name }} --timeout=20m
{{- else if not .values.hold }}
* A change of cell {{ .cell }}'s pods builds a second Ray cluster beside the first. Without GPUs for both set
  `cells.{{ .cell }}.hold: true`, and pause the cell to take the change.
{{- end }}
{{- end }}

{{/* KubeRay carries numbers of pods into a cluster only when it builds one (its issue 4568): the command does it for the running one. */}}
{{- define "gpt-oss-serving.groupNote" }}
{{- $name := include "gpt-oss-serving.cellName" . }}
{{- with .group }}
{{- if and (not $.values.paused) (gt (int .max) 0) }}
* Cell {{ $.cell }}: {{ .name }}, {{ if eq (int .min) (int .max) }}{{ .max }}{{ else }}{{ .min }} to {{ .max }}{{ end }} pods{{ if gt (int .needMax) (int .pods) }}; its models may want {{ .needMax }} and share them by priority{{ end }}. After a change of their number:
    kubectl -n {{ $.root.Release.Namespace }} get rayservice {{ $name }} -o json | python3 -c 'import json,sys; s=json.load(sys.stdin); print(s["status"]["activeServiceStatus"]["rayClusterName"])'
    kubectl -n {{ $.root.Release.Namespace }} edit raycluster NAME   # group {{ .name }}: replicas {{ .min }}, minReplicas {{ .min }}, maxReplicas {{ .max }}
{{- end }}
{{- end }}
{{- end }}

{{/* Computed by serving.budget, as far as a profile is taken as it is. */}}
{{- define "gpt-oss-serving.capacityNote" }}
{{- with .model }}
{{- if and (not .problem) .requests8k .isProfilesOwn (eq (int .tensor) (int .profileTensor)) }}
* Cell {{ $.cell }}: one engine of {{ .name }} holds {{ min .requests8k .batchLimit }} requests of 8k tokens at once, {{ .max }} of them {{ mul (min .requests8k .batchLimit) .max }} (computed, not measured).
{{- end }}
{{- end }}
{{- end }}
