"""The Helm chart on a real Kubernetes and Dapr control plane, without containers.

`make test-cluster` runs pytest in network, mount and process namespaces of its own: whatever these programs listen on
is nobody else's, and they end with it. What a kubelet, kube-proxy and cluster DNS would do, node.py does.
"""
