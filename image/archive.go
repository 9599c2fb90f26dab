package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Kinds of local images, as they stand before the colon of a reference.
const (
	dockerArchive = "docker-archive"
	ociArchive    = "oci-archive"
	ociLayout     = "oci"
)

// tagAnnotation is where an OCI layout keeps the tag of an image.
const tagAnnotation = "org.opencontainers.image.ref.name"

// IsLocal tells whether ref names an image in a file or folder of this machine, which [Load] opens. So does a bare
// path, of which Load says what it lacks.
func IsLocal(ref string) bool {
	if isPath(ref) {
		return true
	}
	kind, rest, ok := strings.Cut(ref, ":")
	return ok && rest != "" && (kind == dockerArchive || kind == ociArchive || kind == ociLayout)
}

// Load opens a local image: "docker-archive:PATH[:TAG]" is what `docker save` writes, "oci-archive:PATH[:TAG]" a
// tar file of an OCI image layout, "oci:DIR[:TAG]" such a layout in a folder. Without a tag there must be one
// image only. Of an image for several platforms it is the one that servers run. The files must stay
// until the image is used.
func Load(ref string) (v1.Image, error) {
	if isPath(ref) {
		return nil, fmt.Errorf("loading image %q: say what it is: docker-archive:%s (what docker save wrote), oci-archive:%s or oci:%s (a folder)", ref, ref, ref, ref)
	}
	if !IsLocal(ref) {
		return nil, fmt.Errorf("loading image %q: want docker-archive:PATH[:TAG], oci-archive:PATH[:TAG] or oci:DIR[:TAG]", ref)
	}
	kind, rest, _ := strings.Cut(ref, ":")
	file, tag, err := splitTag(rest)
	if err != nil {
		return nil, fmt.Errorf("loading image %q: %w", ref, err)
	}
	var loaded v1.Image
	switch kind {
	case dockerArchive:
		loaded, err = loadDocker(file, tag)
	case ociArchive:
		var files *tarFiles
		if files, err = indexTar(file); err == nil {
			loaded, err = loadLayout(files, tag)
		}
	case ociLayout:
		loaded, err = loadLayout(dirFiles(file), tag)
	}
	if err != nil {
		return nil, fmt.Errorf("loading image %q: %w", ref, err)
	}
	config, err := loaded.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("loading image %q: reading its configuration: %w", ref, err)
	}
	if err := checkPlatform(ref, config); err != nil {
		return nil, fmt.Errorf("loading image %q: %w", ref, err)
	}
	return loaded, nil
}

// splitTag splits at the first colon before which there is a file: both parts may have colons.
func splitTag(rest string) (file, tag string, err error) {
	if _, err := os.Stat(rest); err == nil {
		return rest, "", nil
	}
	for i, c := range rest {
		if c != ':' {
			continue
		}
		if _, err := os.Stat(rest[:i]); err == nil {
			return rest[:i], rest[i+1:], nil
		}
	}
	first, _, _ := strings.Cut(rest, ":")
	_, err = os.Stat(first)
	return "", "", err
}

// loadDocker opens one image of what `docker save` wrote, gzip-compressed or not.
func loadDocker(file, tag string) (v1.Image, error) {
	opener := func() (io.ReadCloser, error) { return openPlain(file) }
	manifest, err := tarball.LoadManifest(opener)
	if err != nil {
		return nil, fmt.Errorf("%q is not an archive of docker save: %w", file, err)
	}
	var all []string
	for _, image := range manifest {
		all = append(all, image.RepoTags...)
	}
	if tag == "" && len(manifest) == 1 {
		return tarball.Image(opener, nil)
	}
	if tag == "" {
		return nil, fmt.Errorf("%q holds %d images: add one of the tags %s", file, len(manifest), strings.Join(all, ", "))
	}
	for _, have := range all {
		if have == tag || strings.HasSuffix(have, ":"+tag) && !strings.Contains(tag, "/") || have == tag+":latest" {
			found, err := name.NewTag(have, name.WeakValidation)
			if err != nil {
				return nil, err
			}
			return tarball.Image(opener, &found)
		}
	}
	return nil, fmt.Errorf("%q holds no image with the tag %q, it has: %s", file, tag, strings.Join(all, ", "))
}

// openPlain opens a file, and uncompresses it when it is gzip.
func openPlain(file string) (io.ReadCloser, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	var magic [2]byte
	_, err = f.ReadAt(magic[:], 0)
	if err != nil || magic != [2]byte{0x1f, 0x8b} {
		return f, nil
	}
	plain, err := gzip.NewReader(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{plain, f}, nil
}

// files is an OCI image layout: a folder, or a tar file of one.
type files interface {
	open(name string) (io.ReadCloser, error)
	where() string
}

type dirFiles string

func (d dirFiles) open(name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
}

func (d dirFiles) where() string { return string(d) }

// tarFiles reads a tar file in place: nothing is unpacked.
type tarFiles struct {
	file     string
	sections map[string]section
}

type section struct{ offset, size int64 }

func indexTar(file string) (*tarFiles, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t := &tarFiles{file: file, sections: map[string]section{}}
	reader := tar.NewReader(f)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is not a tar file (compressed ones must be uncompressed first): %w", file, err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		t.sections[path.Clean(header.Name)] = section{offset, header.Size}
	}
}

