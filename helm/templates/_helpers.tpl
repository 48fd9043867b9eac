{{/*
Names, labels, images and security, shared by all templates.
A template that needs more than the root context takes a dict; `root` is always `$`.
*/}}

{{/*
A name, cut to a length. A name that is cut ends in eight digits of the hash of the whole, so that two long names with the same
beginning stay different. Takes name, most (characters).
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

{{/* The alias that a parent chart gives this dependency, else nothing. Helm puts it into the chart's name. */}}
{{- define "gpt-oss-serving.alias" -}}
{{- if ne .Chart.Name "gpt-oss-serving" -}}{{- .Chart.Name -}}{{- end -}}
{{- end -}}

{{/*
At most 30 characters: KubeRay allows 47 for a RayService's name, which adds `-cell-` and up to 11 of the cell's name.
An aliased copy always has its alias in the name: a release's name may contain several aliases, and the copies must differ.
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

{{/* Labels that select the pods of a component. Takes root, component (gateway, head, directory, engine, job), and cell where there is one. */}}
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

{{/* The labels of a pod: those of an object without the chart's version, which would restart unchanged pods. */}}
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

{{/* An image's reference. Takes root and image, an entry of `images` ({repository, tag, digest}); a digest wins over a tag. */}}
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

{{/* A pod's security context, as Pod Security "restricted" requires. User 0 in the values lets the platform assign one. */}}
{{- define "gpt-oss-serving.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.security.runAsUser }}
runAsUser: {{ . | int64 }}
# The images' writable folders belong to group 0, so that any user works.
runAsGroup: 0
{{- end }}
{{- with .Values.security.fsGroup }}
fsGroup: {{ . | int64 }}
# Without this, every start would change the group of every file on the volume.
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* A container's security context, as Pod Security "restricted" requires, with a read-only root file system. */}}
{{- define "gpt-oss-serving.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Environment of every container of ours: no telemetry, no downloads, and unbuffered output of Python. */}}
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

{{/* Secrets: named in the values, or created once by the chart's Job under these names; never rendered. */}}
{{- define "gpt-oss-serving.planeSecretName" -}}
{{- .Values.secrets.plane | default (printf "%s-plane" (include "gpt-oss-serving.fullname" .)) -}}
{{- end -}}

{{- define "gpt-oss-serving.keysSecretName" -}}
{{- .Values.secrets.keys | default (printf "%s-keys" (include "gpt-oss-serving.fullname" .)) -}}
{{- end -}}

{{- define "gpt-oss-serving.vaultSecretName" -}}
{{- .Values.secrets.vault | default (printf "%s-vault" (include "gpt-oss-serving.fullname" .)) -}}
{{- end -}}

{{/* "true" when gateways and engines use TLS between them, else nothing. */}}
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
    # The pepper and the first key are in another Secret, which engine pods do not mount.
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

{{/* Whole folders, not subPath: Kubernetes updates only those in running pods when a secret is rotated. */}}
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

{{/* Source of the volume with the weights, which the caller names and mounts at /var/lib/serving/models. */}}
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
A quantity in Kubernetes' canonical form: 1024Gi is 1Ti, 0.5 is 500m, the number 2 is "2". KubeRay writes RayServices back, which
rewrites any other form and makes KubeRay the field's owner: Helm 4 then refuses the next upgrade. Takes a number or a string.
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

{{/* A quantity of memory in whole MiB, rounded down; 0 for what is none. Takes a number or a string. */}}
{{- define "gpt-oss-serving.mib" -}}
{{- $text := kindIs "string" . | ternary . (printf "%d" (int64 .)) -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" $text -}}
{{- $units := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $bytes := mulf (float64 ($number | default "0")) (get $units (trimPrefix $number $text) | default 0.0) -}}
{{- int64 (floor (divf $bytes 1048576.0)) -}}
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
