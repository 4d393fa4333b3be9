{{- define "subpixel.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* at most 52 characters, so that "-canary" and what Kubernetes appends still fit */}}
{{- define "subpixel.fullname" -}}
{{- $name := include "subpixel.name" . -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $both .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "subpixel.selector" -}}
app.kubernetes.io/name: {{ include "subpixel.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "subpixel.server" -}}
{{ include "subpixel.selector" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "subpixel.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "subpixel.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "subpixel.serviceAccount" -}}
{{- $name := default (include "subpixel.fullname" .) .Values.serviceAccount.name -}}
{{- ternary $name (default "default" .Values.serviceAccount.name) .Values.serviceAccount.create -}}
{{- end -}}

{{/* takes {root, tag} */}}
{{- define "subpixel.image" -}}
{{- $values := .root.Values -}}
{{- $suffix := ternary "-cuda" "" $values.gpu.enabled -}}
{{- $tag := coalesce .tag $values.image.tag (printf "%s%s" .root.Chart.AppVersion $suffix) -}}
{{- if and $values.image.digest (not .tag) -}}
{{ printf "%s@%s" $values.image.repository $values.image.digest }}
{{- else -}}
{{ printf "%s:%s" $values.image.repository $tag }}
{{- end -}}
{{- end -}}

{{/* seconds from SIGTERM to SIGKILL: the delay, the requests, TorchServe's own end */}}
{{- define "subpixel.grace" -}}
{{- add .Values.drain.delay .Values.drain.timeout 20 -}}
{{- end -}}

{{- define "subpixel.s3Port" -}}
{{- $endpoint := urlParse (default "https://s3.amazonaws.com" .Values.s3.endpoint) -}}
{{- $host := regexReplaceAll "^\\[.*\\]" $endpoint.host "" -}}
{{- if contains ":" $host -}}{{ regexReplaceAll "^.*:" $host "" }}{{- else -}}{{ ternary "80" "443" (eq $endpoint.scheme "http") }}{{- end -}}
{{- end -}}

{{- define "subpixel.s3Env" -}}
{{- with .Values.s3.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.s3.region }}
- name: AWS_REGION
  value: {{ . | quote }}
- name: AWS_DEFAULT_REGION
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "subpixel.s3EnvFrom" -}}
{{- with .Values.s3.existingSecret }}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}
{{- end -}}

{{/* where Prometheus finds what queue time a request had, in milliseconds */}}
{{- define "subpixel.queueQuery" -}}
{{- $labels := printf "namespace=%q,service=%q" .Release.Namespace (printf "%s-metrics" (include "subpixel.fullname" .)) -}}
sum(rate(ts_queue_latency_microseconds{ {{- $labels -}} }[2m])) / clamp_min(sum(rate(ts_inference_requests_total{ {{- $labels -}} }[2m])), 0.001) / 1000
{{- end -}}