func (t *tarFiles) open(name string) (io.ReadCloser, error) {
	s, ok := t.sections[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: t.file + ":" + name, Err: fs.ErrNotExist}
	}
	f, err := os.Open(t.file)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, s.offset, s.size), f}, nil
}

func (t *tarFiles) where() string { return t.file }

// loadLayout opens one image of an OCI image layout.
func loadLayout(from files, tag string) (v1.Image, error) {
	raw, err := readAll(from, "index.json")
	if err != nil {
		return nil, fmt.Errorf("%q is not an OCI image layout: %w", from.where(), err)
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%q is not an OCI image layout: index.json: %w", from.where(), err)
	}
	d, err := pick(from.where(), index.Manifests, tag)
	if err != nil {
		return nil, err
	}
	for depth := 0; d.MediaType.IsIndex(); depth++ {
		if depth == maxIndexDepth {
			return nil, fmt.Errorf("%q: more than %d indexes inside each other", from.where(), maxIndexDepth)
		}
		raw, err := readAll(from, blobPath(d.Digest))
		if err != nil {
			return nil, err
		}
		nested, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("reading index %s: %w", d.Digest, err)
		}
		chosen, err := choose(from.where(), nested)
		if err != nil {
			return nil, err
		}
		d = *chosen
	}
	if !d.MediaType.IsImage() {
		return nil, fmt.Errorf("%q holds a %s, which is not an image", from.where(), d.MediaType)
	}
	manifest, err := readAll(from, blobPath(d.Digest))
	if err != nil {
		return nil, err
	}
	if got := digestOf(manifest); got != d.Digest.String() {
		return nil, &DigestError{What: fmt.Sprintf("the manifest in %q", from.where()), Want: d.Digest.String(), Got: got}
	}
	return partial.CompressedToImage(&layoutImage{from: from, kind: d.MediaType, manifest: manifest})
}

// pick finds the image that tag means. Several that differ in their platform only are one image.
func pick(where string, all []v1.Descriptor, tag string) (v1.Descriptor, error) {
	var tags []string
	var found []v1.Descriptor
	for _, d := range all {
		has := d.Annotations[tagAnnotation]
		if has != "" && !slices.Contains(tags, has) {
			tags = append(tags, has)
		}
		if tag == "" || has == tag || strings.HasSuffix(has, ":"+tag) {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && tag != "":
		return v1.Descriptor{}, fmt.Errorf("%q holds no image with the tag %q, it has: %s", where, tag, strings.Join(tags, ", "))
	case len(found) == 0:
		return v1.Descriptor{}, fmt.Errorf("%q holds no image", where)
	case len(tags) > 1 && tag == "":
		return v1.Descriptor{}, fmt.Errorf("%q holds %d images: add one of the tags %s", where, len(found), strings.Join(tags, ", "))
	}
	chosen, err := choose(where, &v1.IndexManifest{Manifests: found})
	if err != nil {
		return v1.Descriptor{}, err
	}
	return *chosen, nil
}

// layoutImage is the little that go-containerregistry needs to derive an image.
type layoutImage struct {
	from     files
	kind     types.MediaType
	manifest []byte
}

// RawManifest implements partial.CompressedImageCore.
func (l *layoutImage) RawManifest() ([]byte, error) { return l.manifest, nil }

// MediaType implements partial.CompressedImageCore.
func (l *layoutImage) MediaType() (types.MediaType, error) { return l.kind, nil }

// RawConfigFile implements partial.CompressedImageCore.
func (l *layoutImage) RawConfigFile() ([]byte, error) {
	manifest, err := v1.ParseManifest(bytes.NewReader(l.manifest))
	if err != nil {
		return nil, err
	}
	return readAll(l.from, blobPath(manifest.Config.Digest))
}

// LayerByDigest implements partial.CompressedImageCore.
func (l *layoutImage) LayerByDigest(digest v1.Hash) (partial.CompressedLayer, error) {
	manifest, err := v1.ParseManifest(bytes.NewReader(l.manifest))
	if err != nil {
		return nil, err
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		if d.Digest == digest {
			return layoutLayer{from: l.from, descriptor: d}, nil
		}
	}
	return nil, fmt.Errorf("there is no blob %s in %q", digest, l.from.where())
}

type layoutLayer struct {
	from       files
	descriptor v1.Descriptor
}

// Digest implements partial.CompressedLayer.
func (l layoutLayer) Digest() (v1.Hash, error) { return l.descriptor.Digest, nil }

// Compressed implements partial.CompressedLayer.
func (l layoutLayer) Compressed() (io.ReadCloser, error) {
	return l.from.open(blobPath(l.descriptor.Digest))
}

// Size implements partial.CompressedLayer.
func (l layoutLayer) Size() (int64, error) { return l.descriptor.Size, nil }

// MediaType implements partial.CompressedLayer.
func (l layoutLayer) MediaType() (types.MediaType, error) { return l.descriptor.MediaType, nil }

func blobPath(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }

func readAll(from files, name string) ([]byte, error) {
	f, err := from.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err == nil && len(data) > maxConfigBytes {
		err = fmt.Errorf("%s in %q is longer than the %d bytes that are allowed", name, from.where(), maxConfigBytes)
	}
	return data, err
}
