package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/google/go-containerregistry/pkg/v1"
)

// Settings of a pull.
const (
	layerAttempts  = 3                      // how often a layer is downloaded when the connection breaks
	firstPause     = 500 * time.Millisecond // before the second attempt; doubled before each further one
	stallTimeout   = 30 * time.Second       // how long a registry may send nothing
	reportInterval = 100 * time.Millisecond // how often progress is reported, at most
)

// flight is a layer that is being unpacked. Others who need the layer wait for it.
type flight struct {
	done chan struct{} // closed when it is over; whoever still misses the layer then tries for itself
	read atomic.Int64  // compressed bytes read so far
}

// Pull makes the image of a reference by digest present and returns it. It verifies all it reads, and unpacks
// each layer once, however many images and pulls need it. The image that is present is returned without the
// network.
//
// report, which may be nil, is called from one goroutine at a time, at most every tenth of a second, and once at
// the end; it counts the compressed bytes of the layers that were not present.
//
// Errors are those of Resolve, *PlatformError, *DigestError, *UnpackError, syscall.ENOSPC when the disk is full.
func (s *Store) Pull(ctx context.Context, digestRef string, credentials Credentials, report func(complete, total int64)) (*Image, error) {
	ref, err := parseDigest(digestRef, s.insecure(digestRef, credentials))
	if err != nil {
		return nil, err
	}
	if image := s.present(digestRef); image != nil {
		return image, nil
	}
	registry, anonymous := ref.Context().RegistryStr(), false
	var from source = s.pushes.source(ref.Context().RepositoryStr())
	if registry != LocalRegistry {
		remote := remoteSource{repo: ref.Context(), patience: s.patience}
		remote.puller, anonymous, err = s.puller(ref, credentials)
		if err != nil {
			return nil, err
		}
		from = remote
	}
	p := &pull{store: s, from: from, ref: digestRef, slots: s.slotsFor(registry)}
	image, err := p.run(ctx, ref.DigestStr(), report)
	switch {
	case err == nil:
		return image, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("pulling image %q: %w (%w)", digestRef, context.Cause(ctx), err)
	case namesImage(err):
		return nil, err
	}
	return nil, diskError(s.dir, registryError("pulling", digestRef, registry, anonymous, err))
}

// present returns an image that is whole, also when somebody removed files behind the store's back.
func (s *Store) present(digestRef string) *Image {
	image, err := s.Image(digestRef)
	if err != nil {
		return nil
	}
	for _, dir := range image.Layers {
		if _, err := os.Lstat(dir); err != nil {
			s.forget(image.Digest, dir)
			return nil
		}
	}
	return image
}

// forget drops an image and the layer of it that is gone from the disk.
func (s *Store) forget(digest, dir string) {
	s.logger.Warn("pulling again an image whose layer was removed", "directory", dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, digest)
	for id := range s.layers {
		if s.layerDir(id) == dir {
			delete(s.layers, id)
		}
	}
}

// slotsFor is what a layer of a registry takes a place in while it is downloaded. Each registry has slots of its
// own, so that one that stalls holds up nothing but what comes from there.
func (s *Store) slotsFor(registry string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	slots := s.slots[registry]
	if slots == nil {
		slots = make(chan struct{}, parallelLayers)
		s.slots[registry] = slots
	}
	return slots
}

// pull is one call of Pull.
type pull struct {
	store *Store
	from  source
	ref   string
	slots chan struct{} // shared by the pulls from one registry

	mu      sync.Mutex
	flights []*flight // guarded by mu; those this pull leads or waits for, one for each missing layer
}

func (p *pull) run(ctx context.Context, digest string, report func(complete, total int64)) (*Image, error) {
	d, err := describe(ctx, p.from, p.ref, digest)
	if err != nil {
		return nil, err
	}
	s := p.store
	var pinned []string
	defer func() { s.unpin(pinned) }()
	var total int64
	missing := map[string]v1.Descriptor{}
	s.mu.Lock()
	for i, id := range d.diffIDs {
		if l := s.layers[id]; l != nil {
			l.pins++
			pinned = append(pinned, id)
		} else if _, twice := missing[id]; !twice {
			missing[id] = d.layers[i]
			total += d.layers[i].Size
		}
	}
	s.mu.Unlock()

	stop := p.reporting(total, report)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelLayers) // an image of many layers does not queue before the others with all of them
	var mu sync.Mutex
	for id, from := range missing {
		group.Go(func() error {
			err := p.layer(groupCtx, id, func(f *flight) (*layer, error) { return p.fetch(groupCtx, f, id, from) })
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			pinned = append(pinned, id)
			return nil
		})
	}
	err = group.Wait()
	stop(err == nil)
	if err != nil {
		return nil, err
	}
	layers := d.diffIDs
	parents, unpack, err := p.parents(layers)
	if err != nil {
		return nil, err
	}
	if parents != "" {
		if err := p.layer(ctx, parents, unpack); err != nil {
			return nil, err
		}
		pinned = append(pinned, parents)
		layers = append(layers, parents)
	}
	return s.remember(record{Ref: p.ref, Digest: digest, Layers: layers, Config: d.config})
}

