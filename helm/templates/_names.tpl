{{- define "retort.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for every suffix below. */}}
{{- define "retort.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "retort.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* dict "root" $ "component" "gateway" */}}
{{- define "retort.selector" -}}
app.kubernetes.io/name: {{ include "retort.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "retort.labels" -}}
{{ include "retort.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "retort.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "retort.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* dict "root" $ "image" .Values.image */}}
{{- define "retort.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end -}}
{{- end -}}

{{/* A CronJob's name leaves room for the suffixes of its Jobs and Pods (52 characters in all). */}}
{{- define "retort.nightlyName" -}}
{{- $slug := regexReplaceAll "[^a-z0-9-]" .task "-" | trunc 16 | trimSuffix "-" -}}
{{- printf "%s-night-%s-%s" (include "retort.fullname" .root | trunc 20 | trimSuffix "-") $slug (.task | sha256sum | trunc 5) -}}
{{- end -}}

{{- define "retort.bundlesClaim" -}}
{{- default (printf "%s-bundles" (include "retort.fullname" .)) .Values.bundles.existingClaim -}}
{{- end -}}
