{{/*
From a model's entry in the values to the shape of its engine: what serving/catalog/shapes.py (`Profile.override`, `pod_gpus`,
`nodes`) and serving/budget/refusals.py say in Python, as far as pods depend on it.
*/}}

{{/* What is known of a model, in the form of files/catalog.json, as JSON; empty for an unknown one. Takes root, name. */}}
{{- define "gpt-oss-serving.modelFacts" -}}
{{- $catalog := include "gpt-oss-serving.catalog" .root | fromJson -}}
{{- $facts := index $catalog.models .name | default dict -}}
{{- range .root.Values.ownModels -}}
{{- if eq .name $.name -}}{{- $facts = include "gpt-oss-serving.ownFacts" . | fromJson -}}{{- end -}}
{{- end -}}
{{- if kindIs "map" $facts.lora -}}{{- $_ := set $facts "lora" (merge $facts.lora $catalog.lora_defaults) -}}{{- end -}}
{{- $facts | toJson -}}
{{- end -}}

{{/* The same of an entry of `ownModels`. */}}
{{- define "gpt-oss-serving.ownFacts" -}}
{{- $facts := pick . "disk_mib" "lora" "draft" "base" -}}
{{- with .cpu_knee -}}{{- $_ := set $facts "cpu_scales" true -}}{{- end -}}
{{- with .architecture -}}
{{- $_ := set $facts "format" (.format | default "bf16") -}}
{{- $_ := set $facts "experts" (not (empty .experts)) -}}
{{- with .experts -}}{{- $_ := set $facts "expert_format" .format -}}{{- end -}}
{{- with .attention -}}
{{- $_ := set $facts "heads" .heads -}}
{{- $_ := set $facts "sliding" (not (empty .sliding_layers)) -}}
{{- $_ := set $facts "latent" (not (empty .latent_dim)) -}}
{{- $copies := true -}}
{{- if hasKey . "replicates_kv_heads" -}}{{- $copies = .replicates_kv_heads -}}{{- end -}}
{{- if not (or $copies .latent_dim) -}}{{- $_ := set $facts "kv_heads" .kv_heads -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $profiles := list -}}
{{- range .profiles -}}
{{- $profiles = append $profiles (mergeOverwrite (dict "tensor" 1 "pipeline" 1 "data" 1 "expert" false "lora" false "moe_backend" "auto") (deepCopy .)) -}}
{{- end -}}
{{- set $facts "profiles" $profiles | toJson -}}
{{- end -}}

