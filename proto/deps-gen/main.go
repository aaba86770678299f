// Command deps-gen writes the .proto files that ours import, made from the descriptors that are linked into this
// program.
//
// The usual way is to list other modules in buf.yaml and let buf fetch them from its registry. That needs the registry
// whenever something is generated, and fixes versions in a second lock file beside go.mod. Their descriptors are in the
// Go packages that go.mod has anyway, so printing those needs no network and cannot drift from what the service runs
// with. The files are other projects' work: they go to a folder that git ignores, and are never committed.
//
//	go run ./proto/deps-gen proto/deps
package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("deps-gen: ")
	if len(os.Args) != 2 {
		log.Fatal("usage: deps-gen FOLDER")
	}
	if err := generate(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

// generate writes what the service imports, and what those files import in turn, below dir.
func generate(dir string) error {
	files := map[string]protoreflect.FileDescriptor{}
	for _, f := range []protoreflect.FileDescriptor{
		annotations.File_google_api_annotations_proto,
		annotations.File_google_api_field_behavior_proto,
		validate.File_buf_validate_validate_proto,
	} {
		collect(files, f)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove what an earlier run wrote: %w", err)
	}
	for path, f := range files {
		var text bytes.Buffer
		// Names are fully qualified because a relative one can be ambiguous in a file that was not written by hand.
		printer := protoprint.Printer{SortElements: true, ForceFullyQualifiedNames: true}
		if err := printer.PrintProtoFile(f, &text); err != nil {
			return fmt.Errorf("print %s: %w", path, err)
		}
		name := filepath.Join(dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("make the folder of %s: %w", path, err)
		}
		if err := os.WriteFile(name, text.Bytes(), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}

// collect adds f and what it imports, except for google/protobuf/*, which buf brings along.
func collect(files map[string]protoreflect.FileDescriptor, f protoreflect.FileDescriptor) {
	if strings.HasPrefix(f.Path(), "google/protobuf/") || files[f.Path()] != nil {
		return
	}
	files[f.Path()] = f
	for i := range f.Imports().Len() {
		collect(files, f.Imports().Get(i).FileDescriptor)
	}
}
