package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1"
)

// registry is what was pushed to this store, on disk:
//
//	blobs/HEX            the bytes of blobs and manifests
//	manifests/REPO/HEX   an empty file: REPO has this manifest
//	tags/REPO/TAG        a file that holds a digest
//	uploads/ID           blobs that are being received
//
// REPO is escaped, so that it is one path element. A manifest is only there when all it refers to is. The age of
// a file is the time since it was last pushed, found or resolved.
type registry struct {
	dir    string
	logger *slog.Logger

	mu      sync.Mutex         // held while manifests come or go, so that what they need is not collected
	uploads map[string]*upload // guarded by mu
}

func (r *registry) open() error {
	if err := os.RemoveAll(r.uploadFile("")); err != nil {
		return err
	}
	for _, dir := range []string{"blobs", "manifests", "tags", "uploads"} {
		if err := os.MkdirAll(filepath.Join(r.dir, dir), 0o700); err != nil {
			return err
		}
	}
	return nil
}

func (r *registry) blobFile(hex string) string  { return filepath.Join(r.dir, "blobs", hex) }
func (r *registry) uploadFile(id string) string { return filepath.Join(r.dir, "uploads", id) }
func (r *registry) manifestDir(repo string) string {
	return filepath.Join(r.dir, "manifests", url.PathEscape(repo))
}
func (r *registry) tagDir(repo string) string {
	return filepath.Join(r.dir, "tags", url.PathEscape(repo))
}

// resolve finds the digest of a tag, or checks that there is a manifest with the digest.
func (r *registry) resolve(repo, identifier string) (string, error) {
	digest := identifier
	if !strings.HasPrefix(identifier, "sha256:") {
		data, err := os.ReadFile(filepath.Join(r.tagDir(repo), identifier))
		if err != nil {
			return "", fmt.Errorf("no image with the tag %q was pushed to %q here", identifier, repo)
		}
		digest = string(data)
	}
	hex, err := digestHex(digest)
	if err != nil {
		return "", err
	}
	if err := touch(filepath.Join(r.manifestDir(repo), hex)); err != nil {
		return "", fmt.Errorf("no image %s was pushed to %q here", digest, repo)
	}
	return digest, nil
}

// stat returns the size of a blob and makes it young, so that a push may count on it.
func (r *registry) stat(digest string) (int64, error) {
	hex, err := digestHex(digest)
	if err != nil {
		return 0, err
	}
	if err := touch(r.blobFile(hex)); err != nil {
		return 0, err
	}
	info, err := os.Stat(r.blobFile(hex))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// keep stores a manifest, whose digest and content were checked, and its tag unless that is empty.
func (r *registry) keep(repo, tag, digest string, raw []byte) error {
	hex, err := digestHex(digest)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.complete(repo, raw); err != nil {
		return err
	}
	for _, dir := range []string{r.manifestDir(repo), r.tagDir(repo)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	if err := writeFile(r.uploadFile(""), r.blobFile(hex), raw); err != nil {
		return err
	}
	if err := writeFile(r.uploadFile(""), filepath.Join(r.manifestDir(repo), hex), nil); err != nil || tag == "" {
		return err
	}
	return writeFile(r.uploadFile(""), filepath.Join(r.tagDir(repo), tag), []byte(digest))
}

// complete checks that all a manifest refers to is here.
func (r *registry) complete(repo string, raw []byte) error {
	manifests, blobs, err := references(raw)
	if err != nil {
		return &answer{code: "MANIFEST_INVALID", status: 400, message: err.Error()}
	}
	for _, d := range manifests {
		if _, err := r.resolve(repo, d.Digest.String()); err != nil {
			return &answer{code: "MANIFEST_UNKNOWN", status: 404, message: fmt.Sprintf("the index names manifest %s: push that first", d.Digest)}
		}
	}
	for _, d := range blobs {
		size, err := r.stat(d.Digest.String())
		if err != nil {
			return &answer{code: "MANIFEST_BLOB_UNKNOWN", status: 404, message: fmt.Sprintf("the manifest names blob %s: push that first", d.Digest)}
		}
		if size != d.Size {
			return &answer{code: "SIZE_INVALID", status: 400, message: fmt.Sprintf("the manifest says that blob %s has %d bytes, it has %d", d.Digest, d.Size, size)}
		}
	}
	return nil
}

// references lists what a manifest needs.
func references(raw []byte) (manifests, blobs []v1.Descriptor, err error) {
	kind, err := mediaType(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the manifest: %w", err)
	}
	if kind.IsIndex() {
		index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, nil, fmt.Errorf("reading the index: %w", err)
		}
		return index.Manifests, nil, nil
	}
	if !kind.IsImage() || kind.IsSchema1() {
		return nil, nil, fmt.Errorf("manifests of type %q are not supported: push an OCI or Docker schema 2 image", kind)
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the manifest: %w", err)
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		if d.MediaType.IsDistributable() {
			blobs = append(blobs, d)
		}
	}
	return nil, blobs, nil
}

// localSource reads one repository of what was pushed here.
type localSource struct {
	registry *registry
	repo     string
}

func (r *registry) source(repo string) localSource { return localSource{registry: r, repo: repo} }

func (l localSource) manifest(_ context.Context, digest string) ([]byte, error) {
	if _, err := l.registry.resolve(l.repo, digest); err != nil {
		return nil, &NotFoundError{Image: LocalRegistry + "/" + l.repo + "@" + digest, Err: err}
	}
	return os.ReadFile(l.registry.blobFile(strings.TrimPrefix(digest, "sha256:")))
}

func (l localSource) blob(_ context.Context, digest string) (io.ReadCloser, error) {
	hex, err := digestHex(digest)
	if err != nil {
		return nil, err
	}
	return os.Open(l.registry.blobFile(hex))
}

// usage is how many bytes were pushed and are still here.
func (r *registry) usage() int64 {
	var total int64
	for _, dir := range []string{"blobs", "uploads"} {
		// What disappears while counting counts as nothing.
		entries, _ := os.ReadDir(filepath.Join(r.dir, dir))
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				total += info.Size()
			}
		}
	}
	return total
}

