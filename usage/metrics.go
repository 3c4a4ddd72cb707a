package usage

import "github.com/prometheus/client_golang/prometheus"

// metricNames is how many names of each kind and measure /metrics shows, and leastShare is the share
// from which on: 80 series at most at a time. Names come and go, as shares do.
const (
	metricNames = 5
	leastShare  = 0.01
)

// collector shows the heaviest names as metrics.
type collector struct {
	tracker *Tracker
	named   func() bool
	share   *prometheus.Desc
	rate    *prometheus.Desc
	every   *prometheus.Desc
}

// NewCollector makes metrics of a tracker. named says at each scrape whether names may be shown:
// /metrics asks nobody who they are.
func NewCollector(t *Tracker, named func() bool) prometheus.Collector {
	return &collector{
		tracker: t, named: named,
		share: prometheus.NewDesc("belay_usage_share",
			"Shares of the heaviest prefixes, clients and watches of this member, 0 to 1, over about the last minute, by measure. None with users on.", []string{"of", "by", "name"}, nil),
		rate: prometheus.NewDesc("belay_usage_per_second",
			"Operations on keys, and bytes, keys and churn of them, each second over about the last minute, estimated from samples.", []string{"by"}, nil),
		every: prometheus.NewDesc("belay_usage_sampled_one_of", "Of how many small requests one is counted for usage.", nil, nil),
	}
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.share
	ch <- c.rate
	ch <- c.every
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	a := c.tracker.Answer(metricNames)
	for by, rate := range a.Rates {
		ch <- prometheus.MustNewConstMetric(c.rate, prometheus.GaugeValue, rate, by)
	}
	ch <- prometheus.MustNewConstMetric(c.every, prometheus.GaugeValue, float64(a.Every))
	if !c.named() {
		return
	}
	type series struct{ of, by, name string }
	told := map[series]bool{}
	for _, s := range a.Top {
		// Two names may have become one when what is not UTF-8 was replaced.
		key := series{s.Of, s.By, s.Name}
		if s.Share < leastShare || told[key] {
			continue
		}
		told[key] = true
		ch <- prometheus.MustNewConstMetric(c.share, prometheus.GaugeValue, s.Share, s.Of, s.By, s.Name)
	}
}
