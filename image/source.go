package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Sizes beyond which no honest document goes.
const (
	maxManifestBytes = 4 << 20
	maxConfigBytes   = 8 << 20
)

// maxIndexDepth is how many indexes may be nested.
const maxIndexDepth = 3

// source is where the parts of an image are read from: a registry, or what was pushed here. The bytes that it
// gives are not to be trusted.
type source interface {
	manifest(ctx context.Context, digest string) ([]byte, error)
	blob(ctx context.Context, digest string) (io.ReadCloser, error)
}

// remoteSource reads one repository of a registry.
type remoteSource struct {
	puller   *remote.Puller
	repo     name.Repository
	patience time.Duration // how long the registry may send nothing
}

// errStalled: a registry keeps a connection and sends nothing on it.
var errStalled = errors.New("the registry sent nothing")

func (r remoteSource) manifest(ctx context.Context, digest string) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	got, err := r.puller.Get(limited, r.repo.Digest(digest))
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("reading the manifest: %w for %s", errStalled, r.patience)
	}
	if err != nil {
		return nil, err
	}
	return got.Manifest, nil
}

func (r remoteSource) blob(ctx context.Context, digest string) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	b := newPatientBlob(cancel, r.patience)
	defer b.timer.Stop()
	found, err := r.puller.Layer(ctx, r.repo.Digest(digest))
	if err == nil {
		b.from, err = found.Compressed()
	}
	if err != nil {
		cancel()
		return nil, b.explain(err)
	}
	return b, nil
}

// patientBlob is a blob whose reading fails when nothing comes for too long.
type patientBlob struct {
	from     io.ReadCloser
	cancel   context.CancelFunc // ends the request
	timer    *time.Timer        // cancels; it runs while a read waits, not while what came is unpacked
	patience time.Duration
	stalled  atomic.Bool // the timer has cancelled
}

// newPatientBlob begins to wait for a request that cancel ends.
func newPatientBlob(cancel context.CancelFunc, patience time.Duration) *patientBlob {
	b := &patientBlob{cancel: cancel, patience: patience}
	b.timer = time.AfterFunc(patience, func() {
		b.stalled.Store(true)
		cancel()
	})
	return b
}

// Read implements io.Reader.
func (b *patientBlob) Read(p []byte) (int, error) {
	b.timer.Reset(b.patience)
	defer b.timer.Stop()
	n, err := b.from.Read(p)
	return n, b.explain(err)
}

// Close implements io.Closer.
func (b *patientBlob) Close() error {
	b.cancel()
	return b.from.Close()
}

// explain says that a request was given up, where the error says that it was cancelled.
func (b *patientBlob) explain(err error) error {
	if err == nil || err == io.EOF || !b.stalled.Load() {
		return err
	}
	return fmt.Errorf("%w for %s", errStalled, b.patience)
}

// description is what must be known of an image before its layers are read.
type description struct {
	layers  []v1.Descriptor // bottom first
	diffIDs []string        // of the layers, one each
	config  Config
}

