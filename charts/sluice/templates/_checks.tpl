{{/* What must not be installed, said before anything is written. */}}

{{- define "sluice.checks" -}}
{{- include "sluice.checkSingle" . -}}
{{- include "sluice.checkAccess" . -}}
{{- include "sluice.checkCors" . -}}
{{- include "sluice.checkRedis" . -}}
{{- include "sluice.checkLabels" . -}}
{{- include "sluice.checkSecrets" . -}}
{{- include "sluice.checkPriority" . -}}
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
{{- if and (eq .Values.auth.mode "keys") (not .Values.auth.existingSecret) -}}
{{- fail (printf "\n\nauth.mode is keys, which needs auth.existingSecret: a Secret with the tenants and the hashes of their keys. Make one:\nsluice keys create TENANT --namespace NAMESPACE --secret sluice-keys --secret-namespace %s | kubectl apply -f -" .Release.Namespace) -}}
{{- end -}}
{{- if and (ne .Values.auth.mode "keys") .Values.auth.existingSecret -}}
{{- fail "\n\nauth.existingSecret has no effect with auth.mode none: set auth.mode: keys, or leave it out." -}}
{{- end -}}
{{- if and $exposed (eq .Values.auth.mode "none") (not .Values.auth.publicAccess) -}}
{{- fail (printf "\n\nauth.mode is none, and %s opens the gateway to callers outside the cluster: whoever reaches it could use every service with access.public.\nGive callers keys with auth.mode: keys. If that is meant, set auth.publicAccess: true." (join " and " $exposed)) -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "\n\nhttpRoute.enabled needs httpRoute.parentRefs: the Gateway that the route belongs to." -}}
{{- end -}}
{{- end }}

{{- define "sluice.checkCors" -}}
{{- with .Values.gateway.cors -}}
{{- if and (has "*" .origins) (gt (len .origins) 1) -}}
{{- fail (printf "\n\ngateway.cors.origins: got %s; give either * or origins by name." (join ", " .origins)) -}}
{{- end -}}
{{- if and .credentials (or (not .origins) (has "*" .origins)) -}}
{{- fail (printf "\n\ngateway.cors.credentials lets pages send cookies along, so it needs gateway.cors.origins by name; got %s." (join ", " .origins | default "none")) -}}
{{- end -}}
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

{{- define "sluice.checkLabels" -}}
{{- $ours := list "helm.sh/chart" -}}
{{- range list "name" "instance" "component" "version" "managed-by" }}{{ $ours = append $ours (printf "app.kubernetes.io/%s" .) }}{{ end -}}
{{- range $value, $labels := dict "labels" .Values.labels "operator.podLabels" .Values.operator.podLabels "gateway.podLabels" .Values.gateway.podLabels -}}
{{- range $name, $_ := $labels -}}
{{- if has $name $ours -}}
{{- fail (printf "\n\n%s: %s is the chart's own: Services, policies and Helm find their objects by it. Choose another name." $value $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Without a cluster to ask (helm template, Argo CD), no Secret is missed. */}}
{{- define "sluice.checkSecrets" -}}
{{- if lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "cluster-admin" -}}
{{- $wanted := list -}}
{{- if include "sluice.sharesCache" . -}}
{{- $wanted = append $wanted (list "cache.existingSecret" .Values.cache.existingSecret "cache-secret") -}}
{{- end -}}
{{- $wanted = append $wanted (list "redis.existingSecret" .Values.redis.existingSecret "redis-url") -}}
{{- $wanted = append $wanted (list "auth.existingSecret" .Values.auth.existingSecret "keys.yaml") -}}
{{- range .Values.image.pullSecrets -}}
{{- $wanted = append $wanted (list "image.pullSecrets" . "") -}}
{{- end -}}
{{- range $wanted -}}
{{- $value := index . 0 }}{{ $name := index . 1 }}{{ $key := index . 2 -}}
{{- if $name -}}
{{- $found := lookup "v1" "Secret" $.Release.Namespace $name -}}
{{- if not $found -}}
{{- fail (printf "\n\n%s: there is no Secret %q in namespace %q; make it first%s." $value $name $.Release.Namespace (ternary (printf ", with the key %s" $key) "" (ne $key ""))) -}}
{{- else if and $key (not (hasKey ($found.data | default dict) $key)) -}}
{{- fail (printf "\n\n%s: the Secret %q in namespace %q has no key %s." $value $name $.Release.Namespace $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "sluice.checkPriority" -}}
{{- with .Values.priorityClass -}}
{{- if and .name (lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "cluster-admin") -}}
{{- $found := lookup "scheduling.k8s.io/v1" "PriorityClass" "" .name -}}
{{- if and (not .create) (not $found) -}}
{{- fail (printf "\n\npriorityClass.name: there is no PriorityClass %q, without which no pod is made; make it first, or set priorityClass.create: true." .name) -}}
{{- end -}}
{{- if and .create $found (ne (int $found.value) (int .value)) -}}
{{- fail (printf "\n\npriorityClass.value: got %d, and the PriorityClass %q has %d, which Kubernetes never changes. Give priorityClass.name another name with it." (int .value) .name (int $found.value)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
