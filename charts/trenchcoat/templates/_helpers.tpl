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
{{ include "trenchcoat.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
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
