{{/*
What to fetch, as a JSON list of image and model. Each cell's models are fetched with the cell's own image, because the image
determines the folder of a checkpoint, and a cell may be a version ahead.
*/}}
{{- define "gpt-oss-serving.weights" -}}
{{- $wanted := list -}}
{{- range $cell, $_ := .Values.cells -}}
{{- $values := include "gpt-oss-serving.cellValues" (dict "root" $ "cell" $cell) | fromJson -}}
{{- range include "gpt-oss-serving.cellModels" (dict "root" $ "cell" $cell) | fromJsonArray -}}
{{- $wanted = append $wanted (dict "image" $values.images.head "model" .name) -}}
{{- with .draft -}}{{- $wanted = append $wanted (dict "image" $values.images.head "model" .) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $wanted | uniq | toJson -}}
{{- end -}}

{{/* Settings of the Jobs that fetch weights: models that are not in the catalogue. */}}
{{- define "gpt-oss-serving.weightsSettings" -}}
home: /var/lib/serving
{{- with .Values.ownModels }}
own_models:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The pod of a Job that fetches or verifies one model. Takes root, image, model. */}}
{{- define "gpt-oss-serving.weightsPod" -}}
metadata:
  labels:
    {{- include "gpt-oss-serving.podLabels" (dict "root" .root "component" "job") | nindent 4 }}
    gpt-oss-serving/job: weights
    gpt-oss-serving/model: {{ .model }}
spec:
  automountServiceAccountToken: false
  # Applies to one attempt: the next one resumes the download.
  activeDeadlineSeconds: {{ .root.Values.weights.activeDeadlineSeconds }}
  {{- include "gpt-oss-serving.jobPod" (dict "root" .root) | nindent 2 }}
  containers:
    - name: weights
      image: {{ include "gpt-oss-serving.image" (dict "root" .root "image" .image) }}
      imagePullPolicy: {{ .image.pullPolicy }}
      command: [serving, --settings, /etc/serving/settings.yaml, models, {{ .root.Values.weights.job }}, {{ .model }}]
      # The only pods with access to the internet, and the only ones with a token of the hub.
      env:
        - name: HF_HUB_OFFLINE
          value: {{ eq .root.Values.weights.job "verify" | ternary "1" "0" | quote }}
        - name: HF_HUB_DISABLE_TELEMETRY
          value: "1"
        - name: DO_NOT_TRACK
          value: "1"
        - name: HF_HOME
          value: /tmp/huggingface
        - name: PYTHONUNBUFFERED
          value: "1"
        {{- with .root.Values.weights.endpoint }}
        - name: HF_ENDPOINT
          value: {{ . }}
        {{- end }}
        {{- if .root.Values.weights.caSecretName }}
        {{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "PIP_CERT" }}
        - name: {{ . }}
          value: /etc/serving/ca/ca.crt
        {{- end }}
        {{- end }}
      {{- with .root.Values.weights.envSecretName }}
      envFrom:
        - secretRef:
            name: {{ . }}
      {{- end }}
      resources:
        {{- toYaml .root.Values.weights.resources | nindent 8 }}
      securityContext:
        {{- include "gpt-oss-serving.containerSecurityContext" .root | nindent 8 }}
      volumeMounts:
        - name: settings
          mountPath: /etc/serving/settings.yaml
          subPath: settings.yaml
          readOnly: true
        {{- if .root.Values.weights.caSecretName }}
        - name: ca
          mountPath: /etc/serving/ca
          readOnly: true
        {{- end }}
        - name: home
          mountPath: /var/lib/serving
        - name: models
          mountPath: /var/lib/serving/models
        - name: tmp
          mountPath: /tmp
  volumes:
    - name: settings
      configMap:
        name: {{ include "gpt-oss-serving.fullname" .root }}-weights
    {{- with .root.Values.weights.caSecretName }}
    - name: ca
      secret:
        secretName: {{ . }}
        defaultMode: 0440
        items:
          - key: ca.crt
            path: ca.crt
    {{- end }}
    - name: models
      {{- include "gpt-oss-serving.modelVolumeSource" .root | nindent 6 }}
    - name: home
      emptyDir:
        sizeLimit: 64Mi
    - name: tmp
      emptyDir:
        sizeLimit: 4Gi
{{- end -}}
