package config

import (
	"slices"
	"testing"
)

// TestBooleans: a word behind them is not their value, whichever program's they are.
func TestBooleans(t *testing.T) {
	for _, name := range []string{
		"auto-tls", "peer-auto-tls", "client-cert-auth", "peer-client-cert-auth", "force-new-cluster", "enable-pprof", "pre-vote", "strict-reconfig-check",
		"initial-election-tick-advance", "enable-grpc-gateway", "enable-log-rotation", "unsafe-no-fsync", "memory-mlock", "socket-reuse-port", "socket-reuse-address",
		"enable-distributed-tracing", "peer-skip-client-san-verification", "discovery-insecure-transport", "discovery-insecure-skip-tls-verify",
		"strict-auth", "nospace-disarm", "heal", "cors-simple-requests", "usage", "web-view", "version", "help", "enable-v2", "debug",
	} {
		if !slices.Contains(booleans(), name) {
			t.Errorf("%s takes no word behind it", name)
		}
	}
}
