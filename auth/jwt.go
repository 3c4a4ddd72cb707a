package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/zap"
)

const defaultJWTTTL = 5 * time.Minute

// signed issues tokens that any member with the key can verify. Its claims are username, revision
// and exp.
type signed struct {
	logger *zap.Logger
	method jwt.SigningMethod
	sign   any // nil: this member can only verify
	verify any
	ttl    time.Duration

	mu sync.Mutex
	// known are tokens that were verified, so that the signature of a client that calls often is
	// checked once: with RS256 or ES256 a check costs as much as the rest of a put. A valid token
	// stays valid until it expires.
	known map[string]knownToken
}

type knownToken struct {
	who Identity
	end time.Time // zero: never
}

// maxKnownTokens bounds the memory; when it is reached all are verified again.
const maxKnownTokens = 4096

func newJWT(logger *zap.Logger, opts map[string]string) (*signed, error) {
	t := &signed{logger: logger, ttl: defaultJWTTTL, known: make(map[string]knownToken)}
	public, private, err := t.parse(opts)
	if err != nil {
		logger.Error("problem loading JWT options", zap.Error(err))
		return nil, ErrInvalidAuthOpts
	}
	var unknown []string
	for key := range opts {
		switch key {
		case "sign-method", "pub-key", "priv-key", "ttl":
		default:
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		logger.Warn("unknown JWT options", zap.Strings("keys", unknown))
	}
	return t, t.load(public, private)
}

func (t *signed) parse(opts map[string]string) (public, private []byte, err error) {
	if ttl := opts["ttl"]; ttl != "" {
		if t.ttl, err = time.ParseDuration(ttl); err != nil {
			return nil, nil, err
		}
	}
	if file := opts["pub-key"]; file != "" {
		if public, err = os.ReadFile(file); err != nil {
			return nil, nil, err
		}
	}
	if file := opts["priv-key"]; file != "" {
		if private, err = os.ReadFile(file); err != nil {
			return nil, nil, err
		}
	}
	if t.method = jwt.GetSigningMethod(opts["sign-method"]); t.method == nil {
		return nil, nil, ErrInvalidAuthMethod
	}
	return public, private, nil
}

func (t *signed) load(public, private []byte) error {
	switch t.method.(type) {
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		return loadPair(t, public, private, jwt.ParseRSAPublicKeyFromPEM, jwt.ParseRSAPrivateKeyFromPEM)
	case *jwt.SigningMethodECDSA:
		return loadPair(t, public, private, jwt.ParseECPublicKeyFromPEM, jwt.ParseECPrivateKeyFromPEM)
	case *jwt.SigningMethodEd25519:
		return loadPair(t, public, private,
			func(b []byte) (ed25519.PublicKey, error) {
				key, err := jwt.ParseEdPublicKeyFromPEM(b)
				edKey, _ := key.(ed25519.PublicKey)
				return edKey, err
			},
			func(b []byte) (ed25519.PrivateKey, error) {
				key, err := jwt.ParseEdPrivateKeyFromPEM(b)
				edKey, _ := key.(ed25519.PrivateKey)
				return edKey, err
			})
	case *jwt.SigningMethodHMAC:
		if len(private) == 0 {
			return ErrMissingKey
		}
		t.sign, t.verify = private, private
		return nil
	}
	// "none" among them: a token that nobody signed.
	return fmt.Errorf("unsupported signing method: %T", t.method)
}

type publicKey interface{ Equal(crypto.PublicKey) bool }

type privateKey interface {
	Public() crypto.PublicKey
}

var (
	_ privateKey = (*rsa.PrivateKey)(nil)
	_ privateKey = (*ecdsa.PrivateKey)(nil)
)

// loadPair takes a private key, a public key, or both if they belong together.
func loadPair[Pub publicKey, Priv privateKey](t *signed, public, private []byte, parsePublic func([]byte) (Pub, error), parsePrivate func([]byte) (Priv, error)) error {
	if len(private) > 0 {
		key, err := parsePrivate(private)
		if err != nil {
			return err
		}
		t.sign, t.verify = key, key.Public()
	}
	if len(public) > 0 {
		key, err := parsePublic(public)
		if err != nil {
			return err
		}
		if t.sign != nil && !key.Equal(t.verify) {
			return ErrKeyMismatch
		}
		t.verify = key
	}
	if t.verify == nil {
		return ErrMissingKey
	}
	return nil
}

func (t *signed) Replicated() bool { return false }

func (t *signed) Prefix() string { return "" }

// Keep does nothing: a JWT expires, or the revision that it carries becomes old.
func (t *signed) Keep(func(string) bool) {}

func (t *signed) Assign(user string, revision uint64, _ string, _ uint64) (string, error) {
	if t.sign == nil {
		return "", ErrVerifyOnly
	}
	token, err := jwt.NewWithClaims(t.method, jwt.MapClaims{
		"username": user, "revision": revision, "exp": time.Now().Add(t.ttl).Unix(),
	}).SignedString(t.sign)
	if err != nil {
		t.logger.Debug("failed to sign a JWT token", zap.String("user-name", user), zap.Uint64("revision", revision), zap.Error(err))
		return "", err
	}
	if ce := t.logger.Check(zap.DebugLevel, "created/assigned a new JWT token"); ce != nil {
		ce.Write(zap.String("user-name", user), zap.Uint64("revision", revision), zap.String("token-fingerprint", Fingerprint(token)))
	}
	return token, nil
}

func (t *signed) Known(token string, _ uint64) (Identity, bool) {
	t.mu.Lock()
	known, ok := t.known[token]
	t.mu.Unlock()
	if !ok || !known.end.IsZero() && !time.Now().Before(known.end) {
		return Identity{}, false
	}
	return known.who, true
}

func (t *signed) Info(token string, current uint64) (Identity, bool) {
	if who, ok := t.Known(token, current); ok {
		return who, true
	}
	known, ok := t.examine(token)
	if !ok {
		return Identity{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= maxKnownTokens {
		clear(t.known)
	}
	t.known[token] = known
	return known.who, true
}

// examine verifies a token and reads it.
func (t *signed) examine(token string) (knownToken, bool) {
	parsed, err := jwt.Parse(token, func(token *jwt.Token) (any, error) {
		// The method is the configured one, never the one the token names: a public key must not be
		// used as an HMAC secret.
		if token.Method.Alg() != t.method.Alg() {
			return nil, errors.New("invalid signing method")
		}
		return t.verify, nil
	})
	if err != nil {
		t.logger.Warn("failed to parse a JWT token", zap.Error(err))
		return knownToken{}, false
	}
	claims, ok := parsed.Claims.(jwt.MapClaims)
	if !parsed.Valid || !ok {
		t.logger.Warn("failed to obtain claims from a JWT token")
		return knownToken{}, false
	}
	user, ok := claims["username"].(string)
	if !ok {
		t.logger.Warn("failed to obtain user claims from jwt token")
		return knownToken{}, false
	}
	revision, ok := claims["revision"].(float64)
	if !ok {
		t.logger.Warn("failed to obtain revision claims from jwt token")
		return knownToken{}, false
	}
	known := knownToken{who: Identity{User: user, Revision: uint64(revision)}}
	if end, err := claims.GetExpirationTime(); err == nil && end != nil {
		known.end = end.Time
	}
	return known, true
}
