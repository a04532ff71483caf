{{- /*
Objects have fixed names, not the release's: two Pointsmen in one cluster would write the same rules, and Helm
refuses the second release because the first one owns the ClusterRoles.
Labels take (dict "root" $ "component" "agent").
*/ -}}
{{- define "pointsman.labels" -}}
{{- with .root.Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/part-of: pointsman
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "pointsman.selector" . }}
{{- end }}

{{- /* Not the chart's version: a new one that leaves the pods as they are must not restart them. */ -}}
{{- define "pointsman.podLabels" -}}
app.kubernetes.io/part-of: pointsman
{{ include "pointsman.selector" . }}
{{- end }}

{{- define "pointsman.selector" -}}
app.kubernetes.io/name: pointsman
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "pointsman.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Address and port of a listener; an IPv6 address gets its brackets. */ -}}
{{- define "pointsman.listen" -}}
{{- if contains ":" .address -}}
[{{ .address }}]:{{ .port }}
{{- else -}}
{{ .address }}:{{ .port }}
{{- end -}}
{{- end }}

{{- /* Where the API server is, when not behind the Service `kubernetes`. */ -}}
{{- define "pointsman.apiServer" -}}
{{- with .Values.apiServer }}
{{- if .host -}}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The user name of the agents' service account. */ -}}
{{- define "pointsman.agentUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ .Values.agent.serviceAccount.name }}
{{- end }}