// describe reads the manifest and the configuration of the image that digest names, for the server's platform when
// it is an index (contract C4).
func describe(ctx context.Context, from source, ref, digest string) (*description, error) {
	manifest, err := findManifest(ctx, from, ref, digest, maxIndexDepth)
	if err != nil {
		return nil, err
	}
	if manifest.SchemaVersion == 1 {
		return nil, errors.New("it has a Docker schema 1 manifest, which is not supported: pull and push it with a current Docker to convert it")
	}
	if !manifest.Config.MediaType.IsConfig() {
		return nil, fmt.Errorf("it is not a container image: its configuration is of type %q", manifest.Config.MediaType)
	}
	raw, err := readBlob(ctx, from, manifest.Config, maxConfigBytes)
	if err != nil {
		return nil, fmt.Errorf("reading its configuration: %w", err)
	}
	file, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("reading its configuration: %w", err)
	}
	if err := checkPlatform(ref, file); err != nil {
		return nil, err
	}
	d := &description{layers: manifest.Layers, config: newConfig(file.Config)}
	for _, id := range file.RootFS.DiffIDs {
		if _, err := digestHex(id.String()); err != nil {
			return nil, fmt.Errorf("reading its configuration: layer %w", err)
		}
		d.diffIDs = append(d.diffIDs, id.String())
	}
	if len(d.diffIDs) != len(d.layers) {
		return nil, fmt.Errorf("it is damaged: %d layers in its manifest, %d in its configuration", len(d.layers), len(d.diffIDs))
	}
	for _, l := range d.layers {
		if err := checkLayer(l); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func checkPlatform(ref string, file *v1.ConfigFile) error {
	has := v1.Platform{OS: file.OS, Architecture: file.Architecture}
	if !fits(has) {
		return &PlatformError{Image: ref, Has: []string{platformName(has)}, Needs: platformName(platform())}
	}
	return nil
}

func checkLayer(l v1.Descriptor) error {
	if !l.MediaType.IsDistributable() || len(l.URLs) > 0 {
		return fmt.Errorf("its layer %s is of type %q, which registries do not hold (contract C5): build it from a Linux base image", l.Digest, l.MediaType)
	}
	switch l.MediaType {
	case types.DockerLayer, types.DockerUncompressedLayer, types.OCILayer, types.OCIUncompressedLayer, types.OCILayerZStd:
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
	default:
		return fmt.Errorf("it is not a container image: its layer %s is of type %q", l.Digest, l.MediaType)
	}
	if _, err := digestHex(l.Digest.String()); err != nil {
		return fmt.Errorf("its layer: %w", err)
	}
	if l.Size < 0 {
		return fmt.Errorf("its layer %s has the size %d", l.Digest, l.Size)
	}
	return nil
}

// findManifest follows indexes down to the manifest for servers.
func findManifest(ctx context.Context, from source, ref, digest string, depth int) (*v1.Manifest, error) {
	raw, err := from.manifest(ctx, digest)
	if err != nil {
		return nil, err
	}
	if got := digestOf(raw); got != digest {
		return nil, &DigestError{What: fmt.Sprintf("the manifest of image %q", ref), Want: digest, Got: got}
	}
	kind, err := mediaType(raw)
	if err != nil {
		return nil, fmt.Errorf("reading its manifest: %w", err)
	}
	if !kind.IsIndex() {
		manifest, err := v1.ParseManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("reading its manifest: %w", err)
		}
		return manifest, nil
	}
	if depth == 0 {
		return nil, fmt.Errorf("more than %d indexes inside each other", maxIndexDepth)
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("reading its index: %w", err)
	}
	chosen, err := choose(ref, index)
	if err != nil {
		return nil, err
	}
	return findManifest(ctx, from, ref, chosen.Digest.String(), depth-1)
}

// choose takes the manifest for servers out of an index: of several, the one that asks least of the CPU.
func choose(ref string, index *v1.IndexManifest) (*v1.Descriptor, error) {
	var best *v1.Descriptor
	var has []string
	for i := range index.Manifests {
		m := &index.Manifests[i]
		if !m.MediaType.IsImage() && !m.MediaType.IsIndex() {
			continue
		}
		if m.Platform == nil {
			// An index of one image needs no platform. Its configuration says it, and is checked.
			if len(index.Manifests) == 1 {
				best = m
			}
			continue
		}
		if m.Platform.OS == "unknown" {
			continue // attestations, which builders put beside the images
		}
		has = append(has, platformName(*m.Platform))
		// The variants of amd64 are "", v1, v2, v3: plain order is what each needs of the CPU.
		if fits(*m.Platform) && (best == nil || m.Platform.Variant < best.Platform.Variant) {
			best = m
		}
	}
	if best == nil {
		return nil, &PlatformError{Image: ref, Has: has, Needs: platformName(platform())}
	}
	return best, nil
}

// fits tells whether servers run programs for p. What p leaves open is taken to fit.
func fits(p v1.Platform) bool {
	want := platform()
	return (p.OS == "" || p.OS == want.OS) && (p.Architecture == "" || p.Architecture == want.Architecture)
}

// mediaType tells what a manifest is. OCI documents may leave their type out.
func mediaType(raw []byte) (types.MediaType, error) {
	var document struct {
		MediaType types.MediaType `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &document); err != nil {
		return "", err
	}
	switch {
	case document.MediaType != "":
		return document.MediaType, nil
	case document.Manifests != nil:
		return types.OCIImageIndex, nil
	}
	return types.OCIManifestSchema1, nil
}

// readBlob reads and verifies a small blob.
func readBlob(ctx context.Context, from source, d v1.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("%s is %d bytes long, at most %d are allowed", d.Digest, d.Size, limit)
	}
	blob, err := from.blob(ctx, d.Digest.String())
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	raw, err := io.ReadAll(io.LimitReader(blob, limit+1))
	if err != nil {
		return nil, err
	}
	if got := digestOf(raw); got != d.Digest.String() {
		return nil, &DigestError{What: "it", Want: d.Digest.String(), Got: got}
	}
	return raw, nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
