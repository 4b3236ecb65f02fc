// What GitOps tools make of an object: kstatus' own library says how far it is, and Lua scripts
// run as Argo CD runs them (util/lua/lua.go): its interpreter, its libraries, its one second.
//
// Reads {"object": {…}, "scripts": {"name": "…"}} from each line of stdin, and answers each with a
// line {"kstatus": "…", "message": "…", "scripts": {"name": …}}.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type question struct {
	Object  *unstructured.Unstructured `json:"object"`
	Scripts map[string]string          `json:"scripts"`
}

type answer struct {
	Kstatus string                     `json:"kstatus"`
	Message string                     `json:"message"`
	Scripts map[string]json.RawMessage `json:"scripts"`
}

func main() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var asked question
		if err := in.Decode(&asked); err == io.EOF {
			return
		} else if err != nil {
			fail(err)
		}
		found, err := judge(asked)
		if err != nil {
			fail(err)
		}
		if err := out.Encode(found); err != nil {
			fail(err)
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func judge(asked question) (answer, error) {
	result, err := status.Compute(asked.Object)
	if err != nil {
		return answer{}, err
	}
	found := answer{string(result.Status), result.Message, map[string]json.RawMessage{}}
	for name, script := range asked.Scripts {
		if found.Scripts[name], err = run(script, asked.Object); err != nil {
			return answer{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return found, nil
}

// run gives what a script returns for the global `obj`.
func run(script string, object *unstructured.Unstructured) (json.RawMessage, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage,
		lua.BaseLibName: lua.OpenBase,
		lua.TabLibName:  lua.OpenTable,
	} {
		call := lua.P{Fn: state.NewFunction(open), Protect: true}
		if err := state.CallByParam(call, lua.LString(name)); err != nil {
			return nil, err
		}
	}
	state.PreloadModule(lua.OsLibName, safeOS)
	limit, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(limit)
	state.SetGlobal("obj", luaValue(state, object.Object))
	if err := state.DoString(script); err != nil {
		return nil, err
	}
	return luajson.Encode(state.Get(-1))
}

// safeOS has the two functions of `os` that Argo CD leaves; the one format is that of our scripts.
func safeOS(state *lua.LState) int {
	state.Push(state.SetFuncs(state.NewTable(), map[string]lua.LGFunction{
		"time": func(state *lua.LState) int {
			state.Push(lua.LNumber(time.Now().Unix()))
			return 1
		},
		"date": func(state *lua.LState) int {
			if format := state.CheckString(1); format != "!%Y-%m-%dT%H:%M:%SZ" {
				state.ArgError(1, "unknown format "+format)
			}
			state.Push(lua.LString(time.Now().UTC().Format(time.RFC3339)))
			return 1
		},
	}))
	return 1
}

func luaValue(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case bool:
		return lua.LBool(value)
	case int64:
		return lua.LNumber(value)
	case float64:
		return lua.LNumber(value)
	case string:
		return lua.LString(value)
	case []any:
		table := state.NewTable()
		for _, item := range value {
			table.Append(luaValue(state, item))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, item := range value {
			table.RawSetString(key, luaValue(state, item))
		}
		return table
	}
	return lua.LNil
}
