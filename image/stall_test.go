package image

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-run/berth/internal/testimage"
)

// layersOf makes an image of n layers, each of another content.
func layersOf(t testing.TB, n int) (image v1.Image, digests []string) {
	t.Helper()
	var layers []v1.Layer
	for i := range n {
		layer := gzipLayer(t, makeTar(t, reg("a", strings.Repeat(string(rune('a'+i)), 1000))))
		digest, err := layer.Digest()
		if err != nil {
			t.Fatal(err)
		}
		layers, digests = append(layers, layer), append(digests, digest.String())
	}
	return makeImage(t, layers...), digests
}

// stall serves a registry that, for paths that match, sends what before says and then nothing.
func stall(t testing.TB, asked chan<- string, matches func(path string) bool, before func(http.ResponseWriter)) *testimage.Registry {
	return testimage.Serve(t, testimage.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !matches(r.URL.Path) {
				next.ServeHTTP(w, r)
				return
			}
			before(w)
			asked <- r.URL.Path
			<-r.Context().Done()
		})
	}})
}

func TestPull_GivesUpOnARegistryThatStopsSending(t *testing.T) {
	image, digests := layersOf(t, 1)
	manifest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	isLayer := func(path string) bool { return strings.HasSuffix(path, "/blobs/"+digests[0]) }
	for name, test := range map[string]struct {
		matches func(string) bool
		before  func(http.ResponseWriter)
		tries   int
	}{
		"before the layer": {isLayer, func(http.ResponseWriter) {}, layerAttempts},
		"within the layer": {isLayer, func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "1000")
			w.Write([]byte("\x1f\x8b"))
			http.NewResponseController(w).Flush()
		}, layerAttempts},
		"before the manifest": {func(path string) bool { return strings.HasSuffix(path, "/manifests/"+manifest.String()) }, func(http.ResponseWriter) {}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan string, 100)
			registry := stall(t, asked, test.matches, test.before)
			s := openTest(t, t.TempDir(), Options{})
			ref, err := s.Resolve(t.Context(), registry.Push(t, image, "hello:v1"), Credentials{})
			if err != nil {
				t.Fatal(err)
			}
			s.patience = 500 * time.Millisecond
			_, err = s.Pull(t.Context(), ref, Credentials{}, nil)
			var unreachable *UnreachableError
			if !errors.As(err, &unreachable) || !strings.Contains(err.Error(), "the registry sent nothing for 500ms") {
				t.Errorf("got error %v, want an UnreachableError that says what was seen", err)
			}
			if len(asked) != test.tries {
				t.Errorf("it was asked %d times, want %d", len(asked), test.tries)
			}
			isEmpty(t, s)
		})
	}
}

func TestPatientBlob_CountsFromTheLastByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		from, to := io.Pipe()
		context.AfterFunc(ctx, func() { to.CloseWithError(ctx.Err()) })
		b := newPatientBlob(cancel, stallTimeout)
		defer b.Close()
		b.from = from
		go func() {
			for range 10 {
				time.Sleep(stallTimeout - time.Second)
				to.Write([]byte("x"))
			}
		}()
		var piece [1]byte
		for i := range 10 {
			if _, err := b.Read(piece[:]); err != nil {
				t.Fatalf("piece %d: %v", i, err)
			}
			if i%2 == 1 {
				time.Sleep(2 * stallTimeout) // what came is unpacked: the registry is not to blame
			}
		}
		begun := time.Now()
		if _, err := b.Read(piece[:]); !errors.Is(err, errStalled) || time.Since(begun) != stallTimeout {
			t.Errorf("got error %v after %s, want %v after %s", err, time.Since(begun), errStalled, stallTimeout)
		}
	})
}

func TestPull_IsNotHeldUpByAnotherRegistryThatStalls(t *testing.T) {
	stuck, digests := layersOf(t, 2*parallelLayers)
	asked := make(chan string, 100)
	registry := stall(t, asked, func(path string) bool {
		for _, digest := range digests {
			if strings.HasSuffix(path, digest) {
				return true
			}
		}
		return false
	}, func(http.ResponseWriter) {})
	healthy := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{})
	ref, err := s.Resolve(t.Context(), registry.Push(t, stuck, "stuck:v1"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := s.Pull(ctx, ref, Credentials{}, nil); ended <- err }()
	for range parallelLayers {
		<-asked
	}
	other := makeImage(t, gzipLayer(t, makeTar(t, reg("b", "other"))))
	if _, err := resolveAndPull(t, s, healthy.Push(t, other, "hello:v1"), Credentials{}); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the pull from the registry that stalls ended with %v", err)
	}
	if len(asked) > 0 {
		t.Errorf("more than %d layers were asked for at the same time", parallelLayers)
	}
}
