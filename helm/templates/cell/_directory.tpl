{{/* The worker group of the directory: small pods that no engine's failure takes down. Takes root, cell, values. */}}
{{- define "gpt-oss-serving.directoryGroup" -}}
{{- $root := .root -}}
{{- $leaving := include "gpt-oss-serving.leaving" $root | fromJson -}}
{{- $pods := ternary 0 (int $root.Values.directory.pods) .values.paused -}}
{{- $shm := add (int $root.Values.ray.objectStoreMib) (int $root.Values.engine.shm.baseMib) -}}
groupName: directory
replicas: {{ $pods }}
minReplicas: {{ $pods }}
maxReplicas: {{ $pods }}
{{ include "gpt-oss-serving.asKubeRayWrites" . }}
labels:
  {{- include "gpt-oss-serving.directoryLabels" . | nindent 2 }}
rayStartParams:
  {{- include "gpt-oss-serving.rayStartParams" . | nindent 2 }}
  # No cores to schedule on: a CPU engine must not be placed here.
  num-cpus: "0"
template:
  {{- include "gpt-oss-serving.rayPodMetadata" (dict "root" $root "component" "directory" "cell" .cell "image" .values.images.head) | nindent 2 }}
  spec:
    {{- include "gpt-oss-serving.rayPodSpec" (dict "root" $root "grace" $leaving.lastGrace) | nindent 4 }}
    {{- with include "gpt-oss-serving.placement" (dict "cell" .values "own" (merge (dict "priorityClassName" $root.Values.head.priorityClassName) $root.Values.directory)) | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    topologySpreadConstraints:
      - {{- include "gpt-oss-serving.spread" (dict "root" $root "component" "directory" "cell" .cell) | nindent 8 }}
    containers:
      - name: ray-worker
        {{- include "gpt-oss-serving.rayImage" (dict "root" $root "image" .values.images.head) | nindent 8 }}
        ports:
          {{- include "gpt-oss-serving.rayContainerPorts" . | nindent 10 }}
        env:
          {{- include "gpt-oss-serving.rayEnv" (dict "root" $root "rayDrainS" 5) | nindent 10 }}
          {{- with include "gpt-oss-serving.reconnectEnv" $root | trim }}
          {{- . | nindent 10 }}
          {{- end }}
        resources:
          {{- include "gpt-oss-serving.resources" $root.Values.directory.resources | nindent 10 }}
        {{- with include "gpt-oss-serving.rayProbes" dict | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- include "gpt-oss-serving.lastToLeave" $leaving | nindent 8 }}
        securityContext:
          {{- include "gpt-oss-serving.containerSecurityContext" $root | nindent 10 }}
        volumeMounts:
          {{- include "gpt-oss-serving.rayVolumeMounts" . | nindent 10 }}
    volumes:
      {{- include "gpt-oss-serving.rayVolumes" (dict "root" $root "shmMib" $shm) | nindent 6 }}
{{- end -}}

{{/* Ray labels of nodes that may run the directory; Serve's configuration requires the same. */}}
{{- define "gpt-oss-serving.directoryLabels" -}}
gpt-oss-serving/role: directory
{{- end -}}

{{/* One pod per node, as far as there are nodes. Takes root, component, cell. */}}
{{- define "gpt-oss-serving.spread" -}}
maxSkew: 1
topologyKey: kubernetes.io/hostname
whenUnsatisfiable: ScheduleAnyway
labelSelector:
  matchLabels:
    {{- include "gpt-oss-serving.selectorLabels" . | nindent 4 }}
{{- end -}}

{{/* How long a worker waits for a head that restarts; only with fault tolerance is it the same cluster afterwards. */}}
{{- define "gpt-oss-serving.reconnectEnv" -}}
{{- with .Values.ray.gcsFaultTolerance }}
{{- if .redisAddress }}
- name: RAY_gcs_rpc_server_reconnect_timeout_s
  value: {{ .reconnectTimeoutS | quote }}
{{- end }}
{{- end }}
{{- end -}}
