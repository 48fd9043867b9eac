{{/*
Worker groups: pods by shape. Models of one shape share a group, so that GPUs can pass from one to the other.
*/}}

{{/*
The groups of a cell in the order KubeRay shall see them, as a JSON list. Those that the values name come first, by name: they
stay where they are when models come and go. A new group must be the last, or KubeRay builds a second Ray cluster. Takes root, cell.
  name, onCpu, gpu, podGpus, pods, min, max, needMin, needMax (pods), diskMib, adapterGib, hostKvGib (of the largest model)
*/}}
{{- define "gpt-oss-serving.cellGroups" -}}
{{- $root := .root -}}
{{- $cell := include "gpt-oss-serving.cellValues" . | fromJson -}}
{{- $settings := include "gpt-oss-serving.engineSettings" .root | fromJson -}}
{{- $models := include "gpt-oss-serving.cellModels" . | fromJsonArray -}}
{{- $names := keys $cell.groups | sortAlpha -}}
{{- range $models -}}{{- if not .problem -}}{{- $names = append $names .group -}}{{- end -}}{{- end -}}
{{- $groups := list -}}
{{- range $name := uniq $names -}}
{{- $needMin := 0 -}}{{- $needMax := 0 -}}{{- $disk := 0 -}}{{- $adapters := 0.0 -}}{{- $hostKv := 0.0 -}}
{{- range $models -}}
{{- if and (not .problem) (eq .group $name) -}}
{{- $needMin = add $needMin (mul .min .nodes) -}}
{{- $needMax = add $needMax (mul .max .nodes) -}}
{{- $disk = max $disk (int .diskMib) -}}
{{- $adapters = maxf $adapters (float64 .adapterGib) -}}
{{- $hostKv = maxf $hostKv (float64 .hostKvGib) -}}
{{- end -}}
{{- end -}}
{{- $onCpu := eq $name "cpu" -}}
{{- $own := index $cell.groups $name | default dict -}}
{{- $pods := $needMax -}}
{{- if $onCpu -}}{{- $pods = min 1 $needMax -}}{{- end -}}
{{- if hasKey $own "pods" -}}{{- $pods = int $own.pods -}}{{- end -}}
{{- $min := $pods -}}
{{- if and $settings.nodes_may_grow (not $onCpu) -}}{{- $min = min $needMin $pods -}}{{- end -}}
{{- $max := $pods -}}
{{- if $cell.paused -}}{{- $min = 0 -}}{{- $max = 0 -}}{{- end -}}
{{- $shape := splitList "x" $name -}}
{{- $groups = append $groups (dict
  "name" $name "onCpu" $onCpu "gpu" (first $shape) "podGpus" (ternary 0 (int (last $shape)) $onCpu)
  "pods" $pods "min" $min "max" $max "needMin" $needMin "needMax" $needMax "diskMib" $disk "adapterGib" $adapters
  "hostKvGib" $hostKv) -}}
{{- end -}}
{{- $groups | toJson -}}
{{- end -}}

{{/*
MiB of a pod's /dev/shm: Ray's object store lives there, what vLLM and NCCL exchange, and KV that no longer fits the GPUs (vLLM
does not start without room for all of it). Takes root, group.
*/}}
{{- define "gpt-oss-serving.shmMib" -}}
{{- $shm := .root.Values.engine.shm -}}
{{- $hostKv := mulf (float64 .group.hostKvGib) 1024 | ceil | int -}}
{{- add (int .root.Values.ray.objectStoreMib) (int $shm.baseMib) (mul (int $shm.perGpuMib) (max 1 .group.podGpus)) $hostKv -}}
{{- end -}}

{{/*
GiB of host memory a GPU pod asks for: the checkpoint once, /dev/shm, and its processes with what they pin. The page cache is
given back under pressure and counted only so that a restart finds the weights in it. Takes root, group.
*/}}
{{- define "gpt-oss-serving.memoryGib" -}}
{{- $memory := .root.Values.engine.memory -}}
{{- $gpus := int .group.podGpus -}}
{{- $weights := divf (float64 .group.diskMib) 1024 -}}
{{- $shm := divf (float64 (include "gpt-oss-serving.shmMib" .)) 1024 -}}
{{- $each := addf (float64 $memory.perGpuGib) (float64 $memory.pinnedPerGpuGib) (float64 .group.adapterGib) -}}
{{- addf $weights $shm (float64 $memory.baseGib) (mulf $each (float64 $gpus)) | ceil -}}
{{- end -}}

{{/* Seconds an engine of that checkpoint may take to start, as the settings say. Takes settings, diskMib. */}}
{{- define "gpt-oss-serving.startLimitS" -}}
{{- addf (float64 .settings.start_timeout_s) (divf (float64 .diskMib) (float64 .settings.load_mib_per_s)) | ceil -}}
{{- end -}}

{{/* Seconds a pod of the group may take to come up; follows from nothing that changes live. Takes root, group. */}}
{{- define "gpt-oss-serving.coldStartLimitS" -}}
{{- $catalog := include "gpt-oss-serving.catalog" .root | fromJson -}}
{{- $default := include "gpt-oss-serving.startLimitS" (dict "settings" $catalog.engine "diskMib" .group.diskMib) -}}
{{- .root.Values.engine.coldStartLimitS | int | default (mul 2 (int $default)) -}}
{{- end -}}

{{/*
Of every worker group. KubeRay writes each RayService back once, for a finalizer, and with it this field, empty, which changes the
list of groups: the list would be the operator's then, and Helm 4, which applies on the server, could never upgrade it again.
*/}}
{{- define "gpt-oss-serving.asKubeRayWrites" -}}
scaleStrategy: {}
{{- end -}}
