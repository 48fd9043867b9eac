{{/* "true" when the values leave a Secret unnamed, so that the Job must create it. */}}
{{- define "gpt-oss-serving.makesSecrets" -}}
{{- if not (and .Values.secrets.plane .Values.secrets.keys .Values.secrets.vault) -}}true{{- end -}}
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

{{/* A container of a command on the database, but its name and command; a mount may follow. */}}
{{- define "gpt-oss-serving.storeContainer" -}}
# As variables, because the gateways' ConfigMap does not exist yet at the first install.
env:
  - name: SERVING_HOME
    value: /var/lib/serving
  - name: SERVING_STORE__URL_FILE
    value: /etc/serving/store/url
  - name: SERVING_STORE__PEPPER_FILE
    value: /etc/serving/keys/pepper
  - name: SERVING_STORE__FIRST_KEY_FILE
    value: /etc/serving/keys/admin.key
  {{- include "gpt-oss-serving.commonEnv" . | nindent 2 }}
{{ include "gpt-oss-serving.jobContainer" (dict "root" $) }}
volumeMounts:
  {{- include "gpt-oss-serving.storeVolumeMounts" . | nindent 2 }}
  - name: home
    mountPath: /var/lib/serving
  - name: tmp
    mountPath: /tmp
{{- end -}}
