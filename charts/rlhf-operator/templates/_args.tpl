{{/* The operator's flags. */}}
{{- define "rlhf-operator.args" -}}
{{- range .Values.watchNamespaces }}
- --namespace={{ . }}
{{- else }}
- --all-namespaces
{{- end }}
- --log-level={{ .Values.logLevel }}
{{- if .Values.progress.enabled }}
- --progress-url={{ default (printf "http://%s:8082" (include "rlhf-operator.host" .)) .Values.progress.url | trimSuffix "/" }}
{{- end }}
{{- if .Values.webhook.enabled }}
- --webhook-port=8443
{{- end }}
{{- if include "rlhf-operator.tlsSecret" . }}
- --tls-directory=/tls
- --tls-name={{ include "rlhf-operator.host" . }}
{{- end }}
{{- with .Values.jobDefaults }}
{{- with .image }}
- --default-image={{ . }}
{{- end }}
{{- with .gangSchedulers }}
- --gang-order={{ join "," . }}
{{- end }}
{{- with .queue }}
- --default-queue={{ . }}
{{- end }}
{{- with .storageClass }}
- --default-storage-class={{ . }}
{{- end }}
{{- with .nodeSelector }}
{{- $labels := list }}
{{- range $label, $value := . }}
{{- $labels = append $labels (printf "%s=%s" $label $value) }}
{{- end }}
- {{ printf "--default-node-selector=%s" (join "," $labels) | quote }}
{{- end }}
{{- with .tolerations }}
- {{ printf "--default-tolerations=%s" (toJson .) | quote }}
{{- end }}
{{- end }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}
