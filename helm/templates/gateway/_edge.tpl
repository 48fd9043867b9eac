{{/* Annotations that turn an ingress controller's response buffering off and set its timeouts. Takes the root. */}}
{{- define "gpt-oss-serving.ingressAnnotations" -}}
{{- $seconds := include "gpt-oss-serving.edgeTimeoutS" . -}}
{{- $tls := include "gpt-oss-serving.gatewayTlsEnabled" . -}}
{{- $controller := .Values.gateway.ingress.controller -}}
{{- if eq $controller "nginx" -}}
nginx.ingress.kubernetes.io/proxy-buffering: "off"
nginx.ingress.kubernetes.io/proxy-request-buffering: "off"
nginx.ingress.kubernetes.io/proxy-read-timeout: {{ $seconds | quote }}
nginx.ingress.kubernetes.io/proxy-send-timeout: {{ $seconds | quote }}
# The gateway limits bodies itself (max_body_bytes), with an error in the API's format.
nginx.ingress.kubernetes.io/proxy-body-size: "0"
{{- if $tls }}
nginx.ingress.kubernetes.io/backend-protocol: HTTPS
{{- end }}
{{- else if eq $controller "nginx-inc" -}}
nginx.org/proxy-buffering: "False"
nginx.org/proxy-read-timeout: {{ printf "%ss" $seconds }}
nginx.org/proxy-send-timeout: {{ printf "%ss" $seconds }}
nginx.org/client-max-body-size: "0"
{{- if $tls }}
nginx.org/ssl-services: {{ include "gpt-oss-serving.fullname" . }}
{{- end }}
{{- else if eq $controller "haproxy" -}}
# HAProxy does not buffer responses by default.
haproxy.org/timeout-server: {{ printf "%ss" $seconds }}
{{- if $tls }}
haproxy.org/server-ssl: "true"
{{- end }}
{{- end -}}
{{- end -}}

{{/* The Secret with the certificate of the Ingress's host: the one named, or the one cert-manager fills. */}}
{{- define "gpt-oss-serving.ingressTlsSecretName" -}}
{{- with .Values.gateway.ingress.tls -}}
{{- if .secretName -}}
{{- .secretName -}}
{{- else if .certManager.issuer -}}
{{- include "gpt-oss-serving.fullname" $ }}-ingress-tls
{{- end -}}
{{- end -}}
{{- end -}}
