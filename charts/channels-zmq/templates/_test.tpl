{{/* The namespace of the test: that of the release if the operator watches it, else the first watched one. */}}
{{- define "channels-zmq.testNamespace" -}}
{{- $watched := .Values.watchNamespaces -}}
{{- if or (not $watched) (has (include "channels-zmq.namespace" .) $watched) }}{{ include "channels-zmq.namespace" . }}{{ else }}{{ first $watched }}{{ end -}}
{{- end }}

{{/* Annotations of one of the test's objects: list of the context and its weight. */}}
{{- define "channels-zmq.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
helm.sh/hook-output-log-policy: hook-succeeded,hook-failed
{{- end }}

{{/* Metadata of one of the test's objects: arguments as above. */}}
{{- define "channels-zmq.testMetadata" -}}
{{- $context := index . 0 -}}
name: {{ include "channels-zmq.name" (list $context "test" 47) }}
namespace: {{ include "channels-zmq.testNamespace" $context }}
{{ include "channels-zmq.metadata" (list $context "test" (include "channels-zmq.testHook" . | fromYaml)) }}
{{- end }}
