{{/* Permissions of the operator in namespaces with layers. */}}
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
# For the reasons why forwarders do not start, and for application pods with previous settings.
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

{{/* Whether the operator issues the webhook's certificates; empty if not. */}}
{{- define "channels-zmq.makesCertificates" -}}
{{- if and (include "channels-zmq.webhook" .) (eq .Values.certificates.mode "Operator") }}yes{{ end -}}
{{- end }}

{{/* Permissions of the operator in its own namespace. */}}
{{- define "channels-zmq.ownRules" -}}
{{- if gt (int .Values.operator.replicas) 1 }}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "channels-zmq.name" (list . "operator") }}]
  verbs: [get, update]
# If the chart's Lease is missing: Argo CD creates no Leases. A rule for create cannot restrict names.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
{{- end }}
{{- if include "channels-zmq.makesCertificates" . }}
{{- $secrets := list (include "channels-zmq.secret" .) (printf "%s-ca" (include "channels-zmq.secret" .)) | join ", " }}
{{- if and .Values.watchNamespaces (not (has (include "channels-zmq.namespace" .) .Values.watchNamespaces)) }}
# For the event of the renewal.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
# Some clusters, such as OpenShift, let only those set an owner who may delete the object.
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ $secrets }}]
  verbs: [delete]
{{- end }}
# The webhook's certificate, and the CA that signs it.
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ $secrets }}]
  verbs: [get, create, patch]
{{- end }}
{{- end }}

{{/* Permissions of the operator on cluster-scoped objects. */}}
{{- define "channels-zmq.clusterRules" -}}
{{- if not .Values.watchNamespaces }}
{{ include "channels-zmq.rules" . }}
# The CustomResourceDefinition may be created after the operator starts, or created again.
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  resourceNames: [zmqchannellayers.channels-zmq.io]
  verbs: [list, watch]
{{- end }}
{{- if include "channels-zmq.makesCertificates" . }}
# For the CA of the webhook's certificate in this configuration.
- apiGroups: [admissionregistration.k8s.io]
  resources: [mutatingwebhookconfigurations]
  resourceNames: [{{ include "channels-zmq.fullname" . }}]
  verbs: [list, watch, patch]
{{- end }}
{{- end }}
