package check

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/proof/cluster"
)

// TestAuthCertificateNames: with --client-cert-auth the name in a client's certificate is a user,
// with or without a password, at the gRPC port alone. Belay and etcd are asked the same.
func TestAuthCertificateNames(t *testing.T) {
	t.Parallel()
	a := newIssuer(t, "check")
	// The server's own certificate has root's name: the gateway must not act in it
	// (CVE-2018-16886).
	a.issue("root", nil)
	a.issue("mallory", nil)
	a.issue("carol", nil)
	a.issue("nobody", nil)
	a.issue("nameless", func(c *x509.Certificate) { c.Subject.CommonName = "" })
	gone := a.issue("gone", func(c *x509.Certificate) { c.Subject.CommonName = "root" })
	var httpURLs []string
	belay, etcd := startBoth(t, func(c *cluster.Config) {
		port, err := cluster.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		httpURLs = append(httpURLs, fmt.Sprintf("https://127.0.0.1:%d", port))
		c.TLS = a.client("root")
		c.Args = []string{"--bcrypt-cost=4", "--cert-file=" + a.Cert("root"), "--key-file=" + a.Key("root"), "--trusted-ca-file=" + a.CA(),
			"--client-cert-auth", "--client-crl-file=" + a.CRL(), "--listen-client-http-urls=" + httpURLs[len(httpURLs)-1]}
	})
	parties := [2]*party{newParty(t, belay), newParty(t, etcd)}
	for i, p := range parties {
		if status, err := gatewayAs(a.client("gone"), httpURLs[i], "/v3/kv/range", `{"key":"c2VjcmV0"}`, "", ""); err != nil || !strings.HasPrefix(status, "200") {
			t.Fatalf("%s: before the revocation: %s %v", p.LogPath, status, err)
		}
		p.populate()
		admin := pb.NewAuthClient(p.conn)
		_, err := admin.UserAdd(p.ctx("root"), &pb.AuthUserAddRequest{Name: "carol", Options: &authpb.UserAddOptions{NoPassword: true}})
		p.must(err)
		_, err = admin.UserGrantRole(p.ctx("root"), &pb.AuthUserGrantRoleRequest{User: "carol", Role: "mallory"})
		p.must(err)
	}
	if err := a.Revoke(gone); err != nil {
		t.Fatal(err)
	}

	secret, mine := &pb.RangeRequest{Key: []byte("secret")}, &pb.RangeRequest{Key: []byte("mine")}
	for _, c := range []struct {
		name, cert string
		md         []string
		request    *pb.RangeRequest
		want       string // "" an answer
	}{
		{"root's name", "root", nil, secret, ""},
		{"a user's name, own key", "mallory", nil, mine, ""},
		{"a user's name, another's key", "mallory", nil, secret, "PermissionDenied"},
		{"the name of a user without a password, own key", "carol", nil, mine, ""},
		{"the name of a user without a password, another's key", "carol", nil, secret, "PermissionDenied"},
		{"a name that is no user's", "nobody", nil, mine, "PermissionDenied"},
		{"no name", "nameless", nil, mine, "PermissionDenied"},
		// A token goes before the name.
		{"root's name and a user's token", "root", []string{"token", "mallory"}, secret, "PermissionDenied"},
		{"a user's name and root's token", "mallory", []string{"token", "root"}, secret, ""},
		{"root's name and a made-up token", "root", []string{"token", "forged"}, secret, "Unauthenticated"},
		// CVE-2018-16886: what a grpc-gateway passes on comes with the gateway's own certificate.
		{"root's name, through somebody's gateway", "root", []string{"grpcgateway-accept", "application/json"}, secret, "InvalidArgument"},
		{"root's name and a user's token, through somebody's gateway", "root", []string{"grpcgateway-accept", "x", "token", "mallory"}, mine, ""},
		// GHSA-3wh4-j44w-pg92: the list of revoked certificates was not asked at the gRPC port when
		// HTTP had its own.
		{"a revoked certificate (GHSA-3wh4-j44w-pg92)", "gone", nil, secret, "Unavailable"},
		{"no certificate", "", nil, secret, "Unavailable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var answers [2]string
			for i, p := range parties {
				conn, err := dialWith(p.Member, a.client(c.cert))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				ctx := t.Context()
				for n := 0; n < len(c.md); n += 2 {
					value := c.md[n+1]
					if c.md[n] == "token" {
						value = p.tokens[value]
						if c.md[n+1] == "forged" {
							value = "abcdefghijklmnop.1"
						}
					}
					ctx = metadata.AppendToOutgoingContext(ctx, c.md[n], value)
				}
				_, err = pb.NewKVClient(conn).Range(ctx, c.request)
				answers[i] = fmt.Sprint(status.Code(err), " ", status.Convert(err).Message())
				if c.want == "" && err != nil || !strings.HasPrefix(answers[i], c.want) {
					t.Errorf("%s: %s", p.LogPath, answers[i])
				}
			}
			if c.want != "Unavailable" && answers[0] != answers[1] {
				t.Errorf("belay: %s\netcd:  %s", answers[0], answers[1])
			}
		})
	}
	for _, c := range []struct {
		name, cert, token string
		key               string
		want              string // of the status and body; "" no connection
		accept            string
		belayAlone        bool
	}{
		{"gateway: root's name", "root", "", "secret", "400 Bad Request CommonName of client", "*/*", false},
		{"gateway: root's name and root's token", "root", "root", "secret", "400 Bad Request CommonName of client", "*/*", false},
		{"gateway: no name (CVE-2018-16886)", "nameless", "", "secret", "400 Bad Request {\"code\":3,\"message\":\"etcdserver: user name is empty\"", "*/*", false},
		// Without an Accept header etcd 3.7.3 still takes its own certificate for the caller's, and
		// answers as root. To Belay the caller is somebody without a name, as over gRPC.
		{"gateway: no name and nothing accepted (CVE-2018-16886)", "nameless", "", "secret", "403 Forbidden", "", true},
		{"gateway: no name and a user's token", "nameless", "mallory", "secret", "403 Forbidden", "*/*", false},
		{"gateway: no name and root's token", "nameless", "root", "secret", "200 OK", "*/*", false},
		{"gateway: a revoked certificate", "gone", "", "secret", "", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var answers [2]string
			for i, p := range parties {
				text, err := gatewayAs(a.client(c.cert), httpURLs[i], "/v3/kv/range", fmt.Sprintf(`{"key":"%s"}`, base64.StdEncoding.EncodeToString([]byte(c.key))), p.tokens[c.token], c.accept)
				if c.belayAlone && i == 1 {
					answers[i] = answers[0]
					continue
				}
				if (err != nil) != (c.want == "") || !strings.HasPrefix(text, c.want) {
					t.Errorf("%s: %s %v", p.LogPath, text, err)
				}
				answers[i] = text
			}
			if answers[0] != answers[1] {
				t.Errorf("belay: %s\netcd:  %s", answers[0], answers[1])
			}
		})
	}
}

