package bench

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// perfdash is the format of Kubernetes' perfdash, as etcd's tool writes it.
type perfdash struct {
	Version string         `json:"version"`
	Items   []perfdashItem `json:"dataItems"`
}

type perfdashItem struct {
	Data   map[string]float64 `json:"data"`
	Labels map[string]string  `json:"labels"`
	Unit   string             `json:"unit"`
}

// writePerfdash writes a file for each section.
func (b *bench) writePerfdash(o *outcome) error {
	dir := os.Getenv("ARTIFACTS")
	if dir == "" {
		dir = "_artifacts"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, s := range o.sections {
		item := perfdashItem{Data: map[string]float64{}, Labels: map[string]string{"Operation": strings.ToUpper(s.name)}, Unit: "ms"}
		for _, p := range []float64{50, 90, 99} {
			item.Data[fmt.Sprintf("Perc%v", p)] = math.Round(s.class.Counts.Quantile(p/100).Seconds()*1000*10000) / 10000
		}
		text, err := json.MarshalIndent(perfdash{Version: "v1", Items: []perfdashItem{item}}, "", "  ")
		if err != nil {
			return err
		}
		name := fmt.Sprintf("EtcdAPI_benchmark_%s_%s.json", strings.ReplaceAll(s.name, " ", "-"), time.Now().UTC().Format(time.RFC3339))
		if err := os.WriteFile(filepath.Join(dir, name), append(text, '\n'), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(b.out, "Successfully created a JSON perf report at %s\n", filepath.Join(dir, name))
	}
	return nil
}