// uploadAge is how long an upload may rest before it is dropped.
const uploadAge = time.Hour

// collect removes manifests that are not in keep and older than before, the blobs that only those needed, and
// uploads that nobody goes on with.
func (r *registry) collect(ctx context.Context, keep map[string]bool, before time.Time) (freed int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, u := range r.uploads {
		if u.idle() > uploadAge {
			freed += u.written()
			delete(r.uploads, id)
			err = errors.Join(err, os.Remove(r.uploadFile(id)))
		}
	}
	links, listErr := grandchildren(filepath.Join(r.dir, "manifests"))
	if listErr != nil {
		return freed, errors.Join(err, listErr)
	}
	needed := map[string]bool{}
	var doomed []string
	for _, link := range links {
		hex := filepath.Base(link)
		info, statErr := os.Stat(link)
		if statErr != nil || keep["sha256:"+hex] || info.ModTime().After(before) {
			err = errors.Join(err, r.mark(hex, needed))
			continue
		}
		doomed = append(doomed, link)
	}
	for _, link := range doomed {
		if !needed[filepath.Base(link)] {
			err = errors.Join(err, os.Remove(link))
		}
	}
	if err != nil {
		return freed, err // what cannot be read may need any blob
	}
	err = r.sweepTags()
	blobs, listErr := os.ReadDir(filepath.Join(r.dir, "blobs"))
	err = errors.Join(err, listErr)
	for _, blob := range blobs {
		info, statErr := blob.Info()
		if statErr != nil || needed[blob.Name()] || info.ModTime().After(before) || ctx.Err() != nil {
			continue
		}
		if removeErr := os.Remove(r.blobFile(blob.Name())); removeErr != nil {
			err = errors.Join(err, removeErr)
			continue
		}
		freed += info.Size()
	}
	return freed, errors.Join(err, ctx.Err())
}

// mark adds a manifest, and all it refers to, to needed.
func (r *registry) mark(hex string, needed map[string]bool) error {
	if needed[hex] {
		return nil
	}
	needed[hex] = true
	raw, err := os.ReadFile(r.blobFile(hex))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	manifests, blobs, err := references(raw)
	if err != nil {
		return err
	}
	for _, d := range blobs {
		needed[d.Digest.Hex] = true
	}
	for _, d := range manifests {
		if err := r.mark(d.Digest.Hex, needed); err != nil {
			return err
		}
	}
	return nil
}

// sweepTags removes tags of manifests that are gone, and directories that are empty.
func (r *registry) sweepTags() error {
	tags, err := grandchildren(filepath.Join(r.dir, "tags"))
	if err != nil {
		return err
	}
	for _, tag := range tags {
		digest, err := os.ReadFile(tag)
		if err != nil {
			return err
		}
		repo := filepath.Base(filepath.Dir(tag))
		link := filepath.Join(r.dir, "manifests", repo, strings.TrimPrefix(string(digest), "sha256:"))
		if _, err := os.Lstat(link); errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(tag); err != nil {
				return err
			}
		}
	}
	for _, kind := range []string{"manifests", "tags"} {
		repos, err := os.ReadDir(filepath.Join(r.dir, kind))
		if err != nil {
			return err
		}
		for _, repo := range repos {
			// It stays when something is in it, which is the point.
			_ = os.Remove(filepath.Join(r.dir, kind, repo.Name()))
		}
	}
	return nil
}

// grandchildren lists dir/*/*. It is no pattern: the path of dir may have any character.
func grandchildren(dir string) ([]string, error) {
	children, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, child := range children {
		entries, err := os.ReadDir(filepath.Join(dir, child.Name()))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			paths = append(paths, filepath.Join(dir, child.Name(), e.Name()))
		}
	}
	return paths, nil
}

// touch makes a file young. It fails when the file is not there.
func touch(path string) error {
	now := time.Now()
	return os.Chtimes(path, now, now)
}
