{{/* "true" when the values leave a Secret unnamed, so that the Job must create it. */}}
{{- define "gpt-oss-serving.makesSecrets" -}}
{{- if not (and .Values.secrets.plane .Values.secrets.keys) -}}true{{- end -}}
{{- end -}}

{{/*
Labels and annotations of a pre-install and pre-upgrade hook, which Helm deletes when all hooks have succeeded: nothing is left to
uninstall. Takes root and weight; lower weights run first.
*/}}
{{- define "gpt-oss-serving.hookMetadata" -}}
{{- $hook := dict "helm.sh/hook" "pre-install,pre-upgrade" "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" -}}
{{- $_ := set $hook "helm.sh/hook-weight" (toString .weight) -}}
{{- include "gpt-oss-serving.metadata" (dict "root" .root "component" "job" "annotations" $hook) -}}
{{- end -}}

{{/* What the pods of all Jobs have in common. Takes root. */}}
{{- define "gpt-oss-serving.jobPod" -}}
restartPolicy: Never
# A Service named serving-… would add variables named SERVING_…, which would be read as settings.
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

{{/* A short-lived container with the gateway's image. Takes root. */}}
{{- define "gpt-oss-serving.jobContainer" -}}
image: {{ include "gpt-oss-serving.image" (dict "root" .root "image" .root.Values.images.gateway) }}
imagePullPolicy: {{ .root.Values.images.gateway.pullPolicy }}
resources:
  requests: {cpu: 100m, memory: 128Mi}
  limits: {memory: 512Mi}
securityContext:
  {{- include "gpt-oss-serving.containerSecurityContext" .root | nindent 2 }}
{{- end -}}
