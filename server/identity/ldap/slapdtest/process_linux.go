package slapdtest

import "syscall"

// attributes make the server end when this process does.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
