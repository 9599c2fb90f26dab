package http1

import "bytes"

// Request is the head of a request. All it holds are parts of the bytes that were parsed.
type Request struct {
	Method []byte
	// Target is in origin-form or "*"; of an absolute-form target it is what follows the authority. For CONNECT it
	// is the authority.
	Target []byte
	// Host is the Host field's value, which an absolute-form target must agree with; with a port, where one was
	// sent. Empty only in HTTP/1.0.
	Host     []byte
	Minor    int    // of HTTP/1.Minor: 0 or 1. What claims to be newer is read as 1 (RFC 9110, 2.5)
	Body     int64  // its length in bytes, or Chunked
	Close    bool   // the client wants no more than the response: "Connection: close", or HTTP/1.0 without keep-alive
	Upgrade  []byte // the protocol, when the Connection field names Upgrade and there is exactly one, which is valid
	Continue bool   // there is a body, and the client waits for a 100 before it sends it
	Trailers bool   // "TE: trailers"
	Fields   []Field
}

// Parse reads a head, which is complete: FindEnd found its end. It keeps Fields' memory for the next one. Its error
// is an *Error; then nothing of r counts.
//
// What is refused is what recipients are known to read in different ways, or what would be another message to an
// instance than to us: see the corpus in testdata for each case and its reason.
func (r *Request) Parse(head []byte, limits Limits) error {
	if err := r.parse(head, limits); err != nil {
		return err
	}
	return nil
}

func (r *Request) parse(head []byte, limits Limits) *Error {
	*r = Request{Fields: reuse(r.Fields)}
	if limits.Head > 0 && len(head) > limits.Head {
		return limits.Exceeded(head)
	}
	i, authority, err := r.readLine(head, limits)
	if err != nil {
		return err
	}

	var (
		options  connection
		length   int64 = -1
		chunked        = false
		upgrades       = 0
		host     []byte
		hosts    = 0
		expects  []byte
	)
	for {
		var f *Field
		r.Fields, f = extend(r.Fields)
		next, err := readField(head, i, f, false)
		if err != nil {
			return err
		}
		if next == 0 {
			r.Fields = r.Fields[:len(r.Fields)-1]
			break
		}
		i = next

		switch f.Kind {
		case KindHost:
			host = f.Value
			hosts++
		case KindContentLength:
			n, ok := readLength(f.Value)
			if !ok {
				return refuse(400, "The Content-Length is %q; send one decimal number without a sign.", cut(f.Value))
			}
			if length >= 0 { // an equal one too: whoever adds or drops one of them changes the framing
				return refuse(400, "There are two Content-Length fields, %d and %q; send one.", length, cut(f.Value))
			}
			length = n
		case KindTransferEncoding:
			if err := checkEncoding(f.Value, chunked, r.Minor); err != nil {
				return err
			}
			chunked = true
		case KindConnection:
			if err := options.read(f.Value); err != nil {
				return err
			}
		case KindUpgrade:
			r.Upgrade = f.Value
			upgrades++
		case KindExpect:
			if !equalFold(f.Value, "100-continue") && r.Minor > 0 {
				return refuse(417, "The request expects %q; only 100-continue can be expected (RFC 9110, 10.1.1).", cut(f.Value))
			}
			expects = f.Value
		case KindTE:
			r.Trailers = r.Trailers || acceptsTrailers(f.Value)
		}
		if limits.Fields > 0 && len(r.Fields)-min(hosts, 1) > limits.Fields {
			return refuse(431, "The request has more than %d header fields; send fewer.", limits.Fields)
		}
	}

	switch {
	case chunked && length >= 0:
		// RFC 9112, 6.1 lets chunked count; then who counts bytes behind us sees another request.
		return refuse(400, "The request has Content-Length and Transfer-Encoding; send one of them.")
	case chunked:
		r.Body = Chunked
	case length > 0:
		r.Body = length
	}
	if err := r.setHost(authority, host, hosts); err != nil {
		return err
	}
	if options.listed > 0 {
		markListed(r.Fields)
	}
	r.Close = options.close || r.Minor == 0 && !options.keepAlive
	r.Continue = expects != nil && r.Minor > 0 && r.Body != 0
	if upgrades != 1 || !options.upgrade || r.Minor == 0 || !isProtocol(r.Upgrade) {
		r.Upgrade = nil
	}
	return nil
}

