// Package image keeps container images on this machine: it resolves names to digests, pulls, unpacks each layer
// once, and forgets what nothing uses. It is also a registry of its own, so that an image can be pushed to it
// without another registry ([Store.Registry]), and the client's side of that ([Load], [Push]).
//
// It runs nothing and mounts nothing: an [Image] is a list of layer directories, made for overlayfs, and the
// configuration of the program inside. Start reading at [Open] and [Store.Pull].
package image

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
)

// LocalRegistry is the registry in the names of images that were pushed to this store. It is never asked over
// the network.
const LocalRegistry = "berth.localhost"

// Image is an image that is present: pulled, verified and unpacked. It is read-only and shared by its users.
type Image struct {
	Ref    string // the reference by digest that it was pulled as
	Digest string // the digest in Ref: of an index or of a manifest

	// Layers are the directories of its file system, bottom first, ready to be lower directories of an overlay
	// mount. None is named twice. They belong to the store: nobody writes to them.
	Layers []string

	Config Config
	Size   int64 // bytes that its layers take on disk, shared ones included
}

// Config is what the image says about its program.
type Config struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"` // NAME=VALUE
	User         string            `json:"user,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"` // "8080/tcp", sorted
	Volumes      []string          `json:"volumes,omitempty"`      // paths, sorted
	Labels       map[string]string `json:"labels,omitempty"`
}

// Credentials authenticate to an image registry. The zero value is what Docker's configuration file says, else
// anonymous.
type Credentials struct {
	Username, Password string
	Token              string // bearer token, instead of a user name and password
	Insecure           bool   // allow plain HTTP
}

// platform is what servers run (contract C2, C4). The client that loads an image may be another machine.
func platform() v1.Platform {
	return v1.Platform{OS: "linux", Architecture: "amd64"}
}

func newConfig(c v1.Config) Config {
	config := Config{
		Entrypoint: c.Entrypoint,
		Cmd:        c.Cmd,
		Env:        c.Env,
		User:       c.User,
		WorkingDir: c.WorkingDir,
		StopSignal: c.StopSignal,
		Labels:     c.Labels,
	}
	for port := range c.ExposedPorts {
		config.ExposedPorts = append(config.ExposedPorts, port)
	}
	for path := range c.Volumes {
		config.Volumes = append(config.Volumes, path)
	}
	slices.Sort(config.ExposedPorts)
	slices.Sort(config.Volumes)
	return config
}

// isPath tells a file or folder from a reference, which begins with a letter or a digit.
func isPath(ref string) bool {
	return strings.HasPrefix(ref, ".") || strings.HasPrefix(ref, "/")
}

// parse reads a reference. Names without a registry mean the public default one, as for every other tool.
func parse(ref string, insecure bool) (name.Reference, error) {
	if isPath(ref) {
		return nil, fmt.Errorf("parsing image reference %q: it is the path of a file, which the server does not read: deploy it as docker-archive:%s, oci-archive:%s or oci:%s (a folder), or push it to a registry",
			ref, ref, ref, ref)
	}
	var options []name.Option
	if insecure {
		options = append(options, name.Insecure)
	}
	parsed, err := name.ParseReference(ref, options...)
	if err != nil {
		return nil, fmt.Errorf("parsing image reference %q: %w (want REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:DIGEST)", ref, err)
	}
	return parsed, nil
}

// parseDigest reads a reference that must be by digest.
func parseDigest(ref string, insecure bool) (name.Digest, error) {
	parsed, err := parse(ref, insecure)
	if err != nil {
		return name.Digest{}, err
	}
	digest, ok := parsed.(name.Digest)
	if !ok {
		return name.Digest{}, fmt.Errorf("image reference %q is by tag: resolve it to REPOSITORY@sha256:DIGEST first", ref)
	}
	if _, err := digestHex(digest.DigestStr()); err != nil {
		return name.Digest{}, fmt.Errorf("image reference %q: %w", ref, err)
	}
	return digest, nil
}

// digestHex returns the 64 hex digits of a SHA-256 digest, the only kind of digest that is supported.
func digestHex(digest string) (string, error) {
	digits, ok := strings.CutPrefix(digest, "sha256:")
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != 32 || strings.ToLower(digits) != digits {
		return "", fmt.Errorf("digest %q is not sha256: and 64 lower-case hex digits", digest)
	}
	return digits, nil
}

func platformName(p v1.Platform) string {
	text := cmp.Or(p.OS, "unknown") + "/" + cmp.Or(p.Architecture, "unknown")
	if p.Variant != "" {
		text += "/" + p.Variant
	}
	return text
}
