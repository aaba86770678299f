// Package identity knows what people, providers and groups are called where. It turns a selector in the caller's words
// into each target's own names, as the configuration says, and never guesses: what has no name at a target is an error,
// never an approximation.
//
// A [Resolver] is compiled once from the configuration; mistakes in it are found then, not at the first kill. Resolving
// does no I/O but to ask the [Directory].
//
// # Usernames
//
// The expressions that name a person are written in CEL (cel.dev). There is one variable, user, with the fields id and
// email (texts) and attributes (a map from text to text). An e-mail address or attribute that the person lacks fails the
// expression; has(user.email) and has(user.attributes.uid) ask first. One of which the directory has several values
// fails it, too, and asking does not help: the run ends as ambiguous, unless the expression uses emails (a list of texts)
// or values (a map from text to lists of texts), which hold all of them. The result is a text or a list of texts. Besides
// CEL's own functions there are those of its strings library (lowerAscii, split, replace, substring, …), and
//
//	lower(x)          x in lower case, by Unicode's rules
//	ldapDN(x)         x as a value within a distinguished name, escaped after RFC 4514
//	x.extract("re")   what the group of the regular expression (RE2 syntax) matches in x, or the whole match if it has no
//	                  group; no match fails the expression
//
// The cost of an evaluation is bounded.
package identity
