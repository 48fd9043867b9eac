{{/*
What a cell is made of: its own values over the release's, the settings of its engines, the catalogue, the time-outs.
Templates hand structures to each other as JSON (`fromJson` of an `include`).
*/}}

{{/* The catalogue's facts, as JSON, which Helm reads several times faster than YAML: they are read for each model anew. */}}
{{- define "gpt-oss-serving.catalog" -}}
{{- .Files.Get "files/catalog.json" -}}
{{- end -}}

{{/* A cell's values over the release's, as JSON: name, paused, hold, nodeSelector, models, groups, images. Takes root, cell. */}}
{{- define "gpt-oss-serving.cellValues" -}}
{{- $own := index .root.Values.cells .cell | default dict -}}
{{- $images := mergeOverwrite (deepCopy (pick .root.Values.images "head" "engine")) (deepCopy ($own.images | default dict)) -}}
{{- $groups := mergeOverwrite (deepCopy (.root.Values.groups | default dict)) (deepCopy ($own.groups | default dict)) -}}
{{- $models := .root.Values.models -}}
{{- if hasKey $own "models" -}}{{- $models = $own.models -}}{{- end -}}
{{- dict "name" .cell "paused" ($own.paused | default false) "hold" ($own.hold | default false) "nodeSelector" ($own.nodeSelector | default dict) "models" ($models | default list) "groups" $groups "images" $images | toJson -}}
{{- end -}}

{{/* Settings of engines, the catalogue's defaults under the values', as JSON. */}}
{{- define "gpt-oss-serving.engineSettings" -}}
{{- $catalog := include "gpt-oss-serving.catalog" . | fromJson -}}
{{- mergeOverwrite (deepCopy $catalog.engine) (deepCopy (.Values.engine.settings | default dict)) | toJson -}}
{{- end -}}

{{/*
The order of leaving, in seconds, each longer than the next, as JSON. Only the drain limit can change while pods run; all
that pods carry follows from their grace period.
*/}}
{{- define "gpt-oss-serving.leaving" -}}
{{- $grace := int .Values.engine.terminationGracePeriodSeconds -}}
{{- $settings := include "gpt-oss-serving.engineSettings" . | fromJson -}}
{{- $drain := int $settings.drain_timeout_s -}}
{{- dict
  "drain" $drain
  "serve" (add $drain 30)
  "preStop" (sub $grace 45)
  "ray" (sub $grace 30)
  "grace" $grace
  "lastPreStop" (add $grace 15)
  "lastGrace" (add $grace 60)
  "clusterDeletion" (add $drain 120)
  | toJson -}}
{{- end -}}

{{/* Ports of Ray's own services on every node; NetworkPolicies name them as the range 6380 to 6389. */}}
{{- define "gpt-oss-serving.rayPorts" -}}
node-manager-port: "6380"
object-manager-port: "6381"
runtime-env-agent-port: "6382"
dashboard-agent-grpc-port: "6383"
metrics-export-port: "6386"
dashboard-agent-listen-port: "52365"
min-worker-port: "11000"
max-worker-port: "12999"
{{- end -}}
