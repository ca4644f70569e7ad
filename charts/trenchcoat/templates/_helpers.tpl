{{- define "trenchcoat.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "trenchcoat.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "trenchcoat.labels" -}}
{{ include "trenchcoat.labelsWith" (list . dict) }}
{{- end -}}

{{/*
All labels of an object: the argument is a list of the root and of further labels. Each key stands there once, as the
API server wants it: of two, further labels win over common ones, and those over ours.
*/}}
{{- define "trenchcoat.labelsWith" -}}
{{- $root := index . 0 -}}
{{- $selected := include "trenchcoat.selectorLabels" $root | fromYaml -}}
{{- $given := merge (dict) (index . 1) $root.Values.commonLabels -}}
{{- range $key, $value := $given -}}
{{- if hasKey $selected $key -}}
{{- fail (printf "the label %s is what the operator's pod is selected by: leave it out (nameOverride changes the name)" $key) -}}
{{- end -}}
{{- end -}}
{{- $own := dict "app.kubernetes.io/version" $root.Chart.AppVersion "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $chart := printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" -}}
{{- merge (dict) $selected $given $own (dict "helm.sh/chart" $chart) | toYaml -}}
{{- end -}}

{{/*
Items of a list of the chart's own, then those of the user's: the argument is a list of the value's name, of the key that
tells items apart, of ours as YAML, and of the user's. The API server refuses two that are alike.
*/}}
{{- define "trenchcoat.listWith" -}}
{{- $key := index . 1 -}}
{{- $ours := index . 2 | fromYamlArray -}}
{{- $seen := dict -}}
{{- range $item := concat $ours (index . 3) -}}
{{- $word := get $item $key -}}
{{- if hasKey $seen $word -}}
{{- fail (printf "%s: %s %s is there already, by the chart or twice in your values: leave it out" (index $ 0) $key $word) -}}
{{- end -}}
{{- $_ := set $seen $word true -}}
{{- end -}}
{{ index . 2 | trim }}
{{- with index . 3 }}
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{- define "trenchcoat.viewerSelectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: viewer
{{- end -}}

{{- define "trenchcoat.viewerLabels" -}}
{{- include "trenchcoat.labels" . | replace "app.kubernetes.io/component: operator" "app.kubernetes.io/component: viewer" -}}
{{- end -}}

{{- define "trenchcoat.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "trenchcoat.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* An image: the argument is a list of the image's values and the root. */}}
{{- define "trenchcoat.image" -}}
{{- $image := index . 0 -}}
{{- $root := index . 1 -}}
{{- with $image.registry }}{{ . }}/{{ end -}}
{{ $image.repository }}
{{- if $image.digest -}}
{{- with $image.tag }}:{{ . }}{{ end }}@{{ $image.digest }}
{{- else -}}
:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{/* Rights within the namespaces that are served. */}}
{{- define "trenchcoat.rules" -}}
- apiGroups: [trenchcoat.dev]
  resources: [trenchcoats]
  verbs: [get, list, watch, patch]
- apiGroups: [trenchcoat.dev]
  resources: [trenchcoats/status]
  verbs: [patch]
# Where OwnerReferencesPermissionEnforcement is on, an owner reference that blocks deletion needs this.
- apiGroups: [trenchcoat.dev]
  resources: [trenchcoats/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [list, watch, create, patch, delete]
# Services: where the pods of a gang find one another, with spec.scheduling.distributed IndexedJob.
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
# With deleting: to give up pods of its own whose node does not answer.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
  {{- with .Values.rbac.secretNames }}
  resourceNames:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- with .Values.rbac.serviceAccountNames }}
# Tokens that stores give keys for (spec.store.webIdentity).
- apiGroups: [""]
  resources: [serviceaccounts/token]
  verbs: [create]
  resourceNames:
    {{- toYaml . | nindent 4 }}
{{- end }}
# Why Kueue keeps a Job waiting, for the status.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
# What autoscalers say of pods that wait for nodes, and controllers of Jobs that get no pods, for the status.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
{{- end -}}
