package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/zap"
)

// keyFiles writes a key's PEM files.
func keyFiles(t *testing.T, key crypto.Signer) (public, private string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	private = write("private", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(key.Public())
	return write("public", "PUBLIC KEY", der, err), private
}

func tokensOf(t *testing.T, options string) Tokens {
	t.Helper()
	tokens, err := NewTokens(nil, options, 0)
	if err != nil {
		t.Fatal(options, err)
	}
	return tokens
}

// Every signing method that etcd takes: a member with the public key alone knows what another has
// signed, and nothing else.
func TestJWTMethods(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	curve := func(c elliptic.Curve) crypto.Signer {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for method, key := range map[string]crypto.Signer{
		"RS256": rsaKey, "RS384": rsaKey, "RS512": rsaKey, "PS256": rsaKey, "PS384": rsaKey, "PS512": rsaKey,
		"ES256": curve(elliptic.P256()), "ES384": curve(elliptic.P384()), "ES512": curve(elliptic.P521()), "EdDSA": edKey,
	} {
		t.Run(method, func(t *testing.T) {
			public, private := keyFiles(t, key)
			signer := tokensOf(t, "jwt,sign-method="+method+",priv-key="+private)
			verifier := tokensOf(t, "jwt,sign-method="+method+",pub-key="+public+",ttl=1h")
			token, err := signer.Assign("alice", 5, "", 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, side := range []Tokens{signer, verifier} {
				if who, ok := side.Info(token, 8); !ok || who != (Identity{"alice", 5}) {
					t.Error(who, ok)
				}
			}
			// The public key, which is no secret, as the secret of another method.
			forged, err := tokensOf(t, "jwt,sign-method=HS256,priv-key="+public).Assign(Root, 99, "", 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := verifier.Info(forged, 8); ok {
				t.Error("a forged token is taken")
			}
		})
	}
}

// What a token must say, and how it must be signed.
func TestJWTClaims(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens := tokensOf(t, "jwt,sign-method=HS256,priv-key="+secret)
	soon, past := time.Now().Add(time.Hour).Unix(), time.Now().Add(-time.Hour).Unix()
	for _, c := range []struct {
		name   string
		method jwt.SigningMethod
		key    any
		claims jwt.MapClaims
		ok     bool
	}{
		{"good", jwt.SigningMethodHS256, []byte("secret"), jwt.MapClaims{"username": "a", "revision": 1, "exp": soon}, true},
		{"without an end, as etcd takes it", jwt.SigningMethodHS256, []byte("secret"), jwt.MapClaims{"username": "a", "revision": 1}, true},
		{"expired", jwt.SigningMethodHS256, []byte("secret"), jwt.MapClaims{"username": "a", "revision": 1, "exp": past}, false},
		{"not yet", jwt.SigningMethodHS256, []byte("secret"), jwt.MapClaims{"username": "a", "revision": 1, "exp": soon, "nbf": soon}, false},
		{"no user", jwt.SigningMethodHS256, []byte("secret"), jwt.MapClaims{"revision": 1, "exp": soon}, false},
		{"a number for a user", jwt.SigningMethodHS256, []byte("secret"), jwt.MapClaims{"username": 1, "revision": 1, "exp": soon}, false},
		{"no revision", jwt.SigningMethodHS256, []byte("secret"), jwt.MapClaims{"username": "a", "exp": soon}, false},
		{"a text for a revision", jwt.SigningMethodHS256, []byte("secret"), jwt.MapClaims{"username": "a", "revision": "1", "exp": soon}, false},
		{"another secret", jwt.SigningMethodHS256, []byte("secre"), jwt.MapClaims{"username": "root", "revision": 1, "exp": soon}, false},
		{"another method", jwt.SigningMethodHS512, []byte("secret"), jwt.MapClaims{"username": "root", "revision": 1, "exp": soon}, false},
		{"none", jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{"username": "root", "revision": 1, "exp": soon}, false},
	} {
		token, err := jwt.NewWithClaims(c.method, c.claims).SignedString(c.key)
		if err != nil {
			t.Fatal(c.name, err)
		}
		if _, ok := tokens.Info(token, 1); ok != c.ok {
			t.Errorf("%s: taken: %v", c.name, ok)
		}
	}
	for _, token := range []string{"", ".", "..", "a.b", "x.1", "a.b.c"} {
		if _, ok := tokens.Info(token, 1); ok {
			t.Errorf("%q is taken", token)
		}
	}
}

// A token that was verified once is not taken beyond its end, and what is remembered is bounded.
func TestKnownJWTs(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens := tokensOf(t, "jwt,sign-method=HS256,priv-key="+secret).(*signed)
	token, err := tokens.Assign("alice", 5, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if who, ok := tokens.Known(token, 8); ok != (i == 1) || ok && who != (Identity{"alice", 5}) {
			t.Fatalf("known after %d looks at its signature: %v, %v", i, ok, who)
		}
		if who, ok := tokens.Info(token, 8); !ok || who != (Identity{"alice", 5}) {
			t.Fatal(who, ok)
		}
	}
	if end := tokens.known[token].end; time.Until(end) > defaultJWTTTL || time.Until(end) < defaultJWTTTL-time.Minute {
		t.Errorf("known until %v", end)
	}
	if _, ok := tokens.Info(token[:len(token)-1], 8); ok || len(tokens.known) != 1 {
		t.Errorf("a damaged token: %v, %d are known", ok, len(tokens.known))
	}
	// Its end is past: it is verified again, which refuses one that really ended.
	ended, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"username": "a", "revision": 1, "exp": time.Now().Add(-time.Hour).Unix()}).SignedString([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	tokens.known[ended] = knownToken{Identity{"a", 1}, time.Now().Add(-time.Hour)}
	if _, ok := tokens.Known(ended, 8); ok {
		t.Error("an expired token is known")
	}
	if _, ok := tokens.Info(ended, 8); ok {
		t.Error("an expired token is taken because it was known")
	}
	for i := range 2 * maxKnownTokens {
		tokens.known[string(rune(i))+"x"] = knownToken{}
		if len(tokens.known) >= maxKnownTokens {
			break
		}
	}
	if _, ok := tokens.Info(token, 8); !ok {
		t.Error("forgotten")
	}
	if token, err = tokens.Assign("bob", 5, "", 0); err != nil {
		t.Fatal(err)
	}
	if _, ok := tokens.Info(token, 8); !ok || len(tokens.known) > maxKnownTokens {
		t.Errorf("%d are known", len(tokens.known))
	}
}

func BenchmarkJWT(b *testing.B) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	s := &signed{method: jwt.SigningMethodRS256, sign: key, verify: key.Public(), ttl: time.Hour, known: map[string]knownToken{}, logger: zap.NewNop()}
	token, err := s.Assign("alice", 5, "", 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			if _, ok := s.examine(token); !ok {
				b.Fatal()
			}
		}
	})
	b.Run("known", func(b *testing.B) {
		for b.Loop() {
			if _, ok := s.Info(token, 5); !ok {
				b.Fatal()
			}
		}
	})
}
