{{/* What the policy's expressions share. It does what the webhook does; tests compare both. */}}
{{- define "channels-zmq.policyVariables" -}}
- name: annotations
  expression: "has(object.metadata.annotations) ? object.metadata.annotations : {}"
- name: alias
  expression: >-
    'channels-zmq.io/alias' in variables.annotations ? variables.annotations['channels-zmq.io/alias'] : 'default'
- name: more
  expression: >-
    'channels-zmq.io/layers' in variables.annotations
    ? variables.annotations['channels-zmq.io/layers'].split(',').map(part, part.trim()).filter(part, part != '') : []
- name: parts
  expression: "[variables.alias + '=' + object.metadata.labels['channels-zmq.io/layer']] + variables.more"
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
# A pod that chooses no container wants nothing.
- name: wishes
  expression: >-
    size(variables.chosen) == 0 ? [] : variables.parts.filter(part, part.matches(variables.pattern))
- name: layers
  expression: "variables.wishes.map(wish, wish.split('=')[1]).distinct()"
- name: paths
  expression: >-
    {'CURVE_SERVER_KEY_FILE': 'server-key-file', 'CURVE_SECRET_KEY_FILE': 'secret-key-file',
    'SYMMETRIC_ENCRYPTION_KEYS_FILE': 'encryption-keys-file'}
- name: keys
  expression: >-
    ['PULL_SOCKET_ADDRESS', 'PUB_SOCKET_ADDRESS', 'CAPACITY', 'EXPIRY', 'GROUP_EXPIRY', 'CHANNEL_CAPACITY',
    'MAX_MESSAGE_SIZE'] + variables.paths.map(key, key)
{{- end }}

{{/* Nothing, or what cannot be applied to any pod; its path is the message that the pod's author gets. */}}
{{- define "channels-zmq.policyRefusals" -}}
variables.parts.filter(part, !part.matches(variables.pattern)).map(part, JSONPatch{
  op: 'remove', path: '/' + jsonpatch.escapeKey(part + ' is not ALIAS=LAYER')
}) +
variables.chosen.filter(name, !(name in variables.all)).map(name, JSONPatch{
  op: 'remove', path: '/' + jsonpatch.escapeKey('the pod has no container ' + name)
})
{{- end }}

{{/* The patch: within one, what is added to an empty list is kept; the references are single objects, never a list. */}}
{{- define "channels-zmq.policyPatch" -}}
size(variables.wishes) == 0 ? [] : (
{{- range $kind := list "containers" "initContainers" }}
{{- range $list := list "env" "volumeMounts" }}
(!has(object.spec.{{ $kind }}) ? [] :
  object.spec.{{ $kind }}.filter(c, c.name in variables.chosen && !has(c.{{ $list }})).map(c, JSONPatch{
    op: 'add',
    path: '/spec/{{ $kind }}/' + string(object.spec.{{ $kind }}.map(d, d.name).indexOf(c.name)) + '/{{ $list }}',
    value: []
  })) +
{{- end }}
(!has(object.spec.{{ $kind }}) ? [] : variables.wishes.map(wish, variables.keys.map(key,
  object.spec.{{ $kind }}.filter(c, c.name in variables.chosen && !(has(c.env) && c.env.exists(e, e.name ==
    (wish.startsWith('default=') ? 'CHANNELS_ZMQ_' : 'CHANNELS_ZMQ__' + wish.split('=')[0].upperAscii() + '__') + key)))
  .map(c, JSONPatch{
    op: 'add',
    path: '/spec/{{ $kind }}/' + string(object.spec.{{ $kind }}.map(d, d.name).indexOf(c.name)) + '/env/-',
    value: Object.spec.{{ $kind }}.env{
      name: (wish.startsWith('default=') ? 'CHANNELS_ZMQ_' : 'CHANNELS_ZMQ__' + wish.split('=')[0].upperAscii() + '__') + key,
      valueFrom: key in variables.paths ? Object.spec.{{ $kind }}.env.valueFrom{
        secretKeyRef: Object.spec.{{ $kind }}.env.valueFrom.secretKeyRef{
          name: wish.split('=')[1] + '-client',
          key: variables.paths[key]
        }
      } : Object.spec.{{ $kind }}.env.valueFrom{
        configMapKeyRef: Object.spec.{{ $kind }}.env.valueFrom.configMapKeyRef{
          name: wish.split('=')[1],
          key: 'CHANNELS_ZMQ_' + key,
          optional: !key.endsWith('_SOCKET_ADDRESS')
        }
      }
    }
  }))).flatten().flatten()) +
(!has(object.spec.{{ $kind }}) ? [] : variables.layers.map(layer, object.spec.{{ $kind }}
  .filter(c, c.name in variables.chosen && !(has(c.volumeMounts) && c.volumeMounts.exists(m,
    m.mountPath == '/var/run/secrets/channels-zmq.io/' + layer)))
  .map(c, JSONPatch{
    op: 'add',
    path: '/spec/{{ $kind }}/' + string(object.spec.{{ $kind }}.map(d, d.name).indexOf(c.name)) + '/volumeMounts/-',
    value: Object.spec.{{ $kind }}.volumeMounts{
      name: 'channels-zmq-' + layer,
      mountPath: '/var/run/secrets/channels-zmq.io/' + layer,
      readOnly: true
    }
  })).flatten()) +
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
