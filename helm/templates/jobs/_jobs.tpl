{{/* "true" when some Secret is neither given nor there: then a Job makes it. */}}
{{- define "gpt-oss-serving.makesSecrets" -}}
{{- if not (and .Values.secrets.plane .Values.secrets.keys) -}}true{{- end -}}
{{- end -}}

{{/*
Annotations of an object that an install or upgrade needs before anything else, and that goes when all such are done:
nothing of it is left to uninstall. Takes a weight, lower ones first.
*/}}
{{- define "gpt-oss-serving.beforehand" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* What every Job's pod has in common. Takes root. */}}
{{- define "gpt-oss-serving.jobPod" -}}
restartPolicy: Never
# A Service called serving-… would become variables named SERVING_…, and those are settings.
enableServiceLinks: false
{{- include "gpt-oss-serving.imagePullSecrets" .root }}
{{- with .root.Values.jobs.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.jobs.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "gpt-oss-serving.podSecurityContext" .root | nindent 2 }}
{{- end -}}

{{/* A gateway image that runs for a moment. Takes root. */}}
{{- define "gpt-oss-serving.jobContainer" -}}
image: {{ include "gpt-oss-serving.image" (dict "root" .root "image" .root.Values.images.gateway) }}
imagePullPolicy: {{ .root.Values.images.gateway.pullPolicy }}
resources:
  requests: {cpu: 100m, memory: 128Mi}
  limits: {memory: 512Mi}
securityContext:
  {{- include "gpt-oss-serving.containerSecurityContext" .root | nindent 2 }}
{{- end -}}
