{{/* What every pod has: the restricted Pod Security Standard, and nothing of the API server. */}}
{{- define "retort.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "retort.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* dict "root" $ "component" .Values.gateway: where pods of the component may run. */}}
{{- define "retort.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .component.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Environment of gateway and nights: where the configuration is, and the secrets it names. */}}
{{- define "retort.env" -}}
- {name: RETORT_CONFIG, value: /etc/retort/retort.yaml}
- {name: HOME, value: /tmp}
{{- with .Values.teacher }}
{{- if .existingSecret }}
- name: RETORT_TEACHER_KEY
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- with .Values.database }}
{{- if .existingSecret }}
- name: RETORT_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- end -}}

{{/* The state folder: SQLite or the spool below it, bundles from the shared volume. */}}
{{- define "retort.stateMounts" -}}
- {name: config, mountPath: /etc/retort, readOnly: true}
- {name: state, mountPath: /var/lib/retort}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "retort.bundlesVolume" -}}
- name: bundles
  persistentVolumeClaim: {claimName: {{ include "retort.bundlesClaim" . }}}
{{- end -}}
