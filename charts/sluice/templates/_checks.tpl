{{/* What must not be installed, said before anything is written. */}}

{{- define "sluice.checks" -}}
{{- include "sluice.checkSingle" . -}}
{{- include "sluice.checkAccess" . -}}
{{- include "sluice.checkRedis" . -}}
{{- end }}

{{- define "sluice.checkSingle" -}}
{{- $found := lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "sluice-operator" -}}
{{- $annotations := ($found.metadata).annotations | default dict -}}
{{- $name := index $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := index $annotations "meta.helm.sh/release-namespace" -}}
{{- if and $name (or (ne $name .Release.Name) (ne $namespace .Release.Namespace)) -}}
{{- fail (printf "\n\nSluice is installed in this cluster already: release %q in namespace %q. One Sluice serves every namespace; two would fight over the same services.\nChange that one (helm upgrade %s … --namespace %s), or uninstall it first (helm uninstall %s --namespace %s)." $name $namespace $name $namespace $name $namespace) -}}
{{- end -}}
{{- end }}

{{- define "sluice.checkAccess" -}}
{{- $exposed := list -}}
{{- if .Values.ingress.enabled }}{{ $exposed = append $exposed "ingress.enabled" }}{{ end -}}
{{- if .Values.httpRoute.enabled }}{{ $exposed = append $exposed "httpRoute.enabled" }}{{ end -}}
{{- if ne .Values.gateway.service.type "ClusterIP" }}{{ $exposed = append $exposed (printf "gateway.service.type: %s" .Values.gateway.service.type) }}{{ end -}}
{{- if and $exposed (not .Values.auth.publicAccess) -}}
{{- fail (printf "\n\nauth.mode is none, and %s opens the gateway to callers outside the cluster: whoever reaches it could use every service with access.public.\nIf that is meant, set auth.publicAccess: true." (join " and " $exposed)) -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "\n\nhttpRoute.enabled needs httpRoute.parentRefs: the Gateway that the route belongs to." -}}
{{- end -}}
{{- end }}

{{- define "sluice.checkRedis" -}}
{{- $given := list -}}
{{- if .Values.redis.enabled }}{{ $given = append $given "redis.enabled" }}{{ end -}}
{{- if .Values.redis.url }}{{ $given = append $given "redis.url" }}{{ end -}}
{{- if .Values.redis.existingSecret }}{{ $given = append $given "redis.existingSecret" }}{{ end -}}
{{- if gt (len $given) 1 -}}
{{- fail (printf "\n\n%s exclude each other: choose one Redis.%s" (join " and " $given) (ternary " To use an existing one, set redis.enabled: false." "" .Values.redis.enabled)) -}}
{{- end -}}
{{- end }}
