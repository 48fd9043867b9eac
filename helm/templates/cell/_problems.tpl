{{/*
Why one model cannot be served as the values ask: a sentence, or nothing. What can be computed from the values alone is refused
here, with the words of serving/budget/refusals.py; the rest (adapters' files, an own model's memory) shows when it starts.
*/}}

{{- define "gpt-oss-serving.noProfile" -}}
{{- $known := list -}}
{{- range .facts.profiles -}}{{- $known = append $known (printf "%s on %s" .name .gpu) -}}{{- end -}}
{{- printf "%s has no GPU profile '%s' on %s; it has %s." .name .profile .gpu ($known | join ", " | default "none: it runs on the CPU (`profile: cpu`)") -}}
{{- end -}}

{{/* Takes a model (gpt-oss-serving.model). */}}
{{- define "gpt-oss-serving.modelProblem" -}}
{{- if gt .min .max -}}
{{- printf "%s: min_replicas is %d and max_replicas %d: the first must not be above the second." .name (int .min) (int .max) -}}
{{- else if .gpuWithoutProfile -}}
{{- printf "%s is given a gpu and its profile is cpu: name a profile, or leave `gpu` unset." .name -}}
{{- else if and .facts.heads (mod (int .facts.heads) (int .tensor)) -}}
{{- printf "%s has %d attention heads, which %d tensor ranks cannot share evenly." .name (int .facts.heads) (int .tensor) -}}
{{- else if and .facts.kv_heads (mod (int .facts.kv_heads) (int .tensor)) -}}
{{- printf "%s has %d KV heads, which %d tensor ranks cannot share evenly, and its model class does not copy them." .name (int .facts.kv_heads) (int .tensor) -}}
{{- else if and .expert (hasKey .facts "experts") (not .facts.experts) -}}
{{- printf "%s has no experts to spread: leave `expert` off." .name -}}
{{- else if and .onCpu (ne .moeBackend "auto") -}}
{{- printf "%s runs on a CPU, where vLLM has one kernel for experts: leave `moe_backend` unset." .name -}}
{{- else if and .onCpu (or (ne .kvDtype "auto") .offloadingGib) -}}
{{- printf "%s runs on a CPU, whose KV cache is in the host's memory already: leave `kv_cache_dtype` and `kv_offloading_gib` unset." .name -}}
{{- else if and (ne .kvOffloading "native") (not .offloadingGib) -}}
{{- printf "%s is to keep KV on its hosts with %s, and none of it: set `kv_offloading_gib`, or leave `kv_offloading_backend` unset." .name .kvOffloading -}}
{{- else if and (hasKey .facts "experts") (not .facts.experts) (ne .moeBackend "auto") -}}
{{- printf "%s has no experts and a kernel is named for them: leave `moe_backend` unset." .name -}}
{{- else if and .kernels (ne .moeBackend "auto") (not (has .moeBackend .kernels)) -}}
{{- printf "vLLM has no kernel %s for the experts of %s; it has %s." .moeBackend .name (join ", " .kernels) -}}
{{- else if and .lora .kernels (ne .moeBackend "auto") (not (has .moeBackend .loraKernels)) -}}
{{- printf "Adapters on %s need one of the kernels %s, and %s is asked for." .name (join ", " .loraKernels) .moeBackend -}}
{{- else if and .speculation (hasKey .facts "experts") (not .facts.heads) -}}
{{- printf "%s generates no tokens, so none can be guessed: leave `speculation` unset." .name -}}
{{- else if and (eq (.speculation | default "") "eagle3") (empty .draft) -}}
{{- printf "The catalogue has no draft model for %s: take `speculation: {method: ngram}`, or leave it unset." .name -}}
{{- else if and .draft (gt (int .pipeline) 1) -}}
{{- printf "The draft of %s reads three of its layers, which %d pipeline stages would hold apart: leave `speculation` or `pipeline` unset." .name (int .pipeline) -}}
{{- else if and .lora (hasKey .facts "disk_mib") (empty .facts.lora) -}}
{{- printf "The catalogue gives %s no adapter limits, so it can load none: leave `lora` unset." .name -}}
{{- else if and (not (empty .entry.adapters)) (not .lora) -}}
{{- printf "%s is given adapters and no room for them: set its `lora`, or take none." .name -}}
{{- else if include "gpt-oss-serving.loraExcess" . -}}
{{- include "gpt-oss-serving.loraExcess" . -}}
{{- else if and .lora (gt (int .apiServers) 1) -}}
{{- printf "An engine that loads adapters has one HTTP front end and %s would have %d (`api_servers`): each would number adapters on its own." .name (int .apiServers) -}}
{{- else if and .onCpu .facts.profiles -}}
{{- printf "%s is meant for GPUs and its profile is cpu: name one of its own, of which the first is %s on %s." .name (first .facts.profiles).name (first .facts.profiles).gpu -}}
{{- else if and .onCpu .lora .facts.experts -}}
{{- printf "Adapters on %s crash its engine on a CPU at the first request, whose experts then need Triton: leave `lora` unset." .name -}}
{{- else if and .onCpu (ne (int .min) (int .max)) (not .facts.cpu_scales) (empty .entry.knee) -}}
{{- printf "The fleet of %s may change and nothing says what one engine of it does on a CPU: give it a `knee`, or the same min_replicas and max_replicas." .name -}}
{{- else if not .onCpu -}}
{{- include "gpt-oss-serving.gpuProblem" . -}}
{{- end -}}
{{- end -}}

