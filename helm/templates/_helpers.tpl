{{/*
Names, labels, images and security: what every object here is made with.
A template that needs more than the root context takes a dict; `root` is always `$`.
*/}}

{{/*
A name that is not longer than it may be. One that is cut ends in eight digits of the whole one's hash: two long names that
begin alike must not become one. Takes name, most (characters).
*/}}
{{- define "gpt-oss-serving.cut" -}}
{{- $name := .name -}}
{{- if gt (len $name) (int .most) -}}
{{- $name = printf "%s-%s" ($name | trunc (int (sub .most 9)) | trimSuffix "-") ($name | sha256sum | trunc 8) -}}
{{- end -}}
{{- trimSuffix "-" $name -}}
{{- end -}}

{{- define "gpt-oss-serving.name" -}}
{{- include "gpt-oss-serving.cut" (dict "name" (default .Chart.Name .Values.nameOverride) "most" 63) -}}
{{- end -}}

{{/* The alias under which a parent chart has this one among its dependencies, else nothing. Helm gives it as the chart's name. */}}
{{- define "gpt-oss-serving.alias" -}}
{{- if ne .Chart.Name "gpt-oss-serving" -}}{{- .Chart.Name -}}{{- end -}}
{{- end -}}

{{/*
At most 30 characters: KubeRay takes 47 for a RayService's name, which adds `-cell-` and up to 11 of the cell's name.
The name of an aliased copy always ends in its alias: two copies in a release called like both must not become one.
*/}}
{{- define "gpt-oss-serving.fullname" -}}
{{- $name := include "gpt-oss-serving.name" . -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if and (contains $name .Release.Name) (not (include "gpt-oss-serving.alias" .)) -}}{{- $full = .Release.Name -}}{{- end -}}
{{- include "gpt-oss-serving.cut" (dict "name" (.Values.fullnameOverride | default $full) "most" 30) -}}
{{- end -}}

{{/* The name of a cell's RayService and of its Service. Takes root, cell. */}}
{{- define "gpt-oss-serving.cellName" -}}
{{- printf "%s-cell-%s" (include "gpt-oss-serving.fullname" .root) .cell -}}
{{- end -}}

{{/* What selects the pods of a component. Takes root, component (gateway, head, directory, engine, job), and cell where there is one. */}}
{{- define "gpt-oss-serving.selectorLabels" -}}
app.kubernetes.io/name: {{ include "gpt-oss-serving.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .cell }}
gpt-oss-serving/cell: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Several maps as one, as YAML; a later map wins. Takes a list of maps. */}}
{{- define "gpt-oss-serving.over" -}}
{{- $whole := dict -}}
{{- range . -}}{{- range $key, $value := . -}}{{- $_ := set $whole $key $value -}}{{- end -}}{{- end -}}
{{- toYaml $whole -}}
{{- end -}}

{{/* Labels and annotations of an object. Takes what labels and annotations take. */}}
{{- define "gpt-oss-serving.metadata" -}}
labels:
  {{- include "gpt-oss-serving.labels" . | nindent 2 }}
{{- with include "gpt-oss-serving.annotations" . }}
{{ . }}
{{- end }}
{{- end -}}

{{/*
Every label of an object: commonLabels, its own, and the chart's, which neither may replace. Takes root, and component, cell and
labels (its own, a map) where there are such.
*/}}
{{- define "gpt-oss-serving.labels" -}}
{{- include "gpt-oss-serving.over" (list .root.Values.commonLabels (.labels | default dict) (include "gpt-oss-serving.chartLabels" . | fromYaml)) -}}
{{- end -}}

