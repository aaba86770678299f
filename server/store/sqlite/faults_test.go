package sqlite_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// faultVFS is a virtual file system for SQLite: the operating system's, in front of which a test's disk is asked before
// everything that changes a file.
const faultVFS = "endsession-faults"

// disk is what the files of one database lie on.
type disk struct {
	base string // the database file

	mu sync.Mutex
	// before is asked before every "read", "write", "sync" and "truncate" of a file; what it returns, if not SQLITE_OK, is what
	// SQLite is told instead.
	before func(op, file string) int32
	// synced is what the platters hold: every file as it was when it was last synced.
	synced map[string][]byte
}

// newDisk returns the disk on which the database at path will be found by SQLite.
func newDisk(t testing.TB, path string) *disk {
	registerFaultVFS(t)
	d := &disk{base: path, synced: map[string][]byte{}}
	disks.Store(path, d)
	t.Cleanup(func() { disks.Delete(path) })
	return d
}

// ask sets the disk's mood; nil makes it well.
func (d *disk) ask(before func(op, file string) int32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before = before
}

// freeze keeps everything from becoming durable until the channel is closed.
func (d *disk) freeze() (thaw chan struct{}) {
	thaw = make(chan struct{})
	d.ask(func(op, _ string) int32 {
		if op == "sync" {
			<-thaw
		}
		return sqlite3.SQLITE_OK
	})
	return thaw
}

func (d *disk) check(op, file string) int32 {
	d.mu.Lock()
	f := d.before
	d.mu.Unlock()
	if f == nil {
		return sqlite3.SQLITE_OK
	}
	return f(op, file)
}

func (d *disk) sync(file string) {
	data, err := os.ReadFile(file)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.synced[filepath.Base(file)] = data
	}
}

// image is what is left of the files when the process dies now, or the machine.
func (d *disk) image(t testing.TB, machine bool) map[string][]byte {
	if machine {
		d.mu.Lock()
		defer d.mu.Unlock()
		return maps.Clone(d.synced)
	}
	files := map[string][]byte{}
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(d.base + suffix)
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		if err == nil {
			files[filepath.Base(d.base)+suffix] = data
		}
	}
	return files
}

var (
	disks        sync.Map // by database path
	registerOnce sync.Once

	openMu sync.Mutex
	open   = map[uintptr]openFile{} // by sqlite3_file
	tables = map[uintptr]uintptr{}  // the wrapped method tables, by the original
	osVFS  uintptr
)

type openFile struct {
	disk    *disk
	path    string
	methods *sqlite3.Tsqlite3_io_methods // the operating system's
}

// cFunc is a Go function as the translated C code holds it, and goFunc the reverse.
func cFunc[F any](f F) uintptr { return *(*uintptr)(unsafe.Pointer(&f)) }

func goFunc[F any](p uintptr) F { return *(*F)(unsafe.Pointer(&p)) }

// at is what lies at an address of the C heap.
func at[T any](p uintptr) *T { return *(**T)(unsafe.Pointer(&p)) }

// These must outlive the registration.
var (
	hookOpen     = vfsOpen
	hookClose    = vfsClose
	hookRead     = vfsRead
	hookWrite    = vfsWrite
	hookSync     = vfsSync
	hookTruncate = vfsTruncate
)

func registerFaultVFS(t testing.TB) {
	registerOnce.Do(func() {
		tls := libc.NewTLS()
		osVFS = sqlite3.Xsqlite3_vfs_find(tls, 0)
		size := unsafe.Sizeof(sqlite3.Tsqlite3_vfs{})
		mine := libc.Xmalloc(tls, libc.Tsize_t(size))
		v := at[sqlite3.Tsqlite3_vfs](mine)
		*v = *at[sqlite3.Tsqlite3_vfs](osVFS)
		name, err := libc.CString(faultVFS)
		if err != nil {
			t.Fatal(err)
		}
		v.FzName, v.FpNext = name, 0
		v.FxOpen = cFunc(hookOpen)
		if rc := sqlite3.Xsqlite3_vfs_register(tls, mine, 0); rc != sqlite3.SQLITE_OK {
			t.Fatalf("register VFS: %d", rc)
		}
	})
}

func vfsOpen(tls *libc.TLS, _, name, file uintptr, flags int32, outFlags uintptr) int32 {
	original := goFunc[func(*libc.TLS, uintptr, uintptr, uintptr, int32, uintptr) int32](at[sqlite3.Tsqlite3_vfs](osVFS).FxOpen)
	rc := original(tls, osVFS, name, file, flags, outFlags)
	if rc != sqlite3.SQLITE_OK || name == 0 {
		return rc
	}
	path := libc.GoString(name)
	d, ok := disks.Load(strings.TrimSuffix(path, "-wal"))
	if !ok {
		return rc
	}
	openMu.Lock()
	defer openMu.Unlock()
	f := at[sqlite3.Tsqlite3_file](file)
	methods := at[sqlite3.Tsqlite3_io_methods](f.FpMethods)
	if tables[f.FpMethods] == 0 {
		table := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(*methods)))
		wrapped := at[sqlite3.Tsqlite3_io_methods](table)
		*wrapped = *methods
		wrapped.FxClose = cFunc(hookClose)
		wrapped.FxRead = cFunc(hookRead)
		wrapped.FxWrite = cFunc(hookWrite)
		wrapped.FxSync = cFunc(hookSync)
		wrapped.FxTruncate = cFunc(hookTruncate)
		tables[f.FpMethods] = table
	}
	open[file] = openFile{disk: d.(*disk), path: path, methods: methods}
	f.FpMethods = tables[f.FpMethods]
	return rc
}

func opened(file uintptr) openFile {
	openMu.Lock()
	defer openMu.Unlock()
	return open[file]
}

func vfsClose(tls *libc.TLS, file uintptr) int32 {
	f := opened(file)
	openMu.Lock()
	delete(open, file)
	openMu.Unlock()
	return goFunc[func(*libc.TLS, uintptr) int32](f.methods.FxClose)(tls, file)
}

func vfsRead(tls *libc.TLS, file, data uintptr, n int32, offset int64) int32 {
	f := opened(file)
	if rc := f.disk.check("read", f.path); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return goFunc[func(*libc.TLS, uintptr, uintptr, int32, int64) int32](f.methods.FxRead)(tls, file, data, n, offset)
}

func vfsWrite(tls *libc.TLS, file, data uintptr, n int32, offset int64) int32 {
	f := opened(file)
	if rc := f.disk.check("write", f.path); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return goFunc[func(*libc.TLS, uintptr, uintptr, int32, int64) int32](f.methods.FxWrite)(tls, file, data, n, offset)
}

func vfsTruncate(tls *libc.TLS, file uintptr, size int64) int32 {
	f := opened(file)
	if rc := f.disk.check("truncate", f.path); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return goFunc[func(*libc.TLS, uintptr, int64) int32](f.methods.FxTruncate)(tls, file, size)
}

func vfsSync(tls *libc.TLS, file uintptr, flags int32) int32 {
	f := opened(file)
	if rc := f.disk.check("sync", f.path); rc != sqlite3.SQLITE_OK {
		return rc
	}
	rc := goFunc[func(*libc.TLS, uintptr, int32) int32](f.methods.FxSync)(tls, file, flags)
	if rc == sqlite3.SQLITE_OK {
		f.disk.sync(f.path)
	}
	return rc
}
