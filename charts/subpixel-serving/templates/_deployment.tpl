{{/* one version of the model in pods of its own; takes {root, track, replicas, version, sha256, tag} */}}
{{- define "subpixel.deployment" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $fullname := include "subpixel.fullname" $root -}}
{{- $image := include "subpixel.image" (dict "root" $root "tag" .tag) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $fullname }}{{ if eq .track "canary" }}-canary{{ end }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "subpixel.labels" $root | nindent 4 }}
    app.kubernetes.io/component: server
    subpixel/track: {{ .track }}
spec:
  {{- if ne (toString .replicas) "" }}
  replicas: {{ .replicas }}
  {{- end }}
  revisionHistoryLimit: {{ $values.revisionHistoryLimit }}
  minReadySeconds: {{ $values.minReadySeconds }}
  progressDeadlineSeconds: {{ max 600 (add $values.minReadySeconds (mul 2 $values.probes.period $values.probes.startupFailures)) }}
  strategy:
    {{- toYaml $values.strategy | nindent 4 }}
  selector:
    matchLabels:
      {{- include "subpixel.server" $root | nindent 6 }}
      subpixel/track: {{ .track }}
  template:
    metadata:
      labels:
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- include "subpixel.labels" $root | nindent 8 }}
        app.kubernetes.io/component: server
        subpixel/track: {{ .track }}
      annotations:
        kubectl.kubernetes.io/default-container: server
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "subpixel.serviceAccount" $root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ include "subpixel.grace" $root }}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- if and $values.gpu.enabled $values.gpu.runtimeClassName }}
      runtimeClassName: {{ $values.gpu.runtimeClassName }}
      {{- end }}
      securityContext:
        {{- toYaml $values.podSecurityContext | nindent 8 }}
      initContainers:
        - name: fetch-archive
          image: {{ $image | quote }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          command: [python3, -m, serving.fetch_archive]
          args:
            - {{ required "modelStore.uri: where models are published (package.publish_to), such as s3://bucket/models" $values.modelStore.uri | quote }}
            - {{ $values.model.name | quote }}
            - /models
            - --addressing-style={{ $values.s3.addressingStyle }}
            {{- with .version }}
            - --version={{ . }}
            {{- end }}
            {{- with .sha256 }}
            - --sha256={{ . }}
            {{- end }}
          {{- with include "subpixel.s3Env" $root | trim }}
          env:
            {{- . | nindent 12 }}
          {{- end }}
          {{- with include "subpixel.s3EnvFrom" $root | trim }}
          {{- . | nindent 10 }}
          {{- end }}
          resources:
            {{- toYaml $values.initResources | nindent 12 }}
          securityContext:
            {{- toYaml $values.securityContext | nindent 12 }}
          volumeMounts:
            - name: models
              mountPath: /models
            - name: tmp
              mountPath: /tmp
            {{- if $values.modelStore.existingClaim }}
            - name: store
              mountPath: /store
              readOnly: true
            {{- end }}
      containers:
        - name: server
          image: {{ $image | quote }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          command: [python3, -m, serving.container]
          env:
            - name: SUBPIXEL_INFERENCE_ADDRESS
              value: http://0.0.0.0:8080
            - name: SUBPIXEL_METRICS_ADDRESS
              value: http://{{ ternary "0.0.0.0" "127.0.0.1" $values.metrics.enabled }}:8082
            - name: SUBPIXEL_MODEL_STORE
              value: /models
            - name: SUBPIXEL_WORKERS
              value: {{ $values.server.workers | quote }}
            - name: SUBPIXEL_DRAIN_DELAY_S
              value: {{ $values.drain.delay | quote }}
            - name: SUBPIXEL_DRAIN_TIMEOUT_S
              value: {{ $values.drain.timeout | quote }}
            - name: SUBPIXEL_ALLOWED_PREFIXES
              value: {{ join "," $values.s3.allowedPrefixes | quote }}
            - name: JAVA_TOOL_OPTIONS
              value: {{ $values.server.javaOptions | quote }}
            # caches of libraries: the home folder is read-only
            - name: HOME
              value: /tmp
            {{- if $values.server.threads }}
            - name: OMP_NUM_THREADS
              value: {{ $values.server.threads | quote }}
            {{- end }}
            {{- if $values.s3.allowedPrefixes }}
            {{- include "subpixel.s3Env" $root | nindent 12 }}
            {{- end }}
            {{- with $values.server.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- if $values.s3.allowedPrefixes }}
          {{- with include "subpixel.s3EnvFrom" $root | trim }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- end }}
          ports:
            - name: http
              containerPort: 8080
            {{- if $values.metrics.enabled }}
            - name: metrics
              containerPort: 8082
            {{- end }}
          # /ping is Healthy before a model is loaded: the workers' status, on the pod's own loopback, is asked instead
          startupProbe:
            exec:
              command: [python3, -m, serving.container, ready]
            periodSeconds: {{ $values.probes.period }}
            timeoutSeconds: {{ $values.probes.timeout }}
            failureThreshold: {{ $values.probes.startupFailures }}
          readinessProbe:
            exec:
              command: [python3, -m, serving.container, ready]
            periodSeconds: {{ $values.probes.period }}
            timeoutSeconds: {{ $values.probes.timeout }}
            failureThreshold: {{ $values.probes.readinessFailures }}
          livenessProbe:
            httpGet:
              path: /ping
              port: http
            periodSeconds: {{ $values.probes.period }}
            timeoutSeconds: {{ $values.probes.timeout }}
            failureThreshold: {{ $values.probes.livenessFailures }}
          resources:
            {{- $resources := deepCopy $values.resources }}
            {{- if $values.gpu.enabled }}
            {{- $resources = mustMergeOverwrite $resources (dict "limits" (dict $values.gpu.resource 1)) }}
            {{- end }}
            {{- toYaml $resources | nindent 12 }}
          securityContext:
            {{- toYaml $values.securityContext | nindent 12 }}
          volumeMounts:
            - name: models
              mountPath: /models
              readOnly: true
            - name: tmp
              mountPath: /tmp
            - name: shm
              mountPath: /dev/shm
      volumes:
        - name: models
          emptyDir: {}
        - name: tmp
          emptyDir:
            sizeLimit: {{ $values.server.tmpSize }}
        - name: shm
          emptyDir:
            medium: Memory
            sizeLimit: {{ $values.server.shmSize }}
        {{- with $values.modelStore.existingClaim }}
        - name: store
          persistentVolumeClaim:
            claimName: {{ . }}
            readOnly: true
        {{- end }}
      {{- with merge (dict) $values.nodeSelector (ternary $values.gpu.nodeSelector (dict) $values.gpu.enabled) }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with concat $values.tolerations (ternary $values.gpu.tolerations (list) $values.gpu.enabled) }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $values.topologySpread.enabled }}
      topologySpreadConstraints:
        {{- range $values.topologySpread.topologyKeys }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "subpixel.server" $root | nindent 14 }}
        {{- end }}
      {{- end }}
{{- end -}}
