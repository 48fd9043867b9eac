{{/* The Ray cluster of a cell without its pods: version, Ray's token, fault tolerance, the autoscaler. */}}

{{/* "true" when Ray's autoscaler may add pods, else nothing. */}}
{{- define "gpt-oss-serving.nodesMayGrow" -}}
{{- if (include "gpt-oss-serving.engineSettings" . | fromJson).nodes_may_grow -}}true{{- end -}}
{{- end -}}

{{- define "gpt-oss-serving.cellServiceAccount" -}}
{{- include "gpt-oss-serving.fullname" . }}-cell
{{- end -}}

{{/* Ray's own ports require a token: several of its servers listen on every interface, and one runs any code it is sent. */}}
{{- define "gpt-oss-serving.authOptions" -}}
mode: token
{{- with .Values.ray.authSecretName }}
secretName: {{ . }}
{{- end }}
{{- end -}}

{{/* The namespace in Redis is the cluster's own id, KubeRay's default: a successor must not read its predecessor's tables. */}}
{{- define "gpt-oss-serving.gcsFaultTolerance" -}}
{{- with .Values.ray.gcsFaultTolerance }}
{{- if .redisAddress }}
gcsFaultToleranceOptions:
  redisAddress: {{ .redisAddress | quote }}
  {{- with .redisUsername }}
  redisUsername:
    value: {{ . | quote }}
  {{- end }}
  redisPassword:
    valueFrom:
      secretKeyRef:
        name: {{ .passwordSecretName }}
        key: {{ .passwordKey }}
{{- end }}
{{- end }}
{{- end -}}

{{/*
Version 2, because only it supports Ray labels. Only the autoscaler gets a token of the API server, mounted here and not in Ray's
container.
*/}}
{{- define "gpt-oss-serving.autoscaler" -}}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  upscalingMode: Default
  idleTimeoutSeconds: {{ .Values.ray.autoscaler.idleTimeoutS }}
  resources:
    {{- include "gpt-oss-serving.resources" .Values.ray.autoscaler.resources | nindent 4 }}
  securityContext:
    {{- include "gpt-oss-serving.containerSecurityContext" . | nindent 4 }}
  env:
    {{- include "gpt-oss-serving.commonEnv" . | nindent 4 }}
    - name: HOME
      value: /tmp
    - name: AUTOSCALER_METRIC_PORT
      value: "6387"
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: kubernetes, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end -}}

{{/* The same volume that an automounted token would be. */}}
{{- define "gpt-oss-serving.autoscalerTokenVolume" -}}
- name: kubernetes
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap:
          name: kube-root-ca.crt
          items:
            - {key: ca.crt, path: ca.crt}
      - downwardAPI:
          items:
            - {path: namespace, fieldRef: {fieldPath: metadata.namespace}}
{{- end -}}
