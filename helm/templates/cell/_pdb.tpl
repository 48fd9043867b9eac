{{/* Takes root, cell, component, keep, and group for engines. */}}
{{- define "gpt-oss-serving.cellPdb" }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "gpt-oss-serving.cellName" . }}-{{ .group | default .component }}
  {{- include "gpt-oss-serving.metadata" . | nindent 2 }}
spec:
  minAvailable: {{ .keep }}
  # A pod that never became ready serves no requests.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "gpt-oss-serving.selectorLabels" . | nindent 6 }}
      {{- with .group }}
      ray.io/group: {{ . }}
      {{- end }}
{{- end }}
