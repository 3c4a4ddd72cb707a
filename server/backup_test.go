package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// TestBackupPage: who may not administrate, and pages of another origin, do not reach the backups;
// without backups there is no page.
func TestBackupPage(t *testing.T) {
	t.Parallel()
	reached := 0
	var may error
	p := &pages{
		backups: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ }),
		admin: func(ctx context.Context) error {
			if token, ok := tokenOf(ctx); ok && token == "root" {
				return nil
			}
			if from, ok := peer.FromContext(ctx); ok {
				info, ok := from.AuthInfo.(credentials.TLSInfo)
				if ok && len(info.State.PeerCertificates) > 0 && info.State.PeerCertificates[0].Subject.CommonName == "root" {
					return nil
				}
			}
			return may
		},
	}
	ask := func(change func(*http.Request)) int {
		mux := http.NewServeMux()
		p.register(mux)
		r := httptest.NewRequest(http.MethodPost, pathBackup, nil)
		change(r)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w.Code
	}
	nothing := func(*http.Request) {}
	if code := ask(nothing); code != http.StatusOK || reached != 1 {
		t.Errorf("without users: %d", code)
	}
	if code := ask(func(r *http.Request) { r.Header.Set("Origin", "https://elsewhere.example") }); code != http.StatusForbidden || reached != 1 {
		t.Errorf("of another origin: %d", code)
	}
	may = errors.New("permission denied")
	if code := ask(nothing); code != http.StatusForbidden || reached != 1 {
		t.Errorf("nobody, with users: %d", code)
	}
	if code := ask(func(r *http.Request) { r.Header.Set("Authorization", "root") }); code != http.StatusOK || reached != 2 {
		t.Errorf("root: %d", code)
	}
	certified := func(name string) func(*http.Request) {
		return func(r *http.Request) {
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: name}}}}
		}
	}
	if code := ask(certified("root")); code != http.StatusOK || reached != 3 {
		t.Errorf("root's certificate: %d", code)
	}
	if code := ask(certified("somebody")); code != http.StatusForbidden || reached != 3 {
		t.Errorf("somebody's certificate: %d", code)
	}
	p.backups = nil
	if code := ask(nothing); code != http.StatusNotFound {
		t.Errorf("without backups: %d", code)
	}
}
