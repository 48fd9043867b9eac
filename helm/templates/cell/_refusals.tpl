{{/* Refusals of cells, one sentence per line. Those of models are in _problems.tpl. */}}
{{- define "gpt-oss-serving.cellRefusals" -}}
{{- $root := . -}}
{{- include "gpt-oss-serving.leavingRefusals" . }}
{{- include "gpt-oss-serving.exemptionRefusals" . }}
{{- include "gpt-oss-serving.faultToleranceRefusals" . }}
{{- include "gpt-oss-serving.startRefusals" . }}
{{- range $cell, $_ := .Values.cells }}
{{- $context := dict "root" $root "cell" $cell }}
{{- include "gpt-oss-serving.nameRefusals" $context }}
{{- $models := include "gpt-oss-serving.cellModels" $context | fromJsonArray }}
{{- range $models }}
{{- with .problem }}
{{ . }}
{{- end }}
{{- end }}
{{- include "gpt-oss-serving.mixRefusals" (merge (dict "models" $models) $context) }}
{{- include "gpt-oss-serving.groupRefusals" $context }}
{{- end }}
{{- end -}}

{{- define "gpt-oss-serving.leavingRefusals" }}
{{- $leaving := include "gpt-oss-serving.leaving" . | fromJson }}
{{- if ge (int $leaving.serve) (sub (int $leaving.preStop) 15) }}
`engine.settings.drain_timeout_s` is {{ $leaving.drain }} and pods are killed after {{ $leaving.grace }} seconds: streams would be cut off. Set it to {{ sub $leaving.grace 91 }} or less, or raise `engine.terminationGracePeriodSeconds`, which builds new Ray clusters.
{{- end }}
{{- end }}

{{- define "gpt-oss-serving.exemptionRefusals" }}
{{- $exempt := .Values.engine.podSecurityExemptions }}
{{- if and .Values.modelVolume.hostPath (not (has "hostPath" $exempt)) }}
`modelVolume.hostPath` is forbidden by Pod Security "restricted" and "baseline": exempt the namespace and set `engine.podSecurityExemptions: [hostPath]`, or use a claim.
{{- end }}
{{- if and .Values.modelVolume.hostPath .Values.modelVolume.existingClaim }}
`modelVolume` names both a claim and a node's folder: name only one.
{{- end }}
{{- if and .Values.engine.rdma.enabled (not (has "IPC_LOCK" $exempt)) }}
`engine.rdma.enabled` needs the capability IPC_LOCK, which Pod Security "restricted" and "baseline" forbid: exempt the namespace and set `engine.podSecurityExemptions: [IPC_LOCK]`.
{{- end }}
{{- end }}

{{- define "gpt-oss-serving.faultToleranceRefusals" }}
{{- with .Values.ray.gcsFaultTolerance }}
{{- if and .redisAddress (not .passwordSecretName) }}
`ray.gcsFaultTolerance.redisAddress` is given without `passwordSecretName`: a client that can write to that Redis controls the Ray clusters, so it must require a password.
{{- end }}
{{- if and .passwordSecretName (not .redisAddress) }}
`ray.gcsFaultTolerance.passwordSecretName` is given without `redisAddress`.
{{- end }}
{{- end }}
{{- end }}

{{/* The startup limit of a pod cannot change while it runs, so an engine's own limit must not be above it. */}}
{{- define "gpt-oss-serving.startRefusals" }}
{{- $root := . }}
{{- $settings := include "gpt-oss-serving.engineSettings" . | fromJson }}
{{- range $cell, $_ := .Values.cells }}
{{- range include "gpt-oss-serving.cellGroups" (dict "root" $root "cell" $cell) | fromJsonArray }}
{{- $takes := include "gpt-oss-serving.startLimitS" (dict "settings" $settings "diskMib" .diskMib) | int }}
{{- $limit := include "gpt-oss-serving.coldStartLimitS" (dict "root" $root "group" .) | int }}
{{- if gt $takes $limit }}
Engines of group {{ .name }} may take {{ $takes }} seconds to start (start_timeout_s and reading {{ .diskMib }} MiB at load_mib_per_s) and their pods {{ $limit }}: set `engine.coldStartLimitS` to {{ $takes }} or more, which builds new Ray clusters.
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "gpt-oss-serving.nameRefusals" }}
{{- $name := include "gpt-oss-serving.cellName" . }}
{{- if or (gt (len $name) 47) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name)) }}
The RayService of cell {{ .cell }} would be called {{ $name }}: KubeRay takes lower-case letters, digits and dashes, 47 at most, starting with a letter.
{{- end }}
{{- end }}

