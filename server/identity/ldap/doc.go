// Package ldap is the directory of people and groups that an LDAP server holds: OpenLDAP, 389, Active Directory.
//
// What a server matches is not what was asked for. LDAP compares most attributes without regard to case, to spaces and to
// how a letter is composed, so a search for "alice" may find "Alice" and "ALICE ". An entry is somebody only if a value of
// its id attribute is, byte for byte, the id that was asked for, or equal to it but for case if [User].IgnoreCase says so.
// More than one such entry is [identity.ErrAmbiguous], never the first of them.
//
// An answer is whole or an error. A search that the server cuts short, a group whose members it hides, a member of whom it
// shows nothing, groups nested more deeply than is looked: each is an error, because what is left out would be left signed
// in. Referrals are not followed; what lies behind them is not part of the directory.
//
// Connections are opened when somebody asks, and again when they break. Of several servers the first that works is used;
// one that does not is left alone for a while. When none answers, questions fail at once until the next try is due, so
// that a dead directory does not hold up what does not need it.
package ldap
