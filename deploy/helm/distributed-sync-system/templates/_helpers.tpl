{{- define "dss.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- /* At most 45 characters: pods and the service of the peers append to it. */ -}}
{{- define "dss.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else if contains .Release.Name .Chart.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-dss" .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "dss.peersService" -}}
{{ include "dss.fullname" . }}-peers
{{- end -}}

{{- define "dss.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dss.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dss.labels" -}}
{{ include "dss.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "dss.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "dss.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "dss.secretName" -}}
{{- default (printf "%s-cluster" (include "dss.fullname" .)) .Values.auth.existingSecret -}}
{{- end -}}

{{- define "dss.secretKey" -}}
{{- ternary .Values.auth.existingSecretKey "cluster-secret" (ne .Values.auth.existingSecret "") -}}
{{- end -}}

{{- /* http://NAME-0.NAME-peers.NAMESPACE.svc:8101/NAME-0,… : the members that form the cluster. The names stay when a pod moves. */ -}}
{{- define "dss.scheme" -}}
{{ if .Values.tls.secretName }}https{{ else }}http{{ end }}
{{- end -}}

{{- define "dss.peers" -}}
{{- $peers := list -}}
{{- range $number := until (int .Values.founders) -}}
{{- $id := printf "%s-%d" (include "dss.fullname" $) $number -}}
{{- $peers = append $peers (printf "%s://%s.%s.%s.svc:8101/%s" (include "dss.scheme" $) $id (include "dss.peersService" $) $.Release.Namespace $id) -}}
{{- end -}}
{{- join "," $peers -}}
{{- end -}}

{{- define "dss.allowedHosts" -}}
{{- $name := include "dss.fullname" . -}}
{{- $hosts := list "localhost" $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) -}}
{{- $hosts = append $hosts (printf ".%s.svc.cluster.local" .Release.Namespace) -}}
{{- $hosts = append $hosts (printf ".%s.%s.svc" (include "dss.peersService" .) .Release.Namespace) -}}
{{- with .Values.settings.DSS_ALLOWED_HOSTS }}{{- $hosts = append $hosts . -}}{{- end -}}
{{- join "," $hosts -}}
{{- end -}}
