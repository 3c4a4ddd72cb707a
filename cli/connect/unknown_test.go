package connect

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/spf13/cobra"
)

func TestRefuseUnknown(t *testing.T) {
	own := errors.New("of the program")
	for _, c := range []struct {
		args []string
		err  string // empty: none
		out  bool   // the help is printed
	}{
		{args: []string{"group", "inner", "nosuch"}, err: `unknown command "nosuch" for "root group inner": one of leaf`},
		{args: []string{"group", "--flag", "x", "nosuch", "more"}, err: `unknown command "nosuch" for "root group": one of inner, leaf`},
		{args: []string{"group"}, out: true},
		{args: []string{"group", "nosuch", "--help"}, out: true},
		{args: []string{"group", "leaf", "an argument"}},
		{args: []string{"group", "hidden"}},
		{args: []string{"runs", "an argument"}}, // it has a sub-command, and takes arguments
		{args: []string{"nosuch"}, err: `unknown command "nosuch" for "root"`},
	} {
		leaf := func(name string) *cobra.Command {
			return &cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}}
		}
		root, group, inner, runs := &cobra.Command{Use: "root", SilenceErrors: true, SilenceUsage: true}, &cobra.Command{Use: "group"}, &cobra.Command{Use: "inner"}, leaf("runs")
		group.PersistentFlags().String("flag", "", "")
		hidden := leaf("hidden")
		hidden.Hidden = true
		inner.AddCommand(leaf("leaf"))
		group.AddCommand(inner, leaf("leaf"), hidden)
		runs.AddCommand(leaf("leaf"))
		root.AddCommand(group, runs)
		RefuseUnknown(root, func(err error) error { return fmt.Errorf("%w: %w", own, err) })
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(c.args)
		err := root.Execute()
		want := c.err
		if want != "" && c.args[0] == "group" {
			want = own.Error() + ": " + want
		}
		if got := fmt.Sprint(err); (err == nil) != (want == "") || err != nil && got != want || (out.Len() > 0) != c.out {
			t.Errorf("%q: %v, want %q; printed %q", c.args, err, want, &out)
		}
	}
}
