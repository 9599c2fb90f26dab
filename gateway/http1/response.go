package http1

import "bytes"

// Response is the head of a response. All it holds are parts of the bytes that were parsed.
type Response struct {
	Minor  int // of HTTP/1.Minor: 0 or 1
	Status int // 100 to 999
	Reason []byte
	// Body is its length in bytes, Chunked or UntilClose. That a response to HEAD, and with the statuses 1xx, 204 and
	// 304, has none is for the caller to know.
	Body    int64
	Close   bool   // the connection is not to be used for another request
	Upgrade []byte // the protocol of a 101
	Fields  []Field
}

// Parse reads a head, which is complete: FindEnd found its end. It keeps Fields' memory for the next one. Its error
// is an *Error, whose status is of no meaning; then nothing of r counts.
//
// Instances are programs of users: a line may end with LF alone, and Content-Length may come twice when both are
// equal. What could be read in two ways is refused as in requests, but for chunked beside a length, where chunked
// counts and the connection ends (RFC 9112, 6.3).
func (r *Response) Parse(head []byte) error {
	if err := r.parse(head); err != nil {
		return err
	}
	return nil
}

func (r *Response) parse(head []byte) *Error {
	*r = Response{Fields: reuse(r.Fields)}
	i, err := r.readLine(head)
	if err != nil {
		return err
	}
	var (
		options    connection
		length     int64 = -1
		lengthText []byte
		chunked    = false
		upgrades   = 0
	)
	for {
		var f *Field
		r.Fields, f = extend(r.Fields)
		next, err := readField(head, i, f, true)
		if err != nil {
			return err
		}
		if next == 0 {
			r.Fields = r.Fields[:len(r.Fields)-1]
			break
		}
		i = next

		switch f.Kind {
		case KindContentLength:
			n, ok := readLength(f.Value)
			if !ok || length >= 0 && !bytes.Equal(f.Value, lengthText) {
				return refuse(502, "The response has Content-Length %q.", cut(f.Value))
			}
			length, lengthText = n, f.Value
		case KindTransferEncoding:
			if chunked || !equalFold(f.Value, "chunked") {
				return refuse(502, "The response has Transfer-Encoding %q; only \"chunked\" is understood.", cut(f.Value))
			}
			chunked = true
		case KindConnection:
			if err := options.read(f.Value); err != nil {
				return err
			}
		case KindUpgrade:
			r.Upgrade = f.Value
			upgrades++
		}
	}
	if options.listed > 0 {
		markListed(r.Fields)
	}
	r.Close = options.close || r.Minor == 0 || chunked && length >= 0
	switch {
	case chunked:
		r.Body = Chunked
	case length >= 0:
		r.Body = length
	default:
		r.Body = UntilClose
	}
	if upgrades != 1 || !isProtocol(r.Upgrade) {
		r.Upgrade = nil
	}
	return nil
}

// readLine reads "HTTP/1.1 200 OK", whose reason may be missing, and returns the place after it.
func (r *Response) readLine(head []byte) (next int, err *Error) {
	const begin = len("HTTP/1.1 200")
	if len(head) < begin+1 || string(head[:7]) != "HTTP/1." || head[8] != ' ' {
		return 0, badStatusLine(head)
	}
	switch head[7] {
	case '0':
	case '1':
		r.Minor = 1
	default:
		return 0, badStatusLine(head)
	}
	for _, c := range head[9:begin] {
		if c < '0' || c > '9' {
			return 0, badStatusLine(head)
		}
		r.Status = 10*r.Status + int(c-'0')
	}
	i := endOfText(head, begin)
	if r.Status < 100 || i > begin && head[begin] != ' ' {
		return 0, badStatusLine(head)
	}
	if i > begin {
		r.Reason = head[begin+1 : i : i]
	}
	switch {
	case i+1 < len(head) && head[i] == '\r' && head[i+1] == '\n':
		return i + 2, nil
	case i < len(head) && head[i] == '\n':
		return i + 1, nil
	}
	return 0, badStatusLine(head)
}

func badStatusLine(head []byte) *Error {
	return refuse(502, "The response begins with %q, which is no status line.", cut(head))
}
