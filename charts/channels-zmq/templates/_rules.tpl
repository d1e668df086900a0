{{/* What the operator does in a namespace with layers. */}}
{{- define "channels-zmq.rules" -}}
- apiGroups: [channels-zmq.io]
  resources: [zmqchannellayers]
  verbs: [list, watch]
- apiGroups: [channels-zmq.io]
  resources: [zmqchannellayers/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, delete]
# Why forwarders do not start, and which pods of applications have settings of before.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [servicemonitors]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* Whether the operator makes the webhook's certificates, as text that is empty if not. */}}
{{- define "channels-zmq.makesCertificates" -}}
{{- if and (include "channels-zmq.webhook" .) (eq .Values.certificates.mode "Operator") }}yes{{ end -}}
{{- end }}

{{/* What the operator does in its own namespace. */}}
{{- define "channels-zmq.ownRules" -}}
{{- if gt (int .Values.operator.replicas) 1 }}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "channels-zmq.name" (list . "operator") }}]
  verbs: [get, update]
# If the chart's own is not there: Argo CD makes no Leases. What is created has no name that a rule could give.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
{{- end }}
{{- if include "channels-zmq.makesCertificates" . }}
{{- if and .Values.watchNamespaces (not (has (include "channels-zmq.namespace" .) .Values.watchNamespaces)) }}
# That it was renewed.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}
# The webhook's certificate, and the authority that signs it.
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "channels-zmq.secret" . }}, {{ include "channels-zmq.secret" . }}-ca]
  verbs: [get, create, patch]
{{- end }}
{{- end }}

{{/* What the operator does outside of namespaces. */}}
{{- define "channels-zmq.clusterRules" -}}
{{- if not .Values.watchNamespaces }}
{{ include "channels-zmq.rules" . }}
# Its own kind may be defined later than it starts, or again.
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  resourceNames: [zmqchannellayers.channels-zmq.io]
  verbs: [list, watch]
{{- end }}
{{- if include "channels-zmq.makesCertificates" . }}
# It writes the authority of the webhook's certificate into this one.
- apiGroups: [admissionregistration.k8s.io]
  resources: [mutatingwebhookconfigurations]
  resourceNames: [{{ include "channels-zmq.fullname" . }}]
  verbs: [list, watch, patch]
{{- end }}
{{- end }}
