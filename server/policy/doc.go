// Package policy says what callers may do: ordered rules, each an expression over caller, request and targets, and
// the people whose sessions are protected. It implements [invalidation.Policy].
//
// Rules are tried in order among those that are about the right in question; the first that matches decides, and if none
// does the answer is no. Whatever goes wrong with a rule counts against the call: an expression that cannot be evaluated
// is no match for a rule that allows and a match for one that denies. What a call lacks (a user, a claim, a certificate)
// is not an empty text but an error, so that two things which are both missing never count as the same.
//
// Read input.go for what expressions see, protected.go for when two names count as one. [Policy.Explain] tells operators
// how an answer came about; callers are told only which right they lack.
package policy
