{{/* What every pod of the chart has in common; all of it passes the `restricted` Pod Security level. */}}

{{- define "sluice.podSecurity" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "sluice.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end }}

{{/* metadata of a pod: dict root, component, values */}}
{{- define "sluice.podMetadata" -}}
labels:
  {{- include "sluice.selector" .component | nindent 2 }}
  app.kubernetes.io/instance: {{ .root.Release.Name }}
  {{- with merge (dict) (.values.podLabels | default dict) .root.Values.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.values.podAnnotations | default dict) .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* where a pod runs, and what it is told by nobody: dict root, component, values */}}
{{- define "sluice.placement" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .root.Values.priorityClass.name }}
priorityClassName: {{ . }}
{{- end }}
# A Service called sluice-gateway would set SLUICE_GATEWAY_PORT, which is a setting of ours.
enableServiceLinks: false
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* variables beside the chart's own: dict value (its name), own (text), extra */}}
{{- define "sluice.extraEnv" -}}
{{- $taken := list }}
{{- range fromYamlArray .own }}{{ $taken = append $taken .name }}{{ end }}
{{- range .extra }}
{{- if has .name $taken }}
{{- fail (printf "\n\n%s: %s is there already: the chart sets it, from a value of its own (helm show values), or it is given twice." $.value .name) }}
{{- end }}
{{- $taken = append $taken .name }}
{{- end }}
{{- toYaml .extra }}
{{- end }}

{{/* dict component, values */}}
{{- define "sluice.spread" -}}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else }}
{{- $component := .component }}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "sluice.selector" $component | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- end }}
