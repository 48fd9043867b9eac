{{/* A worker group of engines. Takes root, cell, values, group. */}}
{{- define "gpt-oss-serving.engineGroup" -}}
{{- $group := .group -}}
groupName: {{ $group.name }}
replicas: {{ $group.min }}
minReplicas: {{ $group.min }}
maxReplicas: {{ $group.max }}
{{ include "gpt-oss-serving.asKubeRayWrites" . }}
labels:
  {{- include "gpt-oss-serving.engineLabels" . | nindent 2 }}
rayStartParams:
  {{- include "gpt-oss-serving.rayStartParams" . | nindent 2 }}
  {{- if $group.onCpu }}
  num-cpus: "1"
  {{- else }}
  num-cpus: {{ include "gpt-oss-serving.podCpus" . | quote }}
  num-gpus: {{ $group.podGpus | quote }}
  {{- end }}
template:
  {{- include "gpt-oss-serving.rayPodMetadata" (dict "root" .root "component" "engine" "cell" .cell "image" .values.images.engine "annotations" (include "gpt-oss-serving.exemptions" . | fromYaml)) | nindent 2 }}
  spec:
    {{- include "gpt-oss-serving.enginePodSpec" . | nindent 4 }}
{{- end -}}

{{/* Ray labels: `ray.io/accelerator-type` is what models' placement asks for (serving/engine/placement.py). */}}
{{- define "gpt-oss-serving.engineLabels" -}}
gpt-oss-serving/role: engine
{{- if not .group.onCpu }}
{{- $catalog := include "gpt-oss-serving.catalog" .root | fromJson }}
ray.io/accelerator-type: {{ (index $catalog.gpus .group.gpu | default dict).ray_label }}
{{- end }}
{{- end -}}

{{- define "gpt-oss-serving.podCpus" -}}
{{- mul (int .root.Values.engine.cpusPerGpu) .group.podGpus -}}
{{- end -}}

{{- define "gpt-oss-serving.enginePodSpec" -}}
{{- $root := .root -}}
{{- $leaving := include "gpt-oss-serving.leaving" $root | fromJson -}}
{{- $engine := $root.Values.engine -}}
{{- include "gpt-oss-serving.rayPodSpec" (dict "root" $root "grace" $leaving.grace) }}
{{- include "gpt-oss-serving.placement" (dict "cell" .values "own" (ternary (omit $engine "tolerations") $engine .group.onCpu)) }}
{{- if not .group.onCpu }}
{{- with $engine.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- include "gpt-oss-serving.gpuNodes" . }}
{{- end }}
{{- if not (include "gpt-oss-serving.nodesMayGrow" $root) }}
# Spread, so that the loss of a node takes as few engines as possible. Where nodes grow, pods pack instead, so that empty nodes
# can be removed.
topologySpreadConstraints:
  - {{- include "gpt-oss-serving.spread" (dict "root" $root "component" "engine" "cell" .cell) | nindent 4 }}
{{- end }}
containers:
  - name: ray-worker
    {{- include "gpt-oss-serving.rayImage" (dict "root" $root "image" .values.images.engine) | nindent 4 }}
    ports:
      {{- include "gpt-oss-serving.rayContainerPorts" . | nindent 6 }}
    env:
      {{- include "gpt-oss-serving.engineEnv" (merge (dict "leaving" $leaving) .) | nindent 6 }}
    resources:
      {{- include "gpt-oss-serving.engineResources" . | nindent 6 }}
    {{- with include "gpt-oss-serving.rayProbes" (dict "upS" (include "gpt-oss-serving.coldStartLimitS" . | int)) | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    # Graceful shutdown: Serve drains this node's replicas, gateways stop routing to them, streams finish, engines exit.
    lifecycle:
      preStop:
        exec:
          command: [python, -m, serving.engine.leave, --within-s, {{ $leaving.preStop | quote }}]
    securityContext:
      {{- include "gpt-oss-serving.engineSecurityContext" . | nindent 6 }}
    volumeMounts:
      {{- include "gpt-oss-serving.rayVolumeMounts" . | nindent 6 }}
      - {name: models, mountPath: /var/lib/serving/models, readOnly: true}
      - {name: cache, mountPath: /var/lib/serving/cache}
volumes:
  {{- include "gpt-oss-serving.rayVolumes" (dict "root" $root "shmMib" (include "gpt-oss-serving.shmMib" .)) | nindent 2 }}
  - name: models
    {{- include "gpt-oss-serving.modelVolumeSource" $root | nindent 4 }}
  - name: cache
    {{- include "gpt-oss-serving.cacheVolumeSource" $root | nindent 4 }}
{{- end -}}

{{- define "gpt-oss-serving.engineEnv" -}}
{{- include "gpt-oss-serving.rayEnv" (dict "root" .root "rayDrainS" .leaving.ray) }}
{{- include "gpt-oss-serving.reconnectEnv" .root }}
- name: HF_HOME
  value: /var/lib/serving/cache/huggingface
# The address an engine advertises; on a pod with several networks vLLM would pick one itself.
- name: VLLM_HOST_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- if not .group.onCpu }}
- name: CUDA_CACHE_PATH
  value: /var/lib/serving/cache/cuda
