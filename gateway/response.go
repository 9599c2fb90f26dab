package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// maxResponseHead bounds the status line and header of a response, and its trailer.
const maxResponseHead = 256 << 10

// errMalformed is wrapped around what is wrong with an instance's response.
var errMalformed = errors.New("the response is malformed")

// responseHead is the head of an HTTP/1.1 response. Hop-by-hop fields are not in its header (RFC 9110, 7.6.1).
type responseHead struct {
	status  int
	length  int64 // of the body; -1 when the head does not tell
	chunked bool
	close   bool   // the connection ends with this response
	upgrade string // the protocol of a 101
}

// readHead reads the next response head and puts its fields into header. Values share one string.
func (c *conn) readHead(header http.Header) (responseHead, error) {
	text, err := c.readBlock()
	if err != nil {
		return responseHead{}, err
	}
	line, rest, _ := cutLine(text)
	h := responseHead{length: -1}
	// "HTTP/1.1 200 OK"; the reason may be missing.
	if len(line) < 12 || line[:7] != "HTTP/1." || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return h, fmt.Errorf("%w: status line %.80q", errMalformed, line)
	}
	switch line[7] {
	case '0':
		h.close = true
	case '1':
	default:
		return h, fmt.Errorf("%w: status line %.80q", errMalformed, line)
	}
	h.status, err = strconv.Atoi(line[9:12])
	if err != nil || h.status < 100 || h.status > 999 {
		return h, fmt.Errorf("%w: status line %.80q", errMalformed, line)
	}

	var connection []string // fields that the Connection field names, beside the usual ones
	values := make([]string, strings.Count(rest, "\n"))
	for rest != "" {
		line, rest, _ = cutLine(rest)
		name, value, err := cutField(line)
		if err != nil {
			return h, err
		}
		key := canonicalKey(name)
		switch key {
		case "Content-Length":
			n, err := strconv.ParseUint(value, 10, 63)
			if err != nil || h.length >= 0 && h.length != int64(n) {
				return h, fmt.Errorf("%w: Content-Length %.80q", errMalformed, value)
			}
			if h.length >= 0 {
				continue // the same once more
			}
			h.length = int64(n)
		case "Transfer-Encoding":
			if h.chunked || !strings.EqualFold(value, "chunked") {
				return h, fmt.Errorf("%w: Transfer-Encoding %.80q", errMalformed, value)
			}
			h.chunked = true
			continue
		case "Connection":
			for token := range strings.SplitSeq(value, ",") {
				token = textproto.TrimString(token)
				switch {
				case strings.EqualFold(token, "close"):
					h.close = true
				case token != "" && !strings.EqualFold(token, "keep-alive"):
					connection = append(connection, canonicalKey(token))
				}
			}
			continue
		case "Upgrade":
			h.upgrade = value
			continue
		case "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Te":
			continue
		}
		if had, ok := header[key]; ok && len(had) > 0 {
			header[key] = append(had, value)
			continue
		}
		values[0] = value
		header[key] = values[:1:1]
		values = values[1:]
	}
	for _, key := range connection {
		delete(header, key)
	}
	if h.chunked && h.length >= 0 { // RFC 9112, 6.3: chunked counts, and the connection is not used again
		delete(header, "Content-Length")
		h.length, h.close = -1, true
	}
	return h, nil
}

// readTrailer reads what follows the last chunk.
func (c *conn) readTrailer(header http.Header) error {
	text, err := c.readBlock()
	if err != nil {
		return err
	}
	for rest := text; rest != ""; {
		var line string
		line, rest, _ = cutLine(rest)
		name, value, err := cutField(line)
		if err != nil {
			return err
		}
		key := canonicalKey(name)
		switch key {
		case "Content-Length", "Transfer-Encoding", "Connection", "Trailer", "Upgrade", "Host":
			continue // never in a trailer (RFC 9110, 6.5.1)
		}
		header[key] = append(header[key], value)
	}
	return nil
}

// readBlock reads up to and including an empty line and returns what is before it.
func (c *conn) readBlock() (string, error) {
	c.head = c.head[:0]
	start := 0 // of the line being read
	for {
		part, err := c.reader.ReadSlice('\n')
		c.head = append(c.head, part...)
		if len(c.head) > maxResponseHead {
			return "", fmt.Errorf("%w: its head is longer than %d bytes", errMalformed, maxResponseHead)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == io.EOF && len(c.head) > 0:
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		}
		if line := c.head[start:]; len(line) == 1 || len(line) == 2 && line[0] == '\r' {
			block := string(c.head[:start])
			if cap(c.head) > connBufferSize {
				c.head = nil // do not keep what one long head needed
			}
			return block, nil
		}
		start = len(c.head)
	}
}

// cutLine cuts text after its first line end, which is CRLF or, from lenient instances, LF.
func cutLine(text string) (line, rest string, found bool) {
	line, rest, found = strings.Cut(text, "\n")
	return strings.TrimSuffix(line, "\r"), rest, found
}

// cutField cuts "Name: value" and checks both (contract C18).
func cutField(line string) (name, value string, err error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || !isToken(name) {
		return "", "", fmt.Errorf("%w: header line %.80q", errMalformed, line)
	}
	value = textproto.TrimString(value)
	for i := range len(value) {
		if b := value[i]; b < ' ' && b != '\t' || b == 0x7f {
			return "", "", fmt.Errorf("%w: value of header %q has the byte %#02x", errMalformed, name, b)
		}
	}
	return name, value, nil
}

// isToken tells whether s is a token of RFC 9110: a method, or the name of a header field.
func isToken(s string) bool {
	for i := range len(s) {
		b := s[i]
		switch {
		case 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || b == '-':
		case strings.IndexByte("!#$%&'*+.^_`|~", b) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// canonicalKey is http.CanonicalHeaderKey that knows by heart what instances send in lower case.
func canonicalKey(name string) string {
	switch name {
	case "content-length":
		return "Content-Length"
	case "content-type":
		return "Content-Type"
	case "date":
		return "Date"
	case "server":
		return "Server"
	case "connection":
		return "Connection"
	case "transfer-encoding":
		return "Transfer-Encoding"
	case "cache-control":
		return "Cache-Control"
	case "etag", "ETag":
		return "Etag"
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}