{{/* The first profile of that name on that GPU, as JSON; empty when there is none. Takes facts, profile, gpu. */}}
{{- define "gpt-oss-serving.findProfile" -}}
{{- $found := dict -}}
{{- range .facts.profiles | default list -}}
{{- if and (empty $found) (eq .name $.profile) (eq .gpu $.gpu) -}}{{- $found = . -}}{{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}

{{/*
One model as its cell serves it, as JSON. Takes root, entry.
  name, entry (as ModelSettings takes it), onCpu, min, max (engines), problem (a sentence, or empty)
  tensor, pipeline, data, gpus (of an engine), podGpus, nodes (pods of an engine), group, diskMib (with the draft's), pinnedGib, draft (what guesses tokens for it)
  hasBasesFormats (what was measured of its `base` is true of it)
  room (for adapters: their limits, defaults filled in), guessedTokens (in each step)
  hostKvGib (of /dev/shm, for KV that no longer fits an engine's GPUs; LMCache's server has memory of its own)
  defaultOutputTokens (of a call without a limit of its own; 0 for none)
*/}}
{{- define "gpt-oss-serving.model" -}}
{{- $entry := deepCopy .entry -}}
{{- $catalog := include "gpt-oss-serving.catalog" .root | fromJson -}}
{{- $name := $entry.name | default "" -}}
{{- $settings := include "gpt-oss-serving.engineSettings" .root | fromJson -}}
{{- $facts := include "gpt-oss-serving.modelFacts" (dict "root" .root "name" $name) | fromJson -}}
{{- $profileName := $entry.profile | default .root.Values.profile -}}
{{- $onCpu := eq $profileName "cpu" -}}
{{- $gpuWithoutProfile := and $onCpu (not (empty $entry.gpu)) -}}
{{- $gpu := $entry.gpu | default .root.Values.gpu -}}
{{- $profile := dict "tensor" 1 "pipeline" 1 "data" 1 "expert" false "lora" false "moe_backend" "auto" -}}
{{- $problem := "" -}}
{{- if empty $facts -}}
{{- $known := concat (keys $catalog.models) (include "gpt-oss-serving.ownNames" .root | fromJsonArray) | sortAlpha | join ", " -}}
{{- $problem = printf "There is no model called '%s'; known are %s. Describe it in `ownModels`." $name $known -}}
{{- else if not $onCpu -}}
{{- $profile = include "gpt-oss-serving.findProfile" (dict "facts" $facts "profile" $profileName "gpu" $gpu) | fromJson -}}
{{- if empty $profile -}}
{{- $problem = include "gpt-oss-serving.noProfile" (dict "name" $name "facts" $facts "profile" $profileName "gpu" $gpu) -}}
{{- $profile = dict "tensor" 1 "pipeline" 1 "data" 1 "expert" false "lora" false "moe_backend" "auto" -}}
{{- end -}}
{{- end -}}
{{- $tensor := int ($entry.tensor | default $profile.tensor) -}}
{{- $pipeline := int ($entry.pipeline | default $profile.pipeline) -}}
{{- $data := int ($entry.data | default $profile.data) -}}
{{- $expert := $profile.expert -}}
{{- if kindIs "bool" $entry.expert -}}{{- $expert = $entry.expert -}}{{- end -}}
{{- $gpus := mul $tensor $pipeline $data -}}
{{- $perNode := int $settings.gpus_per_node -}}
{{- $podGpus := min $gpus $perNode -}}
{{- $nodes := div (add $gpus (sub $perNode 1)) $perNode -}}
{{- if $onCpu -}}{{- $podGpus = 0 -}}{{- $nodes = 1 -}}{{- end -}}
{{- $room := dict -}}{{- if kindIs "map" $entry.lora -}}{{- $room = merge (deepCopy $entry.lora) $catalog.lora_defaults -}}{{- end -}}
{{- $lora := or $profile.lora (not (empty $room)) -}}
{{- $min := 1 -}}{{- if hasKey $entry "min_replicas" -}}{{- $min = int $entry.min_replicas -}}{{- end -}}
{{- $max := 1 -}}{{- if hasKey $entry "max_replicas" -}}{{- $max = int $entry.max_replicas -}}{{- end -}}
{{- if $onCpu -}}
{{- $entry = omit $entry "profile" "gpu" -}}
{{- else -}}
{{- $entry = merge (dict "profile" $profileName "gpu" $gpu) $entry -}}
{{- end -}}
{{- $group := "cpu" -}}{{- if not $onCpu -}}{{- $group = printf "%sx%d" $gpu (int $podGpus) -}}{{- end -}}
{{- $model := dict
  "name" $name "entry" $entry "onCpu" $onCpu "min" $min "max" $max "facts" $facts
  "tensor" $tensor "pipeline" $pipeline "data" $data "expert" $expert "lora" $lora "room" ($room | default $facts.lora | default dict)
  "profile" $profile "profileName" $profileName "gpu" $gpu
  "gpus" $gpus "podGpus" $podGpus "nodes" $nodes "perNode" $perNode "group" $group
  "gpuWithoutProfile" $gpuWithoutProfile "moeBackend" ($entry.moe_backend | default $profile.moe_backend)
  "kvDtype" ($entry.kv_cache_dtype | default $profile.kv_cache_dtype | default "auto")
  "kvOffloading" ($entry.kv_offloading_backend | default $profile.kv_offloading_backend | default "native")
  "offloadingGib" ($entry.kv_offloading_gib | default $profile.kv_offloading_gib | default 0.0 | float64)
  "apiServers" (int ($profile.api_servers | default $settings.api_servers)) -}}
{{- $_ := set $model "hostKvGib" (mulf $data $model.offloadingGib) -}}
{{- if ne $model.kvOffloading "native" -}}{{- $_ := set $model "hostKvGib" 0.0 -}}{{- end -}}
{{- with $facts.expert_format -}}
{{- $_ := set $model "kernels" (index $catalog.kernels .) -}}
{{- $_ := set $model "loraKernels" (index $catalog.lora_kernels .) -}}
{{- end -}}
{{- $base := index $catalog.models ($facts.base | default "") | default dict -}}
{{- $formats := list $facts.format ($facts.expert_format | default "") | toJson -}}
{{- $_ := set $model "hasBasesFormats" (or (empty $facts.format) (empty $base.format) (eq $formats (list $base.format ($base.expert_format | default "") | toJson))) -}}
{{- $_ := set $model "requests8k" (int ($profile.requests_8k | default 0)) -}}
{{- $_ := set $model "batchLimit" (int ($profile.batch_limit | default 0)) -}}
{{- $_ := set $model "diskMib" (int ($facts.disk_mib | default 0)) -}}
{{- $speculation := $entry.speculation | default $profile.speculation | default dict -}}
{{- $_ := set $model "speculation" $speculation.method -}}
{{- $_ := set $model "guessedTokens" (ternary (int ($speculation.tokens | default $catalog.guessed_tokens)) 0 (not (empty $speculation))) -}}
{{- $asked := list $tensor $pipeline $data $expert $model.kvDtype $lora $speculation -}}
{{- $_ := set $model "isProfilesOwn" (eq ($asked | toJson) (list (int $profile.tensor) (int $profile.pipeline) (int $profile.data) $profile.expert ($profile.kv_cache_dtype | default "auto") $profile.lora ($profile.speculation | default dict) | toJson)) -}}
{{- if eq ($model.speculation | default "") "eagle3" -}}
{{- with index $catalog.drafts ($facts.draft | default "") -}}
{{- $_ := set $model "draft" $facts.draft -}}
{{- $_ := set $model "diskMib" (add $model.diskMib .disk_mib) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $model "adapterGib" (include "gpt-oss-serving.adapterGib" $model | float64) -}}
{{- if not $problem -}}{{- $problem = include "gpt-oss-serving.modelProblem" $model -}}{{- end -}}
{{- set $model "problem" $problem | toJson -}}
{{- end -}}

{{- define "gpt-oss-serving.ownNames" -}}
{{- $names := list -}}
{{- range .Values.ownModels -}}{{- $names = append $names .name -}}{{- end -}}
{{- $names | toJson -}}
{{- end -}}

{{/* GiB of pinned host memory that adapters may take in each worker of a model's engine. */}}
{{- define "gpt-oss-serving.adapterGib" -}}
{{- if .lora -}}
{{- mulf (float64 (.room.max_cpu_adapters | default 0)) (float64 (.facts.adapter_gib | default 0)) -}}
{{- else -}}0{{- end -}}
{{- end -}}

{{/* What clients may ask for but aliases, as a JSON list: models of all cells and their adapters. Takes root. */}}
{{- define "gpt-oss-serving.servedNames" -}}
{{- $names := list -}}
{{- range $cell, $_ := .Values.cells -}}
{{- range (include "gpt-oss-serving.cellValues" (dict "root" $ "cell" $cell) | fromJson).models -}}
{{- $names = append $names .name -}}
{{- range .adapters -}}{{- $names = append $names .name -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- uniq $names | toJson -}}
{{- end -}}

{{/* The model that `helm test` asks, and the notes: one that is served even where every cell has models of its own. */}}
{{- define "gpt-oss-serving.testModel" -}}
{{- $served := include "gpt-oss-serving.servedNames" . | fromJsonArray -}}
{{- $first := dig "name" "" (first .Values.models | default dict) -}}
{{- if not (has $first $served) -}}{{- $first = first $served -}}{{- end -}}
{{- .Values.tests.model | default $first -}}
{{- end -}}

{{/* Every model of a cell, as a JSON list of `gpt-oss-serving.model`. Takes root, cell. */}}
{{- define "gpt-oss-serving.cellModels" -}}
{{- $root := .root -}}
{{- $cell := include "gpt-oss-serving.cellValues" . | fromJson -}}
{{- $models := list -}}
{{- range $cell.models -}}
{{- $models = append $models (include "gpt-oss-serving.model" (dict "root" $root "entry" .) | fromJson) -}}
{{- end -}}
{{- $models | toJson -}}
{{- end -}}
