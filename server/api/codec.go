package api

import (
	"bytes"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that this one wraps
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
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
	if !ok {
		return err
	}
	if err != nil {
		proto.Reset(m)
		m.ProtoReflect().SetUnknown(malformed)
		return nil
	}
	if stray := strayInMaps(data.Materialize(), m.ProtoReflect().Descriptor()); len(stray) > 0 {
		m.ProtoReflect().SetUnknown(append(m.ProtoReflect().GetUnknown(), stray...))
	}
	return nil
}

// strayInMaps returns the first unknown field of an entry of a map in data, which is a valid message of the descriptor.
// Go's protobuf drops such fields, while it keeps all other unknown ones.
func strayInMaps(data []byte, md protoreflect.MessageDescriptor) []byte {
	for len(data) > 0 {
		num, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return nil
		}
		size := protowire.ConsumeFieldValue(num, typ, data[n:])
		if size < 0 {
			return nil
		}
		value := data[n : n+size]
		data = data[n+size:]
		fd := md.Fields().ByNumber(num)
		if fd == nil || fd.Message() == nil || typ != protowire.BytesType {
			continue
		}
		inner, _ := protowire.ConsumeBytes(value)
		if fd.IsMap() {
			if stray := strayInEntry(inner, fd.Message()); len(stray) > 0 {
				return stray
			}
		}
		if stray := strayInMaps(inner, fd.Message()); len(stray) > 0 {
			return stray
		}
	}
	return nil
}

// strayInEntry returns the first field of a map's entry that is neither its key nor its value.
func strayInEntry(data []byte, md protoreflect.MessageDescriptor) []byte {
	for len(data) > 0 {
		num, _, n := protowire.ConsumeField(data)
		if n < 0 {
			return nil
		}
		if md.Fields().ByNumber(num) == nil {
			return data[:n]
		}
		data = data[n:]
	}
	return nil
}

func isMalformed(m proto.Message) bool { return bytes.Equal(m.ProtoReflect().GetUnknown(), malformed) }
