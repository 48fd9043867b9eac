{{/* What a cell cannot be: one sentence a line. */}}
{{- define "gpt-oss-serving.cellRefusals" -}}
{{- end -}}
