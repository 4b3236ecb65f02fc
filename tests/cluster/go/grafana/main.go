// Reads a dashboard from stdin by Grafana's own types; says on stderr what does not fit.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins()
	if err := check(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check() error {
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var found dashboard.Dashboard
	// Every field is known and of its type, and those that are needed are there. Where all is well
	// the library may give an error that says nothing (v0.0.22).
	if err := found.UnmarshalJSONStrict(raw); err != nil && err.Error() != "" {
		return err
	}
	return found.Validate()
}
