package connect

import "testing"

func TestHTTPBase(t *testing.T) {
	for _, c := range []struct {
		endpoint string
		secure   bool
		want     string
	}{
		{"10.0.0.1:2379", false, "http://10.0.0.1:2379"},
		{"10.0.0.1:2379", true, "https://10.0.0.1:2379"},
		{"http://m1:2379/", true, "http://m1:2379"},
		{"https://[::1]:2379", false, "https://[::1]:2379"},
		{"unix://localhost:2379", false, ""},
		{"unixs://localhost:2379", true, ""},
		{"http://m1:port", false, ""},
	} {
		if got := HTTPBase(c.endpoint, c.secure); got != c.want {
			t.Errorf("%s, secure %v: %q, want %q", c.endpoint, c.secure, got, c.want)
		}
	}
}
