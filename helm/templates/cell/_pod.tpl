{{/*
Pods of a Ray cluster, as KubeRay's pod templates. KubeRay adds `ray start` with `rayStartParams`, an init container that
waits for the head with this container's environment, volumes and security, and its own labels.
*/}}

{{/*
Labels of a Ray pod. The version is the image's: the chart's own would build a new Ray cluster when only gateways change.
Takes root, component, cell, image, annotations.
*/}}
{{- define "gpt-oss-serving.rayPodMetadata" -}}
metadata:
  labels:
    {{- $version := dict "app.kubernetes.io/version" (include "gpt-oss-serving.imageVersion" .) }}
    {{- include "gpt-oss-serving.over" (list (include "gpt-oss-serving.podLabels" . | fromYaml) $version) | nindent 4 }}
  {{- with .annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* What every Ray pod's spec begins with. Takes root, grace, exempt (whether it runs with a named exemption). */}}
{{- define "gpt-oss-serving.rayPodSpec" -}}
serviceAccountName: {{ include "gpt-oss-serving.cellServiceAccount" .root }}
automountServiceAccountToken: false
# A Service named `ray` or `vllm` in the namespace would otherwise add RAY_… and VLLM_… variables.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .grace }}
securityContext:
  {{- include "gpt-oss-serving.podSecurityContext" .root | nindent 2 }}
  # Ephemeral ports, which vLLM, NCCL and Gloo use where none is configured: a separate range, which NetworkPolicies name.
  sysctls:
    - name: net.ipv4.ip_local_port_range
      value: "20000 29999"
{{- include "gpt-oss-serving.imagePullSecrets" .root }}
{{- end -}}

{{/* Environment of every Ray pod. Takes root, rayDrainS. */}}
{{- define "gpt-oss-serving.rayEnv" -}}
{{- include "gpt-oss-serving.commonEnv" .root }}
# The container may run as any user id, without a home folder.
- name: HOME
  value: /tmp
- name: USER
  value: serving
# Seconds after SIGTERM that Ray lets Serve drain this node, if the preStop hook has not drained it.
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: {{ .rayDrainS | quote }}
# Off: Ray's memory monitor counts an engine's page cache, and kills the smallest worker for the memory of the largest. Kubernetes
# handles memory pressure instead.
- name: RAY_memory_monitor_refresh_ms
  value: "0"
# Milliseconds between two updates of Serve's metrics, as often as Ray exports them; ten times a second otherwise, in every pod.
- name: RAY_SERVE_METRICS_EXPORT_INTERVAL_MS
  value: "10000"
- name: AUTOSCALER_METRIC_PORT
  value: "6387"
- name: DASHBOARD_METRIC_PORT
  value: "6388"
{{- end -}}

{{/* Ports of every Ray pod; names as KubeRay and the PodMonitor know them. */}}
{{- define "gpt-oss-serving.rayContainerPorts" -}}
- {name: serve, containerPort: 8000}
- {name: metrics, containerPort: 6386}
{{- end -}}

{{/*
Probes call the raylet's agent. KubeRay's own probes call Serve's proxy too, which a node without a replica does not run, so
such a node never became ready (KubeRay issue 4994). Engines' health is the directory's business. Takes upS: seconds a cold start
may take.
*/}}
{{- define "gpt-oss-serving.rayProbes" -}}
{{- with .upS }}
startupProbe:
  httpGet: {path: /api/healthz, port: 52365}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: {{ div (add . 9) 10 }}
{{- end }}
readinessProbe:
  httpGet: {path: /api/healthz, port: 52365}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 10
# Ten minutes: a liveness restart kills the container's engines, so it is the last resort.
livenessProbe:
  httpGet: {path: /api/healthz, port: 52365}
  initialDelaySeconds: 30
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 60
{{- end -}}

{{/* Writable volumes of every Ray pod, and the planes' secrets. Takes root, shmMib. */}}
{{- define "gpt-oss-serving.rayVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 20Gi}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ printf "%vMi" .shmMib | include "gpt-oss-serving.quantity" }}}
- name: logs
  emptyDir: {sizeLimit: 10Gi}
{{ include "gpt-oss-serving.planeVolumes" .root }}
{{- end -}}

{{- define "gpt-oss-serving.rayVolumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
- {name: logs, mountPath: /var/lib/serving/logs}
{{ include "gpt-oss-serving.planeVolumeMounts" .root }}
{{- end -}}

{{/* An image's version as a label may be: 63 characters, of which the last is a letter or digit. A digest is a hash already. */}}
{{- define "gpt-oss-serving.imageVersion" -}}
{{- if .image.digest -}}
{{- .image.digest | replace ":" "-" | trunc 63 -}}
{{- else -}}
{{- include "gpt-oss-serving.cut" (dict "name" (.image.tag | default .root.Chart.AppVersion) "most" 63) | trimAll "-_." -}}
{{- end -}}
{{- end -}}

{{/* An image of a cell. Takes root, image. */}}
{{- define "gpt-oss-serving.rayImage" -}}
image: {{ include "gpt-oss-serving.image" . }}
imagePullPolicy: {{ .image.pullPolicy }}
{{- end -}}

{{/* Where pods may run. Takes cell (its values) and own ({nodeSelector, tolerations, priorityClassName}). */}}
{{- define "gpt-oss-serving.placement" -}}
{{- with merge (deepCopy .cell.nodeSelector) .own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* rayStartParams of every node. Takes root. */}}
{{- define "gpt-oss-serving.rayStartParams" -}}
{{ include "gpt-oss-serving.rayPorts" .root }}
# It would send workers' logs to drivers, of which a cell has none that prints them.
include-log-monitor: "false"
object-store-memory: {{ mul (int64 .root.Values.ray.objectStoreMib) 1048576 | quote }}
{{- end -}}
