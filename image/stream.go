package image

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow is the most memory that a zstd layer may ask its reader to keep: what `zstd --long` needs.
const maxWindow = 128 << 20

// stream reads a compressed layer as it arrives: it counts, hashes, and stops at the promised size.
type stream struct {
	from  io.Reader
	size  int64
	read  *atomic.Int64
	ended func() error // not nil once the pull is to end

	sum hash.Hash
	err error // what reading met, other than the end
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	if s.sum == nil {
		s.sum = sha256.New()
	}
	if err := s.ended(); err != nil {
		s.err = err
		return 0, err
	}
	n, err := s.from.Read(p)
	s.sum.Write(p[:n])
	total := s.read.Add(int64(n))
	switch {
	case total > s.size:
		err = fmt.Errorf("it is longer than the %d bytes that the manifest says", s.size)
		s.err = err
	case err == io.EOF && total < s.size:
		err = fmt.Errorf("it ended after %d of %d bytes: %w", total, s.size, io.ErrUnexpectedEOF)
		s.err = err
	case err != nil && err != io.EOF:
		s.err = err
	}
	return n, err
}

// finish reads what is left and returns the digest of all that came.
func (s *stream) finish() string {
	if s.err == nil {
		// An error is kept in s.err.
		_, _ = io.Copy(io.Discard, s)
	}
	if s.sum == nil {
		s.sum = sha256.New()
	}
	return "sha256:" + hex.EncodeToString(s.sum.Sum(nil))
}

// unpackStream unpacks a layer, compressed or not, into the empty directory dir. What compression it has is told
// from its first bytes: media types are often wrong.
func unpackStream(dir string, compressed io.Reader, limits Limits, logger *slog.Logger) (*layer, error) {
	buffered := bufio.NewReaderSize(compressed, 256<<10)
	plain, err := decompress(buffered)
	if err != nil {
		return nil, &UnpackError{Err: err}
	}
	defer plain.Close()
	sum := sha256.New()
	bounded := &boundedReader{from: plain, left: limits.Bytes}
	archive := io.TeeReader(bounded, sum)
	l, err := unpack(dir, archive, limits, logger)
	if err != nil {
		return nil, err
	}
	// Archives are padded, and the padding belongs to the diff ID.
	if _, err := io.Copy(io.Discard, archive); err != nil {
		return nil, &UnpackError{Err: err}
	}
	l.DiffID = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	return l, nil
}

func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	magic, err := r.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(r)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(magic):
		decoder, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return decoder.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// isSkippable tells a zstd frame without data, which seekable formats begin with.
func isSkippable(magic []byte) bool {
	return len(magic) == 4 && magic[0]&0xf0 == 0x50 && magic[1] == 0x2a && magic[2] == 0x4d && magic[3] == 0x18
}

// boundedReader fails when more than left bytes come.
type boundedReader struct {
	from io.Reader
	left int64
}

// Read implements io.Reader.
func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

var errTooLarge = errors.New("it unpacks to more bytes than the server allows")
