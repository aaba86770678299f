package server

import (
	"os"
	"runtime/debug"
)

// heapGrowth is by how many per cent of what is in use the heap grows before garbage is collected.
const heapGrowth = 200

// Tune sets the process up for a gateway: what it keeps in memory is little beside what passes through it, so garbage is
// collected less often than by default, for some tens of megabytes. The environment variable GOGC says otherwise;
// GOMEMLIMIT bounds the memory in any case.
func Tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(heapGrowth)
	}
}
