{{/*
Values that have another name since a release: one sentence a line for those that are given under the old one. The table
is files/renamed.yaml (old: new, dots between keys); the schema lets old names through to here, so that the answer is the
new name and not "additional properties".
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
