package api

import (
	"bytes"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that this one wraps
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// codec is gRPC's protobuf codec, except that bytes which are no message (malformed, or with invalid UTF-8) are not an
// error of the codec. gRPC would answer INTERNAL to that, before any interceptor runs, as if the server were at fault.
// Instead the message is marked, and the interceptors refuse it with INVALID_ARGUMENT.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// malformed marks a message that could not be read: an unknown field with the greatest number there is. A client that
// sends this very field is refused too, so nothing is won by it.
var malformed = protowire.AppendVarint(protowire.AppendTag(nil, protowire.MaxValidNumber, protowire.VarintType), 1)

// Unmarshal reads data into v, or marks v.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.CodecV2.Unmarshal(data, v)
	m, ok := v.(proto.Message)
	if err == nil || !ok {
		return err
	}
	proto.Reset(m)
	m.ProtoReflect().SetUnknown(malformed)
	return nil
}

func isMalformed(m proto.Message) bool { return bytes.Equal(m.ProtoReflect().GetUnknown(), malformed) }