{{- define "gpt-oss-serving.chartLabels" -}}
{{ include "gpt-oss-serving.podChartLabels" . }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* The labels of a pod: those of an object but the chart's version, which would restart pods that did not change. */}}
{{- define "gpt-oss-serving.podLabels" -}}
{{- include "gpt-oss-serving.over" (list .root.Values.commonLabels (include "gpt-oss-serving.podChartLabels" . | fromYaml)) -}}
{{- end -}}

{{- define "gpt-oss-serving.podChartLabels" -}}
{{ include "gpt-oss-serving.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: gpt-oss-serving
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{/* `annotations:` of an object, or nothing: commonAnnotations, and its own over them. Takes root, and annotations where there are some. */}}
{{- define "gpt-oss-serving.annotations" -}}
{{- $whole := include "gpt-oss-serving.over" (list .root.Values.commonAnnotations (.annotations | default dict)) -}}
{{- if ne $whole "{}" -}}
annotations:
  {{- $whole | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* An image's reference. Takes root and image, an entry of `images` ({repository, tag, digest}); a digest wins. */}}
{{- define "gpt-oss-serving.image" -}}
{{- $registry := .root.Values.images.registry | trimSuffix "/" -}}
{{- $name := .image.repository -}}
{{- if $registry -}}{{- $name = printf "%s/%s" $registry $name -}}{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "gpt-oss-serving.imagePullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A pod's security, as Pod Security "restricted" wants it. User 0 in the values leaves the choice to the platform. */}}
{{- define "gpt-oss-serving.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.security.runAsUser }}
runAsUser: {{ . | int64 }}
# The images' writable folders belong to group 0, so that any user works.
runAsGroup: 0
{{- end }}
{{- with .Values.security.fsGroup }}
fsGroup: {{ . | int64 }}
# A model volume holds few but large files: changing their group at every start would be for nothing.
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* A container's security, as Pod Security "restricted" wants it, and a root that nothing writes to. */}}
{{- define "gpt-oss-serving.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Environment of every container of ours: nothing is told to anybody, nothing is fetched, and Python buffers no line. */}}
{{- define "gpt-oss-serving.commonEnv" -}}
- name: HF_HUB_OFFLINE
  value: "1"
- name: VLLM_NO_USAGE_STATS
  value: "1"
- name: DO_NOT_TRACK
  value: "1"
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
- name: PYTHONUNBUFFERED
  value: "1"
{{- end -}}

{{/* Secrets: given by name, or made once by the chart's Job under these names; never rendered. */}}
{{- define "gpt-oss-serving.planeSecretName" -}}
{{- .Values.secrets.plane | default (printf "%s-plane" (include "gpt-oss-serving.fullname" .)) -}}
{{- end -}}

{{- define "gpt-oss-serving.keysSecretName" -}}
{{- .Values.secrets.keys | default (printf "%s-keys" (include "gpt-oss-serving.fullname" .)) -}}
{{- end -}}

{{/* "true" when the planes speak TLS to each other, else nothing. */}}
{{- define "gpt-oss-serving.planeTlsEnabled" -}}
{{- if or .Values.planeTls.secretName .Values.planeTls.certManager.issuer -}}true{{- end -}}
{{- end -}}

{{/* The Secret with ca.crt, tls.crt and tls.key of both planes. */}}
{{- define "gpt-oss-serving.planeTlsSecretName" -}}
{{- .Values.planeTls.secretName | default (printf "%s-plane-tls" (include "gpt-oss-serving.fullname" .)) -}}
{{- end -}}

{{/* The files of `planeTlsVolume`, as settings and RayServices name them. */}}
{{- define "gpt-oss-serving.planeTlsFiles" -}}
ca_file: /etc/serving/plane-tls/ca.crt
certificate_file: /etc/serving/plane-tls/tls.crt
key_file: /etc/serving/plane-tls/tls.key
{{- end -}}

{{/* Volumes that every pod of both planes has: the plane secret, and the planes' certificate when there is one. */}}
{{- define "gpt-oss-serving.planeVolumes" -}}
- name: plane
  secret:
    secretName: {{ include "gpt-oss-serving.planeSecretName" . }}
    defaultMode: 0440
    # The pepper and the first key are in another Secret, which engines never see.
    items:
      - key: plane.secret
        path: plane.secret
{{- if include "gpt-oss-serving.planeTlsEnabled" . }}
- name: plane-tls
  secret:
    secretName: {{ include "gpt-oss-serving.planeTlsSecretName" . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Whole folders, not subPath: a rotated secret must reach running pods. */}}
{{- define "gpt-oss-serving.planeVolumeMounts" -}}
- name: plane
  mountPath: /etc/serving/plane
  readOnly: true
{{- if include "gpt-oss-serving.planeTlsEnabled" . }}
- name: plane-tls
  mountPath: /etc/serving/plane-tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "gpt-oss-serving.planeScheme" -}}
{{- if include "gpt-oss-serving.planeTlsEnabled" . -}}https{{- else -}}http{{- end -}}
{{- end -}}

{{/* Where the weights are: the source of a pod's volume, to be named and mounted at /var/lib/serving/models. */}}
{{- define "gpt-oss-serving.modelVolumeSource" -}}
{{- if .Values.modelVolume.hostPath -}}
hostPath:
  path: {{ .Values.modelVolume.hostPath }}
  type: Directory
{{- else -}}
persistentVolumeClaim:
  claimName: {{ .Values.modelVolume.existingClaim | default (printf "%s-models" (include "gpt-oss-serving.fullname" .)) }}
{{- end -}}
{{- end -}}

{{/*
A quantity as Kubernetes writes it: 1024Gi is 1Ti, 0.5 is 500m, the number 2 is "2". Who writes a RayService back, as KubeRay does,
changes every other way to say it, and owns what it changed: Helm 4 then refuses the next upgrade. Takes a number or a string.
*/}}
{{- define "gpt-oss-serving.quantity" -}}
{{- $text := kindIs "string" . | ternary . (printf "%v" (ternary (int64 .) . (eq (float64 .) (floor .)))) -}}
{{- if regexMatch "^[0-9]*[.][0-9]{1,3}$" $text -}}{{- $text = printf "%dm" (int64 (round (mulf (float64 $text) 1000) 0)) -}}{{- end -}}
{{- if regexMatch "^[0-9]+000m$" $text -}}{{- $text = trimSuffix "000m" $text -}}{{- end -}}
{{- range list (list "Ki" "Mi") (list "Mi" "Gi") (list "Gi" "Ti") -}}
{{- $number := trimSuffix (first .) $text -}}
{{- if and (hasSuffix (first .) $text) (regexMatch "^[1-9][0-9]*$" $number) (not (mod (int64 $number) 1024)) -}}
{{- $text = printf "%d%s" (div (int64 $number) 1024) (last .) -}}
{{- end -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{/* Requests and limits of a container of a RayService. Takes a map of maps. */}}
{{- define "gpt-oss-serving.resources" -}}
{{- $resources := dict -}}
{{- range $kind, $quantities := . -}}
{{- $written := dict -}}
{{- range $name, $quantity := $quantities -}}{{- $_ := set $written $name (include "gpt-oss-serving.quantity" $quantity) -}}{{- end -}}
{{- $_ := set $resources $kind $written -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
