{{/* The part of NOTES about cells: known gaps, as list items, and then each cell. */}}
{{- define "gpt-oss-serving.cellNotes" -}}
{{- $root := . -}}
{{- if not .Values.ray.gcsFaultTolerance.redisAddress }}
* Not fault tolerant: Ray's heads. Without a Redis, a head that restarts stops every engine of its cell, and its node cannot be
  drained until the cell is paused. To change it: ray.gcsFaultTolerance.
{{- end }}
{{- if not .Values.cacheVolume.existingClaim }}
* Not kept: compiled kernels. Every new engine pod compiles them again. To keep them: cacheVolume.existingClaim.
{{- end }}

Cells:
{{- range $cell, $_ := .Values.cells }}
{{- $context := dict "root" $root "cell" $cell }}
{{- $values := include "gpt-oss-serving.cellValues" $context | fromJson }}
{{- include "gpt-oss-serving.cellState" (merge (dict "values" $values) $context) }}
{{- range include "gpt-oss-serving.cellModels" $context | fromJsonArray }}
{{- include "gpt-oss-serving.capacityNote" . }}
{{- end }}
{{- if not $values.paused }}
{{- include "gpt-oss-serving.podsNote" $context }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "gpt-oss-serving.cellState" }}
{{- $running := printf "gpt-oss-serving/cell=%s,app.kubernetes.io/instance=%s" .cell .root.Release.Name }}
{{- if .values.paused }}
* {{ .cell }} is paused: its pods stop as their streams finish. This returns when all of them have stopped:
    kubectl -n {{ .root.Release.Namespace }} wait --for=delete pod -l {{ $running }} --timeout=20m
{{- else if .values.hold }}
* {{ .cell }} is held: a change of its pods takes effect when the cell is paused and resumed (cells.{{ .cell }}.paused: true, then false).
{{- else }}
* {{ .cell }}: a change of its pods builds a second Ray cluster beside the first. If there are no GPUs for both, set cells.{{ .cell }}.hold: true.
{{- end }}
{{- end }}

{{/* Computed by serving.budget, where a profile is taken as it is. */}}
{{- define "gpt-oss-serving.capacityNote" }}
{{- if and (not .problem) .requests8k .isProfilesOwn }}
{{- $each := min .requests8k .batchLimit }}
  {{ .name }}: an engine holds {{ $each }} requests of 8k tokens at once, {{ .max }} of them {{ mul $each .max }} (computed, not measured).
{{- end }}
{{- end }}

{{/*
KubeRay 1.7 applies numbers of pods only to a Ray cluster that it builds (its issue 4568). The patch applies them to the running
one. It fails where that has other groups, and leaves `replicas` to Ray's autoscaler where that runs. Takes root, cell.
*/}}
{{- define "gpt-oss-serving.podsNote" }}
{{- $namespace := .root.Release.Namespace }}
{{- $grows := include "gpt-oss-serving.nodesMayGrow" .root }}
{{- $patch := list }}
{{- range $index, $group := include "gpt-oss-serving.cellGroups" . | fromJsonArray }}
{{- $path := printf "/spec/workerGroupSpecs/%d" (int (add1 $index)) }}
  {{ .name }}: {{ if eq (int .min) (int .max) }}{{ .max }}{{ else }}{{ .min }} to {{ .max }}{{ end }} pods
{{- if gt (int .needMax) (int .pods) }}; its models may want {{ .needMax }} and share them by priority{{ end }}
{{- $patch = append $patch (dict "op" "test" "path" (printf "%s/groupName" $path) "value" .name) }}
{{- range $key, $value := dict "replicas" .min "minReplicas" .min "maxReplicas" .max }}
{{- if not (and $grows (eq $key "replicas")) }}
{{- $patch = append $patch (dict "op" "add" "path" (printf "%s/%s" $path $key) "value" $value) }}
{{- end }}
{{- end }}
{{- end }}
{{- with $patch }}
  After a change of these numbers, patch the running Ray cluster:
    kubectl -n {{ $namespace }} patch --type=json -p '{{ . | toJson }}' \
      $(kubectl -n {{ $namespace }} get raycluster -l ray.io/originated-from-cr-name={{ include "gpt-oss-serving.cellName" $ }} -o name)
{{- end }}
{{- end }}
