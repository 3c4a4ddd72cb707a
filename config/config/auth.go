package config

// authFlags say how users are known.
func authFlags() []flagDef {
	return []flagDef{
		{group: groupAuth, name: "auth-token", usage: "Kind of tokens: 'simple', or 'jwt' with pub-key=, priv-key=, sign-method= and ttl= behind commas.",
			bind: stringFlag(func(c *Config) *string { return &c.AuthToken })},
		{group: groupAuth, name: "bcrypt-cost", usage: "Cost of hashing passwords, 4 to 31; each step doubles it.",
			bind: uintFlag(func(c *Config) *uint { return &c.BcryptCost })},
		{group: groupAuth, name: "auth-token-ttl", usage: "Seconds that an unused simple token lives.",
			bind: uintFlag(func(c *Config) *uint { return &c.AuthTokenTTL })},
	}
}
