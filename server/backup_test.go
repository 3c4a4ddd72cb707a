package server

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
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
	p.backups = nil
	if code := ask(nothing); code != http.StatusNotFound {
		t.Errorf("without backups: %d", code)
	}
}
