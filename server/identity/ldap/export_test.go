package ldap

// The filters that searches are made of.
var (
	Equals = equals
	AnyOf  = anyOf
	Both   = both
)

// Match is what decides whether an entry with the ids is the one asked for.
func Match(ignoreCase bool, own []string, id string) (string, int) {
	return User{IgnoreCase: ignoreCase}.match(own, id)
}
