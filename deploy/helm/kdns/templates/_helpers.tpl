{{- define "kdns.fullname" -}}
{{- default "kdns" .Values.fullnameOverride -}}
{{- end -}}

{{- define "kdns.serviceAccountName" -}}
{{- default (ternary (include "kdns.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "kdns.node.serviceAccountName" -}}
{{- with .Values.node -}}
{{- default (ternary .fullnameOverride "default" .serviceAccount.create) .serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "kdns.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{/* An object's labels. Takes (list ROOT COMPONENT) or (list ROOT COMPONENT LABELS), with those of its own. */}}
{{- define "kdns.labels" -}}
{{- $root := first . -}}
{{- $own := ternary (last .) dict (gt (len .) 2) -}}
app.kubernetes.io/name: kdns
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | quote }}
{{- with merge (dict) $own $root.Values.customLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What selects a component's pods. It never changes: the API server would refuse it. */}}
{{- define "kdns.selector" -}}
app.kubernetes.io/name: kdns
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{/* A key with its value on lines of their own, or nothing if the value is empty. Takes (list INDENT KEY VALUE). */}}
{{- define "kdns.optional" -}}
{{- with index . 2 }}
{{- printf "%s:\n%s" (index $ 1) (toYaml . | indent 2) | nindent (index $ 0) }}
{{- end }}
{{- end -}}

{{/* The same for annotations: what is common, and the object's own. Takes (list INDENT ROOT ANNOTATIONS). */}}
{{- define "kdns.annotations" -}}
{{- $all := merge (dict) (index . 2) (index . 1).Values.customAnnotations -}}
{{- include "kdns.optional" (list (index . 0) "annotations" $all) }}
{{- end -}}

{{- define "kdns.corefile" -}}
{{- if .Values.corefile -}}
{{ .Values.corefile | trim }}
{{- else -}}
{{- $zones := prepend .Values.multicluster .Values.clusterDomain | join " " -}}
.:53 {
    errors
    health {
        lameduck {{ int .Values.lameduckSeconds }}s
    }
    ready
    kubernetes {{ $zones }} in-addr.arpa ip6.arpa {
        pods {{ .Values.pods }}
        fallthrough in-addr.arpa ip6.arpa
        ttl {{ int .Values.ttl }}
{{- with .Values.multicluster }}
        multicluster {{ join " " . }}
{{- end }}
    }
    prometheus :9153
    forward . {{ join " " .Values.upstreams }} {
        max_concurrent {{ int .Values.maxConcurrent }}
    }
    cache {{ int .Values.cache }} {
        disable success {{ $zones }}
        disable denial {{ $zones }}
    }
    loop
    reload
    loadbalance
{{- if .Values.node.copies.enabled }}
    tsig {{ .Values.clusterDomain }} in-addr.arpa ip6.arpa {
        secret node-copies. {$KDNS_COPIES_KEY}
        require AXFR IXFR
    }
    transfer {{ .Values.clusterDomain }} in-addr.arpa ip6.arpa {
        to *
    }
{{- end }}
{{- with .Values.extraPlugins }}
{{ . | trim | indent 4 }}
{{- end }}
}
{{- with .Values.extraServers }}
{{ . | trim }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "kdns.node.corefile" -}}
{{- if .Values.node.corefile -}}
{{ .Values.node.corefile | trim }}
{{- else -}}
__PILLAR__DNS__DOMAIN__:53 {{- if .Values.node.copies.enabled }} in-addr.arpa:53 ip6.arpa:53 {{- end }} {
    errors
    cache {
        success 9984 30
        denial 9984 5
    }
    loop
    bind __PILLAR__LOCAL__DNS__
{{- if .Values.node.autopath }}
    autopath @kubernetes {
        node {$NODE_NAME}
    }
{{- end }}
{{- if .Values.node.copies.enabled }}
    loadbalance
    tsig {
        secret node-copies. {$KDNS_COPIES_KEY}
    }
    secondary {
        transfer from __PILLAR__CLUSTER__DNS__
        key node-copies.
        fallback
        fallthrough {{- if eq .Values.pods "insecure" }} pod.__PILLAR__DNS__DOMAIN__ {{- end }} in-addr.arpa ip6.arpa
    }
{{- end }}
    forward . __PILLAR__CLUSTER__DNS__ {
        force_tcp
    }
    prometheus :9253
    health __PILLAR__LOCAL__DNS__:8080
}
{{- if not .Values.node.copies.enabled }}
in-addr.arpa:53 ip6.arpa:53 {
    errors
    cache 30
    loop
    bind __PILLAR__LOCAL__DNS__
    forward . __PILLAR__CLUSTER__DNS__ {
        force_tcp
    }
    prometheus :9253
}
{{- end }}
.:53 {
    errors
    cache 30
    loop
    bind __PILLAR__LOCAL__DNS__
    forward . {{ .Values.node.upstreams | default (list "__PILLAR__UPSTREAM__SERVERS__") | join " " }}
    prometheus :9253
}
{{- with .Values.node.extraServers }}
{{ . | trim }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* The key by which nodes get copies, for a container's environment. */}}
{{- define "kdns.copies.key" -}}
- name: KDNS_COPIES_KEY
  valueFrom:
    secretKeyRef:
      name: {{ .Values.node.copies.secret }}
      key: key
{{- end -}}

{{/* Whether nodes follow their pods, whoever wrote their Corefile; empty if not. */}}
{{- define "kdns.node.follows" -}}
{{- if regexMatch "(?m)^[ \\t]*autopath[ \\t][^\\n]*@kubernetes[ \\t]*\\{" (include "kdns.node.corefile" .) }}true{{ end -}}
{{- end -}}

{{/* Whether nodes have zones or pods to keep, whoever wrote their Corefile; empty if not. */}}
{{- define "kdns.node.keeps" -}}
{{- if regexMatch "(?m)(^|[{ \\t])(secondary|file|auto|transfer)([ \\t{]|$)" (include "kdns.node.corefile" .) }}true{{ end -}}
{{- include "kdns.node.follows" . -}}
{{- end -}}

{{/* Addresses that a node answers at, as a JSON list of texts. */}}
{{- define "kdns.node.addresses" -}}
{{- $taken := .Values.service.clusterIPs | default (list .Values.service.clusterIP) -}}
{{- concat .Values.node.localAddresses (ternary $taken list .Values.node.takeClusterIP) | toJson -}}
{{- end -}}
