{{- define "airbridge-worker.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains "airbridge-worker" $name) }}{{ $name = printf "%s-airbridge-worker" $name }}{{ end -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "airbridge-worker.serviceAccount" -}}
{{- if .Values.serviceAccount.name }}{{ .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create }}{{ include "airbridge-worker.name" . -}}
{{- else }}default{{ end -}}
{{- end }}

{{- define "airbridge-worker.selector" -}}
app.kubernetes.io/name: airbridge-worker
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "airbridge-worker.labels" -}}
{{ include "airbridge-worker.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: worker
app.kubernetes.io/part-of: airbridge
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* All open work of the pool. Each gateway tells it, so the largest of their answers is taken for each state. */ -}}
{{- define "airbridge-worker.query" -}}
{{- if .Values.autoscaling.query }}{{ .Values.autoscaling.query }}{{ else -}}
sum(max by (state) (airbridge_work_items{{ printf "{region=%q,pool=%q}" .Values.region .Values.pool }}))
{{- end }}
{{- end }}
