{{/* settings.yaml of a gateway: the values' settings, with the names of serving/config.py, and those that the chart sets. */}}
{{- define "gpt-oss-serving.settings" -}}
home: /var/lib/serving
log_format: json
plane_secret_file: /etc/serving/plane/plane.secret
{{- if include "gpt-oss-serving.planeTlsEnabled" . }}
plane_tls:
  {{- include "gpt-oss-serving.planeTlsFiles" . | nindent 2 }}
{{- end }}
store:
  {{- if .Values.store.postgresql.secretName }}
  url_file: /etc/serving/store/url
  {{- end }}
  pepper_file: /etc/serving/keys/pepper
  vault_file: /etc/serving/vault/vault.keys
  first_key_file: /etc/serving/keys/admin.key
gateway:
  host: 0.0.0.0
  port: 8080
  metrics_port: 9090
  {{- if include "gpt-oss-serving.gatewayTlsEnabled" . }}
  tls:
    certificate_file: /etc/serving/gateway-tls/tls.crt
    key_file: /etc/serving/gateway-tls/tls.key
  {{- end }}
  directories:
    {{- range $cell, $_ := .Values.cells }}
    - {{ include "gpt-oss-serving.planeScheme" $ }}://{{ include "gpt-oss-serving.cellName" (dict "root" $ "cell" $cell) }}:8000
    {{- end }}
  {{- with .Values.aliases }}
  aliases:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.gateway.timeouts }}
  timeouts:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if or .Values.gateway.counters.secretName .Values.gateway.counters.settings }}
  counters:
    {{- if .Values.gateway.counters.secretName }}
    url_file: /etc/serving/counters/url
    {{- end }}
    {{- with .Values.gateway.counters.settings }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  files:
    enabled: {{ .Values.gateway.files.enabled }}
    {{- if .Values.gateway.files.url }}
    url: {{ .Values.gateway.files.url }}
    {{- else if .Values.gateway.files.existingClaim }}
    folder: /var/lib/serving-files
    {{- end }}
    {{- with .Values.gateway.files.settings }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- toYaml .Values.gateway.settings | nindent 2 }}
{{- end -}}

{{/* TCP port of the console where it has one of its own, else nothing. */}}
{{- define "gpt-oss-serving.consolePort" -}}
{{- $console := .Values.gateway.settings.console | default dict -}}
{{- if ne (toString $console.enabled) "false" -}}{{- with $console.port -}}{{ . | int64 }}{{- end -}}{{- end -}}
{{- end -}}

{{/* "true" when the gateway itself terminates clients' TLS, else nothing. */}}
{{- define "gpt-oss-serving.gatewayTlsEnabled" -}}
{{- if or .Values.gateway.tls.secretName .Values.gateway.tls.certManager.issuer -}}true{{- end -}}
{{- end -}}

{{- define "gpt-oss-serving.gatewayTlsSecretName" -}}
{{- .Values.gateway.tls.secretName | default (printf "%s-gateway-tls" (include "gpt-oss-serving.fullname" .)) -}}
{{- end -}}

{{/* Scheme of the gateway's port, for clients, probes and proxies in front of it: http or https. */}}
{{- define "gpt-oss-serving.gatewayScheme" -}}
{{- if include "gpt-oss-serving.gatewayTlsEnabled" . -}}https{{- else -}}http{{- end -}}
{{- end -}}

{{- define "gpt-oss-serving.gatewayServicePort" -}}
{{- if include "gpt-oss-serving.gatewayTlsEnabled" . -}}443{{- else -}}80{{- end -}}
{{- end -}}

{{/* URL of the API inside the cluster. */}}
{{- define "gpt-oss-serving.gatewayUrl" -}}
{{- printf "%s://%s" (include "gpt-oss-serving.gatewayScheme" .) (include "gpt-oss-serving.fullname" .) -}}
{{- end -}}

{{/* Seconds before Kubernetes kills a stopping gateway: its graceful shutdown, and 15 s for the last ledger rows and the exit. */}}
{{- define "gpt-oss-serving.gatewayGraceS" -}}
{{- $needed := add .Values.gateway.preStopSleepS (ceil .Values.gateway.settings.drain_timeout_s) 15 -}}
{{- .Values.gateway.terminationGracePeriodSeconds | default $needed | int64 -}}
{{- end -}}

{{/*
Timeout in seconds of a proxy in front of the gateway: five more than a request may take, so that the client gets the gateway's
own error, and with the default of 590 still below the 600 s of official clients.
*/}}
{{- define "gpt-oss-serving.edgeTimeoutS" -}}
{{- add (ceil .Values.gateway.timeouts.request_total_s) 5 -}}
{{- end -}}

{{/* The store's Secret and the keys, for gateways and the migration. */}}
{{- define "gpt-oss-serving.storeVolumes" -}}
- name: keys
  secret:
    secretName: {{ include "gpt-oss-serving.keysSecretName" . }}
    defaultMode: 0440
{{- with .Values.store.postgresql.secretName }}
- name: store
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: {{ $.Values.store.postgresql.key }}
        path: url
{{- end }}
{{- end -}}

{{- define "gpt-oss-serving.storeVolumeMounts" -}}
- name: keys
  mountPath: /etc/serving/keys
  readOnly: true
{{- if .Values.store.postgresql.secretName }}
- name: store
  mountPath: /etc/serving/store
  readOnly: true
{{- end }}
{{- end -}}