- name: NCCL_SOCKET_IFNAME
  value: {{ .root.Values.engine.networkInterface }}
- name: GLOO_SOCKET_IFNAME
  value: {{ .root.Values.engine.networkInterface }}
- name: NCCL_IB_DISABLE
  value: {{ ternary "0" "1" .root.Values.engine.rdma.enabled | quote }}
{{- if .root.Values.engine.rdma.enabled }}
- name: NCCL_IB_HCA
  value: {{ .root.Values.engine.rdma.hcas | quote }}
{{- end }}
{{- end }}
{{- range $name, $value := .root.Values.engine.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "gpt-oss-serving.engineResources" -}}
{{- $engine := .root.Values.engine -}}
{{- if .group.onCpu -}}
{{- include "gpt-oss-serving.resources" $engine.cpu.resources -}}
{{- else -}}
requests:
  cpu: {{ include "gpt-oss-serving.podCpus" . | quote }}
  memory: {{ include "gpt-oss-serving.memoryGib" . | printf "%sGi" | include "gpt-oss-serving.quantity" }}
limits:
  {{ $engine.gpuResource }}: {{ .group.podGpus | quote }}
  {{- if $engine.rdma.enabled }}
  {{- range $name, $count := $engine.rdma.resources }}
  {{ $name }}: {{ $count | quote }}
  {{- end }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* Affinity to nodes with the right GPUs, by the label of NVIDIA's GPU feature discovery. */}}
{{- define "gpt-oss-serving.gpuNodes" -}}
{{- $engine := .root.Values.engine -}}
{{- with index $engine.gpuProducts .group.gpu }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: {{ $engine.gpuProductLabel }}
              operator: In
              values:
                {{- toYaml . | nindent 16 }}
{{- end }}
{{- end -}}

{{- define "gpt-oss-serving.engineSecurityContext" -}}
{{- $context := include "gpt-oss-serving.containerSecurityContext" .root | fromYaml -}}
{{- if and .root.Values.engine.rdma.enabled (not .group.onCpu) -}}
{{- $_ := set $context.capabilities "add" (list "IPC_LOCK") -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* Pods that Pod Security "restricted" would refuse carry the reason. */}}
{{- define "gpt-oss-serving.exemptions" -}}
{{- $used := list -}}
{{- if .root.Values.modelVolume.hostPath -}}{{- $used = append $used "hostPath" -}}{{- end -}}
{{- if and .root.Values.engine.rdma.enabled (not .group.onCpu) -}}{{- $used = append $used "IPC_LOCK" -}}{{- end -}}
{{- with $used -}}
gpt-oss-serving/pod-security-exemptions: {{ join "," . }}
{{- end -}}
{{- end -}}

{{- define "gpt-oss-serving.cacheVolumeSource" -}}
{{- with .Values.cacheVolume -}}
{{- if .existingClaim -}}
persistentVolumeClaim:
  claimName: {{ .existingClaim }}
{{- else -}}
emptyDir: {sizeLimit: {{ include "gpt-oss-serving.quantity" .size }}}
{{- end -}}
{{- end -}}
{{- end -}}
