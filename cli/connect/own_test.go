package connect

import "testing"

func TestOwnAddress(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "192.0.2.1": false, "localhost": false, "": false, "127.0.0.1:2379": false,
	} {
		if got := OwnAddress(address); got != want {
			t.Errorf("%q: %v", address, got)
		}
	}
}
