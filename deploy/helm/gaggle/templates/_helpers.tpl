{{/* Labels of what belongs to no one service. */}}
{{- define "gaggle.labels" -}}
{{ include "gaggle.common" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of everything; gaggle.selector adds name and instance. */}}
{{- define "gaggle.common" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/part-of: gaggle
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "gaggle.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "gaggle.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* The services there are, each with what `defaults` adds: {name: {...}}. */}}
{{- define "gaggle.services" -}}
{{- $services := dict -}}
{{- range $name, $own := .Values.services -}}
{{- $service := mustMergeOverwrite (deepCopy $.Values.defaults) (deepCopy ($own | default dict)) -}}
{{- if $service.enabled }}{{ $_ := set $services $name $service }}{{ end -}}
{{- end -}}
{{- toYaml $services -}}
{{- end -}}

{{/* The documents of the component set, as they lie in dapr-components/, with what components.overrides changes. */}}
{{- define "gaggle.components" -}}
{{- $items := list -}}
{{- range $path, $_ := .Files.Glob (printf "files/components/%s/*.yaml" .Values.components.set) -}}
{{- range $text := regexSplit "(?m)^---\\s*$" ($.Files.Get $path) -1 -}}
{{- $document := fromYaml $text -}}
{{- if $document.kind -}}
{{- $overrides := get $.Values.components.overrides $document.metadata.name | default dict -}}
{{- if and $overrides (eq $document.kind "Component") -}}
{{- $metadata := list -}}
{{- range $item := $document.spec.metadata -}}
{{- if not (hasKey $overrides $item.name) }}{{ $metadata = append $metadata $item }}{{ end -}}
{{- end -}}
{{- range $name, $value := $overrides -}}
{{- $metadata = append $metadata (dict "name" $name "value" (toString $value)) -}}
{{- end -}}
{{- $_ := set $document.spec "metadata" $metadata -}}
{{- end -}}
{{- $items = append $items $document -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not $items }}{{ fail (printf "components.set: there is no set %q" .Values.components.set) }}{{ end -}}
{{- toYaml (dict "items" $items) -}}
{{- end -}}

{{/* The settings that go with the component set: its settings.env. */}}
{{- define "gaggle.settings" -}}
{{- $settings := dict -}}
{{- range $line := splitList "\n" (.Files.Get (printf "files/components/%s/settings.env" .Values.components.set)) -}}
{{- if and (contains "=" $line) (not (hasPrefix "#" $line)) -}}
{{- $parts := splitn "=" 2 $line -}}
{{- $_ := set $settings $parts._0 $parts._1 -}}
{{- end -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{/* Names of the secrets that a service may ask its sidecar for: its keys, and what values add. */}}
{{- define "gaggle.asked" -}}
{{- $names := list "token-jwks" (printf "service-key-%s" .name) -}}
{{- if eq .name "auth" }}{{ $names = append $names "issuer-key" }}{{ end -}}
{{- $settings := include "gaggle.settings" .root | fromYaml -}}
{{- $held := fromJson (get $settings "GAGGLE_SECRET_NAMES" | default "{}") -}}
{{- range .service.secrets }}{{ $names = append $names (get $held . | default .) }}{{ end -}}
{{- toYaml ($names | uniq | sortAlpha) -}}
{{- end -}}

{{/* Names of the secrets that the sidecar itself reads: those, and what its components name. */}}
{{- define "gaggle.secrets" -}}
{{- $names := include "gaggle.asked" . | fromYamlArray -}}
{{- range $document := .components -}}
{{- if and (eq $document.kind "Component") (or (not $document.scopes) (has $.name ($document.scopes | default list))) -}}
{{- range $item := $document.spec.metadata -}}
{{- with $item.secretKeyRef }}{{ $names = append $names .name }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml ($names | uniq | sortAlpha) -}}
{{- end -}}

{{- define "gaggle.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "gaggle.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
