// Reads objects of Flux, one as JSON a line, by Flux's own types; says on stderr what does not fit.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	kustomize "github.com/fluxcd/kustomize-controller/api/v1"
	source "github.com/fluxcd/source-controller/api/v1"
)

var kinds = map[string]func() any{
	"Kustomization": func() any { return &kustomize.Kustomization{} },
	"GitRepository": func() any { return &source.GitRepository{} },
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := check(lines.Bytes()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// check fails where a field is unknown or of another type.
func check(raw []byte) error {
	var head struct{ Kind string }
	if err := json.Unmarshal(raw, &head); err != nil {
		return err
	}
	made, ok := kinds[head.Kind]
	if !ok {
		return fmt.Errorf("%s is no kind that is checked here", head.Kind)
	}
	strict := json.NewDecoder(bytes.NewReader(raw))
	strict.DisallowUnknownFields()
	return strict.Decode(made())
}
