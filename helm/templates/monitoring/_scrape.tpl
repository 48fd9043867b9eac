{{/* How the endpoints behind the plane secret are scraped. */}}

{{/*
The plane secret, and TLS where the planes use it. During a rotation the Secret holds two lines, and these scrapes fail.
*/}}
{{- define "gpt-oss-serving.planeScrape" -}}
authorization:
  type: Bearer
  credentials:
    name: {{ include "gpt-oss-serving.planeSecretName" . }}
    key: plane.secret
{{- if include "gpt-oss-serving.planeTlsEnabled" . }}
scheme: https
tlsConfig:
  serverName: engine.gpt-oss-serving
  ca:
    secret:
      name: {{ include "gpt-oss-serving.planeTlsSecretName" . }}
      key: ca.crt
{{- end }}
{{- end -}}

{{/*
How many engines a pod can hold at once, as a JSON list of {pods: "cell;group", engines}. Ray places an engine wherever GPUs of its
kind are free, so a pod holds as many as fit of the cell's smallest engine of that kind; a CPU pod may hold all of them.
*/}}
{{- define "gpt-oss-serving.enginesOfPods" -}}
{{- $found := list -}}
{{- range $cell, $_ := .Values.cells -}}
{{- $context := dict "root" $ "cell" $cell -}}
{{- $models := include "gpt-oss-serving.cellModels" $context | fromJsonArray -}}
{{- range $group := include "gpt-oss-serving.cellGroups" $context | fromJsonArray -}}
{{- $engines := int $group.needMax -}}
{{- if not $group.onCpu -}}
{{- $smallest := 0 -}}
{{- range $models -}}
{{- if and (not .problem) (not .onCpu) (eq .gpu $group.gpu) -}}
{{- $smallest = ternary (int .podGpus) (min $smallest .podGpus) (eq $smallest 0) -}}
{{- end -}}
{{- end -}}
{{- $engines = 0 -}}
{{- if $smallest -}}{{- $engines = div $group.podGpus $smallest -}}{{- end -}}
{{- end -}}
{{- $found = append $found (dict "pods" (printf "%s;%s" $cell $group.name) "engines" (min $engines 100)) -}}
{{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}
