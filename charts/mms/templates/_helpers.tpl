{{/* Labels of an object: {{ include "mms.labels" (list $ "operator") }} */}}
{{- define "mms.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: mms
{{ include "mms.selector" . }}
{{- end }}

{{/* What selects the pods of a component. */}}
{{- define "mms.selector" -}}
app.kubernetes.io/name: mms
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* An image: {{ include "mms.image" (list $ "operator") }} */}}
{{- define "mms.image" -}}
{{- $root := index . 0 -}}
{{- $name := get $root.Values.images (index . 1) -}}
{{- if or (contains "/" $name) (contains ":" $name) -}}
{{ $name }}
{{- else -}}
{{ $root.Values.images.registry }}/{{ $name }}:{{ $root.Values.images.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The restricted pod security standard. The user is the one that the images are made for. */}}
{{- define "mms.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "mms.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Name of the Secret with the default store's keys; empty where there is none. */}}
{{- define "mms.storeSecret" -}}
{{- if .Values.store.enabled -}}
{{ .Values.store.existingSecret | default (printf "%s-store" .Release.Name) }}
{{- else -}}
{{ .Values.defaultStore.secretName }}
{{- end -}}
{{- end }}

{{/* What the schema cannot say: values that exclude or need each other. */}}
{{- define "mms.checkValues" -}}
{{- if gt (len .Release.Name) 40 }}
{{- fail (printf "the release name %s is too long: at most 40 characters, because names of objects are made from it" .Release.Name) }}
{{- end }}
{{- if and .Values.store.enabled (or .Values.defaultStore.uri .Values.defaultStore.endpoint .Values.defaultStore.region .Values.defaultStore.secretName) }}
{{- fail "store.enabled and defaultStore exclude each other: the embedded store is the default store. Unset one of them" }}
{{- end }}
{{- if and (not .Values.defaultStore.uri) (or .Values.defaultStore.endpoint .Values.defaultStore.region .Values.defaultStore.secretName) }}
{{- fail "defaultStore.uri is missing: set it to s3://bucket or s3://bucket/folder" }}
{{- end }}
{{- end }}
