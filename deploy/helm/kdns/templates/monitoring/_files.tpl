{{/* A file of deploy/kubernetes/monitoring, with the names that this release has. Takes (list ROOT PATH). */}}
{{- define "kdns.monitoring.file" -}}
{{- $root := first . -}}
{{- $values := $root.Values -}}
{{- $name := include "kdns.fullname" $root -}}
{{- $node := $values.node.fullnameOverride -}}
{{- $text := $root.Files.Get (last .) -}}
{{- range list
    (list "kube-system:kdns" (printf "kube-system:%s" (include "kdns.serviceAccountName" $root)))
    (list "kube-system" $root.Release.Namespace)
    (list "\"kube-dns|node-local-dns\"" (printf "%q" (printf "%s|%s" $values.service.name $node)))
    (list "\"kube-dns\"" (quote $values.service.name))
    (list "job kube-dns" (printf "job %s" $values.service.name))
    (list "\"node-local-dns\"" (quote $node))
    (list "deployment=\"kdns\"" (printf "deployment=%q" $name))
    (list "deployment/kdns" (printf "deployment/%s" $name))
    (list "daemonset/node-local-dns" (printf "daemonset/%s" $node))
    (list "daemonset node-local-dns" (printf "daemonset %s" $node))
    (list "configmap kdns" (printf "configmap %s" $name))
    (list "svc.cluster.local" (printf "svc.%s" $values.clusterDomain))
    (list "169.254.20.10" (first $values.node.localAddresses)) -}}
{{- $text = replace (first .) (last .) $text -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{/* Whether what is named for a role is wanted: kdns-node by the node role, kdns-cluster by the other, the rest always. */}}
{{- define "kdns.monitoring.wanted" -}}
{{- $values := (first .).Values -}}
{{- if eq (last .) "kdns-node" -}}
{{- ternary "yes" "" $values.node.enabled -}}
{{- else if eq (last .) "kdns-cluster" -}}
{{- ternary "yes" "" $values.cluster.enabled -}}
{{- else -}}
yes
{{- end -}}
{{- end -}}
