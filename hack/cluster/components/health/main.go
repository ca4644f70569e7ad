// Command health says what tools of others conclude from the status of objects, by their own code: Flux by
// its kstatus, Argo CD by a script in Lua that runs in the same interpreter, with the same libraries.
//
// It reads a JSON list of objects from standard input and prints a JSON list of answers:
//
//	health SCRIPT.lua < objects.json
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type answer struct {
	Kstatus health `json:"kstatus"`
	ArgoCD  health `json:"argoCD"`
}

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "health:", err)
		os.Exit(1)
	}
}

func run(arguments []string, in io.Reader, out io.Writer) error {
	if len(arguments) != 1 {
		return fmt.Errorf("usage: health SCRIPT.lua < objects.json")
	}
	script, err := os.ReadFile(arguments[0])
	if err != nil {
		return err
	}
	var objects []map[string]any
	if err := json.NewDecoder(in).Decode(&objects); err != nil {
		return fmt.Errorf("standard input is no JSON list of objects: %w", err)
	}
	answers := make([]answer, 0, len(objects))
	for _, object := range objects {
		byFlux, err := kstatus(object)
		if err != nil {
			return fmt.Errorf("kstatus: %w", err)
		}
		byScript, err := argoCD(string(script), object)
		if err != nil {
			return fmt.Errorf("%s: %w", arguments[0], err)
		}
		answers = append(answers, answer{Kstatus: byFlux, ArgoCD: byScript})
	}
	return json.NewEncoder(out).Encode(answers)
}

func kstatus(object map[string]any) (health, error) {
	// Through Kubernetes' own decoder: its numbers are int64, where encoding/json makes float64.
	text, err := json.Marshal(object)
	if err != nil {
		return health{}, err
	}
	decoded := &unstructured.Unstructured{}
	if err := decoded.UnmarshalJSON(text); err != nil {
		return health{}, err
	}
	result, err := status.Compute(decoded)
	if err != nil {
		return health{}, err
	}
	return health{Status: result.Status.String(), Message: result.Message}, nil
}

func argoCD(script string, object map[string]any) (health, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{
		{lua.LoadLibName, lua.OpenPackage},
		{lua.BaseLibName, lua.OpenBase},
		{lua.TabLibName, lua.OpenTable},
	} {
		if err := state.CallByParam(
			lua.P{Fn: state.NewFunction(library.open), NRet: 0, Protect: true}, lua.LString(library.name),
		); err != nil {
			return health{}, err
		}
	}
	state.SetGlobal("obj", luajson.DecodeValue(state, object))
	if err := state.DoString(script); err != nil {
		return health{}, err
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return health{}, fmt.Errorf("it returns a %s, not a table", state.Get(-1).Type())
	}
	return health{
		Status:  lua.LVAsString(table.RawGetString("status")),
		Message: lua.LVAsString(table.RawGetString("message")),
	}, nil
}
