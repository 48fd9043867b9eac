{{/*
What cannot work is refused here, one sentence per line; `helm install` prints all refusals at once. Others are in
_common.tpl (commonLabels and the like), cell/_refusals.tpl and _renamed.tpl
*/}}
{{- define "gpt-oss-serving.refusals" -}}
{{- $gateway := .Values.gateway -}}
{{- $isShared := .Values.store.postgresql.secretName -}}
{{- $hasTls := include "gpt-oss-serving.gatewayTlsEnabled" . -}}
{{- $served := include "gpt-oss-serving.servedNames" . | fromJsonArray -}}
{{- $edges := list -}}
{{- range $name, $edge := dict "ingress" $gateway.ingress "route" $gateway.route "httpRoute" $gateway.httpRoute -}}
{{- if $edge.enabled -}}{{- $edges = append $edges (printf "gateway.%s" $name) -}}{{- end -}}
{{- end }}
{{- if not .Values.images.registry }}
images.registry is empty: name the registry that holds the images, e.g. registry.example.com/gpt-oss-serving.
{{- end }}
{{- if eq (include "gpt-oss-serving.weights" .) "[]" }}
No cell serves a model: name at least one cell in cells and at least one model in models.
{{- end }}
{{- range $alias, $model := .Values.aliases }}
{{- if has $alias $served }}
aliases.{{ $alias }} has the name of a served model and would hide it: give the alias another name.
{{- else if not (has $model $served) }}
aliases.{{ $alias }} is {{ $model }}, which no cell serves: name one of {{ join ", " $served }}, or add it to models.
{{- end }}
{{- end }}
{{- with .Values.tests.model }}
{{- if not (or (has . $served) (hasKey $.Values.aliases .)) }}
tests.model is {{ . }}, which no cell serves: name one of {{ join ", " $served }}, or leave it empty.
{{- end }}
{{- end }}
{{- if not (or (include "gpt-oss-serving.planeTlsEnabled" .) .Values.acknowledgePlaintextBetweenPlanes) }}
Prompts and answers would cross the network between gateways and engines unencrypted: name a certificate in planeTls, or accept this with acknowledgePlaintextBetweenPlanes: true.
{{- end }}
{{- if and (gt (int $gateway.replicas) 1) (not $isShared) }}
gateway.replicas is {{ $gateway.replicas }} and there is no shared store: each gateway would have tenants, keys, a ledger and limits of its own; set gateway.replicas to 1, or name PostgreSQL's Secret in store.postgresql.secretName, where limits are then counted together, or in Redis with gateway.counters.secretName.
{{- end }}
{{- if and $gateway.files.enabled $isShared (not (or $gateway.files.url $gateway.files.existingClaim)) }}
gateway.files is enabled and each gateway would keep files in a folder of its own, which ends with its pod: name an object store in gateway.files.url, or a volume that all gateways mount in gateway.files.existingClaim.
{{- end }}
{{- if and .Values.tenants.file (not $isShared) }}
tenants.file is set and there is no shared store: with SQLite run `serving apply` in the gateway's pod, or name PostgreSQL's Secret in store.postgresql.secretName.
{{- end }}
{{- range $tenant, $said := (.Values.tenants.file).tenants }}
{{- range $key, $of := ($said).keys }}
{{- if and ($of).key_file (not $.Values.tenants.keysSecret) }}
tenants.file names the key_file {{ $of.key_file }} of {{ $tenant }}, and no Secret holds it: name one in tenants.keysSecret.
{{- end }}
{{- end }}
{{- end }}
{{- if and $gateway.autoscaling.enabled (not $isShared) }}
gateway.autoscaling is enabled and there is no shared store: SQLite works with exactly one gateway; name PostgreSQL's Secret in store.postgresql.secretName.
{{- end }}
{{- if and $gateway.autoscaling.enabled (gt (int $gateway.autoscaling.minReplicas) (int $gateway.autoscaling.maxReplicas)) }}
gateway.autoscaling.minReplicas is above maxReplicas.
{{- end }}
{{- $needed := add $gateway.preStopSleepS (ceil $gateway.settings.drain_timeout_s) }}
{{- with $gateway.terminationGracePeriodSeconds }}
{{- if le (int64 .) $needed }}
gateway.terminationGracePeriodSeconds is {{ . }}, and a stopping gateway may take {{ $needed }} s (preStopSleepS + drain_timeout_s): running answers would be cut off; raise it, or set it to 0 to have the chart compute it.
{{- end }}
{{- end }}
{{- if lt (float64 $gateway.settings.drain_timeout_s) 1.0 }}
gateway.settings.drain_timeout_s is {{ $gateway.settings.drain_timeout_s }}: a stopping gateway would cut off every running answer; set at least 1 s, or request_total_s ({{ $gateway.timeouts.request_total_s }}) or more to let all of them finish.
{{- end }}
{{- with dig "limits" "memory" "" $gateway.resources }}
{{- $heldMib := div (int64 $gateway.settings.max_held_bytes) 1048576 }}
{{- $workers := int64 (default 1 $gateway.settings.workers) }}
{{- $ownMib := ternary 512 (add 512 (mul 64 $workers)) (eq $workers 1) }}
{{- if lt (include "gpt-oss-serving.mib" . | int64) (add $ownMib $heldMib) }}
gateway.resources.limits.memory is {{ . }}, and a gateway may hold {{ $heldMib }} MiB of bodies and answers besides the {{ $ownMib }} MiB that it and its connections take: raise it to {{ add $ownMib $heldMib }}Mi, or lower gateway.settings.max_held_bytes.
{{- end }}
{{- end }}
{{- if gt (len $edges) 1 }}
{{ join " and " $edges }} are enabled together: enable one of them.
{{- end }}
{{- range $name, $tls := dict "gateway.tls" $gateway.tls "gateway.ingress.tls" $gateway.ingress.tls "planeTls" .Values.planeTls }}
{{- if and $tls.secretName $tls.certManager.issuer }}
{{ $name }} names both a Secret and a cert-manager issuer: name only one.
{{- end }}
{{- end }}
{{- if and $gateway.ingress.enabled (not $gateway.ingress.host) }}
gateway.ingress.host is empty: name the host that clients use.
{{- end }}
{{- if and $gateway.httpRoute.enabled (not $gateway.httpRoute.parentRefs) }}
gateway.httpRoute.parentRefs is empty: name the Gateway that the route attaches to.
{{- end }}
{{- if and $gateway.httpRoute.enabled $hasTls }}
gateway.httpRoute and gateway.tls are given together: an HTTPRoute speaks plain HTTP to its backend; remove gateway.tls and terminate TLS at the Gateway.
{{- end }}
{{- if $gateway.route.enabled }}
{{- if not .Values.openshift }}
gateway.route is enabled and openshift is not: Routes are OpenShift's; use gateway.ingress or gateway.httpRoute.
{{- end }}
{{- if and (eq $gateway.route.termination "edge") $hasTls }}
gateway.route.termination is edge and gateway.tls is given: the router would speak plain HTTP to a gateway that expects TLS; use reencrypt or passthrough.
{{- end }}
{{- if and (ne $gateway.route.termination "edge") (not $hasTls) }}
gateway.route.termination is {{ $gateway.route.termination }} and the gateway has no certificate: name one in gateway.tls, or use edge.
{{- end }}
{{- end }}
{{- if and .Values.openshift (or .Values.security.runAsUser .Values.security.fsGroup) }}
openshift is set and so is a user or group id: OpenShift assigns ids from each namespace's own range; set security.runAsUser and security.fsGroup to 0.
{{- end }}
{{- if and .Values.networkPolicy.enabled $isShared (not .Values.networkPolicy.postgresql.peers) }}
networkPolicy.postgresql.peers is empty: gateways could not reach the database; list its peers, or set networkPolicy.enabled to false.
{{- end }}
{{- if and .Values.networkPolicy.enabled $gateway.counters.secretName (not .Values.networkPolicy.counters.peers) }}
networkPolicy.counters.peers is empty: gateways could not reach the Redis in which they count; list its peers, or set networkPolicy.enabled to false.
{{- end }}
{{- if and .Values.networkPolicy.enabled $gateway.files.enabled $gateway.files.url (not .Values.networkPolicy.files.peers) }}
networkPolicy.files.peers is empty: gateways could not reach the object store of files; list its peers, or set networkPolicy.enabled to false.
{{- end }}
{{- $tracing := or .Values.gateway.settings.traces_endpoint (.Values.engine.settings | default dict).traces_endpoint }}
{{- if and .Values.networkPolicy.enabled $tracing (not .Values.networkPolicy.traces.peers) }}
networkPolicy.traces.peers is empty: no pod could reach the trace collector; list its peers, or set networkPolicy.enabled to false.
{{- end }}
{{- if and .Values.networkPolicy.enabled .Values.gateway.settings.oidc (not .Values.networkPolicy.issuers.peers) }}
networkPolicy.issuers.peers is empty: gateways could not reach the issuers of single sign-on; list their peers, or set networkPolicy.enabled to false.
{{- end }}
{{- range .Values.gateway.settings.oidc }}
{{- if and .ca_file (or (not $.Values.gateway.issuerCa.secretName) (ne .ca_file "/etc/serving/issuer-ca/ca.crt")) }}
gateway.settings.oidc: the ca_file of {{ .issuer }} is in no pod; name its Secret in gateway.issuerCa.secretName, and the file /etc/serving/issuer-ca/ca.crt.
{{- end }}
{{- end }}
{{- range .Values.gateway.settings.oidc }}
{{- if and .client_secret_file (or (not $.Values.gateway.issuerClients.secretName) (not (hasPrefix "/etc/serving/issuer-clients/" .client_secret_file))) }}
gateway.settings.oidc: the client_secret_file of {{ .issuer }} is in no pod; name its Secret in gateway.issuerClients.secretName, and the file /etc/serving/issuer-clients/KEY.
{{- end }}
{{- end }}
{{- if and .Values.networkPolicy.enabled (include "gpt-oss-serving.consolePort" .) (not .Values.networkPolicy.console) }}
networkPolicy.console is empty: no browser could reach the console on its own port; list its peers, or set networkPolicy.enabled to false.
{{- end }}
{{- if has (include "gpt-oss-serving.consolePort" .) (list "8080" "9090") }}
gateway.settings.console.port is taken: the API has 8080 and the metrics have 9090; choose another.
{{- end }}
{{- if and .Values.networkPolicy.enabled (include "gpt-oss-serving.makesSecrets" .) (not .Values.networkPolicy.apiServer.cidrs) }}
networkPolicy.apiServer.cidrs is empty: the Job that creates the Secrets could not reach the API server; list its CIDRs, or create the Secrets yourself and name them in secrets.
{{- end }}
{{- if and .Values.modelVolume.hostPath (ne .Values.weights.job "none") }}
modelVolume.hostPath is given and weights.job is {{ .Values.weights.job }}: a Job runs on one node and would fill or verify only that node; set weights.job to none.
{{- end }}
{{- end -}}
