{{/* The alerts: docs/monitoring.md has a heading for each. `{{ $labels }}` below is for Prometheus. */}}
{{- define "channels-zmq.alerts" -}}
{{- $rule := .Values.monitoring.prometheusRule -}}
{{- $namespace := include "channels-zmq.namespace" . -}}
- alert: ChannelsZmqForwarderDown
  # Counts only while the layer lacks forwarders: the pod of a lost node remains after it was replaced, and other forwarders
  # serve while a new pod waits for its image. Without the operator's metric, every forwarder counts.
  expr: >-
    (channels_zmq_forwarder_ready == 0 or up{layer_namespace!=""} == 0)
    unless on (layer_namespace, layer) channels_zmq_operator_layer_condition{condition="Ready"} == 1
  for: 1m
  severity: critical
  summary: A forwarder in {{ "{{ $labels.namespace }}" }} accepts no messages.
- alert: ChannelsZmqForwarderDrops
  expr: sum by (namespace, service, cause) (increase(channels_zmq_forwarder_drops_total[5m])) > 0
  for: 5m
  severity: warning
  summary: The forwarder {{ "{{ $labels.service }}" }} in {{ "{{ $labels.namespace }}" }} drops frames ({{ "{{ $labels.cause }}" }}).
- alert: ChannelsZmqQueueAge
  expr: channels_zmq_forwarder_queue_age_seconds > {{ $rule.queueAgeSeconds }}
  for: 2m
  severity: warning
  summary: A message of a normal channel in {{ "{{ $labels.namespace }}" }} has waited for {{ "{{ $value }}" }} s.
- alert: ChannelsZmqRefusedHandshakes
  expr: sum by (namespace, service) (increase(channels_zmq_forwarder_refused_handshakes_total[5m])) > 0
  for: 5m
  severity: warning
  summary: The forwarder {{ "{{ $labels.service }}" }} in {{ "{{ $labels.namespace }}" }} refuses clients because of their key.
- alert: ChannelsZmqLayerNotReady
  expr: min by (layer_namespace, layer) (channels_zmq_operator_layer_condition{condition="Ready"}) == 0
  for: 5m
  severity: critical
  summary: The layer {{ "{{ $labels.layer }}" }} in {{ "{{ $labels.layer_namespace }}" }} has fewer ready forwarders than desired.
- alert: ChannelsZmqLayerDegraded
  expr: max by (layer_namespace, layer, reason) (channels_zmq_operator_layer_condition{condition="Degraded"}) == 1
  for: 15m
  severity: warning
  summary: The layer {{ "{{ $labels.layer }}" }} in {{ "{{ $labels.layer_namespace }}" }} is degraded ({{ "{{ $labels.reason }}" }}).
- alert: ChannelsZmqReconcileErrors
  # The operator retries a failed layer after at most a minute.
  expr: sum by (namespace) (increase(channels_zmq_operator_reconcile_errors_total[5m])) > 0
  for: 10m
  severity: warning
  summary: The operator fails to reconcile layers.
- alert: ChannelsZmqOperatorDown
  expr: absent(channels_zmq_operator_info{namespace="{{ $namespace }}"})
  for: 10m
  severity: warning
  summary: No operator is running; existing forwarders keep running.
- alert: ChannelsZmqNobodyLeads
  expr: sum by (namespace) (channels_zmq_operator_leads) == 0
  for: 5m
  severity: warning
  summary: No replica of the operator is the leader; existing forwarders keep running.
{{- if include "channels-zmq.webhook" . }}
- alert: ChannelsZmqWebhookDown
  # A webhook with an expired certificate serves no reviews.
  expr: absent(channels_zmq_webhook_certificate_expiry_timestamp_seconds{namespace="{{ $namespace }}"} > time())
  for: 5m
  severity: critical
  summary: No webhook is available; pods with the label channels-zmq.io/layer {{ eq .Values.injection.failurePolicy "Fail" | ternary "are not created" "start without it" }}.
- alert: ChannelsZmqWebhookCertificate
  expr: channels_zmq_webhook_certificate_expiry_timestamp_seconds - time() < {{ mul $rule.certificateDays 86400 }}
  for: 1h
  severity: critical
  summary: The webhook's certificate was not renewed and expires soon.
{{- end }}
{{- end }}
