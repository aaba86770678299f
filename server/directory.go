package server

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/endsession/endsession/server/config"
	"github.com/endsession/endsession/server/identity"
	"github.com/endsession/endsession/server/identity/ldap"
)

// openDirectory makes the directory that is configured; nil if there is none. It reaches nobody.
func openDirectory(o Options) (identity.Directory, error) {
	d := o.Config.Directory
	switch {
	case d == nil:
		return nil, nil
	case d.LDAP != nil:
		directory, err := ldap.New(ldapOptions(d.LDAP, o))
		if err != nil {
			return nil, fmt.Errorf("%s.ldap: %w", d.Where, err)
		}
		return directory, nil
	}
	file, err := identity.LoadFile(d.File.Path)
	var unreadable *fs.PathError
	switch {
	case errors.As(err, &unreadable): // what is wrong within the file says where
		return nil, fmt.Errorf("%s: %w", d.Where, err)
	case err != nil:
		return nil, err
	}
	return file, nil
}

func ldapOptions(l *config.LDAP, o Options) ldap.Options {
	options := ldap.Options{
		URLs: l.URLs, StartTLS: l.StartTLS, CAFile: l.CAFile, BindDN: l.BindDN, Password: l.Password,
		Timeout: time.Duration(l.Timeout), CacheAge: time.Duration(l.Cache), PageSize: l.PageSize,
		User: ldap.User{
			Base: l.User.Base, Filter: l.User.Filter, ID: l.User.ID, IgnoreCase: l.User.IgnoreCase, Email: l.User.Email,
			Attributes: l.User.Attributes,
		},
		Logger: o.Logger.With(slog.String("directory", "ldap")), Dial: o.DialDirectory,
	}
	if g := l.Group; g != nil {
		options.Group = &ldap.Group{Base: g.Base, Filter: g.Filter, Name: g.Name, Members: ldap.Membership(g.Members), Nested: *g.Nested}
	}
	return options
}
