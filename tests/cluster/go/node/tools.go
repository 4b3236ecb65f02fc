//go:build tools

// Package tools names the programs, so that go.mod and go.sum pin all that they are built from.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
