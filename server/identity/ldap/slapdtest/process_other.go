//go:build unix && !linux

package slapdtest

import "syscall"

// attributes are the usual ones. Only Linux ends the server with this process.
func attributes() *syscall.SysProcAttr { return nil }
