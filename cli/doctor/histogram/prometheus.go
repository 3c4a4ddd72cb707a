package histogram

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"

	"github.com/belaydb/belay/cli/doctor/metrics"
)

// FromPrometheus asks a Prometheus server what the histograms of these names counted in the time
// before at.
func FromPrometheus(ctx context.Context, address string, over time.Duration, at time.Time, names []string) ([]Series, error) {
	client, err := api.NewClient(api.Config{Address: address, RoundTripper: http.DefaultTransport})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	prom := promv1.NewAPI(client)
	window := model.Duration(over).String()
	var all []Series
	for _, name := range names {
		ask := func(query string) (model.Vector, error) {
			value, _, _, err := prom.Query(ctx, query, at)
			if err != nil {
				return nil, fmt.Errorf("%s does not answer %s: %w", address, query, err)
			}
			vector, ok := value.(model.Vector)
			if !ok {
				return nil, fmt.Errorf("%s answers %s by a %s", address, query, value.Type())
			}
			return vector, nil
		}
		buckets, err := ask(fmt.Sprintf("sum by (instance, To, le) (increase(%s_bucket[%s]))", name, window))
		if err != nil {
			return nil, err
		}
		sums, err := ask(fmt.Sprintf("sum by (instance, To) (increase(%s_sum[%s]))", name, window))
		if err != nil {
			return nil, err
		}
		type key struct{ instance, to string }
		series := map[key]*Series{}
		for _, sample := range buckets {
			k := key{string(sample.Metric["instance"]), string(sample.Metric["To"])}
			upper, err := strconv.ParseFloat(string(sample.Metric["le"]), 64)
			if err != nil {
				continue
			}
			if series[k] == nil {
				series[k] = &Series{Kind: KindOf(name), Source: k.instance, Peer: k.to, Over: "in " + window}
			}
			series[k].H.Buckets = append(series[k].H.Buckets, metrics.Bucket{Upper: upper, Count: math.Round(float64(sample.Value))})
		}
		for _, sample := range sums {
			if s := series[key{string(sample.Metric["instance"]), string(sample.Metric["To"])}]; s != nil {
				s.H.Sum = float64(sample.Value)
			}
		}
		for _, s := range series {
			slices.SortFunc(s.H.Buckets, func(a, b metrics.Bucket) int { return cmp.Compare(a.Upper, b.Upper) })
			for i, b := range s.H.Buckets { // increase guesses at the edges, each bucket by itself
				if i > 0 {
					s.H.Buckets[i].Count = max(b.Count, s.H.Buckets[i-1].Count)
				}
			}
			s.H.Count = s.H.Buckets[len(s.H.Buckets)-1].Count
			all = append(all, *s)
		}
	}
	slices.SortStableFunc(all, func(a, b Series) int {
		return cmp.Or(cmp.Compare(a.Kind.Metric, b.Kind.Metric), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Peer, b.Peer))
	})
	return all, nil
}
