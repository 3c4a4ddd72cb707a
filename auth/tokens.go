package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Tokens issues and recognises tokens. Simple and JWT are the two kinds.
type Tokens interface {
	// Replicated says that every member must assign each token, when it applies the entry for it.
	// Otherwise the member that was asked assigns it, for index 0.
	Replicated() bool
	// Prefix is what a token begins with, to be replicated with the request for it; empty if tokens
	// have none.
	Prefix() string
	// Assign makes the token of a user that the entry at index has authenticated under a revision.
	Assign(user string, revision uint64, prefix string, index uint64) (string, error)
	// Info returns the owner of a token; current is the present revision.
	Info(token string, current uint64) (Identity, bool)
	// Known is Info for tokens that are in memory: it checks no signature and logs nothing. Of a token
	// that it does not know, Info may still know the owner.
	Known(token string, current uint64) (Identity, bool)
	// Keep ends the tokens of all users for which keep returns false.
	Keep(keep func(user string) bool)
}

// DefaultTokenTTL is how long an unused simple token lives.
const DefaultTokenTTL = 300 * time.Second

// NewTokens makes the Tokens that --auth-token asks for: "simple", "jwt" with its options, or ""
// for none. Errors are etcd's.
func NewTokens(logger *zap.Logger, options string, ttl time.Duration) (Tokens, error) {
	if logger == nil {
		logger = zap.NewNop()
	}
	kind, opts, err := splitOptions(logger, options)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "simple":
		logger.Warn("simple token is not cryptographically signed")
		return newSimple(logger, ttl), nil
	case "jwt":
		return newJWT(logger, opts)
	case "":
		return none{}, nil
	}
	logger.Warn("unknown token type", zap.String("type", kind), zap.Error(ErrInvalidAuthOpts))
	return nil, ErrInvalidAuthOpts
}

func splitOptions(logger *zap.Logger, options string) (kind string, opts map[string]string, err error) {
	parts := strings.Split(options, ",")
	opts = make(map[string]string)
	for _, part := range parts[1:] {
		pair := strings.Split(part, "=")
		if len(pair) != 2 {
			logger.Error("invalid token option", zap.String("option", options))
			return "", nil, ErrInvalidAuthOpts
		}
		if _, ok := opts[pair[0]]; ok {
			logger.Error("invalid token option", zap.String("option", options), zap.String("duplicate-parameter", pair[0]))
			return "", nil, ErrInvalidAuthOpts
		}
		opts[pair[0]] = pair[1]
	}
	return parts[0], opts, nil
}

// none issues and knows no token.
type none struct{}

func (none) Replicated() bool                                      { return true }
func (none) Prefix() string                                        { return "" }
func (none) Assign(string, uint64, string, uint64) (string, error) { return "", ErrAuthFailed }
func (none) Info(string, uint64) (Identity, bool)                  { return Identity{}, false }
func (none) Known(string, uint64) (Identity, bool)                 { return Identity{}, false }
func (none) Keep(func(string) bool)                                {}

// simple keeps random tokens in memory. Each use resets a token's time to live.
type simple struct {
	logger *zap.Logger
	ttl    time.Duration
	now    func() time.Time

	mu     sync.Mutex
	tokens map[string]*simpleToken
	swept  time.Time // when expired tokens were last looked for
}

type simpleToken struct {
	user string
	end  time.Time
}

// sweepInterval is the shortest time between two searches for expired tokens. Memory is bounded by
// the rate of Authenticate, which bcrypt bounds.
const sweepInterval = time.Second

func newSimple(logger *zap.Logger, ttl time.Duration) *simple {
	if ttl <= 0 {
		ttl = DefaultTokenTTL
	}
	return &simple{logger: logger, ttl: ttl, now: time.Now, tokens: make(map[string]*simpleToken)}
}

const (
	letters      = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	prefixLength = 16
)

func (s *simple) Replicated() bool { return true }

// Prefix draws letters without bias.
func (s *simple) Prefix() string {
	out := make([]byte, 0, prefixLength)
	var b [32]byte
	for len(out) < prefixLength {
		_, _ = rand.Read(b[:]) // never fails; it ends the process instead
		for _, c := range b {
			if int(c) < 256/len(letters)*len(letters) && len(out) < prefixLength {
				out = append(out, letters[int(c)%len(letters)])
			}
		}
	}
	return string(out)
}

// Assign numbers the token by the entry before its own, as etcd does, which takes the consistent
// index of the moment in which it applies. Members of both kinds apply the entry, and each must
// make the same token of it: clients show it to another member than the one that they logged in at.
func (s *simple) Assign(user string, _ uint64, prefix string, index uint64) (string, error) {
	token := fmt.Sprintf("%s.%d", prefix, index-1)
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now)
	s.tokens[token] = &simpleToken{user: user, end: now.Add(s.ttl)}
	if ce := s.logger.Check(zap.DebugLevel, "authenticated a user"); ce != nil {
		ce.Write(zap.String("user-name", user), zap.String("token-fingerprint", Fingerprint(token)))
	}
	return token, nil
}

func (s *simple) Info(token string, current uint64) (Identity, bool) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[token]
	if t == nil || now.After(t.end) {
		return Identity{}, false
	}
	t.end = now.Add(s.ttl)
	return Identity{User: t.user, Revision: current}, true
}

// Known is Info: there is nothing to check.
func (s *simple) Known(token string, current uint64) (Identity, bool) { return s.Info(token, current) }

// sweep forgets what has expired. REQUIRES: mu is held.
func (s *simple) sweep(now time.Time) {
	if now.Sub(s.swept) < sweepInterval {
		return
	}
	s.swept = now
	for token, t := range s.tokens {
		if now.After(t.end) {
			delete(s.tokens, token)
			s.logger.Debug("deleted a simple token", zap.String("user-name", t.user), zap.String("token-fingerprint", Fingerprint(token)))
		}
	}
}

func (s *simple) Keep(keep func(user string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for token, t := range s.tokens {
		if !keep(t.user) {
			delete(s.tokens, token)
		}
	}
}

// TokenIndex is the log index of the entry that made a simple token, one more than the token ends
// with: a member that has not applied it cannot know the token.
func TokenIndex(token string) (index uint64, ok bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 2 {
		return 0, false
	}
	before, err := strconv.ParseUint(parts[1], 10, 64)
	return before + 1, err == nil && before < math.MaxUint64
}

// Fingerprint is the form of a token that may be logged.
func Fingerprint(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])[:12]
}