// gatewayAs posts with a client certificate and a token.
func gatewayAs(cfg *tls.Config, url, path, body, token, accept string) (string, error) {
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: accepting{transport, accept}, Timeout: 20 * time.Second}
	c := httpCase{path: path, body: body}
	if token != "" {
		c.header = "Authorization: " + token
	}
	text, err := c.ask(client, url)
	if err != nil {
		return "", err
	}
	head, _, _ := strings.Cut(text, "\n")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return head + " " + lines[len(lines)-1], nil
}

// accepting adds an Accept header, if it is one.
type accepting struct {
	http.RoundTripper
	what string
}

func (a accepting) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.what != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Accept", a.what)
	}
	return a.RoundTripper.RoundTrip(r)
}

// jwtKeys writes a pair of keys of each kind and returns the private one for signing.
func jwtKeys(t *testing.T, dir, kind string) (private any, pub, priv string) {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "RS", "PS":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ES":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "Ed":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		path := filepath.Join(dir, kind+".secret")
		if err := os.WriteFile(path, []byte("a secret of some length"), 0o600); err != nil {
			t.Fatal(err)
		}
		return []byte("a secret of some length"), path, path
	}
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, block string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, kind+name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	pub = write(".pub", "PUBLIC KEY", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	return key, pub, write(".priv", "PRIVATE KEY", der, err)
}

