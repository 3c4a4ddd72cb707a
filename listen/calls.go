package listen

import (
	"net/http"
	"strings"
)

// CallsApart passes the gRPC calls among the requests that net/http gets to one handler, and all
// else to another. On a port with TLS these are the calls that a proxy has passed on: see the package.
func CallsApart(calls, others http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.Contains(r.Header.Get("Content-Type"), "application/grpc") {
			calls.ServeHTTP(w, r)
			return
		}
		others.ServeHTTP(w, r)
	})
}
