{{/*
Names and labels. The names are fixed: there is one Sluice per cluster, and the Services are part of
what applications and dashboards are told.
*/}}

{{- define "sluice.labels" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* metadata of a namespaced object: dict root, name, component, annotations */}}
{{- define "sluice.metadata" -}}
name: {{ .name }}
{{- if not .cluster }}
namespace: {{ .root.Release.Namespace }}
{{- end }}
labels:
  {{- include "sluice.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* a full image name: dict root, image, tag (the default one) */}}
{{- define "sluice.image" -}}
{{- $registry := .image.registry | default .root.Values.image.registry -}}
{{- $tag := .image.tag | default .tag | default .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- with $registry }}{{ . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{- define "sluice.workerGpuImage" -}}
{{- $tag := .Values.worker.image.tag | default .Values.image.tag | default .Chart.AppVersion -}}
{{- include "sluice.image" (dict "root" . "image" .Values.worker.gpuImage "tag" (printf "%s-cuda" $tag)) -}}
{{- end }}

{{- define "sluice.cacheSecret" -}}
{{ .Values.cache.existingSecret | default "sluice-cache" }}
{{- end }}

{{/* "true" where gateways share a Redis, whoever runs it */}}
{{- define "sluice.sharesCache" -}}
{{- if or .Values.redis.enabled .Values.redis.url .Values.redis.existingSecret }}true{{ end }}
{{- end }}

{{/* namespace/name of another server that has the custom metrics group, or nothing */}}
{{- define "sluice.metricsApiOwner" -}}
{{- $ours := printf "%s/sluice-metrics-api" .Release.Namespace -}}
{{- $others := list -}}
{{- range list "v1beta1" "v1beta2" -}}
{{- $service := ((lookup "apiregistration.k8s.io/v1" "APIService" "" (printf "%s.custom.metrics.k8s.io" .)).spec).service -}}
{{- if $service -}}
{{- $owner := printf "%s/%s" $service.namespace $service.name -}}
{{- if ne $owner $ours }}{{ $others = append $others $owner }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $others | uniq | join " and " -}}
{{- end }}

{{/* seconds a gateway may take to end */}}
{{- define "sluice.drainSeconds" -}}
{{- $seconds := 10 -}}
{{- range $name := list "drainDelay" "drainGrace" -}}
{{- $given := index $.Values.gateway $name -}}
{{/* The schema lets a number through, because its own words do not say what is missing. */}}
{{- if not (kindIs "string" $given) -}}
{{- fail (printf "\n\ngateway.%s: %v has no unit; write a duration such as 30s or 1m30s." $name $given) -}}
{{- end -}}
{{- range regexFindAll "[0-9]+[hms]" $given -1 -}}
{{- $number := regexFind "[0-9]+" . | int -}}
{{- $unit := index (dict "h" 3600 "m" 60 "s" 1) (regexFind "[hms]$" .) -}}
{{- $seconds = add $seconds (mul $number $unit) -}}
{{- end -}}
{{- end -}}
{{- $seconds -}}
{{- end }}
