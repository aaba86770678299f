//go:build unix && !linux

package pgtest

import "syscall"

// attributes are those of a process of the account. Only Linux ends it with this process.
func (a *account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{}
	if a != nil {
		attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return attr
}
