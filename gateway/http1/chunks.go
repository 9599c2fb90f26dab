package http1

import "bytes"

// Chunks reads a chunked body piece by piece and rewrites it in place, so that it can be passed on and mean one
// thing only (RFC 9112, 7.1): sizes are digits without extensions, lines end with CRLF, the trailer's fields are
// checked, and those that have no business in a trailer are dropped. The zero value is at the begin of a body.
type Chunks struct {
	state  chunkState
	left   int64 // bytes of the chunk's data that have not been seen
	data   int64 // bytes of data so far
	seen   int   // of the bytes that were not consumed: how many have been searched
	excess int   // bytes that were not data, beyond what data excuses
}

type chunkState uint8

const (
	atSize chunkState = iota
	inData
	afterData
	inTrailer
	atEnd
)

const (
	// maxSizeLine bounds the line before a chunk, with its extensions, which nobody uses.
	maxSizeLine = 4096
	// maxExcess bounds what is sent beside data, beyond 16 bytes a chunk and twice its data: small chunks are
	// streams, small chunks with long extensions an attack.
	maxExcess = 16 << 10
)

// Reset makes c ready for another body.
func (c *Chunks) Reset() { *c = Chunks{} }

// Data is how many bytes of data there have been.
func (c *Chunks) Data() int64 { return c.data }

// Normalize consumes what it can of p, and leaves the bytes to pass on in p[:out]; out is never more than consumed.
// p[consumed:] must be given again, with more behind it. When done the body ended at consumed, with what is to pass
// on. A line before a chunk, and the whole trailer with the empty line after it, are consumed at once: p must be able
// to hold 4 KiB, and limits.Head.
//
// Its error is an *Error; then nothing of p is to be passed on.
func (c *Chunks) Normalize(p []byte, limits Limits) (out, consumed int, done bool, err error) {
	for consumed < len(p) {
		rest := p[consumed:]
		switch c.state {
		case inData:
			n := len(rest)
			if int64(n) > c.left {
				n = int(c.left)
			}
			if out != consumed {
				copy(p[out:], rest[:n])
			}
			out, consumed = out+n, consumed+n
			c.data += int64(n)
			if c.left -= int64(n); c.left == 0 {
				c.state = afterData
			}
		case afterData:
			if rest[0] != '\r' || len(rest) > 1 && rest[1] != '\n' {
				return 0, 0, false, refuse(400, "A chunk's data is followed by %q; send CRLF after as many bytes as its size says.", cut(rest[:min(len(rest), 8)]))
			}
			if len(rest) < 2 {
				return out, consumed, false, nil
			}
			out += copy(p[out:], crlf)
			consumed += 2
			c.state = atSize
		case atSize:
			line, err := c.sizeLine(rest)
			if err != nil {
				return 0, 0, false, err
			}
			if line == nil {
				return out, consumed, false, nil
			}
			digits, err := c.readSize(line)
			if err != nil {
				return 0, 0, false, err
			}
			out += copy(p[out:], digits)
			out += copy(p[out:], crlf)
			consumed += len(line)
		case inTrailer:
			n, size, err := c.trailer(rest, limits)
			if err != nil {
				return 0, 0, false, err
			}
			if size == 0 {
				return out, consumed, false, nil
			}
			out += copy(p[out:], rest[:n])
			return out, consumed + size, true, nil
		case atEnd:
			return out, consumed, true, nil
		}
	}
	return out, consumed, c.state == atEnd, nil
}

// sizeLine returns the line at the begin of b, with its end, or nil when it is not complete.
func (c *Chunks) sizeLine(b []byte) ([]byte, *Error) {
	n := bytes.IndexByte(b[c.seen:], '\n')
	if n < 0 {
		c.seen = len(b)
		n = len(b)
	} else {
		n += c.seen + 1
		c.seen = 0
	}
	switch {
	case hexDigit(b[0]) > 15: // said before the line is complete, which it may never be
		return nil, refuse(400, "The size of a chunk is %q; send hexadecimal digits, and nothing before them.", cut(b[:n]))
	case n >= maxSizeLine:
		return nil, refuse(400, "The line before a chunk has %d bytes or more: it begins with %q.", maxSizeLine, cut(b))
	case c.seen > 0:
		return nil, nil
	}
	return b[:n:n], nil
}

