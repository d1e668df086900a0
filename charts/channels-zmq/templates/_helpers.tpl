{{/* The name of all objects; a Service's name has no dots and begins with a letter. */}}
{{- define "channels-zmq.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = default .Chart.Name .Values.nameOverride -}}
{{- if not (contains $name .Release.Name) -}}{{- $name = printf "%s-%s" .Release.Name $name -}}
{{- else -}}{{- $name = .Release.Name -}}{{- end -}}
{{- end -}}
{{- $name = $name | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $name -}}{{- $name = printf "r%s" $name -}}{{- end -}}
{{- $name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* The namespace of all objects. */}}
{{- define "channels-zmq.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end }}

{{/* The name of one object: list of the context, the suffix, and the maximum length. */}}
{{- define "channels-zmq.name" -}}
{{- $suffix := index . 1 -}}
{{- $longest := 63 -}}
{{- if gt (len .) 2 -}}{{- $longest = index . 2 -}}{{- end -}}
{{- $room := sub $longest (len $suffix | add1) | int -}}
{{- printf "%s-%s" (include "channels-zmq.fullname" (index . 0) | trunc $room | trimSuffix "-") $suffix -}}
{{- end }}

{{/* Labels by which pods of a component are selected: list of the context and the component. */}}
{{- define "channels-zmq.selector" -}}
{{- $context := index . 0 -}}
app.kubernetes.io/name: {{ default $context.Chart.Name $context.Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ $context.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of an object: list of the context and the component; the chart's own take precedence. */}}
{{- define "channels-zmq.labels" -}}
{{- $context := index . 0 -}}
{{- $own := dict
  "app.kubernetes.io/version" $context.Chart.AppVersion
  "app.kubernetes.io/part-of" "channels-zmq"
  "app.kubernetes.io/managed-by" $context.Release.Service
  "helm.sh/chart" (printf "%s-%s" $context.Chart.Name $context.Chart.Version | replace "+" "_" | trunc 63)
-}}
{{- toYaml (merge (include "channels-zmq.selector" . | fromYaml) $own $context.Values.commonLabels) -}}
{{- end }}

{{/* Labels and annotations of an object: list of the context, the component, and annotations and labels of its own. */}}
{{- define "channels-zmq.metadata" -}}
{{- $context := index . 0 -}}
{{- $annotations := $context.Values.commonAnnotations -}}
{{- $labels := dict -}}
{{- if gt (len .) 2 -}}{{- $annotations = merge dict (index . 2) $annotations -}}{{- end -}}
{{- if gt (len .) 3 -}}{{- $labels = index . 3 -}}{{- end -}}
labels:
  {{- toYaml (merge dict $labels (include "channels-zmq.labels" (list $context (index . 1)) | fromYaml)) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* An image: list of the context and its values. */}}
{{- define "channels-zmq.image" -}}
{{- $image := index . 1 -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default (index . 0).Chart.AppVersion $image.tag }}{{ end -}}
{{- end }}

{{/* The service account of a component: list of the context and the component. */}}
{{- define "channels-zmq.serviceAccount" -}}
{{- $account := (get (index . 0).Values (index . 1)).serviceAccount -}}
{{- if $account.name }}{{ $account.name }}
{{- else if $account.create }}{{ include "channels-zmq.name" . }}
{{- else }}default{{ end -}}
{{- end }}

{{/* Whether the chart installs the webhook; empty if not. */}}
{{- define "channels-zmq.webhook" -}}
{{- if eq .Values.injection.mode "Webhook" }}yes{{ end -}}
{{- end }}

{{/* The Secret with the webhook's certificate; the operator creates a second one whose name is 3 characters longer. */}}
{{- define "channels-zmq.secret" -}}
{{- $certificates := .Values.certificates -}}
{{- if and (eq $certificates.mode "ExistingSecret") (not $certificates.secretName) -}}
{{- fail "certificates.secretName: set the name of the Secret with tls.crt and tls.key: certificates.mode is ExistingSecret" -}}
{{- end -}}
{{- default (include "channels-zmq.name" (list . "webhook" 60)) $certificates.secretName -}}
{{- end }}

{{/* Selector of the namespaces with injection: namespaceSelector of the values, restricted to watchNamespaces. */}}
{{- define "channels-zmq.namespaceSelector" -}}
{{- $selector := deepCopy .Values.injection.namespaceSelector -}}
{{- with .Values.watchNamespaces -}}
{{- $named := dict "key" "kubernetes.io/metadata.name" "operator" "In" "values" . -}}
{{- $_ := set $selector "matchExpressions" (append (default list $selector.matchExpressions) $named) -}}
{{- end -}}
{{- toYaml $selector -}}
{{- end }}

{{/* Conditions for injection: the pod is not the mirror of a static pod, and not one of the operator's or this release's. */}}
{{- define "channels-zmq.matchConditions" -}}
- name: is-no-mirror
  expression: >-
    !has(object.metadata.annotations) || !('kubernetes.io/config.mirror' in object.metadata.annotations)
- name: is-no-forwarder
  expression: >-
    !has(object.metadata.labels) || !('app.kubernetes.io/managed-by' in object.metadata.labels) ||
    object.metadata.labels['app.kubernetes.io/managed-by'] != 'channels-zmq-operator'
- name: is-not-of-this-release
  expression: >-
    request.namespace != '{{ include "channels-zmq.namespace" . }}' || !has(object.metadata.labels) ||
    !('app.kubernetes.io/component' in object.metadata.labels) ||
    !('app.kubernetes.io/instance' in object.metadata.labels) ||
    object.metadata.labels['app.kubernetes.io/instance'] != '{{ .Release.Name }}' ||
    !(object.metadata.labels['app.kubernetes.io/component'] in ['operator', 'webhook'])
{{- end }}
