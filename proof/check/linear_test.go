package check

import (
	"fmt"
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// The model is a register for each key. Values are unique, so a read tells
// which write it saw. An operation whose outcome is not known (an error or a
// deadline) may take effect at any time after its call, or never: it is given
// a return at the end of time, where it changes nothing that anyone saw.

type opKind uint8

const (
	opGet opKind = iota
	opPut
	opDelete
	opCAS // if value(key) == old, put new, else nothing
)

type regInput struct {
	kind     opKind
	key      string
	old, new string // "" is the absent key; no value is empty
}

type regOutput struct {
	unknown bool
	value   string // get: what was read
	done    bool   // delete: it deleted a key; cas: it succeeded
	// revision is that of a write that is known; the model does not look at it.
	revision int64
}

var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := make(map[string][]porcupine.Operation)
		for _, op := range history {
			key := op.Input.(regInput).key
			byKey[key] = append(byKey[key], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		was, in, out := state.(string), input.(regInput), output.(regOutput)
		switch in.kind {
		case opGet:
			return out.unknown || out.value == was, was
		case opPut:
			return true, in.new
		case opDelete:
			return out.unknown || out.done == (was != ""), ""
		default:
			hit := was == in.old
			if !out.unknown && out.done != hit {
				return false, was
			}
			if hit {
				return true, in.new
			}
			return true, was
		}
	},
	DescribeOperation: func(input, output any) string {
		in, out := input.(regInput), output.(regOutput)
		text := [...]string{
			fmt.Sprintf("get %s -> %q", in.key, out.value),
			fmt.Sprintf("put %s=%s", in.key, in.new),
			fmt.Sprintf("delete %s -> %v", in.key, out.done),
			fmt.Sprintf("cas %s %q to %q -> %v", in.key, in.old, in.new, out.done),
		}[in.kind]
		if out.unknown {
			text += " ?"
		}
		return text
	},
}

const endOfTime = math.MaxInt64

// checkLinearizable judges a history. Where it is not linearizable, the
// picture of it is kept as an artifact of the test (go test -artifacts).
func checkLinearizable(t testing.TB, history []porcupine.Operation) error {
	result, info := porcupine.CheckOperationsVerbose(registerModel, history, time.Minute)
	switch result {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("porcupine did not come to an end in a minute with %d operations", len(history))
	}
	path := filepath.Join(t.ArtifactDir(), "history.html")
	if err := porcupine.VisualizePath(registerModel, info, path); err != nil {
		path = err.Error()
	}
	return fmt.Errorf("a history of %d operations is not linearizable; see %s", len(history), path)
}

// TestRegisterModel shows that the judge accepts what is right and refuses what is wrong.
func TestRegisterModel(t *testing.T) {
	op := func(kind opKind, old, new string, call, ret int64, out regOutput) porcupine.Operation {
		return porcupine.Operation{Input: regInput{kind: kind, key: "k", old: old, new: new}, Call: call, Return: ret, Output: out}
	}
	get := func(call, ret int64, v string) porcupine.Operation {
		return op(opGet, "", "", call, ret, regOutput{value: v})
	}
	put := func(call, ret int64, v string) porcupine.Operation {
		return op(opPut, "", v, call, ret, regOutput{})
	}
	lostPut := func(call int64, v string) porcupine.Operation {
		return op(opPut, "", v, call, endOfTime, regOutput{unknown: true})
	}
	cas := func(call, ret int64, old, new string, done bool) porcupine.Operation {
		return op(opCAS, old, new, call, ret, regOutput{done: done})
	}
	for _, tc := range []struct {
		name    string
		history []porcupine.Operation
		want    bool
	}{
		{"reads follow writes", []porcupine.Operation{get(1, 2, ""), put(3, 4, "a"), get(5, 6, "a")}, true},
		{"a stale read", []porcupine.Operation{put(1, 2, "a"), put(3, 4, "b"), get(5, 6, "a")}, false},
		{"a lost write", []porcupine.Operation{put(1, 2, "a"), get(3, 4, "")}, false},
		{"concurrent, either order", []porcupine.Operation{put(1, 10, "a"), put(1, 10, "b"), get(11, 12, "a")}, true},
		{"reads that go back", []porcupine.Operation{put(1, 10, "a"), get(2, 3, "a"), get(4, 5, "")}, false},
		{"an unknown write took effect", []porcupine.Operation{put(1, 2, "a"), lostPut(3, "b"), get(5, 6, "b")}, true},
		{"an unknown write did not", []porcupine.Operation{put(1, 2, "a"), lostPut(3, "b"), get(5, 6, "a"), get(7, 8, "a")}, true},
		{"an unknown write took effect late", []porcupine.Operation{put(1, 2, "a"), lostPut(3, "b"), get(5, 6, "a"), get(7, 8, "b")}, true},
		{"an unknown write took effect twice", []porcupine.Operation{lostPut(1, "b"), get(2, 3, "b"), put(4, 5, "c"), get(6, 7, "b")}, false},
		{"one of two cas", []porcupine.Operation{put(1, 2, "a"), cas(3, 9, "a", "b", true), cas(3, 9, "a", "c", false), get(10, 11, "b")}, true},
		{"both of two cas", []porcupine.Operation{put(1, 2, "a"), cas(3, 9, "a", "b", true), cas(3, 9, "a", "c", true)}, false},
		{"a delete", []porcupine.Operation{put(1, 2, "a"), op(opDelete, "", "", 3, 4, regOutput{done: true}), get(5, 6, "")}, true},
		{"a delete of nothing", []porcupine.Operation{op(opDelete, "", "", 3, 4, regOutput{done: true})}, false},
	} {
		if got := porcupine.CheckOperations(registerModel, tc.history); got != tc.want {
			t.Errorf("%s: linearizable = %v, want %v", tc.name, got, tc.want)
		}
	}
}