// readSize reads a line "1f;extension\r\n", whose first digit is one, and returns its digits, without zeros before
// them.
func (c *Chunks) readSize(line []byte) (digits []byte, err *Error) {
	const maxDigits = 16
	i, begin, size := 0, 0, int64(0)
	for ; hexDigit(line[i]) <= 15; i++ {
		if size == 0 {
			begin = i
		}
		size = size<<4 | int64(hexDigit(line[i]))
		if i == maxDigits || size < 0 {
			return nil, refuse(400, "The size of a chunk is %q, which is too large.", cut(line))
		}
	}
	digits = line[begin:i]
	for i < len(line) && (line[i] == ' ' || line[i] == '\t') {
		i++
	}
	if line[i] == ';' {
		i = endOfText(line, i)
	}
	switch {
	case line[i] == '\n':
		return nil, refuse(400, "The line %q before a chunk ends with LF alone; end each line with CRLF.", cut(line))
	case len(line)-i != 2 || line[i] != '\r':
		return nil, refuse(400, "The line before a chunk is %q; send the size as hexadecimal digits, then CRLF.", cut(line))
	}

	c.excess = max(c.excess+len(line)+2-16-int(min(2*size, maxExcess+maxSizeLine)), 0)
	if c.excess > maxExcess {
		return nil, refuse(400, "The body has long chunk extensions and little data; leave the extensions away.")
	}
	c.left = size
	c.state = inData
	if size == 0 {
		c.state = inTrailer
	}
	return digits, nil
}

// trailer rewrites the trailer at the begin of b, up to and with its empty line, and returns the lengths after and
// before that; 0 when it is not complete.
func (c *Chunks) trailer(b []byte, limits Limits) (out, size int, err *Error) {
	switch {
	case len(b) == 1 && b[0] == '\r':
		return 0, 0, nil
	case b[0] == '\n', b[0] == '\r' && b[1] != '\n':
		return 0, 0, refuse(400, "The last chunk is followed by %q; end the body with CRLF.", cut(b[:min(len(b), 8)]))
	case b[0] == '\r':
		c.state = atEnd
		return 2, 2, nil
	}
	end, next := FindEnd(b, c.seen)
	if end == 0 {
		c.seen = next
		end = len(b) + 1
	}
	if limits.Head > 0 && end > limits.Head {
		return 0, 0, refuse(431, "The request's trailer is longer than %d bytes; send fewer or shorter fields.", limits.Head)
	}
	if end > len(b) {
		return 0, 0, nil
	}
	c.seen, c.state = 0, atEnd
	var f Field
	for i, n := 0, 0; ; n++ {
		if limits.Fields > 0 && n > limits.Fields {
			return 0, 0, refuse(431, "The request's trailer has more than %d fields; send fewer.", limits.Fields)
		}
		next, err := readField(b[:end], i, &f, false)
		if err != nil {
			return 0, 0, err
		}
		if next == 0 {
			return out + copy(b[out:], crlf), end, nil
		}
		if mayTrail(&f) {
			out += copy(b[out:], b[i:next])
		}
		i = next
	}
}

// mayTrail tells whether a field may be in a trailer: not when it is about framing, routing, authentication, the
// connection, or how the content is to be read (RFC 9110, 6.5.1). A recipient that adds the trailer to the header
// would act on it after we did not.
func mayTrail(f *Field) bool {
	if f.Kind != KindOther {
		return false
	}
	for _, name := range [...]string{
		"content-encoding", "content-range", "max-forwards", "pragma", "range", "if-match", "if-none-match",
		"if-modified-since", "if-unmodified-since", "if-range", "www-authenticate", "age", "expires", "location",
		"retry-after", "vary", "warning",
	} {
		if equalFold(f.Name, name) {
			return false
		}
	}
	return true
}
