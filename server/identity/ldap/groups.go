package ldap

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/endsession/endsession/server/identity"
	"github.com/go-ldap/ldap/v3"
	"golang.org/x/sync/errgroup"
)

// maxGroups bounds the groups that are looked at for one question.
const maxGroups = 5000

// errHidden means that a group shows no members although it has some.
var errHidden = errors.New("the group shows no members; may the account read them?")

// ownMembers are the attributes in which a group may name its members itself.
var ownMembers = []string{string(Member), string(UniqueMember), string(MemberUID)}

// attribute is the one in which a group itself names its members, if it does.
func (g Group) attribute() string {
	if g.Members == MemberOf {
		return ""
	}
	return string(g.Members)
}

// group returns a group by the name that the configuration calls it by, with what it says of its members.
func (d *Directory) group(ctx context.Context, c *conn, name string) (*ldap.Entry, error) {
	g := d.o.Group
	read := append([]string{"objectClass"}, ownMembers...)
	if g.Name == "" {
		e, err := d.entry(c, name, g.Filter, read)
		if hasCode(err, ldap.LDAPResultNoSuchObject) || err == nil && e == nil {
			return nil, identity.ErrUnknownGroup
		}
		return e, err
	}
	entries, err := d.search(ctx, c, g.Base, both(g.Filter, equals(g.Name, name)), append(read, g.Name), 10)
	if errors.Is(err, errMany) {
		return nil, identity.ErrAmbiguousGroup
	}
	if err != nil {
		return nil, err
	}
	entries = slices.DeleteFunc(entries, func(e *ldap.Entry) bool { return !slices.Contains(values(e, g.Name), name) })
	switch len(entries) {
	case 0:
		return nil, identity.ErrUnknownGroup
	case 1:
		return entries[0], nil
	}
	return nil, identity.ErrAmbiguousGroup
}

// listed returns what a group itself says of its members. Classes that cannot be without members and show none are
// hiding them.
func (d *Directory) listed(ctx context.Context, c *conn, group *ldap.Entry, attribute string) ([]string, error) {
	list, err := d.allValues(ctx, c, group, attribute)
	if err != nil || len(list) > 0 {
		return list, err
	}
	for _, class := range values(group, "objectClass") {
		if strings.EqualFold(class, "groupOfNames") && attribute == string(Member) ||
			strings.EqualFold(class, "groupOfUniqueNames") && attribute == string(UniqueMember) {
			return nil, errHidden
		}
	}
	return nil, nil
}

