package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"

	dashboards "github.com/belaydb/belay/cli/doctor/dashboard"
	"github.com/belaydb/belay/cli/doctor/rules"
)

// TestGenerated: what belay has is what this program makes.
func TestGenerated(t *testing.T) {
	for _, kind := range []rules.Kind{rules.Etcd, rules.Belay} {
		want, err := generate(kind)
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(filepath.Join("..", string(kind)+".json"))
		if err != nil || string(have) != string(want) {
			t.Errorf("%s.json is not what the panels say (%v); run: go generate ./cli/doctor/dashboard", kind, err)
		}
	}
}

// made is a dashboard as Grafana's own types read it; they know all that is in it.
//
//lint:ignore SA1019 dashboards of version 2 need Grafana 12
func made(t *testing.T, kind rules.Kind, selector string) dashboard.Dashboard {
	t.Helper()
	text, err := dashboards.Make(dashboards.Options{Kind: kind, Selector: selector, Refresh: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{dashboards.Selector, dashboards.Refresh, "SEL"} {
		if strings.Contains(text, left) {
			t.Errorf("%s: %s is left", kind, left)
		}
	}
	//lint:ignore SA1019 as above
	var d dashboard.Dashboard
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	if err := d.Validate(); err != nil && err.Error() != "" { // an empty list of faults is no nil
		t.Fatalf("%s: %v", kind, err)
	}
	again, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var was, is any
	if err := errors.Join(json.Unmarshal([]byte(text), &was), json.Unmarshal(again, &is)); err != nil || !reflect.DeepEqual(was, is) {
		t.Errorf("%s: Grafana's types do not know all of it (%v):\n%s", kind, err, again)
	}
	return d
}

// TestDashboards: Grafana's types read them; no two panels lie upon each other, each has an
// id, a title and words of its own, and what the selector was told is there.
func TestDashboards(t *testing.T) {
	const selector = `job=~"a|b",name="with \"quotes\" <&>"`
	for _, kind := range []rules.Kind{rules.Etcd, rules.Belay} {
		d := made(t, kind, selector)
		if *d.Refresh != "60s" {
			t.Errorf("%s: refresh %s", kind, *d.Refresh)
		}
		var names []string
		for _, v := range d.Templating.List {
			names = append(names, v.Name)
			if v.Query != nil && v.Query.String != nil && v.Name != "datasource" && !strings.Contains(*v.Query.String, "{"+selector) {
				t.Errorf("%s: variable %s asks %s", kind, v.Name, *v.Query.String)
			}
		}
		if !slices.Equal(names, []string{"datasource", "job", "instance"}) {
			t.Errorf("%s: variables %q", kind, names)
		}
		ids, rows, panels, taken := map[uint32]bool{}, 0, 0, map[string]string{}
		place := func(title string, at *dashboard.GridPos) {
			if at.X+at.W > 24 {
				t.Errorf("%s: %q is beyond the edge", kind, title)
			}
			for x := at.X; x < at.X+at.W; x++ {
				for y := at.Y; y < at.Y+at.H; y++ {
					cell := fmt.Sprint(x, ",", y)
					if other, ok := taken[cell]; ok {
						t.Fatalf("%s: %q lies upon %q", kind, title, other)
					}
					taken[cell] = title
				}
			}
		}
		for _, p := range d.Panels {
			var id *uint32
			switch {
			case p.RowPanel != nil:
				rows++
				id = &p.RowPanel.Id
				place(*p.RowPanel.Title, p.RowPanel.GridPos)
			case p.Panel != nil:
				panels++
				id = p.Panel.Id
				place(*p.Panel.Title, p.Panel.GridPos)
				if p.Panel.Description == nil || *p.Panel.Description == "" || len(p.Panel.Targets) == 0 {
					t.Errorf("%s: %q says or asks nothing", kind, *p.Panel.Title)
				}
				text, _ := json.Marshal(p.Panel.Targets)
				if !strings.Contains(string(text), `job=\"$job\",instance=~\"$instance\"`) {
					t.Errorf("%s: %q does not ask the members that are chosen: %s", kind, *p.Panel.Title, text)
				}
				for _, metric := range []string{"etcd_disk_backend_commit", "etcd_disk_defrag"} {
					if kind == rules.Belay && strings.Contains(string(text), metric) {
						t.Errorf("%s: %q shows what means nothing there", kind, *p.Panel.Title)
					}
				}
			}
			if id == nil || *id == 0 || ids[*id] {
				t.Errorf("%s: a panel without an id of its own", kind)
				continue
			}
			ids[*id] = true
		}
		if rows != 7 || panels < 30 {
			t.Errorf("%s: %d rows, %d panels", kind, rows, panels)
		}
	}
}
