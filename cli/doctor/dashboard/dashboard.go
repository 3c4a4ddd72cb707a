// Package dashboard has a dashboard for Grafana that shows a cluster of etcd's or Belay's. It was made
// by the program in the folder generate, from panels that are told there, with Grafana's own types;
// here only the selector and the refresh are put in. Panels ask for what members answer, and need no
// recorded series.
//
// Files: dashboard.go.
package dashboard

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/rules"
)

//go:generate go run ./generate

// What stands in the generated files for what Options say.
const (
	Selector = "THE_SELECTOR"
	Refresh  = "THE_REFRESH"
)

var (
	//go:embed etcd.json
	etcd string
	//go:embed belay.json
	belay string
)

// Options say what to make.
type Options struct {
	Kind rules.Kind
	// Selector selects the members among whose jobs one is chosen, without braces. Never empty.
	Selector string
	// Refresh is how often Grafana asks again, a second at least.
	Refresh time.Duration
}

// Make makes the dashboard, as JSON that Grafana imports.
func Make(o Options) (string, error) {
	text := etcd
	if o.Kind == rules.Belay {
		text = belay
	}
	quoted, err := json.Marshal(o.Selector)
	if err != nil {
		return "", err
	}
	selector := string(quoted[1 : len(quoted)-1])
	refresh := fmt.Sprintf("%ds", o.Refresh/time.Second)
	return strings.NewReplacer(Selector, selector, Refresh, refresh).Replace(text), nil
}
