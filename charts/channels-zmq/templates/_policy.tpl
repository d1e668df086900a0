{{/* Variables of the policy's expressions. The policy does the same as the webhook; tests compare both. */}}
{{- define "channels-zmq.policyVariables" -}}
- name: annotations
  expression: "has(object.metadata.annotations) ? object.metadata.annotations : {}"
- name: alias
  expression: >-
    'channels-zmq.io/alias' in variables.annotations ? variables.annotations['channels-zmq.io/alias'] : 'default'
- name: label
  expression: "object.metadata.labels['channels-zmq.io/layer']"
- name: parts
  expression: >-
    (variables.label == '' ? [] : [variables.alias + '=' + variables.label])
    + ('channels-zmq.io/layers' in variables.annotations
    ? variables.annotations['channels-zmq.io/layers'].split(',').filter(part, part.trim() != '')
    .map(part, part.split('=').map(piece, piece.trim()).join('=')) : [])
- name: pattern
  expression: "'^[a-z][a-z0-9]*(_[a-z0-9]+)*=[a-z]([-a-z0-9]*[a-z0-9])?$'"
- name: all
  expression: >-
    (has(object.spec.initContainers) ? object.spec.initContainers.map(c, c.name) : [])
    + object.spec.containers.map(c, c.name)
- name: chosen
  expression: >-
    'channels-zmq.io/containers' in variables.annotations
    ? variables.annotations['channels-zmq.io/containers'].split(',').map(name, name.trim())
    .filter(name, name != '') : variables.all
# Reasons for which the pod is refused. Costly checks run only within the bounds.
- name: refusals
  expression: >-
    size(variables.parts) > 16 ? ['a pod has at most 16 layers'] :
    size(variables.parts) == 0 ? [] :
    size(variables.chosen) > 0 && size(variables.all) > 200 ? ['a pod with a layer has at most 200 containers'] :
    variables.parts.filter(part, !part.matches(variables.pattern)).map(part, part + ' is not ALIAS=LAYER')
    + variables.parts.filter(part, part.split('=')[0].size() > 40).map(part, part + ': an alias has at most 40 characters')
    + variables.parts.filter(part, part.size() > part.split('=')[0].size() + 48)
    .map(part, part + ': a layer has at most 47 characters')
    + variables.parts.filter(part, variables.parts.exists(other, other != part
    && other.split('=')[0] == part.split('=')[0])).map(part, part + ' is not the only layer of its alias')
    + ('channels-zmq.io/containers' in variables.annotations ? variables.chosen.filter(name, !(name in variables.all))
    .map(name, 'the pod has no container ' + name) : [])
# A pod that selects no container gets no layer.
- name: wishes
  expression: "size(variables.chosen) == 0 || size(variables.refusals) > 0 ? [] : variables.parts.distinct()"
- name: layers
  expression: "variables.wishes.map(wish, wish.split('=')[1]).distinct()"
- name: options
  expression: "['PULL_SOCKET_ADDRESS', 'PUB_SOCKET_ADDRESS', 'OPTIONS']"
- name: paths
  expression: >-
    {'CURVE_SERVER_KEY_FILE': 'server-key-file', 'CURVE_SECRET_KEY_FILE': 'secret-key-file',
    'SYMMETRIC_ENCRYPTION_KEYS_FILE': 'encryption-keys-file'}
- name: prefixes
  expression: >-
    variables.wishes.map(wish, wish.startsWith('default=') ? 'CHANNELS_ZMQ_' :
    'CHANNELS_ZMQ__' + wish.split('=')[0].upperAscii() + '__')
# The same in all containers, of both kinds: made once, as maps, since a variable has no types of the pod.
- name: env
  expression: >-
    variables.wishes.transformList(i, wish, variables.options.map(key, {
    'name': dyn(variables.prefixes[i] + key),
    'valueFrom': dyn({'configMapKeyRef': {'name': wish.split('=')[1] + '-channels', 'key': 'CHANNELS_ZMQ_' + key}})})
    + variables.paths.map(key, {
    'name': dyn(variables.prefixes[i] + key),
    'valueFrom': dyn({'secretKeyRef': {'name': wish.split('=')[1] + '-client', 'key': variables.paths[key]}})})).flatten()
- name: mounts
  expression: >-
    variables.layers.map(layer, {'name': dyn('channels-zmq-' + layer),
    'mountPath': dyn('/var/run/secrets/channels-zmq.io/' + layer), 'readOnly': dyn(true)})
{{- end }}

{{/* An empty patch, or one that cannot be applied to any pod: its path is the message that the pod's author gets. */}}
{{- define "channels-zmq.policyRefusals" -}}
variables.refusals.map(reason, JSONPatch{op: 'remove', path: '/' + jsonpatch.escapeKey(reason)})
{{- end }}

{{/* The patch. A missing list is added as a whole: one operation instead of one for each entry. */}}
{{- define "channels-zmq.policyPatch" -}}
size(variables.wishes) == 0 ? [] : (
{{- range $kind := list "containers" "initContainers" }}
{{- range $list := list "env" "mounts" }}
{{- $field := eq $list "env" | ternary "env" "volumeMounts" }}
{{- $key := eq $list "env" | ternary "name" "mountPath" }}
(!has(object.spec.{{ $kind }}) ? [] : object.spec.{{ $kind }}.transformList(i, c, c.name in variables.chosen,
  !has(c.{{ $field }})
  ? [JSONPatch{op: 'add', path: '/spec/{{ $kind }}/' + string(i) + '/{{ $field }}', value: variables.{{ $list }}}]
  : [c.{{ $field }}.map(own, own.{{ $key }})].map(present, variables.{{ $list }}
  .filter(wanted, !(wanted.{{ $key }} in present))
  .map(wanted, JSONPatch{op: 'add', path: '/spec/{{ $kind }}/' + string(i) + '/{{ $field }}/-', value: wanted})).flatten()
).flatten()) +
{{- end }}
{{- end }}
(has(object.spec.volumes) ? [] : [JSONPatch{op: 'add', path: '/spec/volumes', value: []}]) +
variables.layers.filter(layer, !has(object.spec.volumes) ||
  !object.spec.volumes.exists(v, v.name == 'channels-zmq-' + layer))
.map(layer, JSONPatch{
  op: 'add',
  path: '/spec/volumes/-',
  value: Object.spec.volumes{
    name: 'channels-zmq-' + layer,
    projected: Object.spec.volumes.projected{
      defaultMode: 292,
      sources: [
        Object.spec.volumes.projected.sources{secret: Object.spec.volumes.projected.sources.secret{
          name: layer + '-client',
          optional: true,
          items: [
            Object.spec.volumes.projected.sources.secret.items{key: 'server-key', path: 'server-key'},
            Object.spec.volumes.projected.sources.secret.items{key: 'CHANNELS_ZMQ_CURVE_SECRET_KEY', path: 'secret-key'}
          ]
        }},
        Object.spec.volumes.projected.sources{secret: Object.spec.volumes.projected.sources.secret{
          name: layer + '-encryption',
          optional: true,
          items: [Object.spec.volumes.projected.sources.secret.items{key: 'keys', path: 'encryption-keys'}]
        }}
      ]
    }
  }
}) +
(has(object.metadata.annotations) ? [] : [JSONPatch{op: 'add', path: '/metadata/annotations', value: {}}]) +
[JSONPatch{
  op: 'add',
  path: '/metadata/annotations/channels-zmq.io~1injected',
  value: variables.wishes.sort().join(',')
}])
{{- end }}
