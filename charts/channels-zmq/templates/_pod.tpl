{{/* A Deployment's pods: list of the context, the component, its own variables, ports, mounts and volumes as YAML. */}}
{{- define "channels-zmq.pod" -}}
{{- $context := index . 0 -}}
{{- $component := index . 1 -}}
{{- $own := index . 2 -}}
{{- $values := get $context.Values $component -}}
metadata:
  labels:
    {{- $labels := include "channels-zmq.labels" (list $context $component) | fromYaml }}
    {{- toYaml (merge (include "channels-zmq.selector" (list $context $component) | fromYaml) $values.podLabels $labels) | nindent 4 }}
  {{- with merge dict $values.podAnnotations $context.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "channels-zmq.serviceAccount" (list $context $component) }}
  automountServiceAccountToken: {{ eq $component "operator" }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  {{- if $values.hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  {{- with $context.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $context.Values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ $component }}
      image: {{ include "channels-zmq.image" (list $context $context.Values.image) | quote }}
      imagePullPolicy: {{ $context.Values.image.pullPolicy }}
      args: [{{ $own.command }}]
      env:
        {{- range $name, $value := $own.env }}
        - name: CHANNELS_ZMQ_OPERATOR_{{ $name }}
          value: {{ $value | toString | quote }}
        {{- end }}
        {{- if eq $component "operator" }}
        - name: CHANNELS_ZMQ_OPERATOR_NAMESPACE
          valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}
        - name: CHANNELS_ZMQ_OPERATOR_IDENTITY
          valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}
        {{- end }}
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        {{- range $name, $port := $own.ports }}
        - {name: {{ $name }}, containerPort: {{ $port }}, protocol: TCP}
        {{- end }}
      {{- toYaml $own.probes | nindent 6 }}
      {{- with $values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $context.Values.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with concat (default list $own.mounts) $values.extraVolumeMounts }}
      volumeMounts:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- with $values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with concat (default list $own.volumes) $values.extraVolumes }}
  volumes:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- include "channels-zmq.scheduling" . | nindent 2 }}
{{- end }}

{{/* Scheduling of pods: arguments as above. */}}
{{- define "channels-zmq.scheduling" -}}
{{- $values := get (index . 0).Values (index . 1) -}}
{{- $selector := dict "matchLabels" (include "channels-zmq.selector" . | fromYaml) -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with get $values $key }}
{{ $key }}: {{ if kindIs "string" . }}{{ . | quote }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml (hasKey . "labelSelector" | ternary . (set (deepCopy .) "labelSelector" $selector)) | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
