{{- define "vfsprobe.labels" -}}
app.kubernetes.io/name: vfsprobe
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "vfsprobe.selector" -}}
app.kubernetes.io/name: vfsprobe
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vfsprobe.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The path of vfsprobe in Telegraf's container. */}}
{{- define "vfsprobe.program" -}}
{{- if not .Values.telegrafImage -}}
/usr/bin/vfsprobe
{{- else if eq .Values.run "telegraf" -}}
{{- fail "telegrafImage: with run: telegraf, vfsprobe is in Telegraf's container" -}}
{{- else -}}
/opt/vfsprobe/vfsprobe
{{- end -}}
{{- end }}

{{/* The configuration of both programs, by file. */}}
{{- define "vfsprobe.files" -}}
telegraf.conf: |
  [agent]
    interval = {{ .Values.interval | quote }}
    flush_interval = {{ .Values.interval | quote }}
    hostname = "${NODE_NAME}"

  [[inputs.execd]]
    {{- if eq .Values.run "telegraf" }}
    command = ["{{ include "vfsprobe.program" . }}", "-config", "/etc/telegraf/vfsprobe.toml"]
    {{- else }}
    command = ["{{ include "vfsprobe.program" . }}", "connect"]
    {{- end }}
    signal = "STDIN"
    data_format = "influx"

  # What the probes ask: a gather that is stale is not ready.
  [[outputs.health]]
    service_address = "http://127.0.0.1:{{ .Values.health.port }}"
    max_time_between_metrics = {{ .Values.health.maxAge | quote }}
    namepass = ["vfsprobe"]
    [[outputs.health.contains]]
      field = "helpers_forked"
  {{- with .Values.outputs }}

{{ . | trim | indent 2 }}
  {{- end }}
{{- if .Values.prometheus.enabled }}
prometheus.conf: |
{{ .Files.Get "files/telegraf-prometheus.conf" | indent 2 }}
{{- end }}
{{- if ne .Values.run "service" }}
vfsprobe.toml: |
  # vfsprobe's own: "vfsprobe -sample-config" prints all there is.
{{ .Values.vfsprobe | trim | indent 2 }}
{{- end }}
{{- end }}

{{/* Root without a right. */}}
{{- define "vfsprobe.noPrivileges" -}}
runAsUser: 0
runAsGroup: 0
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The rights of who runs vfsprobe. */}}
{{- define "vfsprobe.privileges" -}}
# Kubernetes gives capabilities to root only: see the command.
runAsUser: 0
runAsGroup: 0
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
{{- include "vfsprobe.profiles" . }}
capabilities:
  drop: [ALL]
  # What each of them buys: docs/PRIVILEGES.md.
  add:
    {{- range $name, $why := .Values.capabilities }}
    {{- if $why }}
    - {{ $name }} # {{ $why }}
    {{- end }}
    {{- end }}
    {{- if and .Values.moveHelpers (not .Values.capabilities.KILL) }}
    - KILL # ends helpers that become root, to write cgroups
    {{- end }}
    {{- range $name := list "SETGID" "SETUID" }}
    {{- if not (index $.Values.capabilities $name) }}
    - {{ $name }} # the command becomes another user{{ if not $.Values.moveHelpers }}, and gives it up{{ end }}
    {{- end }}
    {{- end }}
    # Not given: SYSLOG, since /dev/kmsg takes a privileged container; SYS_ADMIN
    # and SYS_CHROOT, which mount_namespaces = "all" and enter_host_namespace take, and
    # the mount table of a node with btrfs, bcachefs or ZFS (docs/CONTAINERS.md).
{{- end }}

{{/* The words before those of a program, by which it runs as a user who owns nothing, with the
capabilities. Where it may look at no other process, Landlock can forbid it to write below
/host. */}}
{{- define "vfsprobe.setpriv" -}}
{{- $kept := list }}
{{- range $name, $why := .Values.capabilities }}
{{- if $why }}
{{- $kept = append $kept $name }}
{{- end }}
{{- end -}}
{{- if .Values.moveHelpers }}
{{- $kept = concat $kept (list "KILL" "SETGID" "SETUID") | uniq | sortAlpha }}
{{- end -}}
"/usr/bin/vfsprobe", "setpriv", "-user", "{{ .Values.user }}", "-keep", "{{ join "," $kept }}"
{{- if not (or .Values.capabilities.SYS_PTRACE .Values.moveHelpers) }}, "-protect", "/host"{{ end }}
{{- end }}

{{- define "vfsprobe.profiles" }}
{{- with .Values.seccompProfile }}
seccompProfile:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and .Values.appArmorProfile (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) }}
appArmorProfile:
  {{- toYaml .Values.appArmorProfile | nindent 2 }}
{{- end }}
{{- with .Values.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where the node's files show, for vfsprobe: see mounts below. */}}
{{- define "vfsprobe.roots" -}}
- name: HOST_MOUNT_PREFIX
  value: /host
- name: HOST_PROC
  value: /host/proc
- name: HOST_SYS
  value: /host/sys
- name: HOST_ETC
  value: /host/etc
{{- end }}

{{/* The node's files. readOnly does not reach what is mounted below /host, so that what can
be abused has mounts of its own, which are read-only with all that is below them where the
cluster knows that (1.30). */}}
{{- define "vfsprobe.hostMounts" -}}
- name: host
  mountPath: /host
  readOnly: true
  mountPropagation: HostToContainer # the node's mounts and unmounts show as they happen
{{- range $name := list "proc" "sys" "dev" "run" }}
- name: {{ $name }}
  mountPath: /host/{{ $name }}
  readOnly: true
  {{- if eq $name "run" }}
  mountPropagation: HostToContainer # users' mounts are below /run, too
  {{- else if semverCompare ">=1.30.0-0" $.Capabilities.KubeVersion.Version }}
  recursiveReadOnly: IfPossible
  {{- end }}
{{- end }}
{{- if .Values.moveHelpers }}
- name: cgroups
  mountPath: /host/sys/fs/cgroup # writable: a helper that hangs is moved out of the container's
{{- end }}
{{- end }}

{{- define "vfsprobe.hostVolumes" -}}
- name: host
  hostPath:
    path: /
    type: Directory
{{- range $name := list "proc" "sys" "dev" "run" }}
- name: {{ $name }}
  hostPath:
    path: /{{ $name }}
    type: Directory
{{- end }}
{{- if .Values.moveHelpers }}
- name: cgroups
  hostPath:
    path: /sys/fs/cgroup
    type: Directory
{{- end }}
{{- end }}
