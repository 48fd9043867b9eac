{{/* The head of a cell: GCS, dashboard, Serve's controller; never a replica (num-cpus 0, no label). Takes root, cell, values. */}}
{{- define "gpt-oss-serving.headGroup" -}}
{{- $root := .root -}}
{{- $leaving := include "gpt-oss-serving.leaving" $root | fromJson -}}
{{- $shm := add (int $root.Values.ray.objectStoreMib) (int $root.Values.engine.shm.baseMib) -}}
serviceType: ClusterIP
rayStartParams:
  {{- include "gpt-oss-serving.rayStartParams" . | nindent 2 }}
  num-cpus: "0"
  port: "6379"
  # The operator applies serveConfigV2 through it; its Service is in the cluster only, behind a NetworkPolicy and Ray's token.
  dashboard-host: 0.0.0.0
  dashboard-port: "8265"
  ray-client-server-port: "10001"
template:
  {{- include "gpt-oss-serving.rayPodMetadata" (dict "root" $root "component" "head" "cell" .cell "image" .values.images.head) | nindent 2 }}
  spec:
    {{- include "gpt-oss-serving.headPodSpec" . | nindent 4 }}
    {{- with include "gpt-oss-serving.placement" (dict "cell" .values "own" $root.Values.head) | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    containers:
      - name: ray-head
        {{- include "gpt-oss-serving.rayImage" (dict "root" $root "image" .values.images.head) | nindent 8 }}
        ports:
          - {name: gcs-server, containerPort: 6379}
          - {name: dashboard, containerPort: 8265}
          {{- include "gpt-oss-serving.rayContainerPorts" . | nindent 10 }}
        env:
          {{- include "gpt-oss-serving.rayEnv" (dict "root" $root "rayDrainS" 5) | nindent 10 }}
          # For Serve's controller: fill one node before the next, so that a large engine finds a whole node; keep retrying a
          # model whose engines failed to start; and look at everything it runs every half second, not ten times a second.
          - name: RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY
            value: "1"
          - name: RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT
            value: "1000000"
          - name: RAY_SERVE_CONTROL_LOOP_INTERVAL_S
            value: "0.5"
        resources:
          {{- include "gpt-oss-serving.resources" $root.Values.head.resources | nindent 10 }}
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
      {{- if include "gpt-oss-serving.nodesMayGrow" $root }}
      {{- include "gpt-oss-serving.autoscalerTokenVolume" . | nindent 6 }}
      {{- end }}
{{- end -}}

{{/* The head's account is KubeRay's where Ray's autoscaler runs: it makes one for each cluster, with a Role. */}}
{{- define "gpt-oss-serving.headPodSpec" -}}
{{- $leaving := include "gpt-oss-serving.leaving" .root | fromJson -}}
{{- $spec := include "gpt-oss-serving.rayPodSpec" (dict "root" .root "grace" $leaving.lastGrace) | fromYaml -}}
{{- if include "gpt-oss-serving.nodesMayGrow" .root -}}{{- $spec = omit $spec "serviceAccountName" -}}{{- end -}}
{{- toYaml $spec -}}
{{- end -}}

{{/*
Heads and directories stop last. When a whole Ray cluster is deleted, Kubernetes stops all its pods at once; without Serve's
controller and the directory, neither engines nor gateways would learn that they must drain. Takes gpt-oss-serving.leaving.
*/}}
{{- define "gpt-oss-serving.lastToLeave" -}}
lifecycle:
  preStop:
    exec:
      command: [python, -m, serving.engine.leave, --last, --within-s, {{ .lastPreStop | quote }}]
{{- end -}}