// readLine reads the request line and returns the place after it, and the authority of an absolute-form target.
func (r *Request) readLine(head []byte, limits Limits) (next int, authority []byte, err *Error) {
	i := 0
	for i < len(head) && classes[head[i]]&isToken != 0 {
		i++
	}
	if i == 0 || i == len(head) || head[i] != ' ' {
		return 0, nil, badLine(head)
	}
	r.Method = head[:i:i]
	i++
	begin := i
	i = endOfTarget(head, i)
	if i == len(head) || i == begin || head[i] != ' ' {
		if i < len(head) && head[i] == '#' {
			return 0, nil, refuse(400, "The target %q has a fragment, which is the client's own; leave away what begins with \"#\".", cut(head[begin:i+1]))
		}
		return 0, nil, badLine(head)
	}
	r.Target = head[begin:i:i]
	if limits.Target > 0 && len(r.Target) > limits.Target {
		return 0, nil, targetTooLong(r.Target, limits, r.Method)
	}
	i++
	// "HTTP/1.1\r\n"
	if len(head) < i+10 || string(head[i:i+5]) != "HTTP/" || head[i+6] != '.' || head[i+8] != '\r' || head[i+9] != '\n' {
		return 0, nil, badLine(head)
	}
	major, minor := head[i+5]-'0', head[i+7]-'0'
	switch {
	case major > 9 || minor > 9:
		return 0, nil, badLine(head)
	case major != 1:
		return 0, nil, refuse(505, "The request says %q; send HTTP/1.1, or HTTP/2 with its preface.", head[i:i+8])
	}
	r.Minor = min(int(minor), 1)
	authority, err = r.readTarget()
	return i + 10, authority, err
}

func badLine(head []byte) *Error {
	line, _, found := bytes.Cut(head, crlf[1:])
	if found && !bytes.HasSuffix(line, crlf[:1]) {
		return refuse(400, "The request line %q ends with LF alone; end each line with CRLF.", cut(line))
	}
	line = bytes.TrimSuffix(line, crlf[:1])
	return refuse(400, "The request line is %q; send \"GET /path HTTP/1.1\", with one space between its three parts and no control characters.", cut(line))
}

// checkEncoding checks a Transfer-Encoding field. Who reads a coding that another one does not know, or takes
// chunked in another place than the last for the end of the body, sees another message.
func checkEncoding(value []byte, chunked bool, minor int) *Error {
	switch {
	case minor == 0:
		return refuse(400, "An HTTP/1.0 request has Transfer-Encoding; send HTTP/1.1 or Content-Length.")
	case chunked:
		return refuse(400, "There is Transfer-Encoding %q after \"chunked\"; send \"chunked\" once.", cut(value))
	case equalFold(value, "chunked"):
		return nil
	}
	before, others, last := 0, 0, false // chunked before the last coding, other codings, chunked as the last
	for rest := value; len(rest) > 0; {
		var coding []byte
		coding, rest = listItem(rest)
		switch {
		case len(coding) == 0:
			continue
		case last:
			before++
		}
		if last = equalFold(coding, "chunked"); !last {
			others++
		}
	}
	if before == 0 && others > 0 {
		return refuse(501, "The Transfer-Encoding is %q; only \"chunked\" is understood.", cut(value))
	}
	return refuse(400, "The Transfer-Encoding is %q; send \"chunked\", once and alone.", cut(value))
}

func acceptsTrailers(value []byte) bool {
	for len(value) > 0 {
		var item []byte
		item, value = listItem(value)
		if equalFold(item, "trailers") {
			return true
		}
	}
	return false
}
