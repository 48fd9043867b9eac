{{/*
Rules that several policies share. A port or range has one meaning: Ray head 6379 (GCS) and 8265 (dashboard), Serve's
proxy 8000, Ray's services of a node 6380–6389 and 52365, engines' HTTP 8100–8199, Ray's workers 11000–12999, and inside
engines (vLLM, NCCL, Gloo) 20000–29999.
*/}}
{{/* A rule without peers would allow every peer: an empty list in the values must render no rule. */}}
{{- define "gpt-oss-serving.network.egressToDns" -}}
{{- with .Values.networkPolicy.dns.peers -}}
# Names.
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    {{- range $.Values.networkPolicy.dns.ports }}
    - port: {{ . }}
      protocol: UDP
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end -}}
{{- end -}}

{{- define "gpt-oss-serving.network.egressToApiServer" -}}
{{- with .Values.networkPolicy.apiServer.cidrs -}}
# The Kubernetes API server.
- to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  ports:
    {{- range $.Values.networkPolicy.apiServer.ports }}
    - port: {{ . }}
    {{- end }}
{{- end -}}
{{- end -}}

{{- define "gpt-oss-serving.network.egressToPostgresql" -}}
# The database.
- to:
    {{- toYaml .Values.networkPolicy.postgresql.peers | nindent 4 }}
  ports:
    - port: {{ .Values.networkPolicy.postgresql.port }}
{{- end -}}

{{- define "gpt-oss-serving.network.egressToCounters" -}}
# Redis, in which gateways count.
- to:
    {{- toYaml .Values.networkPolicy.counters.peers | nindent 4 }}
  ports:
    - port: {{ .Values.networkPolicy.counters.port }}
{{- end -}}

{{- define "gpt-oss-serving.network.egressToFiles" -}}
# The object store of files and batches.
- to:
    {{- toYaml .Values.networkPolicy.files.peers | nindent 4 }}
  ports:
    - port: {{ .Values.networkPolicy.files.port }}
{{- end -}}

{{- define "gpt-oss-serving.network.egressToTraces" -}}
# The collector of traces.
- to:
    {{- toYaml .Values.networkPolicy.traces.peers | nindent 4 }}
  ports:
    - port: {{ .Values.networkPolicy.traces.port }}
{{- end -}}

{{- define "gpt-oss-serving.network.egressToIssuers" -}}
# The issuers of single sign-on.
- to:
    {{- toYaml .Values.networkPolicy.issuers.peers | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.issuers.ports }}
    - port: {{ . }}
    {{- end }}
{{- end -}}

{{/* A peer: pods of a component. Takes root, component, and cell for those of one cell. */}}
{{- define "gpt-oss-serving.network.peer" -}}
- podSelector:
    matchLabels:
      {{- include "gpt-oss-serving.selectorLabels" . | nindent 6 }}
{{- end -}}

{{/* Between any two pods of a Ray cluster, in either direction. */}}
{{- define "gpt-oss-serving.network.rayPorts" -}}
# Node manager, object manager, runtime environments, the node's agent, metrics.
- port: 6380
  endPort: 6389
# The node agent's HTTP.
- port: 52365
# Workers: replicas, Serve's controller and proxies.
- port: 11000
  endPort: 12999
{{- end -}}