// members returns the people in a group, at most limit of them.
func (d *Directory) members(ctx context.Context, c *conn, name string, limit int) ([]identity.Person, error) {
	top, err := d.group(ctx, c, name)
	if err != nil {
		return nil, err
	}
	var ids []string
	switch d.o.Group.Members {
	case MemberUID:
		ids, err = d.listed(ctx, c, top, string(MemberUID))
	case MemberOf:
		ids, err = d.idsByGroup(ctx, c, top, limit)
	default:
		ids, err = d.idsByDN(ctx, c, top, limit)
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	var people []identity.Person
	for part := range slices.Chunk(ids, chunk) {
		if len(people) >= limit {
			break
		}
		// By their ids, because an id that two entries have names neither of them.
		found, err := d.people(ctx, c, part)
		if err != nil {
			return nil, err
		}
		for _, id := range part {
			switch p := found[id]; {
			case p != nil:
				people = append(people, p.Person)
				continue
			case d.o.Group.Members != MemberUID:
				return nil, identity.ErrUnknownMember
			}
			if err := d.excluded(ctx, c, id); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(people, func(a, b identity.Person) int { return strings.Compare(a.ID, b.ID) })
	people = slices.CompactFunc(people, func(a, b identity.Person) bool { return a.ID == b.ID })
	return people[:min(len(people), limit)], nil
}

// excluded makes sure that an id is somebody's who is not among the people: an account that the filter leaves out.
func (d *Directory) excluded(ctx context.Context, c *conn, id string) error {
	u := d.o.User
	entries, err := d.search(ctx, c, u.Base, equals(u.ID, id), []string{u.ID}, 10)
	if err != nil && !errors.Is(err, errMany) {
		return err
	}
	for _, e := range entries {
		if _, n := u.match(values(e, u.ID), id); n > 0 {
			return nil
		}
	}
	return identity.ErrUnknownMember
}

// id returns the one id of a person's entry.
func (u User) id(e *ldap.Entry) (string, error) {
	switch ids := texts(e, u.ID); len(ids) {
	case 0:
		return "", identity.ErrUnknownMember
	case 1:
		return ids[0], nil
	}
	return "", identity.ErrAmbiguous
}

// idsByDN returns the ids of the people whose DNs a group holds, and the groups within it, level by level. It stops when
// there are more than limit.
func (d *Directory) idsByDN(ctx context.Context, c *conn, top *ldap.Entry, limit int) ([]string, error) {
	g := d.o.Group
	level, err := d.listed(ctx, c, top, g.attribute())
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}  // DNs, as they are written in groups
	groups := []string{top.DN} // DNs, as the server writes them
	var ids []string
	for depth := 0; ; depth++ {
		var next []string
		level = slices.DeleteFunc(level, func(dn string) bool {
			again := seen[dn]
			seen[dn] = true
			return again
		})
		for part := range slices.Chunk(level, 8*parallel) {
			entries, err := d.readMembers(ctx, c, part)
			if err != nil {
				return nil, err
			}
			for _, m := range entries {
				switch {
				case m.person != nil:
					id, err := d.o.User.id(m.person)
					if err != nil {
						return nil, err
					}
					ids = append(ids, id)
				case m.group != nil && !slices.Contains(groups, m.group.DN):
					if depth == g.Nested || len(groups) == maxGroups {
						return nil, identity.ErrTooDeep
					}
					groups = append(groups, m.group.DN)
					more, err := d.listed(ctx, c, m.group, g.attribute())
					if err != nil {
						return nil, err
					}
					next = append(next, more...)
				}
			}
			slices.Sort(ids)
			if ids = slices.Compact(ids); len(ids) >= limit {
				return ids, nil
			}
		}
		if len(next) == 0 {
			return ids, nil
		}
		level = next
	}
}

// member is an entry that a group names: a person, a group, or neither.
type member struct{ person, group *ldap.Entry }

// readMembers reads the entries with the given DNs.
func (d *Directory) readMembers(ctx context.Context, c *conn, dns []string) ([]member, error) {
	members := make([]member, len(dns))
	var tasks errgroup.Group
	tasks.SetLimit(parallel)
	for i, dn := range dns {
		tasks.Go(func() (err error) {
			if err := ctx.Err(); err != nil {
				return &serverError{err}
			}
			members[i], err = d.readMember(c, dn)
			return err
		})
	}
	return members, tasks.Wait()
}

// uniqueIdentifier may follow a DN in uniqueMember (RFC 4517 section 3.3.21): it tells apart those who have had the DN one
// after the other, and it cannot be known of whom we find there.
var uniqueIdentifier = regexp.MustCompile(`#'[01]*'B$`)

// readMember finds out what a member is. What is below neither base is neither person nor group, by the operator's word,
// and so is what matches neither filter. Of what cannot be found, nobody can say.
func (d *Directory) readMember(c *conn, dn string) (m member, err error) {
	u, g := d.o.User, d.o.Group
	if _, err := ldap.ParseDN(dn); err != nil || g.Members == UniqueMember && uniqueIdentifier.MatchString(dn) {
		return member{}, identity.ErrUnknownMember
	}
	if below(u.Base, dn) {
		m.person, err = d.entry(c, dn, u.Filter, []string{u.ID})
	}
	if err == nil && m.person == nil && g.Nested > 0 && below(g.Base, dn) {
		m.group, err = d.entry(c, dn, g.Filter, []string{"objectClass", g.attribute()})
	}
	if hasCode(err, ldap.LDAPResultNoSuchObject) || hasCode(err, ldap.LDAPResultReferral) {
		return member{}, identity.ErrUnknownMember
	}
	return m, err
}

// idsByGroup returns the ids of the people who say that they are in a group, or in a group within it.
func (d *Directory) idsByGroup(ctx context.Context, c *conn, top *ldap.Entry, limit int) ([]string, error) {
	u := d.o.User
	groups, err := d.groupsWithin(ctx, c, top.DN)
	if err != nil {
		return nil, err
	}
	var ids []string
	for part := range slices.Chunk(groups, chunk) {
		entries, err := d.search(ctx, c, u.Base, both(u.Filter, anyOf(string(MemberOf), part)), []string{u.ID}, limit*len(part))
		if errors.Is(err, errMany) {
			return nil, errors.New("search: far more entries than the group may have members")
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			id, err := u.id(e)
			if err != nil {
				return nil, err
			}
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 && slices.ContainsFunc(ownMembers, func(a string) bool {
		all, err := d.allValues(ctx, c, top, a)
		return err != nil || len(all) > 0
	}) {
		return nil, errors.New("the group has members, and nobody's memberOf says so: it is not maintained, or not shown to the account")
	}
	return ids, nil
}

// groupsWithin returns the DN of a group and of those within it that say so by memberOf.
func (d *Directory) groupsWithin(ctx context.Context, c *conn, top string) ([]string, error) {
	g := d.o.Group
	all, level := []string{top}, []string{top}
	for depth := 0; g.Nested > 0 && len(level) > 0; depth++ {
		var next []string
		for part := range slices.Chunk(level, chunk) {
			entries, err := d.search(ctx, c, g.Base, both(g.Filter, anyOf(string(MemberOf), part)), []string{"1.1"}, maxGroups)
			if errors.Is(err, errMany) {
				return nil, identity.ErrTooDeep
			}
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				if !slices.Contains(all, e.DN) {
					all, next = append(all, e.DN), append(next, e.DN)
				}
			}
		}
		if len(next) > 0 && depth == g.Nested || len(all) > maxGroups {
			return nil, identity.ErrTooDeep
		}
		level = next
	}
	return all, nil
}

// isMember reports whether a person is in a group. Who is nobody's is in none.
func (d *Directory) isMember(ctx context.Context, c *conn, name, id string) (bool, error) {
	top, err := d.group(ctx, c, name)
	if err != nil {
		return false, err
	}
	found, err := d.people(ctx, c, []string{id})
	if err != nil || found[id] == nil {
		return false, err
	}
	switch d.o.Group.Members {
	case MemberUID:
		list, err := d.listed(ctx, c, top, string(MemberUID))
		return slices.ContainsFunc(found[id].ids, func(own string) bool {
			_, n := d.o.User.match(list, own)
			return n > 0
		}), err
	case MemberOf:
		return d.says(ctx, c, top, found[id].dn)
	}
	return d.holds(ctx, c, top, found[id].dn)
}

// says reports whether a person's memberOf names the group or one within it.
func (d *Directory) says(ctx context.Context, c *conn, top *ldap.Entry, person string) (bool, error) {
	groups, err := d.groupsWithin(ctx, c, top.DN)
	if err != nil {
		return false, err
	}
	for part := range slices.Chunk(groups, chunk) {
		e, err := d.entry(c, person, anyOf(string(MemberOf), part), []string{"1.1"})
		if err != nil || e != nil {
			return e != nil, err
		}
	}
	if e, err := d.entry(c, top.DN, anyOf(string(Member), []string{person}), []string{"1.1"}); err != nil || e == nil {
		return false, err
	}
	return false, errors.New("the group names the person, and the person's memberOf does not name the group")
}

// holds reports whether a group, or one within it, holds a person's DN. It asks upwards, from the person to the groups
// that hold it to those that hold these, because groups may be large and people are in few.
func (d *Directory) holds(ctx context.Context, c *conn, top *ldap.Entry, person string) (bool, error) {
	g := d.o.Group
	if _, err := d.listed(ctx, c, top, g.attribute()); err != nil {
		return false, err
	}
	level, seen := []string{person}, map[string]bool{person: true}
	for depth := 0; len(level) > 0; depth++ {
		var next []string
		for part := range slices.Chunk(level, chunk) {
			e, err := d.entry(c, top.DN, anyOf(g.attribute(), part), []string{"1.1"})
			switch {
			case err != nil:
				return false, err
			case e != nil && depth > g.Nested:
				return false, identity.ErrTooDeep
			case e != nil:
				return true, nil
			case g.Nested == 0:
				continue
			}
			entries, err := d.search(ctx, c, g.Base, both(g.Filter, anyOf(g.attribute(), part)), []string{"1.1"}, maxGroups)
			if errors.Is(err, errMany) {
				return false, identity.ErrTooDeep
			}
			if err != nil {
				return false, err
			}
			for _, e := range entries {
				if !seen[e.DN] {
					seen[e.DN] = true
					next = append(next, e.DN)
				}
			}
		}
		if len(seen) > maxGroups {
			return false, identity.ErrTooDeep
		}
		level = next
	}
	return false, nil
}
