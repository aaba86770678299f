package ldap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/endsession/endsession/server/identity"
	"github.com/go-ldap/ldap/v3"
)

// chunk is how many people are looked for in one search.
const chunk = 50

// errMany means that a search found more than was wanted.
var errMany = errors.New("more entries than wanted")

// equals is a filter for entries in which an attribute has a value, whatever characters the value is made of.
func equals(attribute, value string) string {
	return "(" + attribute + "=" + ldap.EscapeFilter(value) + ")"
}

// anyOf is a filter for entries in which an attribute has one of the values.
func anyOf(attribute string, values []string) string {
	var b strings.Builder
	b.WriteString("(|")
	for _, v := range values {
		b.WriteString(equals(attribute, v))
	}
	b.WriteString(")")
	return b.String()
}

// both is a filter for entries that match two filters.
func both(a, b string) string { return "(&" + a + b + ")" }

// below reports whether a DN is the base or below it. A DN that cannot be read is not.
func below(base, dn string) bool {
	b, err := ldap.ParseDN(base)
	if err != nil {
		return false
	}
	x, err := ldap.ParseDN(dn)
	return err == nil && (b.EqualFold(x) || b.AncestorOfFold(x))
}

// search returns the entries below base that match, page by page; more than limit are errMany.
func (d *Directory) search(ctx context.Context, c *conn, base, filter string, attributes []string, limit int) (entries []*ldap.Entry, err error) {
	paging := ldap.NewControlPaging(uint32(d.o.PageSize))
	for {
		if err := ctx.Err(); err != nil {
			return nil, &serverError{err}
		}
		result, err := c.Search(&ldap.SearchRequest{
			BaseDN: base, Scope: ldap.ScopeWholeSubtree, DerefAliases: ldap.NeverDerefAliases, TimeLimit: d.timeLimit(),
			Filter: filter, Attributes: attributes, Controls: []ldap.Control{paging},
		})
		if err != nil {
			return nil, classify("search", err)
		}
		entries = append(entries, result.Entries...)
		next, _ := ldap.FindControl(result.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
		more := next != nil && len(next.Cookie) > 0
		if more && len(entries) > limit {
			// The server is told that the rest is not wanted.
			paging.PagingSize = 0
			paging.SetCookie(next.Cookie)
			_, _ = c.Search(&ldap.SearchRequest{BaseDN: base, Scope: ldap.ScopeWholeSubtree, Filter: filter, Controls: []ldap.Control{paging}})
		}
		switch {
		case len(entries) > limit:
			return nil, errMany
		case !more:
			return entries, nil
		}
		paging.SetCookie(next.Cookie)
	}
}

// entry returns the entry with a DN if it matches the filter, and nil if it does not. That there is none is an error with
// the code [ldap.LDAPResultNoSuchObject].
func (d *Directory) entry(c *conn, dn, filter string, attributes []string) (*ldap.Entry, error) {
	result, err := c.Search(&ldap.SearchRequest{
		BaseDN: dn, Scope: ldap.ScopeBaseObject, DerefAliases: ldap.NeverDerefAliases, TimeLimit: d.timeLimit(),
		Filter: filter, Attributes: attributes,
	})
	if err != nil {
		return nil, classify("read entry", err)
	}
	if len(result.Entries) == 0 {
		return nil, nil
	}
	return result.Entries[0], nil
}

// timeLimit is what servers are told, in seconds; the connection's own timeout is the one that counts.
func (d *Directory) timeLimit() int { return max(int(d.o.Timeout.Seconds()), 1) }

// values returns the values of an attribute. Variants of the attribute (in another language, in parts) are not it.
func values(e *ldap.Entry, attribute string) []string {
	for _, a := range e.Attributes {
		if strings.EqualFold(a.Name, attribute) {
			return a.Values
		}
	}
	return nil
}

// texts returns the values of an attribute that are texts, each once, in an order that is not the server's.
func texts(e *ldap.Entry, attribute string) (list []string) {
	for _, v := range values(e, attribute) {
		if v != "" && utf8.ValidString(v) {
			list = append(list, v)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// allValues returns the values of an attribute of an entry that was just read. Active Directory gives those of a large
// group in parts ("member;range=0-1499"), which it must be asked for one by one.
func (d *Directory) allValues(ctx context.Context, c *conn, e *ldap.Entry, attribute string) ([]string, error) {
	all := values(e, attribute)
	for {
		i := slices.IndexFunc(e.Attributes, func(a *ldap.EntryAttribute) bool {
			return len(a.Name) > len(attribute) && strings.EqualFold(a.Name[:len(attribute)], attribute) &&
				strings.HasPrefix(strings.ToLower(a.Name[len(attribute):]), ";range=")
		})
		if i < 0 {
			return all, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, &serverError{err}
		}
		part := e.Attributes[i]
		all = append(all, part.Values...)
		_, last, ok := strings.Cut(part.Name[len(attribute)+len(";range="):], "-")
		if ok && last == "*" {
			return all, nil
		}
		n, err := strconv.Atoi(last)
		if err != nil || n+1 != len(all) {
			return nil, fmt.Errorf("read entry: the parts of attribute %s do not fit together", attribute)
		}
		if e, err = d.entry(c, e.DN, "(objectClass=*)", []string{fmt.Sprintf("%s;range=%d-*", attribute, n+1)}); err != nil {
			return nil, err
		}
		if e == nil {
			return nil, errors.New("read entry: it vanished between two parts")
		}
	}
}

// someone is a person's entry.
type someone struct {
	identity.Person
	dn string
	// ids are all values of the id attribute.
	ids []string
}

// people looks for people by their ids. An id that nobody has is not in the result; one that two entries have, or that
// leads to an entry in more than one way, is [identity.ErrAmbiguous].
func (d *Directory) people(ctx context.Context, c *conn, ids []string) (map[string]*someone, error) {
	u := d.o.User
	read := []string{u.ID, u.Email}
	for _, attribute := range u.Attributes {
		read = append(read, attribute)
	}
	slices.Sort(read)
	read = slices.Compact(read)
	found := map[string]*someone{}
	for part := range slices.Chunk(ids, chunk) {
		// The server's idea of equality is wider than ours; what it finds beside is not counted, but bounded.
		entries, err := d.search(ctx, c, u.Base, both(u.Filter, anyOf(u.ID, part)), read, 10*len(part))
		if errors.Is(err, errMany) {
			return nil, identity.ErrAmbiguous
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			own := values(e, u.ID)
			if len(own) == 0 {
				// Either the account may search for the attribute and not read it, or the server calls it otherwise.
				return nil, fmt.Errorf("search: an entry was found by attribute %s, which it does not show", u.ID)
			}
			for _, id := range part {
				spelling, n := u.match(own, id)
				switch {
				case n == 0:
					continue
				case n > 1 || found[id] != nil:
					return nil, identity.ErrAmbiguous
				}
				found[id] = &someone{u.person(e, spelling), e.DN, own}
			}
		}
	}
	return found, nil
}

// match returns the value that is the id, and how many values could be meant.
func (u User) match(own []string, id string) (spelling string, n int) {
	if slices.Contains(own, id) {
		return id, 1
	}
	if !u.IgnoreCase {
		return "", 0
	}
	for _, v := range own {
		if strings.EqualFold(v, id) {
			spelling = v
			n++
		}
	}
	return spelling, n
}

// person makes a person of an entry.
func (u User) person(e *ldap.Entry, id string) identity.Person {
	p := identity.Person{ID: id}
	switch emails := texts(e, u.Email); len(emails) {
	case 0:
	case 1:
		p.Email = emails[0]
	default:
		p.Emails = emails
	}
	for name, attribute := range u.Attributes {
		switch own := texts(e, attribute); len(own) {
		case 0:
		case 1:
			if p.Attributes == nil {
				p.Attributes = map[string]string{}
			}
			p.Attributes[name] = own[0]
		default:
			if p.Several == nil {
				p.Several = map[string][]string{}
			}
			p.Several[name] = own
		}
	}
	return p
}