// TestAuthJWT: with the same keys each of Belay and etcd takes the other's tokens, and neither
// takes one that is forged, old, of another key or of another method.
func TestAuthJWT(t *testing.T) {
	t.Parallel()
	for kind, method := range map[string]string{"RS": "RS256", "PS": "PS384", "ES": "ES256", "Ed": "EdDSA", "HS": "HS512"} {
		t.Run(method, func(t *testing.T) {
			dir := t.TempDir()
			private, pub, priv := jwtKeys(t, dir, kind)
			other, _, _ := jwtKeys(t, t.TempDir(), kind)
			if secret, ok := other.([]byte); ok {
				other = append(secret, 'x')
			}
			parties := startAuth(t, fmt.Sprintf("--auth-token=jwt,pub-key=%s,priv-key=%s,sign-method=%s,ttl=1h", pub, priv, method))
			// Claims are those of etcd: the same names, of the same moment.
			var claims [2]jwt.MapClaims
			for i, p := range parties {
				part := strings.Split(p.tokens["mallory"], ".")[1]
				b, err := base64.RawURLEncoding.DecodeString(part)
				p.must(err)
				p.must(json.Unmarshal(b, &claims[i]))
				if end := claims[i]["exp"].(float64) - float64(time.Now().Unix()); end < 3500 || end > 3600 {
					t.Errorf("%s: ends in %v s", p.LogPath, end)
				}
				delete(claims[i], "exp")
			}
			if got, want := fmt.Sprint(claims[0]), fmt.Sprint(claims[1]); got != want {
				t.Errorf("claims: belay %s, etcd %s", got, want)
			}

			public, err := os.ReadFile(pub)
			if err != nil {
				t.Fatal(err)
			}
			revision := claims[1]["revision"]
			root := jwt.MapClaims{"username": "root", "revision": revision, "exp": time.Now().Add(time.Hour).Unix()}
			sign := func(m string, key any, c jwt.MapClaims) string {
				text, err := jwt.NewWithClaims(jwt.GetSigningMethod(m), c).SignedString(key)
				if err != nil {
					t.Fatal(err)
				}
				return text
			}
			good := sign(method, private, root)
			parts := strings.Split(good, ".")
			altered := base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"username":"root","revision":%v,"exp":9999999999}`, revision)))
			for name, c := range map[string]struct {
				token string
				good  bool
			}{
				"etcd's":                  {parties[1].tokens["root"], true},
				"belay's":                 {parties[0].tokens["root"], true},
				"signed elsewhere":        {good, true},
				"with Bearer":             {"Bearer " + good, true},
				"another key":             {sign(method, other, root), false},
				"HS256 by the public key": {sign("HS256", public, root), method == "HS256"},
				"HS256 by nothing":        {sign("HS256", []byte{}, root), false},
				"none":                    {sign("none", jwt.UnsafeAllowNoneSignatureType, root), false},
				"no signature":            {parts[0] + "." + parts[1] + ".", false},
				"altered":                 {parts[0] + "." + altered + "." + parts[2], false},
				"a part":                  {parts[0] + "." + parts[1], false},
				"expired":                 {sign(method, private, jwt.MapClaims{"username": "root", "revision": revision, "exp": time.Now().Unix() - 1}), false},
				"old revision":            {sign(method, private, jwt.MapClaims{"username": "root", "revision": 1, "exp": time.Now().Unix() + 100}), false},
			} {
				var answers [2]string
				for i, p := range parties {
					p.tokens["it"] = c.token
					_, err := pb.NewKVClient(p.conn).Range(p.ctx("it"), &pb.RangeRequest{Key: []byte("secret")})
					answers[i] = fmt.Sprint(status.Code(err), " ", status.Convert(err).Message())
					if (err == nil) != c.good {
						t.Errorf("%s: %s: %v", p.LogPath, name, err)
					}
				}
				if answers[0] != answers[1] {
					t.Errorf("%s\nbelay: %s\netcd:  %s", name, answers[0], answers[1])
				}
			}
		})
	}
}

// TestAuthJWTVerifyOnly: a member with the public key alone takes tokens and hands out none.
func TestAuthJWTVerifyOnly(t *testing.T) {
	t.Parallel()
	private, pub, _ := jwtKeys(t, t.TempDir(), "ES")
	belay, etcd := startBoth(t, func(c *cluster.Config) {
		c.Args = []string{"--bcrypt-cost=4", "--auth-token=jwt,sign-method=ES256,pub-key=" + pub}
	})
	var answers [2]string
	for i, m := range []*cluster.Member{belay, etcd} {
		p := newParty(t, m)
		admin := pb.NewAuthClient(p.conn)
		_, err := admin.UserAdd(t.Context(), &pb.AuthUserAddRequest{Name: "root", Password: "root"})
		p.must(err)
		_, err = admin.UserGrantRole(t.Context(), &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"})
		p.must(err)
		_, err = admin.AuthEnable(t.Context(), &pb.AuthEnableRequest{})
		p.must(err)
		_, err = admin.Authenticate(t.Context(), &pb.AuthenticateRequest{Name: "root", Password: "root"})
		answers[i] = fmt.Sprint(err)
		st, err := admin.AuthStatus(t.Context(), &pb.AuthStatusRequest{})
		p.must(err)
		p.tokens["root"], err = jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"username": "root", "revision": st.AuthRevision, "exp": time.Now().Unix() + 100}).SignedString(private)
		p.must(err)
		_, err = admin.UserList(p.ctx("root"), &pb.AuthUserListRequest{})
		p.must(err)
	}
	if answers[0] != answers[1] || !strings.Contains(answers[0], "verify-only") {
		t.Errorf("belay: %s\netcd:  %s", answers[0], answers[1])
	}
}

// TestAuthFlagErrors: what --auth-token and --bcrypt-cost cannot mean ends both with the same code
// and cause.
func TestAuthFlagErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, pub, priv := jwtKeys(t, dir, "RS")
	_, otherPub, _ := jwtKeys(t, t.TempDir(), "RS")
	for _, flag := range []string{
		"jwt", "jwt,sign-method=RS256", "jwt,sign-method=XX,priv-key=" + priv, "jwt,sign-method=none", "jwt,sign-method=RS256,pub-key=/nonexistent", "jwt,sign-method=RS256,pub-key=" + priv,
		"jwt,sign-method=HS256,pub-key=" + pub, "jwt,sign-method=RS256,priv-key=" + priv + ",pub-key=" + otherPub, "jwt,sign-method=ES256,priv-key=" + priv, "jwt,sign-method=EdDSA,priv-key=" + priv,
		"jwt,sign-method=RS256,priv-key=" + priv + ",ttl=x", "jwt,x", "jwt,a=b,a=c", "other",
	} {
		var answers [2]string
		for i, kind := range []cluster.Kind{cluster.Belay, cluster.Etcd} {
			m := newCluster(t, cluster.Config{Kind: kind, Size: 1, Args: []string{"--auth-token=" + flag}}).Members[0]
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-m.Exited():
			case <-time.After(30 * time.Second):
				t.Fatalf("%s runs with --auth-token=%s", kind, flag)
			}
			b, err := os.ReadFile(m.LogPath)
			if err != nil {
				t.Fatal(err)
			}
			answers[i] = fmt.Sprint(m.ExitErr(), "\n")
			for line := range strings.Lines(string(b)) {
				var fields map[string]any
				if json.Unmarshal([]byte(line), &fields) != nil {
					continue
				}
				switch fields["msg"] {
				case "failed to create token provider", "problem loading JWT options", "unknown token type", "invalid token option", "unknown JWT options":
					answers[i] += fmt.Sprintln(fields["level"], fields["msg"], fields["error"], fields["type"], fields["option"], fields["duplicate-parameter"])
				}
			}
		}
		if answers[0] != answers[1] {
			t.Errorf("--auth-token=%s\nbelay: %s\netcd:  %s", flag, answers[0], answers[1])
		}
	}
}

// TestAuthBcryptCost: a cost that bcrypt does not have is warned of in etcd's words, and the
// default is taken: users log in.
func TestAuthBcryptCost(t *testing.T) {
	t.Parallel()
	belay, etcd := startBoth(t, func(c *cluster.Config) { c.Args = []string{"--bcrypt-cost=3"} })
	var warned [2]string
	for i, m := range []*cluster.Member{belay, etcd} {
		p := newParty(t, m)
		for line := range strings.Lines(p.logText()) {
			var fields map[string]any
			if json.Unmarshal([]byte(line), &fields) == nil && strings.Contains(line, "bcrypt cost") {
				delete(fields, "ts")
				delete(fields, "caller")
				warned[i] += fmt.Sprintln(fields)
			}
		}
		p.populate()
	}
	if warned[0] != warned[1] || warned[0] == "" {
		t.Errorf("belay: %s\netcd:  %s", warned[0], warned[1])
	}
}
