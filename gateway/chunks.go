package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
)

// chunkReader reads the data of a chunked body. It ends with io.EOF before the trailer. Unlike the standard
// library's it never waits for the rest of a chunk when it has a part.
type chunkReader struct {
	reader *bufio.Reader
	left   int64 // of this chunk
	begun  bool  // a chunk has been read: its CRLF comes next
}

// waits tells whether the next Read would wait for the instance.
func (d *chunkReader) waits() bool {
	have, _ := d.reader.Peek(d.reader.Buffered())
	if d.left > 0 {
		return len(have) == 0
	}
	if d.begun {
		_, have, _ = bytes.Cut(have, []byte{'\n'})
	}
	size, data, found := bytes.Cut(have, []byte{'\n'})
	return !found || len(data) == 0 && size[0] != '0'
}

func (d *chunkReader) Read(p []byte) (int, error) {
	if d.left == 0 {
		if err := d.next(); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		if d.left == 0 {
			return 0, io.EOF
		}
	}
	if int64(len(p)) > d.left {
		p = p[:d.left]
	}
	n, err := d.reader.Read(p)
	d.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next reads the size line of the next chunk.
func (d *chunkReader) next() error {
	if d.begun {
		end, err := d.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		if string(end) != "\r\n" && string(end) != "\n" {
			return fmt.Errorf("%w: a chunk is longer than its size", errMalformed)
		}
	}
	line, err := d.reader.ReadSlice('\n')
	if err != nil {
		return err
	}
	var size int64
	digits := 0
	for _, c := range line {
		value := int64(-1)
		switch {
		case '0' <= c && c <= '9':
			value = int64(c - '0')
		case 'a' <= c && c <= 'f':
			value = int64(c-'a') + 10
		case 'A' <= c && c <= 'F':
			value = int64(c-'A') + 10
		}
		if value < 0 {
			break
		}
		size = size<<4 | value
		digits++
	}
	if digits == 0 || digits > 15 || !isChunkEnd(line[digits]) {
		return fmt.Errorf("%w: chunk size %.40q", errMalformed, line)
	}
	d.left, d.begun = size, true
	return nil
}

// isChunkEnd tells whether c may follow a chunk's size: it begins an extension, or the line's end.
func isChunkEnd(c byte) bool { return c == ';' || c == ' ' || c == '\t' || c == '\r' || c == '\n' }