{{/* Takes root, cell, models. An image with another name than deploy/images gives may be either build. */}}
{{- define "gpt-oss-serving.mixRefusals" }}
{{- $onCpu := list }}{{- $onGpu := list }}{{- $names := list }}
{{- range .models }}
{{- if .onCpu }}{{- $onCpu = append $onCpu .name }}{{- else }}{{- $onGpu = append $onGpu .name }}{{- end }}
{{- $names = append $names .name }}
{{- range .entry.adapters | default list }}{{- $names = append $names .name }}{{- end }}
{{- end }}
{{- if and $onCpu $onGpu }}
Cell {{ .cell }} has {{ join ", " $onCpu }} on CPUs and {{ join ", " $onGpu }} on GPUs: they need two engine images, and a cell has one. Move one of them to its own cell.
{{- else }}
{{- $image := (include "gpt-oss-serving.cellValues" . | fromJson).images.engine.repository }}
{{- if and $onCpu (eq (base $image) "engine-gpu") }}
Cell {{ .cell }} has {{ join ", " $onCpu }} on CPUs and `images.engine.repository` is {{ $image }}, vLLM's GPU build: use the CPU build, engine-cpu.
{{- else if and $onGpu (eq (base $image) "engine-cpu") }}
Cell {{ .cell }} has {{ join ", " $onGpu }} on GPUs and `images.engine.repository` is {{ $image }}, vLLM's CPU build: use the GPU build, engine-gpu.
{{- end }}
{{- end }}
{{- if ne (len $names) (len (uniq $names)) }}
Cell {{ .cell }} names a model or an adapter twice: {{ $names | sortAlpha | join ", " }}.
{{- end }}
{{- end }}

{{/* Takes root, cell. */}}
{{- define "gpt-oss-serving.groupRefusals" }}
{{- $cell := .cell }}
{{- $settings := include "gpt-oss-serving.engineSettings" .root | fromJson }}
{{- $catalog := include "gpt-oss-serving.catalog" .root | fromJson }}
{{- $kinds := keys $catalog.gpus | sortAlpha | join "|" }}
{{- range include "gpt-oss-serving.cellGroups" . | fromJsonArray }}
{{- if not (regexMatch (printf "^(cpu|(%s)x[1-9][0-9]*)$" $kinds) .name) }}
`groups.{{ .name }}` is not a shape: write the kind of GPU ({{ $kinds | replace "|" ", " }}), an x and the GPUs of a pod, e.g. h100x2, or `cpu`.
{{- else if gt (int .podGpus) (int $settings.gpus_per_node) }}
`groups.{{ .name }}` asks for pods of {{ .podGpus }} GPUs and a node has {{ $settings.gpus_per_node }} (`engine.settings.gpus_per_node`).
{{- else if and (not .onCpu) (gt (int .needMin) (int .pods)) }}
Cell {{ $cell }} has {{ .pods }} pods of {{ .name }} and its models' min_replicas need {{ .needMin }}: raise `groups.{{ .name }}.pods`, or lower min_replicas.
{{- else if and .onCpu (gt (int .needMax) 0) (eq (int .pods) 0) }}
Cell {{ $cell }} has no pods in group cpu and its models need one.
{{- end }}
{{- end }}
{{- end }}
