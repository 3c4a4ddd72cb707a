package listen

import (
	"testing"
	"time"
)

func TestValidity(t *testing.T) {
	const day = 24 * time.Hour
	made := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		life, age time.Duration
		want      Validity
	}{
		{365 * day, -time.Second, NotYetValid},
		{365 * day, 0, Valid},
		{365 * day, 334 * day, Valid},
		{365 * day, 336 * day, ExpiresSoon},
		{365 * day, 365 * day, Expired},
		{365 * day, 400 * day, Expired},
		{90 * day, 71 * day, Valid},
		{90 * day, 73 * day, ExpiresSoon},
		{day, 19 * time.Hour, Valid},
		{day, 20 * time.Hour, ExpiresSoon},
	} {
		cert := Certificate{NotBefore: made, NotAfter: made.Add(c.life)}
		if got := cert.Validity(made.Add(c.age)); got != c.want {
			t.Errorf("life %v, age %v: %v, want %v", c.life, c.age, got, c.want)
		}
	}
}
