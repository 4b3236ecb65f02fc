{{/* Names as `helm create` makes them. */}}
{{- define "rlhf-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "rlhf-operator.fullname" -}}
{{- $name := include "rlhf-operator.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "rlhf-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rlhf-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Of the pod of helm test, which the Service must not select. */}}
{{- define "rlhf-operator.testLabels" -}}
app.kubernetes.io/name: {{ include "rlhf-operator.name" . | trunc 58 | trimSuffix "-" }}-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "rlhf-operator.commonLabels" -}}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "rlhf-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "rlhf-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- include "rlhf-operator.commonLabels" . }}
{{- end }}

{{- define "rlhf-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "rlhf-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name: name the account to use, or set serviceAccount.create" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "rlhf-operator.image" -}}
{{- with default (.Values.global).imageRegistry .Values.image.registry }}{{ . }}/{{ end }}
{{- with .Values.image }}
{{- .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{/* Secrets to pull it with: the chart's own, else those of a chart that has this one as a part, where some write names alone. */}}
{{- define "rlhf-operator.pullSecrets" -}}
{{- with default (.Values.global).imagePullSecrets .Values.imagePullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ if kindIs "string" . }}{{ . }}{{ else }}{{ .name }}{{ end }}
  {{- end }}
{{- end }}
{{- end }}

{{/* DNS name of the Service, which is also in the certificate. */}}
{{- define "rlhf-operator.host" -}}
{{ include "rlhf-operator.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "rlhf-operator.tlsSecret" -}}
{{- if .Values.tls.secretName }}
{{- .Values.tls.secretName }}
{{- else if .Values.tls.certManager.enabled }}
{{- include "rlhf-operator.fullname" . }}-tls
{{- else if .Values.webhook.enabled }}
{{- fail "webhook.enabled: a webhook needs a certificate; set tls.certManager.enabled, or tls.secretName with tls.caBundle" }}
{{- else if hasPrefix "https://" .Values.progress.url }}
{{- fail "progress.url: https needs a certificate; set tls.certManager.enabled or tls.secretName" }}
{{- end }}
{{- end }}

{{/* A list of rules of files/rbac.yaml, by its name: (list . "jobs"). */}}
{{- define "rlhf-operator.rules" -}}
{{- toYaml (get ((index . 0).Files.Get "files/rbac.yaml" | fromYaml) (index . 1)) }}
{{- end }}

{{/* What the operator may do in each namespace that it serves. */}}
{{- define "rlhf-operator.rulesInNamespaces" -}}
{{- $given := .Files.Get "files/rbac.yaml" | fromYaml }}
{{- $rules := $given.jobs }}
{{- range default (keys $given.gangs | sortAlpha) .Values.jobDefaults.gangSchedulers }}
{{- $rules = concat $rules (get $given.gangs .) }}
{{- end }}
{{- if .Values.webhook.enabled }}
{{- $rules = concat $rules $given.webhookInNamespaces }}
{{- end }}
{{- toYaml $rules }}
{{- end }}

{{/* What it may do in the whole cluster, whichever namespaces it serves; empty: nothing. */}}
{{- define "rlhf-operator.rulesInCluster" -}}
{{- $given := .Files.Get "files/rbac.yaml" | fromYaml }}
{{- $rules := list }}
{{- if .Values.progress.enabled }}
{{- $rules = concat $rules $given.progress }}
{{- end }}
{{- if .Values.webhook.enabled }}
{{- $rules = concat $rules $given.webhookInCluster }}
{{- end }}
{{- with $rules }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{/* What a binding ends with: (list . ROLE-KIND ROLE-NAME). */}}
{{- define "rlhf-operator.boundTo" -}}
{{- $top := index . 0 -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "rlhf-operator.serviceAccountName" $top }}
    namespace: {{ $top.Release.Namespace | quote }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ index . 1 }}
  name: {{ index . 2 }}
{{- end }}
