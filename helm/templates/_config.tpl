{{/* retort.yaml: the values' `config`, and what follows from the rest of them. */}}
{{- define "retort.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "state_dir" "/var/lib/retort" -}}
{{- $server := default dict $config.server -}}
{{- $_ := set $server "host" "0.0.0.0" -}}
{{- $_ := set $server "port" 8080 -}}
{{- if .Values.clientKeys.existingSecret -}}
{{- $_ := set $server "api_keys_env" "RETORT_API_KEYS" -}}
{{- end -}}
{{- $_ := set $config "server" $server -}}
{{- $teacher := default dict $config.teacher -}}
{{- $_ := set $teacher "api_key_env" (ternary "RETORT_TEACHER_KEY" nil (ne .Values.teacher.existingSecret "")) -}}
{{- $_ := set $config "teacher" $teacher -}}
{{- if .Values.database.existingSecret -}}
{{- $_ := set $config "store" (merge (dict "url_env" "RETORT_DATABASE_URL") (default dict $config.store)) -}}
{{- end -}}
{{- if .Values.student.enabled -}}
{{- $student := default dict $config.student -}}
{{- $_ := set $student "base_url" (printf "http://%s-student:8000/v1" (include "retort.fullname" .)) -}}
{{- $_ := set $config "student" $student -}}
{{- $training := default dict $config.training -}}
{{- if not $training.base_model -}}
{{- $_ := set $training "base_model" .Values.student.model -}}
{{- end -}}
{{- $_ := set $config "training" $training -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Combinations that would start and then not work. */}}
{{- define "retort.check" -}}
{{- $config := .Values.config -}}
{{- $gateway := .Values.gateway -}}
{{- if not .Values.database.existingSecret -}}
{{- if or (gt (int $gateway.replicas) 1) $gateway.autoscaling.enabled -}}
{{- fail "several gateways need a shared database: set database.existingSecret (SQLite is for one)" -}}
{{- end -}}
{{- if .Values.nightly.enabled -}}
{{- fail "nightly.enabled needs a database that another pod can reach: set database.existingSecret" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.student.enabled (not .Values.student.model) -}}
{{- fail "student.enabled needs student.model: a Hugging Face id, or a path on student.modelClaim" -}}
{{- end -}}
{{- if and .Values.student.enabled (dig "student" "base_url" "" $config) -}}
{{- fail "student.enabled, so config.student.base_url is the chart's own: leave it out" -}}
{{- end -}}
{{- if and (or .Values.student.enabled .Values.nightly.enabled) (not .Values.bundles.enabled) -}}
{{- fail "student and nights share files with the gateway: set bundles.enabled" -}}
{{- end -}}
{{- $rank := int (dig "training" "rank" 8 $config) -}}
{{- if and .Values.student.enabled (gt $rank (int .Values.student.maxLoraRank)) -}}
{{- fail (printf "config.training.rank is %d, but the student loads adapters up to rank %d: raise student.maxLoraRank" $rank (int .Values.student.maxLoraRank)) -}}
{{- end -}}
{{- if .Values.nightly.enabled -}}
{{- if not $config.tasks -}}
{{- fail "nightly.enabled, but config.tasks is empty: there is nothing to distil" -}}
{{- end -}}
{{- if not (or .Values.student.enabled (dig "student" "base_url" "" $config)) -}}
{{- fail "nightly.enabled needs a student server: set student.enabled, or config.student.base_url" -}}
{{- end -}}
{{- $known := list -}}
{{- range $config.tasks -}}{{- $known = append $known .name -}}{{- end -}}
{{- range .Values.nightly.tasks -}}
{{- if not (has . $known) -}}
{{- fail (printf "nightly.tasks: no task named %s in config.tasks" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
