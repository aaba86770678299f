package api

import (
	"strings"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

// Go's protobuf keeps unknown fields of messages, but drops those of map entries before anybody could refuse them.
func TestUnknownFieldsOfMapEntriesAreSeen(t *testing.T) {
	entry := func(fields ...[]byte) []byte {
		var b []byte
		for _, f := range fields {
			b = append(b, f...)
		}
		return b
	}
	text := func(num protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), s)
	}
	message := func(num protowire.Number, b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), b)
	}
	sel := message(1, message(1, text(1, "alice")))
	stray := text(9, "wider")
	names := func(e []byte) []byte { return message(1, message(1, entry(text(1, "alice"), message(4, e)))) }
	for name, tc := range map[string]struct {
		data []byte
		ok   bool
	}{
		"Labels":                {entry(sel, message(6, entry(text(1, "job"), text(2, "x")))), true},
		"LabelsWithStray":       {entry(sel, message(6, entry(text(1, "job"), stray, text(2, "x")))), false},
		"NestedMap":             {names(entry(text(1, "apm"), message(2, text(1, "a17")))), true},
		"NestedMapWithStray":    {names(entry(text(1, "apm"), message(2, text(1, "a17")), stray)), false},
		"MapValueWithStray":     {names(entry(text(1, "apm"), message(2, entry(text(1, "a17"), stray)))), false},
		"SecondEntryWithStray":  {entry(sel, message(6, entry(text(1, "a"), text(2, "x"))), message(6, entry(text(1, "b"), text(2, "y"), stray))), false},
		"AttributesWithNothing": {message(1, message(1, entry(text(1, "alice"), message(3, nil)))), true},
	} {
		t.Run(name, func(t *testing.T) {
			var m endsessionv1.InvalidateSessionsRequest
			if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(tc.data)}, &m); err != nil {
				t.Fatal(err)
			}
			found := unknownFields(nil, "", m.ProtoReflect())
			if tc.ok != (len(found) == 0) {
				t.Errorf("found %v, want none: %v", found, tc.ok)
			}
			for _, v := range found {
				if !strings.Contains(v.Description, "9") {
					t.Errorf("says %q, want it to name field 9", v.Description)
				}
			}
			if isMalformed(&m) {
				t.Error("taken for malformed")
			}
		})
	}
}
