{{/*
serveConfigV2: the directory's application and one for each model, built by serving/engine/cluster.py. Serve restarts an
application when its `args` change and at nothing else, so `args` hold what an engine is started with; numbers, limits,
adapters and plans stand under `deployments` and change live.
*/}}

{{/* As YAML. Takes root, cell, values. */}}
{{- define "gpt-oss-serving.serveConfig" -}}
{{- $context := . -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
  # Longer than gateways keep an idle connection, so that they close first and none is lost between two polls.
  keep_alive_timeout_s: 75
  {{- if include "gpt-oss-serving.planeTlsEnabled" .root }}
  {{- $files := include "gpt-oss-serving.planeTlsFiles" .root | fromYaml }}
  ssl_certfile: {{ $files.certificate_file }}
  ssl_keyfile: {{ $files.key_file }}
  {{- end }}
logging_config: {encoding: JSON, log_level: INFO, enable_access_log: false}
applications:
  {{- include "gpt-oss-serving.directoryApplication" . | nindent 2 }}
  {{- if not .values.paused }}
  {{- range include "gpt-oss-serving.cellModels" . | fromJsonArray }}
  {{- if not .problem }}
  {{- include "gpt-oss-serving.modelApplication" (merge (dict "model" .) $context) | nindent 2 }}
  {{- end }}
  {{- end }}
  {{- end }}
{{- end -}}

{{- define "gpt-oss-serving.directoryApplication" -}}
{{- $models := list -}}
{{- if not .values.paused -}}
{{- range include "gpt-oss-serving.cellModels" . | fromJsonArray -}}
{{- if not .problem -}}{{- $models = append $models .entry -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $slos := dict -}}
{{- $set := .root.Values.gateway.settings -}}
{{- range $model := $models -}}
{{- with get ($set.model_slos | default dict) $model.name | default $set.slo -}}{{- $_ := set $slos $model.name . -}}{{- end -}}
{{- end -}}
- name: directory
  route_prefix: /directory
  import_path: serving.engine.cluster:directory
  args:
    cell: {{ .cell | quote }}
    secret_file: /etc/serving/plane/plane.secret
    labels:
      {{- include "gpt-oss-serving.directoryLabels" . | nindent 6 }}
  deployments:
    - name: Directory
      user_config:
        models:
          {{- toYaml $models | nindent 10 }}
        own_models:
          {{- toYaml .root.Values.ownModels | nindent 10 }}
        {{- with $slos }}
        slos:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        engine:
          {{- include "gpt-oss-serving.wholeEngine" .root | nindent 10 }}
{{- end -}}

{{/* Takes root, cell, values, model. */}}
{{- define "gpt-oss-serving.modelApplication" -}}
{{- $name := .model.name -}}
- name: model-{{ $name }}
  route_prefix: null
  import_path: serving.engine.cluster:model
  args:
    model:
      {{- toYaml (include "gpt-oss-serving.startModel" .model.entry | fromJson) | nindent 6 }}
    {{- range .root.Values.ownModels }}
    {{- if eq .name $name }}
    own_model:
      {{- toYaml (omit . "default_output_tokens") | nindent 6 }}
    {{- end }}
    {{- end }}
    engine:
      {{- toYaml (include "gpt-oss-serving.startEngine" .root | fromJson) | nindent 6 }}
    home: /var/lib/serving
    secret_file: /etc/serving/plane/plane.secret
    # Heads and directories have no vLLM and no GPU.
    labels:
      gpt-oss-serving/role: engine
    {{- if include "gpt-oss-serving.planeTlsEnabled" .root }}
    plane_tls:
      {{- include "gpt-oss-serving.planeTlsFiles" .root | nindent 6 }}
    {{- end }}
  deployments:
    - name: Replica
      {{- include "gpt-oss-serving.fleet" . | nindent 6 }}
      graceful_shutdown_timeout_s: {{ (include "gpt-oss-serving.leaving" .root | fromJson).serve }}
      user_config:
        engine:
          {{- toYaml (include "gpt-oss-serving.liveEngine" .root | fromJson) | nindent 10 }}
        adapters:
          {{- toYaml (.model.entry.adapters | default list) | nindent 10 }}
{{- end -}}

{{/*
How many: Serve counts the pods of an engine, and asks the directory within these bounds, through the proxy of the head's own
node. A fixed fleet has equal bounds: were it a plain number, the day it may change would restart its engines, because the
policy is part of an application's version.
*/}}
{{- define "gpt-oss-serving.fleet" -}}
{{- $model := .model -}}
autoscaling_config:
  min_replicas: {{ mul $model.min $model.nodes }}
  max_replicas: {{ mul $model.max $model.nodes }}
  # The policy has a memory of its own: delays on top of it would only be late.
  upscale_delay_s: 0
  downscale_delay_s: 0
  downscale_to_zero_delay_s: 0
  policy:
    policy_function: serving.engine.hook:Wanted
    policy_kwargs:
      model: {{ $model.name }}
      members: {{ $model.nodes }}
      directory: {{ include "gpt-oss-serving.planeScheme" .root }}://127.0.0.1:8000
      secret_file: /etc/serving/plane/plane.secret
      {{- if include "gpt-oss-serving.planeTlsEnabled" .root }}
      ca_file: {{ (include "gpt-oss-serving.planeTlsFiles" .root | fromYaml).ca_file }}
      {{- end }}
{{- end -}}

{{/* START_OF_MODEL of serving/engine/specs.py: what of a model's entry its engines are started with. */}}
{{- define "gpt-oss-serving.startModel" -}}
{{- pick . "name" "profile" "gpu" "tensor" "pipeline" "data" "expert" "lora" "moe_backend" "kv_cache_dtype" "kv_offloading_gib" "kv_offloading_backend" "speculation" | toJson -}}
{{- end -}}

{{/* START_OF_ENGINE: what of the settings. An engine takes its pod's address, and a port that NetworkPolicies name. */}}
{{- define "gpt-oss-serving.startEngine" -}}
{{- $own := omit (.Values.engine.settings | default dict) "start_timeout_s" "load_mib_per_s" "drain_timeout_s" "heartbeat_s" "nodes_may_grow" -}}
{{- $engine := merge (dict "port_range" (list 8100 8199)) $own -}}
{{- set $engine "host" nil | toJson -}}
{{- end -}}

{{/* LIVE_OF_ENGINE: what reaches engines that run. */}}
{{- define "gpt-oss-serving.liveEngine" -}}
{{- pick (include "gpt-oss-serving.engineSettings" . | fromJson) "start_timeout_s" "load_mib_per_s" "drain_timeout_s" "heartbeat_s" | toJson -}}
{{- end -}}

{{/* CELLS_OF_ENGINE: what is the directory's alone. */}}
{{- define "gpt-oss-serving.cellEngine" -}}
{{- dict
  "directory_labels" (include "gpt-oss-serving.directoryLabels" . | fromYaml)
  "nodes_may_grow" (not (empty (include "gpt-oss-serving.nodesMayGrow" .))) | toJson -}}
{{- end -}}

{{/* All of them, as YAML: the directory plans with what engines start with, and hands on what is live. */}}
{{- define "gpt-oss-serving.wholeEngine" -}}
{{- $engine := include "gpt-oss-serving.startEngine" . | fromJson -}}
{{- range $part := list "gpt-oss-serving.liveEngine" "gpt-oss-serving.cellEngine" -}}
{{- range $name, $value := include $part $ | fromJson -}}{{- $_ := set $engine $name $value -}}{{- end -}}
{{- end -}}
{{- toYaml $engine -}}
{{- end -}}