{{- define "gpt-oss-serving.loraExcess" -}}
{{- $model := . -}}
{{- range $key, $most := .facts.lora | default dict -}}
{{- $asked := index $model.room $key | default 0 -}}
{{- if gt (int $asked) (int $most) -}}
{{- printf "`lora.%s` of %s is %d and the catalogue allows %d. " $key $model.name (int $asked) (int $most) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "gpt-oss-serving.gpuProblem" -}}
{{- $speed := .entry.speed | default dict -}}
{{- if mod (int .gpus) (int .podGpus) -}}
{{- printf "%s takes %d GPUs (tensor %d × pipeline %d × data %d) and a node has %d: its pods cannot share them evenly." .name (int .gpus) (int .tensor) (int .pipeline) (int .data) (int .perNode) -}}
{{- else if and $speed (ne $speed.model .name) (not (and (eq $speed.model (.facts.base | default "")) .hasBasesFormats)) -}}
{{- printf "The `speed` of %s was measured of %s, which is neither that model nor a `base` with weights of its formats: measure it (`serving accept --speed-out`), or leave `speed` unset." .name $speed.model -}}
{{- else if and $speed (not (has .moeBackend (list "auto" $speed.kernel))) -}}
{{- printf "The `speed` of %s was measured with the kernel %s and its engines run %s: set `moe_backend: %s`, or leave `speed` unset." .name $speed.kernel .moeBackend $speed.kernel -}}
{{- else if and (gt (int .nodes) 1) .lora -}}
{{- printf "An engine of %s over %d nodes loads no adapters: each node's workers would read them from where only the first has them." .name (int .nodes) -}}
{{- else if and .facts.latent (eq .kvDtype "fp8") -}}
{{- printf "The cache of %s is a latent, whose 8 bits are a format of their own: leave `kv_cache_dtype` unset." .name -}}
{{- else if and .offloadingGib (gt (int .nodes) 1) -}}
{{- printf "An engine of %s over %d nodes keeps no KV on its hosts: each would hold a file for all ranks. Leave `kv_offloading_gib` unset." .name (int .nodes) -}}
{{- else if and .offloadingGib .facts.sliding (eq .kvOffloading "lmcache") -}}
{{- printf "LMCache turns vLLM's hybrid KV manager off, and the sliding layers of %s would then keep every token: leave `kv_offloading_backend` unset." .name -}}
{{- else -}}
{{- include "gpt-oss-serving.memoryProblem" . -}}
{{- end -}}
{{- end -}}

{{/* Of models of the catalogue, as far as files/catalog.json says what fits; preflight and the engine plane compute the rest. */}}
{{- define "gpt-oss-serving.memoryProblem" -}}
{{- $smallest := 1 -}}
{{- $rows := .profile.smallest_tensor | default list -}}
{{- if le (int .pipeline) (len $rows) -}}
{{- $row := index $rows (sub .pipeline 1) -}}
{{- if le (int .data) (len $row) -}}{{- $smallest = int (index $row (sub .data 1)) -}}{{- end -}}
{{- end -}}
{{- $most := -1 -}}{{- $isScarce := false -}}
{{- range .profile.rooms -}}
{{- if and (eq (int .shape.tensor) (int $.tensor)) (eq (int .shape.pipeline) (int $.pipeline)) (eq (int .shape.data) (int $.data)) (eq .shape.expert $.expert) -}}
{{- $isScarce = true -}}
{{- $most = index . $.kvDtype ($.speculation | default "ngram") (int $.guessedTokens) -}}
{{- end -}}
{{- end -}}
{{- $ranks := ternary (mul (.room.max_adapters | default 0) (.room.max_rank | default 0)) 0 .lora -}}
{{- if lt (int .tensor) $smallest -}}
{{- printf "%s does not fit %d tensor ranks on %s: profile %s with pipeline %d and data %d needs at least %d (`serving models budget %s` shows the arithmetic)." .name (int .tensor) .gpu .profileName (int .pipeline) (int .data) $smallest .name -}}
{{- else if and $isScarce (gt (int $ranks) (int $most)) -}}
{{- printf "%s does not fit %d tensor ranks on %s with the KV cache, guesses and adapters that it is to have: take more ranks, or ask for less." .name (int .tensor) .gpu -}}
{{- end -}}
{{- end -}}