// remember makes an image known, on disk first. Its layers are pinned.
func (s *Store) remember(r record) (*Image, error) {
	path := s.path("images", imageFile(r.Digest))
	if err := writeJSON(s.tmp(), path, r); err != nil {
		return nil, fmt.Errorf("writing down image %q: %w", r.Ref, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(r, time.Now()), nil
}

// layer makes one layer present and pins it: by unpack, or by waiting for another pull that does so.
func (p *pull) layer(ctx context.Context, id string, unpack func(*flight) (*layer, error)) error {
	s := p.store
	for {
		s.mu.Lock()
		if l := s.layers[id]; l != nil {
			l.pins++
			s.mu.Unlock()
			return nil
		}
		f := s.flights[id]
		leads := f == nil
		if leads {
			f = &flight{done: make(chan struct{})}
			s.flights[id] = f
		}
		s.mu.Unlock()
		p.follow(f)
		if leads {
			l, err := unpack(f)
			s.land(f, id, l, err)
			return err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// land ends a flight. The layer is pinned for the one who led it.
func (s *Store) land(f *flight, id string, l *layer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		l.pins = 1
		s.layers[id] = l
	} else {
		f.read.Store(0)
	}
	delete(s.flights, id)
	close(f.done)
}

// fetch downloads and unpacks a layer, again when the connection breaks.
func (p *pull) fetch(ctx context.Context, f *flight, diffID string, d v1.Descriptor) (*layer, error) {
	s := p.store
	pause := s.pause
	for attempt := 1; ; attempt++ {
		f.read.Store(0)
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		l, again, err := p.unpackLayer(ctx, f, diffID, d)
		<-p.slots // a pull that waits is next, before this layer's next attempt
		if err == nil || !again || attempt == layerAttempts || ctx.Err() != nil {
			return l, err
		}
		s.logger.Warn("downloading a layer again", "image", p.ref, "layer", d.Digest.String(), "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		pause *= 2
	}
}

// unpackLayer downloads and unpacks a layer once, and tells whether it is worth trying again.
func (p *pull) unpackLayer(ctx context.Context, f *flight, diffID string, d v1.Descriptor) (l *layer, again bool, err error) {
	s := p.store
	blob, err := p.from.blob(ctx, d.Digest.String())
	if err != nil {
		return nil, errors.Is(err, errStalled), fmt.Errorf("downloading layer %s: %w", d.Digest, err)
	}
	defer blob.Close()
	work, err := os.MkdirTemp(s.tmp(), "layer-")
	if err != nil {
		return nil, false, err
	}
	defer os.RemoveAll(work)

	stream := &stream{from: blob, size: d.Size, read: &f.read, ended: ctx.Err}
	l, err = unpackStream(work, stream, s.options.Limits, s.logger)
	if err == nil && l.DiffID != diffID {
		err = &DigestError{What: fmt.Sprintf("layer %s of image %q, unpacked,", d.Digest, p.ref), Want: diffID, Got: l.DiffID}
		return nil, false, err
	}
	if sent := stream.finish(); !isDisk(err) && stream.err == nil && sent != d.Digest.String() {
		err = &DigestError{What: fmt.Sprintf("layer %s of image %q, as it was sent,", d.Digest, p.ref), Want: d.Digest.String(), Got: sent}
		return nil, true, err
	}
	if stream.err != nil {
		return nil, true, fmt.Errorf("downloading layer %s: %w", d.Digest, stream.err)
	}
	if err != nil {
		return nil, false, fmt.Errorf("unpacking layer %s: %w", d.Digest, err)
	}
	return l, false, s.keep(work, l)
}

// keep gives an unpacked layer its place. It is on disk before it has a name there.
func (s *Store) keep(work string, l *layer) error {
	dir := s.layerDir(l.DiffID)
	if err := syncFileSystem(work); err != nil {
		return err
	}
	// Without a record a directory is not a layer, so the record goes last and the old one first.
	if err := errors.Join(os.RemoveAll(dir+".json"), os.RemoveAll(dir)); err != nil {
		return err
	}
	if err := os.Rename(work, dir); err != nil {
		return err
	}
	if err := syncDir(s.path("layers")); err != nil {
		return err
	}
	return writeJSON(s.tmp(), dir+".json", l)
}

func (s *Store) unpin(diffIDs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range diffIDs {
		if l := s.layers[id]; l != nil {
			l.pins--
		}
	}
}

// follow counts the bytes of f as progress of this pull.
func (p *pull) follow(f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flights = append(p.flights, f)
}

// reporting calls report now and then until the function it returns is called, which reports the end.
func (p *pull) reporting(total int64, report func(complete, total int64)) (stop func(complete bool)) {
	if report == nil {
		return func(bool) {}
	}
	ended, quiet := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(quiet)
		ticker := time.NewTicker(reportInterval)
		defer ticker.Stop()
		last := int64(-1)
		for {
			select {
			case <-ended:
				return
			case <-ticker.C:
				if complete := min(p.complete(), total); complete != last {
					report(complete, total)
					last = complete
				}
			}
		}
	}()
	return func(complete bool) {
		close(ended)
		<-quiet
		if complete {
			report(total, total)
		}
	}
}

func (p *pull) complete() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var sum int64
	for _, f := range p.flights {
		sum += f.read.Load()
	}
	return sum
}

// syncFileSystem waits until everything on the file system of path is on disk. For the many files of a layer
// that is much cheaper than one fsync for each.
func syncFileSystem(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// namesImage tells whether err already says which image it is about.
func namesImage(err error) bool {
	var platform *PlatformError
	var digest *DigestError
	var notFound *NotFoundError
	return errors.As(err, &platform) || errors.As(err, &digest) || errors.As(err, &notFound)
}

func isDisk(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
