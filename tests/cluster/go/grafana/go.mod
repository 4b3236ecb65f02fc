// Grafana's own types of dashboards, as Grafana generates them from its schemas.
module rlhf.dev/tests/cluster/go/grafana

go 1.26.0

require (
	github.com/grafana/grafana-foundation-sdk/go v0.0.22
)
