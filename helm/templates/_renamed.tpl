{{/*
Renamed values: one sentence per line for each that is given under its old name. The table is files/renamed.yaml (old: new, dots
between keys). The schema accepts old names, so that the refusal here can give the new name instead of "additional properties".
*/}}
{{- define "gpt-oss-serving.renamed" -}}
{{- range $old, $new := .Files.Get "files/renamed.yaml" | fromYaml }}
{{- $node := $.Values }}
{{- $isGiven := true }}
{{- range splitList "." $old }}
{{- if and $isGiven (kindIs "map" $node) (hasKey $node .) }}
{{- $node = index $node . }}
{{- else }}
{{- $isGiven = false }}
{{- end }}
{{- end }}
{{- if $isGiven }}
{{ $old }} is now called {{ $new }}: move it there.
{{- end }}
{{- end }}
{{- end -}}
